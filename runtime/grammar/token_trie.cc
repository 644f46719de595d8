#include "runtime/grammar/token_trie.h"

#include <algorithm>

#include "runtime/tokenizer/tokenizer.h"

namespace stoker {

namespace {

// What answers are marked up with; some files have it as control tokens.
bool is_markup(std::string_view text) { return text.starts_with("<｜tool") || text == "<think>" || text == "</think>"; }

}  // namespace

TokenTrie::TokenTrie(const Tokenizer& tokenizer) {
  size_t vocab = static_cast<size_t>(tokenizer.vocab_size());
  texts_.resize(vocab);
  ends_.resize(vocab);
  for (size_t i = 0; i < vocab; i++) {
    i32 id = static_cast<i32>(i);
    ends_[i] = tokenizer.is_end(id);
    std::string_view text = tokenizer.bytes(id);
    if (!ends_[i] && (!tokenizer.is_control(id) || is_markup(text))) texts_[i] = text;
  }
  build();
}

void TokenTrie::build() {
  for (size_t i = 0; i < texts_.size(); i++)
    if (!texts_[i].empty()) tokens_.push_back(static_cast<i32>(i));
  std::sort(tokens_.begin(), tokens_.end(), [&](i32 a, i32 b) { return std::pair(text(a), a) < std::pair(text(b), b); });
  std::vector<i32> path;  // the nodes above, from depth 1 on
  auto close = [&](size_t depth) {
    while (path.size() > depth) {
      nodes_[static_cast<size_t>(path.back())].skip = static_cast<i32>(nodes_.size());
      path.pop_back();
    }
  };
  std::string_view before;
  for (size_t i = 0; i < tokens_.size(); i++) {
    std::string_view bytes = text(tokens_[i]);
    size_t common = static_cast<size_t>(std::mismatch(bytes.begin(), bytes.end(), before.begin(), before.end()).first - bytes.begin());
    close(common);
    for (size_t k = common; k < bytes.size(); k++) {
      path.push_back(static_cast<i32>(nodes_.size()));
      nodes_.push_back({.byte = static_cast<u8>(bytes[k]), .depth = static_cast<i32>(k) + 1});
    }
    Node& node = nodes_[static_cast<size_t>(path.back())];
    if (node.tokens++ == 0) node.first_token = static_cast<i32>(i);
    deepest_ = std::max(deepest_, node.depth);
    before = bytes;
  }
  close(0);
}

}  // namespace stoker

// TokenTrie: the texts of a vocabulary as a tree over bytes, laid out so that a walk over all of it reads forward.
// Immutable; any thread may read it.
#pragma once

#include <span>
#include <string_view>
#include <vector>

#include "kernels/base/types.h"

namespace stoker {

class Tokenizer;

class TokenTrie {
 public:
  // The tokens that are text, markup of thinking and of function calls included; no other control tokens.
  explicit TokenTrie(const Tokenizer& tokenizer);

  struct Node {
    u8 byte = 0;
    i32 depth = 0;          // 1 for a first byte
    i32 skip = 0;           // the next node that is not below this one
    i32 first_token = 0, tokens = 0;  // in tokens(): those that end here
  };
  std::span<const Node> nodes() const { return nodes_; }  // each before those below it
  std::span<const i32> tokens() const { return tokens_; }
  i32 deepest() const { return deepest_; }
  i64 vocab() const { return static_cast<i64>(ends_.size()); }
  // Models can have more logits than their tokenizer has tokens: those are none of this tree's.
  bool is_end(i32 token) const { return token < vocab() && ends_[static_cast<size_t>(token)]; }
  std::string_view text(i32 token) const {  // "": none of this tree's
    return token < vocab() ? texts_[static_cast<size_t>(token)] : std::string_view();
  }

 private:
  void build();

  std::vector<std::string_view> texts_;  // [vocab], the tokenizer's
  std::vector<bool> ends_;               // [vocab]
  std::vector<Node> nodes_;
  std::vector<i32> tokens_;
  i32 deepest_ = 0;
};

}  // namespace stoker

#include "runtime/grammar/grammar_filter.h"

#include <limits>

namespace stoker {

GrammarFilter::GrammarFilter(std::shared_ptr<const Grammar> grammar, std::shared_ptr<const TokenTrie> tokens)
    : tokens_(std::move(tokens)),
      automaton_(std::move(grammar)),
      state_(automaton_.start()),
      path_(static_cast<size_t>(tokens_->deepest()) + 1) {}

// kDead: not allowed.
ByteAutomaton::State GrammarFilter::after(i32 token) {
  if (tokens_->is_end(token)) return automaton_.may_end(state_) ? state_ : ByteAutomaton::kDead;
  if (tokens_->text(token).empty()) return ByteAutomaton::kDead;
  ByteAutomaton::State state = state_;
  for (char c : tokens_->text(token)) {
    state = automaton_.step(state, static_cast<u8>(c));
    if (state == ByteAutomaton::kDead) break;
  }
  return state;
}

bool GrammarFilter::allows(i32 token) { return after(token) != ByteAutomaton::kDead; }

bool GrammarFilter::accept(i32 token) {
  ByteAutomaton::State next = after(token);
  if (next == ByteAutomaton::kDead) return false;
  state_ = next;
  if (automaton_.states() > kMostStates) {
    state_ = automaton_.forget_others(state_);
    masks_.clear();
  }
  return true;
}

void GrammarFilter::mask(std::span<f32> logits) {
  auto known = masks_.find(state_);
  if (known == masks_.end()) {
    if (masks_.size() >= kMostMasks) masks_.clear();
    known = masks_.emplace(state_, make_mask()).first;
  }
  for (size_t i = 0; i < logits.size(); i++)
    if (i >= known->second.size() || !known->second[i]) logits[i] = -std::numeric_limits<f32>::infinity();
}

GrammarFilter::Mask GrammarFilter::make_mask() {
  Mask allowed(static_cast<size_t>(tokens_->vocab()));
  if (automaton_.may_end(state_))
    for (i32 token = 0; token < tokens_->vocab(); token++)
      if (tokens_->is_end(token)) allowed[static_cast<size_t>(token)] = true;
  std::span<const TokenTrie::Node> nodes = tokens_->nodes();
  path_[0] = state_;
  for (size_t i = 0; i < nodes.size();) {
    const TokenTrie::Node& node = nodes[i];
    size_t depth = static_cast<size_t>(node.depth);
    path_[depth] = automaton_.step(path_[depth - 1], node.byte);
    if (path_[depth] == ByteAutomaton::kDead) {
      i = static_cast<size_t>(node.skip);
      continue;
    }
    for (i32 k = 0; k < node.tokens; k++)
      allowed[static_cast<size_t>(tokens_->tokens()[static_cast<size_t>(node.first_token + k)])] = true;
    i++;
  }
  return allowed;
}

}  // namespace stoker

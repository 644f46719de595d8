// GrammarFilter: the tokens that a grammar allows. Asking for one token follows its bytes; the mask of all walks the
// vocabulary's tree once per state of the automaton and is remembered. One owner thread.
#pragma once

#include <memory>
#include <unordered_map>
#include <vector>

#include "runtime/grammar/byte_automaton.h"
#include "runtime/grammar/token_trie.h"
#include "runtime/token_filter.h"

namespace stoker {

class GrammarFilter : public TokenFilter {
 public:
  GrammarFilter(std::shared_ptr<const Grammar> grammar, std::shared_ptr<const TokenTrie> tokens);

  bool allows(i32 token) override;
  void mask(std::span<f32> logits) override;
  bool accept(i32 token) override;
  bool finished() const override { return automaton_.must_end(state_); }

 private:
  static constexpr i64 kMostStates = 50'000;
  static constexpr size_t kMostMasks = 256;
  using Mask = std::vector<bool>;  // [vocab]

  ByteAutomaton::State after(i32 token);
  Mask make_mask();

  std::shared_ptr<const TokenTrie> tokens_;
  ByteAutomaton automaton_;
  ByteAutomaton::State state_;
  std::unordered_map<ByteAutomaton::State, Mask> masks_;
  std::vector<ByteAutomaton::State> path_;  // [deepest + 1]: states above a node
};

}  // namespace stoker

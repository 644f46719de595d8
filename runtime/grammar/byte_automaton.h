// ByteAutomaton: follows a Grammar byte by byte. A state is the set of all stacks of the pushdown automaton that the
// bytes so far can have led to; states, stacks and steps are remembered when they are first seen, so that a step is
// mostly one look into a table. One owner thread.
#pragma once

#include <array>
#include <memory>
#include <unordered_map>
#include <vector>

#include "runtime/grammar/grammar.h"

namespace stoker {

class ByteAutomaton {
 public:
  using State = i32;
  static constexpr State kDead = -1;  // no text of the grammar begins like this

  explicit ByteAutomaton(std::shared_ptr<const Grammar> grammar);

  State start() const { return start_; }
  // Throws Error when the grammar is so ambiguous that a state has more than kMostStacks.
  State step(State from, u8 byte) {
    State& to = steps_[static_cast<size_t>(from) * classes_ + class_of_[byte]];
    return to != kUnknown ? to : find_step(from, byte);
  }
  bool may_end(State state) const { return !sets_[static_cast<size_t>(state)].empty() && sets_[static_cast<size_t>(state)][0] == 0; }
  bool must_end(State state) const { return may_end(state) && sets_[static_cast<size_t>(state)].size() == 1; }

  i64 states() const { return static_cast<i64>(sets_.size()); }
  // Forgets all states but `keep`, and returns its new name. For long texts of grammars with many states.
  State forget_others(State keep);

 private:
  static constexpr State kUnknown = -2;
  static constexpr size_t kMostStacks = 20'000;

  // A stack is named by its top. Name 0 is the stack of a text that is complete.
  struct Frame {
    i32 symbol;  // where to go on in Grammar::symbols
    i32 below;   // stack
    bool operator==(const Frame&) const = default;
  };
  struct FrameHash {
    size_t operator()(const Frame& f) const {
      return (static_cast<u64>(static_cast<u32>(f.symbol)) << 32 | static_cast<u32>(f.below)) * 0x9e3779b97f4a7c15u >> 16;
    }
  };
  using Stacks = std::vector<i32>;  // sorted; all have `bytes` on top, or are 0
  struct StacksHash {
    size_t operator()(const Stacks& stacks) const;
  };

  void make_classes();
  i32 stack(Frame frame);
  void expand(std::vector<Frame> todo, Stacks& out);
  State intern(Stacks stacks);
  State find_step(State from, u8 byte);

  std::shared_ptr<const Grammar> grammar_;
  std::array<u8, 256> class_of_{};  // bytes that no set of the grammar tells apart
  size_t classes_ = 0;
  std::vector<Frame> frames_;
  std::unordered_map<Frame, i32, FrameHash> frame_ids_;
  std::vector<Stacks> sets_;
  std::unordered_map<Stacks, State, StacksHash> state_ids_;
  std::vector<State> steps_;  // [states, classes]
  State start_ = kDead;
};

}  // namespace stoker

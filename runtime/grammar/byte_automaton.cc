#include "runtime/grammar/byte_automaton.h"

#include <algorithm>
#include <map>
#include <unordered_set>

#include "kernels/base/error.h"

namespace stoker {

using Symbol = Grammar::Symbol;

size_t ByteAutomaton::StacksHash::operator()(const Stacks& stacks) const {
  u64 hash = stacks.size();
  for (i32 id : stacks) hash = (hash ^ static_cast<u64>(id)) * 0x9e3779b97f4a7c15u + (hash >> 29);
  return hash;
}

ByteAutomaton::ByteAutomaton(std::shared_ptr<const Grammar> grammar) : grammar_(std::move(grammar)) {
  make_classes();
  frames_.push_back({-1, -1});
  std::vector<Frame> todo;
  for (i32 begin : grammar_->rules[static_cast<size_t>(grammar_->root)]) todo.push_back({begin, 0});
  Stacks stacks;
  expand(std::move(todo), stacks);
  start_ = intern(std::move(stacks));
}

// Two bytes are of one class when each set has both or none.
void ByteAutomaton::make_classes() {
  for (const ByteSet& set : grammar_->sets) {
    std::map<std::pair<u8, bool>, u8> split;
    for (size_t byte = 0; byte < 256; byte++) {
      auto key = std::pair(class_of_[byte], set[byte]);
      class_of_[byte] = split.emplace(key, static_cast<u8>(split.size())).first->second;
    }
  }
  classes_ = static_cast<size_t>(*std::max_element(class_of_.begin(), class_of_.end())) + 1;
}

i32 ByteAutomaton::stack(Frame frame) {
  auto [found, is_new] = frame_ids_.emplace(frame, static_cast<i32>(frames_.size()));
  if (is_new) frames_.push_back(frame);
  return found->second;
}

// Enters rules and leaves ended ones until bytes are on top.
void ByteAutomaton::expand(std::vector<Frame> todo, Stacks& out) {
  std::unordered_set<Frame, FrameHash> seen;
  while (!todo.empty()) {
    Frame frame = todo.back();
    todo.pop_back();
    if (!seen.insert(frame).second) continue;
    if (seen.size() > kMostStacks) fail("the grammar is too ambiguous: the text so far can be read in {} ways", kMostStacks);
    const Symbol symbol = grammar_->symbols[static_cast<size_t>(frame.symbol)];
    if (symbol.kind == Symbol::bytes) {
      out.push_back(stack(frame));
    } else if (symbol.kind == Symbol::end) {
      if (frame.below == 0) {
        out.push_back(0);
      } else {
        todo.push_back(frames_[static_cast<size_t>(frame.below)]);
      }
    } else {
      // A call at the end returns to where this rule returns: repetitions do not make the stack grow.
      Frame next{frame.symbol + 1, frame.below};
      bool last = grammar_->symbols[static_cast<size_t>(next.symbol)].kind == Symbol::end;
      i32 below = last ? frame.below : stack(next);
      for (i32 begin : grammar_->rules[static_cast<size_t>(symbol.index)]) todo.push_back({begin, below});
    }
  }
}

ByteAutomaton::State ByteAutomaton::intern(Stacks stacks) {
  if (stacks.empty()) return kDead;
  std::sort(stacks.begin(), stacks.end());
  stacks.erase(std::unique(stacks.begin(), stacks.end()), stacks.end());
  auto [found, is_new] = state_ids_.emplace(stacks, static_cast<State>(sets_.size()));
  if (is_new) {
    sets_.push_back(std::move(stacks));
    steps_.resize(steps_.size() + classes_, kUnknown);
  }
  return found->second;
}

ByteAutomaton::State ByteAutomaton::find_step(State from, u8 byte) {
  std::vector<Frame> todo;
  for (i32 id : sets_[static_cast<size_t>(from)]) {
    if (id == 0) continue;
    Frame frame = frames_[static_cast<size_t>(id)];
    const ByteSet& set = grammar_->sets[static_cast<size_t>(grammar_->symbols[static_cast<size_t>(frame.symbol)].index)];
    if (set[byte]) todo.push_back({frame.symbol + 1, frame.below});
  }
  Stacks stacks;
  expand(std::move(todo), stacks);
  State to = intern(std::move(stacks));
  return steps_[static_cast<size_t>(from) * classes_ + class_of_[byte]] = to;
}

ByteAutomaton::State ByteAutomaton::forget_others(State keep) {
  Stacks stacks = std::move(sets_[static_cast<size_t>(keep)]);
  std::vector<Frame> old = std::move(frames_);
  frames_ = {{-1, -1}};
  frame_ids_.clear();
  sets_.clear();
  state_ids_.clear();
  steps_.clear();
  // What is below has a smaller name, so this order meets it first.
  std::vector<bool> alive(old.size());
  for (i32 id : stacks)
    for (i32 at = id; at > 0 && !alive[static_cast<size_t>(at)]; at = old[static_cast<size_t>(at)].below)
      alive[static_cast<size_t>(at)] = true;
  std::vector<i32> renamed(old.size());
  for (size_t i = 1; i < old.size(); i++)
    if (alive[i]) renamed[i] = stack({old[i].symbol, renamed[static_cast<size_t>(old[i].below)]});
  for (i32& id : stacks) id = renamed[static_cast<size_t>(id)];
  start_ = kDead;
  return intern(std::move(stacks));
}

}  // namespace stoker

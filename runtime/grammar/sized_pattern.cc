#include "runtime/grammar/sized_pattern.h"

#include <fmt/format.h>

#include <algorithm>
#include <map>
#include <set>
#include <vector>

#include "kernels/base/check.h"
#include "kernels/base/error.h"

namespace stoker {

namespace {

constexpr size_t kMostStates = 20'000;  // of the pattern, repetitions written out
constexpr size_t kMostRules = 20'000;   // sets of them, times lengths

using States = std::vector<i32>;  // ascending

// Thompson's construction: a state has edges that take nothing, and at most one that takes a character.
class PatternAutomaton {
 public:
  // Repetitions beyond `most` characters (-1: no limit) are one without end: no text that is wanted is that long.
  PatternAutomaton(const Pattern& pattern, i64 most) : most_(most) {
    begin_ = state();
    end_ = add(pattern, begin_);
  }

  States begin() const { return closure({begin_}); }
  bool accepts(const States& states) const { return std::binary_search(states.begin(), states.end(), end_); }

  // Disjoint sets of characters and where each leads, those that lead nowhere left out.
  const std::map<States, CodePointRanges>& steps(const States& from) {
    auto [found, added] = steps_.try_emplace(from);
    if (added) found->second = find_steps(from);
    return found->second;
  }

 private:
  std::map<States, CodePointRanges> find_steps(const States& from) const {
    std::set<u32> borders;
    for (i32 s : from)
      for (auto [first, last] : at(s).characters) borders.insert({first, last + 1});
    std::map<States, CodePointRanges> result;
    for (auto border = borders.begin(); border != borders.end(); ++border) {
      auto next = std::next(border);
      if (next == borders.end()) break;
      States to;
      for (i32 s : from)
        if (has(at(s).characters, *border)) to.push_back(at(s).to);
      if (!to.empty()) result[closure(std::move(to))].emplace_back(*border, *next - 1);
    }
    for (auto& [to, ranges] : result) ranges = normalised(std::move(ranges));
    return result;
  }

  struct State {
    std::vector<i32> free;
    CodePointRanges characters;  // to `to`
    i32 to = -1;
  };

  const State& at(i32 state) const { return states_[static_cast<size_t>(state)]; }
  static bool has(const CodePointRanges& ranges, u32 c) {
    return std::any_of(ranges.begin(), ranges.end(), [c](auto range) { return c >= range.first && c <= range.second; });
  }
  i32 state() {
    if (states_.size() >= kMostStates) fail("it is too large beside minLength or maxLength; allow fewer repetitions");
    states_.emplace_back();
    return static_cast<i32>(states_.size()) - 1;
  }
  void connect(i32 from, i32 to) { states_[static_cast<size_t>(from)].free.push_back(to); }

  // From `from` on; the state at its end.
  i32 add(const Pattern& p, i32 from) {
    switch (p.kind) {
      case Pattern::Kind::characters: {
        i32 end = state();
        State& begin = states_[static_cast<size_t>(from)];
        CHECK(begin.to < 0);
        begin.characters = p.characters;
        begin.to = end;
        return end;
      }
      case Pattern::Kind::sequence:
        for (const Pattern& part : p.parts) from = add_apart(part, from);
        return from;
      case Pattern::Kind::choice: {
        i32 end = state();
        for (const Pattern& part : p.parts) connect(add_apart(part, from), end);
        return end;
      }
      case Pattern::Kind::repeat:
        return repeat(p, from);
    }
    return from;
  }

  // With a beginning of its own.
  i32 add_apart(const Pattern& p, i32 from) {
    i32 begin = state();
    connect(from, begin);
    return add(p, begin);
  }

  i32 repeat(const Pattern& p, i32 from) {
    bool endless = p.most < 0 || (most_ >= 0 && p.most > most_);
    i64 least = most_ >= 0 ? std::min(p.least, most_ + 1) : p.least;
    for (i64 i = 0; i < least; i++) from = add_apart(p.parts[0], from);
    i32 end = state();
    connect(from, end);
    if (endless) {
      i32 again = add_apart(p.parts[0], end);
      connect(again, end);
      return end;
    }
    for (i64 i = least; i < p.most; i++) {
      from = add_apart(p.parts[0], from);
      connect(from, end);
    }
    return end;
  }

  States closure(States from) const {
    std::set<i32> seen(from.begin(), from.end());
    while (!from.empty()) {
      i32 state = from.back();
      from.pop_back();
      for (i32 next : at(state).free)
        if (seen.insert(next).second) from.push_back(next);
    }
    return {seen.begin(), seen.end()};
  }

  i64 most_;
  std::vector<State> states_;
  std::map<States, std::map<States, CodePointRanges>> steps_;  // as they are asked for
  i32 begin_ = 0, end_ = 0;
};

}  // namespace

std::string sized_pattern_expression(const Pattern& pattern, i64 least, i64 most, const std::string& prefix,
                                     const std::function<void(const std::string&, const std::string&)>& rule) {
  PatternAutomaton automaton(pattern, most);
  i64 counted = most >= 0 ? most : least;  // longer ones are all the same
  using Node = std::pair<States, i64>;
  std::map<Node, std::string> names;
  std::vector<Node> open;
  auto name_of = [&](Node node) {
    auto [found, added] = names.try_emplace(node, fmt::format("{}-{}", prefix, names.size()));
    if (added) open.push_back(std::move(node));
    if (names.size() > kMostRules) fail("it is too large beside minLength or maxLength; write the length into the pattern");
    return found->second;
  };
  std::map<CodePointRanges, std::string> classes;
  auto class_of = [&](const CodePointRanges& ranges) {
    auto [found, added] = classes.try_emplace(ranges, fmt::format("{}c{}", prefix, classes.size()));
    if (added) rule(found->second, json_character(ranges));
    return found->second;
  };
  std::string begin = name_of({automaton.begin(), 0});
  while (!open.empty()) {
    auto [states, length] = std::move(open.back());
    open.pop_back();
    std::string name = names.at({states, length}), all = length >= least && automaton.accepts(states) ? "\"\"" : "";
    if (most < 0 || length < most)
      for (const auto& [to, ranges] : automaton.steps(states))
        all += fmt::format("{}{} {}", all.empty() ? "" : " | ", class_of(ranges), name_of({to, std::min(length + 1, counted)}));
    rule(name, all.empty() ? fmt::format("\"x\" {}", name) : all);  // a dead end: never complete, so it is left out
  }
  return fmt::format("\"\\\"\" {} \"\\\"\"", begin);
}

}  // namespace stoker

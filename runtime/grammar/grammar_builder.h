// GrammarBuilder: rules are named, written and referred to in any order, then checked and laid out as a Grammar. One
// owner.
#pragma once

#include <map>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "runtime/grammar/grammar.h"

namespace stoker {

// Code points: disjoint, ascending, both ends included.
using CodePointRanges = std::vector<std::pair<u32, u32>>;
inline constexpr u32 kLastCodePoint = 0x10ffff;

// Sorts and joins.
CodePointRanges normalised(CodePointRanges ranges);
// All code points but these and the surrogates.
CodePointRanges complement(const CodePointRanges& ranges);

class GrammarBuilder {
 public:
  using Sequence = std::vector<Grammar::Symbol>;

  static constexpr i64 kUnbounded = -1;
  // Texts that a client sends become this large at most: a repetition counts as often as it may repeat.
  static constexpr i64 kMostSymbols = 1'000'000;

  // All throw Error when the grammar becomes larger than that.
  i32 named(const std::string& name);  // the rule of that name, to be written now or later
  void write(i32 rule, std::vector<Sequence> alternatives);  // throws Error for one that is written
  Grammar::Symbol add(std::vector<Sequence> alternatives);   // a rule without a name

  Sequence text(std::string_view bytes);
  Grammar::Symbol one_of(const CodePointRanges& ranges);  // one character in UTF-8
  // `most` kUnbounded: no limit
  Sequence repeated(const Sequence& what, i64 least, i64 most);

  // Throws Error: a rule that is not written, or that begins with itself; no text that is ever complete.
  Grammar build(const std::string& root);

 private:
  using Alternatives = std::vector<Sequence>;
  Grammar::Symbol set_symbol(const ByteSet& set);
  Grammar::Symbol bytes_between(u32 first, u32 last);
  void count(i64 symbols);
  void check_left_recursion() const;
  std::vector<bool> rules_made_of(bool bytes_are) const;
  void drop_endless(i32 root);

  std::vector<Alternatives> rules_;
  std::vector<std::string> names_;  // "": has none
  std::vector<bool> written_;
  std::map<std::string, i32> by_name_;
  std::vector<ByteSet> sets_;
  std::map<std::string, i32> set_ids_;
  std::map<CodePointRanges, Grammar::Symbol> classes_;
  i64 symbols_ = 0;
};

}  // namespace stoker

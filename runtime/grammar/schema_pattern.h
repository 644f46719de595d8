// A regular expression of JSON Schema's `pattern` (ECMA-262) as a GBNF expression for the JSON string, quotes included.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "runtime/grammar/grammar_builder.h"

namespace stoker {

struct Pattern {
  enum class Kind { characters, sequence, choice, repeat } kind = Kind::sequence;
  CodePointRanges characters = {};   // one of them
  std::vector<Pattern> parts = {};   // of the others; one of repeat
  i64 least = 1, most = 1;           // of repeat; most -1: no limit
};

// Characters, ., classes, \d \w \s and their opposites, groups, |, * + ? {m,n}; ^ and $ at the ends only, anything where
// they are not. What matches the result matches the pattern; \d, \w and \s are ASCII only. Throws Error for all else.
Pattern parse_pattern(std::string_view pattern);

std::string pattern_expression(const Pattern& pattern);
// One of these characters, as JSON writes it.
std::string json_character(const CodePointRanges& ranges);

}  // namespace stoker

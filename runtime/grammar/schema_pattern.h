// A regular expression of JSON Schema's `pattern` (ECMA-262) as a GBNF expression for the JSON string, quotes included.
#pragma once

#include <string>
#include <string_view>

namespace stoker {

// Characters, ., classes, \d \w \s and their opposites, groups, |, * + ? {m,n}; ^ and $ at the ends only. What matches
// the expression matches the pattern; \d, \w and \s make ASCII only. Throws Error for all else.
std::string pattern_expression(std::string_view pattern);

}  // namespace stoker

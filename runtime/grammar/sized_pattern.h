// A pattern's texts of certain lengths, as GBNF: its automaton over characters (subset construction) times a count of them.
#pragma once

#include <functional>
#include <string>

#include "runtime/grammar/schema_pattern.h"

namespace stoker {

// An expression for the JSON string, quotes included. `least` and `most` characters, most -1: no limit. `rule(name,
// expression)` is called for each rule that it needs; their names begin with `prefix`, and are used with nothing else.
// Throws Error when there would be too many.
std::string sized_pattern_expression(const Pattern& pattern, i64 least, i64 most, const std::string& prefix,
                                     const std::function<void(const std::string& name, const std::string& expression)>& rule);

}  // namespace stoker

// The counts in {m,n} of grammars and patterns.
#pragma once

#include <string_view>

#include "kernels/base/error.h"
#include "kernels/base/types.h"

namespace stoker {

// The digits at text[at], which moves behind them. Throws Error: there are none, or they say more than `most`.
inline i64 repetitions(std::string_view text, size_t& at, i64 most) {
  i64 value = 0;
  size_t begin = at;
  for (; at < text.size() && text[at] >= '0' && text[at] <= '9'; at++) {
    value = value * 10 + (text[at] - '0');
    if (value > most) fail("more than {} repetitions", most);
  }
  if (begin == at) fail("a number was expected at '{}'", text.substr(at, 12));
  return value;
}

}  // namespace stoker

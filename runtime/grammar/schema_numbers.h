// GBNF expressions for numbers between bounds.
#pragma once

#include <optional>
#include <string>

#include "kernels/base/types.h"

namespace stoker {

// A whole number, both ends included; none: no bound. Throws Error when there is none between. Bounds are less than 10^15
// apart from zero.
std::string integer_expression(std::optional<i64> least, std::optional<i64> most);

struct NumberBounds {
  std::optional<f64> least, most;
  bool above = false, below = false;  // an end itself is not allowed
};
// Numbers with and without a fraction. When a bound is no whole number the nearest whole one inside takes its place: all
// numbers of the expression are in bounds, not the reverse. Throws Error when that leaves none.
std::string number_expression(const NumberBounds& bounds);

}  // namespace stoker

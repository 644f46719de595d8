#include "runtime/grammar/schema_numbers.h"

#include <fmt/format.h>

#include <cmath>
#include <vector>

#include "kernels/base/error.h"

namespace stoker {

namespace {

constexpr int kMostDigits = 15;
constexpr i64 kLargest = 999'999'999'999'999;  // kMostDigits nines
constexpr const char* kFraction = "(\".\" [0-9]{1,15})?";
constexpr const char* kFractionAboveZero = "\".\" [0-9]{0,14} [1-9]";

std::string digits(size_t count) { return count == 0 ? "" : fmt::format("[0-9]{{{}}}", count); }

std::string join(const std::vector<std::string>& alternatives) { return fmt::format("({})", fmt::join(alternatives, " | ")); }

// Numbers of as many digits as both ends have.
std::string between(const std::string& low, const std::string& high) {
  size_t size = low.size();
  if (size == 0) return "";
  if (low == std::string(size, '0') && high == std::string(size, '9')) return digits(size);
  std::string low_rest = low.substr(1), high_rest = high.substr(1);
  auto with_first = [](char first, const std::string& rest) { return fmt::format("\"{}\" {}", first, rest); };
  if (low[0] == high[0]) return with_first(low[0], between(low_rest, high_rest));
  std::vector<std::string> all;
  char first = low[0], last = high[0];
  if (low_rest != std::string(size - 1, '0')) {
    all.push_back(with_first(low[0], between(low_rest, std::string(size - 1, '9'))));
    first++;
  }
  bool whole_end = high_rest == std::string(size - 1, '9');
  if (!whole_end) last--;
  if (first <= last) all.push_back(fmt::format("[{}-{}] {}", first, last, digits(size - 1)));
  if (!whole_end) all.push_back(with_first(high[0], between(std::string(size - 1, '0'), high_rest)));
  return join(all);
}

// 0 <= low <= high
std::string natural(i64 low, i64 high) {
  std::vector<std::string> all;
  i64 smallest = 0, largest = 9;
  for (int count = 1; count <= kMostDigits; count++) {
    i64 from = std::max(low, smallest), to = std::min(high, largest);
    if (from <= to) all.push_back(between(std::to_string(from), std::to_string(to)));
    smallest = largest + 1;
    largest = largest * 10 + 9;
  }
  return join(all);
}

struct Signed {
  bool has_negative = false, has_natural = false;
  i64 negative_low = 0, negative_high = 0;  // of the absolute values
  i64 low = 0, high = 0;
};

Signed split(i64 least, i64 most) {
  Signed s;
  s.has_negative = least < 0;
  s.negative_low = std::max<i64>(1, -most);
  s.negative_high = -least;
  s.has_natural = most >= 0;
  s.low = std::max<i64>(0, least);
  s.high = most;
  return s;
}

void check_bound(i64 bound) {
  if (bound < -kLargest || bound > kLargest) fail("bounds of more than {} digits are not supported", kMostDigits);
}

i64 whole(f64 value) {
  if (!(std::abs(value) <= static_cast<f64>(kLargest))) fail("bounds of more than {} digits are not supported", kMostDigits);
  return static_cast<i64>(value);
}

// Numbers from zero's side: `low` to `high` in absolute value. `above`, `below`: not the ends themselves.
std::string magnitudes(i64 low, i64 high, bool above, bool below) {
  std::vector<std::string> all;
  if (above && low < high) all.push_back(fmt::format("\"{}\" {}", low, kFractionAboveZero));
  i64 first = above ? low + 1 : low;
  if (first < high) all.push_back(fmt::format("{} {}", natural(first, high - 1), kFraction));
  if (first <= high && !below) all.push_back(fmt::format("\"{}\" (\".0\")?", high));
  return all.empty() ? "" : join(all);
}

}  // namespace

std::string integer_expression(std::optional<i64> least, std::optional<i64> most) {
  if (least) check_bound(*least);
  if (most) check_bound(*most);
  i64 low = least.value_or(-kLargest), high = most.value_or(kLargest);
  if (low > high) fail("no whole number is between the bounds");
  Signed s = split(low, high);
  std::vector<std::string> all;
  if (s.has_negative) all.push_back("\"-\" " + natural(s.negative_low, s.negative_high));
  if (s.has_natural) all.push_back(natural(s.low, s.high));
  return join(all);
}

std::string number_expression(const NumberBounds& bounds) {
  f64 least = bounds.least.value_or(-static_cast<f64>(kLargest)), most = bounds.most.value_or(static_cast<f64>(kLargest));
  i64 low = whole(std::ceil(least)), high = whole(std::floor(most));
  bool above = bounds.above && static_cast<f64>(low) == least, below = bounds.below && static_cast<f64>(high) == most;
  std::vector<std::string> all;
  if (low < 0) {
    // From the larger in absolute value down to zero, or to an upper bound below it.
    i64 near = std::max<i64>(0, -high);
    bool near_open = high < 0 ? below : true;  // zero itself is written without a sign
    if (low <= high || high >= 0) {
      std::string negative = magnitudes(near, -low, near_open, above);
      if (!negative.empty()) all.push_back("\"-\" " + negative);
    }
  }
  if (high >= 0) {
    i64 from = std::max<i64>(0, low);
    std::string natural_part = magnitudes(from, high, low >= 0 && above, below);
    if (!natural_part.empty()) all.push_back(natural_part);
  }
  if (all.empty()) fail("there is no whole number between the bounds, and others are not supported there");
  return join(all);
}

}  // namespace stoker

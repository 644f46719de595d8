#include "scheduler/trace/normal_table.h"

#include <cmath>

#include "kernels/base/check.h"

namespace stoker {

namespace {

constexpr i64 kEntries = 65536;
constexpr f64 kSqrt2 = 1.4142135623730951, kSqrt2Pi = 2.5066282746310002;

// From a guess, by Newton's method on the distribution function. The tail is concave in log, so steps are limited.
f64 quantile_near(f64 p, f64 z) {
  for (int i = 0; i < 60; i++) {
    f64 excess = 0.5 * std::erfc(-z / kSqrt2) - p;
    f64 step = excess * kSqrt2Pi * std::exp(0.5 * z * z);
    z -= std::fmin(std::fmax(step, -0.5), 0.5);
    if (std::fabs(step) < 1e-12) break;
  }
  return z;
}

}  // namespace

f64 normal_quantile(f64 p) {
  CHECK(p > 0 && p < 1);
  return quantile_near(p, 0);
}

NormalTable::NormalTable() : table_(kEntries) {
  f64 z = 0, squares = 0;
  for (i64 i = kEntries / 2; i < kEntries; i++) {  // each starts where its neighbour ended
    z = quantile_near((static_cast<f64>(i) + 0.5) / kEntries, z);
    table_[static_cast<size_t>(i)] = static_cast<f32>(z);
    squares += z * z;
  }
  f32 to_unit = static_cast<f32>(1 / std::sqrt(squares / (kEntries / 2)));
  for (i64 i = kEntries / 2; i < kEntries; i++) {
    f32 value = table_[static_cast<size_t>(i)] *= to_unit;
    table_[static_cast<size_t>(kEntries - 1 - i)] = -value;
  }
}

void NormalTable::fill(Rng& rng, f32* values, i64 count) const {
  DCHECK(count % 4 == 0);
  for (i64 i = 0; i < count; i += 4) {
    u64 bits = rng.next();
    for (i64 j = 0; j < 4; j++) values[i + j] = table_[bits >> (16 * j) & 0xffff];
  }
}

}  // namespace stoker

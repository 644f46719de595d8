// Normal distribution for generators: its quantile, and a fast source of values, four per random number.
#pragma once

#include <vector>

#include "kernels/base/rng.h"

namespace stoker {

// z with P(normal <= z) = p, 0 < p < 1.
f64 normal_quantile(f64 p);

// Values with mean 0 and variance 1 from a table of 65536 quantiles: a look-up of 16 bits each. Nothing lies beyond 4.3
// standard deviations. Owner: one thread.
class NormalTable {
 public:
  NormalTable();
  // Fills `count` values, a multiple of 4.
  void fill(Rng& rng, f32* values, i64 count) const;

 private:
  std::vector<f32> table_;
};

}  // namespace stoker

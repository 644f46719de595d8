// LatencyHistogram: how often a wait was how long, in fixed buckets as Prometheus wants them. One owner.
#pragma once

#include <algorithm>
#include <array>

#include "kernels/base/types.h"

namespace stoker {

struct LatencyHistogram {
  // A tiny model in memory takes a millisecond per token, a large one from disk seconds.
  static constexpr std::array<f64, 14> kUpTo = {0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10};  // seconds

  std::array<i64, kUpTo.size() + 1> counts{};  // the last: longer than all limits
  f64 seconds = 0;                             // sum

  void add(f64 wait_seconds) {
    counts[static_cast<size_t>(std::lower_bound(kUpTo.begin(), kUpTo.end(), wait_seconds) - kUpTo.begin())]++;
    seconds += wait_seconds;
  }
};

}  // namespace stoker

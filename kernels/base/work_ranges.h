// WorkRanges: how the workers of a region share the indices 0 .. count - 1. Each has a contiguous range of its own, so
// that a core reads one long stream of weights; who has finished takes from the others' ranges, so that a core that is
// late (another program, the I/O thread) delays nobody by more than the piece it holds.
#pragma once

#include <algorithm>
#include <array>
#include <atomic>

#include "kernels/base/types.h"

namespace stoker {

class WorkRanges {
 public:
  WorkRanges(i64 count, int workers) : ranges_(std::min<int>(workers, kMaxRanges)) {
    for (int i = 0; i < ranges_; i++) {
      range_[static_cast<size_t>(i)].next.store(count * i / ranges_, std::memory_order_relaxed);
      range_[static_cast<size_t>(i)].end = count * (i + 1) / ranges_;
    }
  }

  // An index that nobody else gets; -1 when none is left. Any worker of the region.
  i64 take(int worker) {
    for (int i = 0; i < ranges_; i++) {
      Range& range = range_[static_cast<size_t>((worker + i) % ranges_)];
      if (range.next.load(std::memory_order_relaxed) >= range.end) continue;
      i64 index = range.next.fetch_add(1, std::memory_order_relaxed);
      if (index < range.end) return index;
    }
    return -1;
  }

 private:
  static constexpr int kMaxRanges = 64;  // more workers than that share ranges
  struct alignas(64) Range {
    std::atomic<i64> next;
    i64 end;
  };
  int ranges_;
  std::array<Range, kMaxRanges> range_;
};

}  // namespace stoker

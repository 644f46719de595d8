// VirtualClock: time that passes when the simulator says so. One thread.
#pragma once

#include <algorithm>

#include "kernels/base/clock.h"

namespace stoker {

class VirtualClock final : public Clock {
 public:
  i64 now_ns() const override { return now_ns_; }
  // Never back: a time that has passed changes nothing.
  void advance_to(i64 ns) { now_ns_ = std::max(now_ns_, ns); }
  void advance(i64 ns) { advance_to(now_ns_ + ns); }

 private:
  i64 now_ns_ = 0;
};

}  // namespace stoker

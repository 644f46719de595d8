// A clock that a test sets.
#pragma once

#include "kernels/base/clock.h"

namespace stoker::test {

class HandClock final : public Clock {
 public:
  i64 now_ns() const override { return ns; }
  i64 ns = 0;
};

}  // namespace stoker::test

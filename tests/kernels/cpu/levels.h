// The instruction levels this CPU has, and the errors that floats may make.
#pragma once

#include <vector>

#include "kernels/device/stream.h"

namespace stoker::test {

inline std::vector<IsaLevel> levels() {
  std::vector<IsaLevel> result = {IsaLevel::ref};
  for (IsaLevel level : {IsaLevel::avx2, IsaLevel::avx512})
    if (level <= best_isa_level()) result.push_back(level);
  return result;
}

constexpr f64 kHalfUlp = 0x1p-24;  // relative error of one f32 rounding

}  // namespace stoker::test

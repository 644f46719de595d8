// Activations as cards have them, from those of the CPU.
#pragma once

#include <vector>

#include "kernels/format/activation.h"

namespace stoker::test {

struct CardRows {
  i64 stride_bytes = 0;
  std::vector<std::byte> bytes;  // aligned as operator new aligns: to 16
};

// `rows` rows of ActQ8_32 or ActQ8_256 blocks, row i at x + i * stride.
CardRows card_rows(const std::byte* x, i64 rows, i64 cols, i64 stride, ActivationForm form);

}  // namespace stoker::test

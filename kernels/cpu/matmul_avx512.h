// The parts of the avx512 level that level_avx512.cc puts together. Each sets its own entries of the table; what none
// sets is avx2's.
#pragma once

#include "kernels/cpu/leaf.h"

namespace stoker {

void fill_matmul_float_avx512(LeafTable& table);  // float weights and activations: F32 F16 BF16

}  // namespace stoker

// GEMM of the avx2 level: the entries of LeafTable for tiles of many tokens.
#pragma once

#include "kernels/cpu/leaf.h"

namespace stoker {

void fill_gemm_q8_avx2(LeafTable& table);     // every block format, 8-bit activations
void fill_gemm_float_avx2(LeafTable& table);  // F32 F16 BF16

}  // namespace stoker

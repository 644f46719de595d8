// GEMM of the avx2 level: the entries of LeafTable for tiles of many tokens.
#pragma once

#include "kernels/cpu/leaf.h"

namespace stoker {

void fill_gemm_block32_avx2(LeafTable& table);   // blocks of 32, 8-bit activations
void fill_gemm_block256_avx2(LeafTable& table);  // super-blocks of 256, 8-bit activations
void fill_gemm_float_avx2(LeafTable& table);     // F32 F16 BF16

}  // namespace stoker

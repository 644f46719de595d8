// The parts of the avx512 level that level_avx512.cc puts together. Each sets its own entries of the table; what none
// sets is avx2's.
#pragma once

#include "kernels/cpu/leaf.h"

namespace stoker {

void fill_attention_avx512(LeafTable& table);
void fill_matmul_block32_avx512(LeafTable& table);  // Q4_0 Q4_1 Q5_0 Q5_1 Q8_0 IQ4_NL MXFP4
void fill_matmul_k_avx512(LeafTable& table);        // Q2_K Q3_K Q4_K Q5_K Q6_K IQ4_XS
void fill_matmul_exact_avx512(LeafTable& table);    // float activations, common block formats
void fill_matmul_float_avx512(LeafTable& table);  // float weights and activations: F32 F16 BF16
void fill_matmul_iq2_avx512(LeafTable& table);    // IQ2_XXS IQ2_XS IQ2_S
void fill_matmul_iq3_avx512(LeafTable& table);    // IQ3_XXS IQ3_S
void fill_matmul_iq1_avx512(LeafTable& table);    // IQ1_S IQ1_M

}  // namespace stoker

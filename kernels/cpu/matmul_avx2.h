// The parts of the avx2 level that level_avx2.cc puts together. Each sets its own entries of the table.
#pragma once

#include "kernels/cpu/leaf.h"

namespace stoker {

void fill_attention_avx2(LeafTable& table);
void fill_dequantize_avx2(LeafTable& table);       // every format
void fill_matmul_block32_avx2(LeafTable& table);  // Q4_0 Q4_1 Q5_0 Q5_1 Q8_0 IQ4_NL MXFP4
void fill_matmul_k_avx2(LeafTable& table);        // Q4_K Q5_K Q6_K IQ4_XS
void fill_matmul_planes_avx2(LeafTable& table);   // Q2_K Q3_K, and their GEMM
void fill_matmul_iq1_avx2(LeafTable& table);      // IQ1_S IQ1_M, and their GEMM
void fill_matmul_iq2_avx2(LeafTable& table);      // IQ2_XXS IQ2_XS IQ2_S, and theirs
void fill_matmul_iq3_avx2(LeafTable& table);      // IQ3_XXS IQ3_S, and theirs
void fill_matmul_float_avx2(LeafTable& table);    // float activations, every format
void fill_vector_avx2(LeafTable& table);          // everything but products

// All of the above.
void fill_matmul_avx2(LeafTable& table);

}  // namespace stoker

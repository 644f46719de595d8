// The avx2 level: everything that needs AVX2, FMA, F16C and BMI2.
#include "kernels/cpu/gemm_avx2.h"
#include "kernels/cpu/matmul_avx2.h"

namespace stoker {

void fill_matmul_avx2(LeafTable& table) {
  fill_matmul_block32_avx2(table);
  fill_matmul_k_avx2(table);
  fill_matmul_planes_avx2(table);
  fill_matmul_iq1_avx2(table);
  fill_matmul_iq2_avx2(table);
  fill_matmul_iq3_avx2(table);
  fill_matmul_float_avx2(table);
}

void fill_avx2(LeafTable& table) {
  fill_attention_avx2(table);
  fill_dequantize_avx2(table);
  fill_matmul_avx2(table);
  fill_gemm_block32_avx2(table);
  fill_gemm_block256_avx2(table);
  fill_gemm_float_avx2(table);
  fill_vector_avx2(table);
}

}  // namespace stoker

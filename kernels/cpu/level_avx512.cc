// The avx512 level: everything that needs AVX-512 F, BW, VL, DQ, VNNI, VBMI and BITALG (Zen 4, Ice Lake and later).
#include "kernels/cpu/matmul_avx512.h"

namespace stoker {

void fill_avx512(LeafTable& table) {
  fill_attention_avx512(table);
  fill_matmul_block32_avx512(table);
  fill_matmul_k_avx512(table);
  fill_matmul_iq1_avx512(table);
  fill_matmul_iq2_avx512(table);
  fill_matmul_iq3_avx512(table);
  fill_matmul_exact_avx512(table);
  fill_matmul_float_avx512(table);
}

}  // namespace stoker

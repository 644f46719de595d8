// AVX-512 matmul of IQ3_XXS and IQ3_S: a block has 64 indices, one byte look-up per weight of a run.
#include "kernels/cpu/gemm_codebook_avx512.h"
#include "kernels/cpu/look_up_avx512.h"
#include "kernels/cpu/matmul_avx512.h"
#include "kernels/format/blocks.h"
#include "kernels/format/codebooks.h"

namespace stoker {
namespace {

// kPlaneBias + magnitude -> kPlaneBias +- magnitude. Low dword of qword i of `signs`: those of weights 32 i .. + 31.
template <int kPart>
inline void apply_signs(const __m512i (&signs)[2], __m512i (&codes)[2]) {
  static constexpr Bytes sign_bit = bytes([](int i) { return 4 * (i % 8) + kPart; });
#pragma GCC unroll 2
  for (int r = 0; r < 2; r++) {
    __mmask64 negative = _mm512_bitshuffle_epi64_mask(signs[r], sign_bit);
    codes[r] = _mm512_mask_sub_epi8(codes[r], negative, _mm512_set1_epi8(static_cast<char>(2 * kPlaneBias)), codes[r]);
  }
}

struct IQ3_XXS {
  using Block = BlockIQ3_XXS;
  static constexpr i32 kBias = kPlaneBias;
  static constexpr int kRows = 2;
  static constexpr bool kUnpackAhead = false;
  using Order = RunOrder;
  static constexpr int kScales = 1;

  const u8* book = planes_in_memory(kPlanesIq3Xxs);
  LookUp<2> index;
  __m512i signs[2];
  __m512 scales[2][kScales];

  explicit IQ3_XXS(const Block* const (&w)[kRows]) {
    static constexpr Bytes sevens = bytes([](int i) { return 7 * (i % 4); });
    static constexpr Bytes top_four = bytes([](int) { return 28; });
#pragma GCC unroll 2
    for (int r = 0; r < kRows; r++) {
      index.set_low(r, load_512(w[r]->qs));
      __m512i fields = _mm512_cvtepu32_epi64(load_256(w[r]->signs));
      signs[r] = make_even(_mm512_multishift_epi64_epi8(sevens, fields));
      __m512i s = _mm512_multishift_epi64_epi8(top_four, fields);
      scales[r][0] = _mm512_mul_ps(odd_scales(s, 0.25f), broadcast_half(w[r]->d));
    }
  }

  template <int kPart, int kRow>
  void codes(__m512i (&out)[2]) const {
    index.run<256>(book + 256 * kPart, out);
    apply_signs<kPart>(signs, out);
  }
};

struct IQ3_S {
  using Block = BlockIQ3_S;
  static constexpr i32 kBias = kPlaneBias;
  static constexpr int kRows = 2;
  static constexpr bool kUnpackAhead = false;
  using Order = RunOrder;
  static constexpr int kScales = 1;

  const u8* book = planes_in_memory(kPlanesIq3S);
  LookUp<2> index;
  __m512i signs[2];
  __m512 scales[2][kScales];

  explicit IQ3_S(const Block* const (&w)[kRows]) {
    static constexpr Bytes nibble_of_two_lanes = bytes([](int i) { return 4 * (i / 8); });
#pragma GCC unroll 2
    for (int r = 0; r < kRows; r++) {
      index.set_low(r, load_512(w[r]->qs));
      index.bit_8[r] = _mm512_movm_epi8(_cvtu64_mask64(load_u64(w[r]->qh)));
      signs[r] = _mm512_cvtepu32_epi64(load_256(w[r]->signs));
      __m512i all = _mm512_set1_epi32(static_cast<int>(load_u32(w[r]->scales)));
      __m512i s = _mm512_multishift_epi64_epi8(nibble_of_two_lanes, all);
      scales[r][0] = _mm512_mul_ps(odd_scales(s, 1.0f), broadcast_half(w[r]->d));
    }
  }

  template <int kPart, int kRow>
  void codes(__m512i (&out)[2]) const {
    index.run<512>(book + 512 * kPart, out);
    apply_signs<kPart>(signs, out);
  }
};

}  // namespace

void fill_matmul_iq3_avx512(LeafTable& table) {
  set_leaves<IQ3_XXS>(table, BlockType::IQ3_XXS);
  set_leaves<IQ3_S>(table, BlockType::IQ3_S);
}

}  // namespace stoker

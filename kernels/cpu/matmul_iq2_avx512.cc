// AVX-512 matmul of IQ2_XXS, IQ2_XS and IQ2_S.
#include "kernels/cpu/gemm_codebook_avx512.h"
#include "kernels/cpu/look_up_avx512.h"
#include "kernels/cpu/matmul_avx512.h"
#include "kernels/format/blocks.h"
#include "kernels/format/codebooks.h"

namespace stoker {
namespace {

// What is the same once digits, signs and scales are known.
struct Iq2 {
  static constexpr i32 kBias = 64;
  static constexpr int kRows = 2;
  static constexpr bool kUnpackAhead = true;
  using Order = RunOrder;
  static constexpr int kScales = 1;

  __m512i digits[2];  // byte r: four 2-bit digits, those of run r
  __m512i signs[2];   // low dword of qword i: the signs of weights 32 i .. + 31
  __m512 scales[2][kScales];

  // Index bytes are 8 of the first row, 8 of the second, ...
  template <int kEntries>
  void look_up(const LookUp<1>& index, const u8* book) {
    __m512i low[1], high[1];
    index.run<kEntries>(book, low);
    index.run<kEntries>(book + kEntries, high);
    digits[0] = _mm512_unpacklo_epi8(low[0], high[0]);
    digits[1] = _mm512_unpackhi_epi8(low[0], high[0]);
  }

  // Sign bytes in the order of the index bytes.
  void spread_signs(__m512i bytes) {
    signs[0] = _mm512_unpacklo_epi32(bytes, bytes);
    signs[1] = _mm512_unpackhi_epi32(bytes, bytes);
  }

  template <int kPart>
  __m512i codes_of(int row) const {
    // By digit (0 .. 2) and sign (4): 64 +- 8, 25, 43. Other bits of the index make no difference.
    static constexpr Bytes values = bytes([](int i) {
      constexpr int magnitude[4] = {8, 25, 43, 0};
      return kBias + (i & 4 ? -magnitude[i & 3] : magnitude[i & 3]);
    });
    // Bit 2 + kPart of byte r: the sign of weight kPart of run r.
    static constexpr Bytes four_signs = bytes([](int i) { return (4 * (i % 8) - 2) & 63; });
    __m512i sign = _mm512_multishift_epi64_epi8(four_signs, signs[row]);
    __m512i index = _mm512_ternarylogic_epi64(_mm512_set1_epi8(3), _mm512_srli_epi16(digits[row], 2 * kPart),
                                              _mm512_srli_epi16(sign, kPart), 0xca);  // a ? b : c
    return _mm512_permutexvar_epi8(index, values);
  }

  template <int kPart, int kRow>
  void codes(__m512i (&out)[2]) const {
    out[0] = codes_of<kPart>(kRow);
    out[1] = codes_of<kPart>(kRow + 1);
  }
};

constexpr f32 kFactor = 0.125f;

struct IQ2_XXS : Iq2 {
  using Block = BlockIQ2_XXS;

  explicit IQ2_XXS(const Block* const (&w)[kRows]) {
    const Block &a = *w[0], &b = *w[1];
    __m512 row_a = _mm512_castsi512_ps(load_512(a.qs)), row_b = _mm512_castsi512_ps(load_512(b.qs));
    LookUp<1> index;
    index.set_low(0, _mm512_castps_si512(_mm512_shuffle_ps(row_a, row_b, 0b10'00'10'00)));
    look_up<256>(index, planes(kPlanesIq2Xxs));
    __m512i fields = _mm512_castps_si512(_mm512_shuffle_ps(row_a, row_b, 0b11'01'11'01));
    static constexpr Bytes sevens = bytes([](int i) { return 32 * (i % 8 / 4) + 7 * (i % 4); });
    spread_signs(make_even(_mm512_multishift_epi64_epi8(sevens, fields)));
    __m512i s = _mm512_srli_epi32(fields, 28);
    scales[0][0] = _mm512_mul_ps(odd_scales(_mm512_unpacklo_epi32(s, s), kFactor), broadcast_half(a.d));
    scales[1][0] = _mm512_mul_ps(odd_scales(_mm512_unpackhi_epi32(s, s), kFactor), broadcast_half(b.d));
  }
};

// d * factor * (2 s + 1) with a nibble s per 16 weights.
template <class Block>
inline __m512 nibble_scales(const Block& w) {
  static constexpr Bytes nibble_of_lane = bytes([](int i) { return 4 * (i / 4); });
  __m512i all = _mm512_set1_epi64(static_cast<long long>(load_u64(w.scales)));
  __m512i s = _mm512_multishift_epi64_epi8(nibble_of_lane, all);
  return _mm512_mul_ps(odd_scales(s, kFactor), broadcast_half(w.d));
}

struct IQ2_XS : Iq2 {
  using Block = BlockIQ2_XS;

  explicit IQ2_XS(const Block* const (&w)[kRows]) {
    const Block &a = *w[0], &b = *w[1];
    // Eight words of the first row, eight of the second, ...: their low bytes, then their high bytes.
    static constexpr Bytes low = bytes([](int i) { return 16 * (i / 16) + 64 * (i % 16 / 8) + 2 * (i % 8); });
    static constexpr Bytes high = bytes([](int i) { return low.at[i] + 1; });
    __m512i row_a = load_512(a.qs), row_b = load_512(b.qs);
    __m512i rest = _mm512_permutex2var_epi8(row_a, high, row_b);
    LookUp<1> index;
    index.set_low(0, _mm512_permutex2var_epi8(row_a, low, row_b));
    index.bit_8[0] = _mm512_movm_epi8(_mm512_test_epi8_mask(rest, _mm512_set1_epi8(1)));
    look_up<512>(index, planes_in_memory(kPlanesIq2Xs));
    spread_signs(make_even(_mm512_srli_epi16(rest, 1)));
    scales[0][0] = nibble_scales(a);
    scales[1][0] = nibble_scales(b);
  }
};

struct IQ2_S : Iq2 {
  using Block = BlockIQ2_S;

  explicit IQ2_S(const Block* const (&w)[kRows]) {
    const Block &a = *w[0], &b = *w[1];
    __m512i high = _mm512_broadcast_i32x4(
        _mm_set_epi64x(static_cast<long long>(load_u64(b.qh)), static_cast<long long>(load_u64(a.qh))));
    static constexpr Bytes even = bytes([](int i) { return 16 * (i / 16) + 2 * (i % 8); });
    static constexpr Bytes odd = bytes([](int i) { return even.at[i] + 1; });
    LookUp<1> index;
    index.set_low(0, alternate_qwords(load_256(a.qs), load_256(b.qs)));
    index.bit_8[0] = _mm512_movm_epi8(_mm512_bitshuffle_epi64_mask(high, even));
    index.bit_9[0] = _mm512_movm_epi8(_mm512_bitshuffle_epi64_mask(high, odd));
    look_up<1024>(index, planes_in_memory(kPlanesIq2S));
    signs[0] = _mm512_cvtepu32_epi64(load_256(a.signs));
    signs[1] = _mm512_cvtepu32_epi64(load_256(b.signs));
    scales[0][0] = nibble_scales(a);
    scales[1][0] = nibble_scales(b);
  }
};

}  // namespace

void fill_matmul_iq2_avx512(LeafTable& table) {
  set_leaves<IQ2_XXS>(table, BlockType::IQ2_XXS);
  set_leaves<IQ2_XS>(table, BlockType::IQ2_XS);
  set_leaves<IQ2_S>(table, BlockType::IQ2_S);
}

}  // namespace stoker

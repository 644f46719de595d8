// AVX-512 matmul of IQ1_S and IQ1_M: ternary weights g from a code book, moved by +-1/8.
//
// In eighths a weight is 8 g + delta, delta = +-1. With the digit u = g + 1 of the book it is 8 u + (2 or 0) - 9.
//
// The book's 4 KiB of digits do not stay in registers, and loading them would take longer than looking up. So four
// rows, 128 indices, are looked up at once.
#include "kernels/cpu/gemm_codebook_avx512.h"
#include "kernels/cpu/look_up_avx512.h"
#include "kernels/cpu/matmul_avx512.h"
#include "kernels/format/blocks.h"
#include "kernels/format/codebooks.h"

namespace stoker {
namespace {

constexpr f32 kFactor = kIq1Delta;

// What is the same once indices, deltas and scales are known.
struct Iq1 {
  static constexpr i32 kBias = 9;
  static constexpr int kRows = 4;
  static constexpr bool kUnpackAhead = true;

  __m512i digits[4];  // byte r: four 2-bit digits, those of run r
  __m512i deltas[4];  // byte r: 2 where delta > 0, else 0
  __m512 scales[4];

  // Set i of the indices is of rows 2 i and 2 i + 1: eight entries of the first, eight of the second, ...
  void look_up(const LookUp<2>& look_up) {
    const u8* book = planes_in_memory(kPlanesIq1S);
    __m512i low[2], high[2];
    look_up.run<2048>(book, low);
    look_up.run<2048>(book + 2048, high);
#pragma GCC unroll 2
    for (int i = 0; i < 2; i++) {
      digits[2 * i] = _mm512_unpacklo_epi8(low[i], high[i]);
      digits[2 * i + 1] = _mm512_unpackhi_epi8(low[i], high[i]);
    }
  }

  template <int kPart>
  __m512i codes_of(int row) const {
    __m512i eights;  // digit kPart at bits 3 and 4
    if constexpr (kPart < 2)
      eights = _mm512_slli_epi16(digits[row], 3 - 2 * kPart);
    else
      eights = _mm512_srli_epi16(digits[row], 2 * kPart - 3);
    return _mm512_ternarylogic_epi64(_mm512_set1_epi8(0x18), eights, deltas[row], 0xca);  // a ? b : c
  }

  template <int kPart, int kRow>
  void codes(__m512i (&out)[2]) const {
    out[0] = codes_of<kPart>(kRow);
    out[1] = codes_of<kPart>(kRow + 1);
  }
};

// Bit first + i of its qword of `bits`, for each byte: 0xff where it is set.
inline __m512i bit_mask(__m512i bits, const Bytes& first, char i) {
  return _mm512_movm_epi8(_mm512_bitshuffle_epi64_mask(bits, _mm512_add_epi8(first, _mm512_set1_epi8(i))));
}

// `first`: of the three bits 8 .. 10 of an index.
template <class Block>
inline LookUp<2> unpack_indices(const Block* const (&w)[4], const Bytes& first) {
  LookUp<2> indices;
#pragma GCC unroll 2
  for (int i = 0; i < 2; i++) {
    const Block &a = *w[2 * i], &b = *w[2 * i + 1];
    indices.set_low(i, alternate_qwords(load_256(a.qs), load_256(b.qs)));
    __m512i high = alternate_dwords(load_128(a.qh), load_128(b.qh));
    indices.bit_8[i] = bit_mask(high, first, 0);
    indices.bit_9[i] = bit_mask(high, first, 1);
    indices.bit_10[i] = bit_mask(high, first, 2);
  }
  return indices;
}

struct IQ1_S : Iq1 {
  using Block = BlockIQ1_S;

  explicit IQ1_S(const Block* const (&w)[kRows]) {
    static constexpr Bytes three_bits = bytes([](int i) { return 16 * (i % 8 / 4) + 3 * (i % 4); });
    look_up(unpack_indices(w, three_bits));
    static constexpr Bytes bit_15_to_1 = bytes([](int) { return 14; });
    static constexpr Bytes top_four = bytes([](int) { return 12; });
#pragma GCC unroll 4
    for (int r = 0; r < kRows; r++) {
      __m512i head = _mm512_cvtepu16_epi64(load_128(w[r]->qh));
      deltas[r] = _mm512_andnot_si512(_mm512_multishift_epi64_epi8(bit_15_to_1, head), _mm512_set1_epi8(2));
      __m512i s = _mm512_multishift_epi64_epi8(top_four, head);
      scales[r] = _mm512_mul_ps(odd_scales_of_three_bits(s, kFactor), broadcast_half(w[r]->d));
    }
  }
};

struct IQ1_M : Iq1 {
  using Block = BlockIQ1_M;

  explicit IQ1_M(const Block* const (&w)[kRows]) {
    static constexpr Bytes three_bits = bytes([](int i) { return 4 * (i % 8); });
    look_up(unpack_indices(w, three_bits));
#pragma GCC unroll 4
    for (int r = 0; r < kRows; r++) {
      // Two runs per nibble; its bit 3 to bit 1.
      static constexpr Bytes bit_3_to_1 = bytes([](int i) { return 4 * (i % 8 / 2) + 2; });
      __m512i four_nibbles = _mm512_cvtepu16_epi64(load_128(w[r]->qh));
      deltas[r] = _mm512_andnot_si512(_mm512_multishift_epi64_epi8(bit_3_to_1, four_nibbles), _mm512_set1_epi8(2));
      scales[r] = unpack_scales(*w[r]);
    }
  }

  // Per word four scales of three bits and a quarter of d.
  static __m512 unpack_scales(const Block& w) {
    static constexpr Bytes three_bits = bytes([](int i) { return 16 * (i / 16) + 3 * (i % 16 / 4); });
    const u64 words = load_u64(w.scales);
    __m512i s = _mm512_multishift_epi64_epi8(three_bits, _mm512_set1_epi64(static_cast<long long>(words)));
    u16 d = static_cast<u16>(_pext_u64(words, 0xf000'f000'f000'f000));
    return _mm512_mul_ps(odd_scales_of_three_bits(s, kFactor), broadcast_half(d));
  }
};

}  // namespace

void fill_matmul_iq1_avx512(LeafTable& table) {
  set_leaves<IQ1_S>(table, BlockType::IQ1_S);
  set_leaves<IQ1_M>(table, BlockType::IQ1_M);
}

}  // namespace stoker

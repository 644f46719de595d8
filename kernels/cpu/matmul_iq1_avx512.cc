// AVX-512 matmul of IQ1_S and IQ1_M: ternary weights g from a code book, moved by +-1/8.
//
// In eighths a weight is 8 g + delta, delta = +-1. With the digit u = g + 1 of the book it is 8 u + (2 or 0) - 9.
#include "kernels/cpu/look_up_avx512.h"
#include "kernels/cpu/matmul_avx512.h"
#include "kernels/format/blocks.h"
#include "kernels/format/codebooks.h"

namespace stoker {
namespace {

constexpr f32 kFactor = kIq1Delta;

// What is the same once digits, deltas and scales are known.
struct Iq1 {
  static constexpr i32 kBias = 9;
  static constexpr int kRows = 2;

  __m512i digits[2];  // byte r: four 2-bit digits, those of run r
  __m512i deltas[2];  // byte r: 2 where delta > 0, else 0
  __m512 scales[2];

  // Index bytes are 8 of the first row, 8 of the second, ...; so are the masks with the further bits of the index.
  void look_up(__m512i index, __mmask64 bit_8, __mmask64 bit_9, __mmask64 bit_10) {
    __mmask64 bit_7 = _mm512_movepi8_mask(index);
    __m512i low = look_up_2048(plane(kPlanesIq1S, 0), index, bit_7, bit_8, bit_9, bit_10);
    __m512i high = look_up_2048(plane(kPlanesIq1S, 1), index, bit_7, bit_8, bit_9, bit_10);
    digits[0] = _mm512_unpacklo_epi8(low, high);
    digits[1] = _mm512_unpackhi_epi8(low, high);
  }

  template <int kRow, int kPart>
  __m512i codes() const {
    __m512i eights;  // digit kPart at bits 3 and 4
    if constexpr (kPart < 2)
      eights = _mm512_slli_epi16(digits[kRow], 3 - 2 * kPart);
    else
      eights = _mm512_srli_epi16(digits[kRow], 2 * kPart - 3);
    return _mm512_ternarylogic_epi64(_mm512_set1_epi8(0x18), eights, deltas[kRow], 0xca);  // a ? b : c
  }
};

struct IQ1_S : Iq1 {
  using Block = BlockIQ1_S;

  explicit IQ1_S(const Block* const (&w)[kRows]) {
    const Block &a = *w[0], &b = *w[1];
    __m128i heads_a = load_128(a.qh), heads_b = load_128(b.qh);
    __m512i heads = alternate_dwords(heads_a, heads_b);
    static constexpr Bytes bit_8 = bytes([](int i) { return 16 * (i % 8 / 4) + 3 * (i % 4); });
    static constexpr Bytes bit_9 = bytes([](int i) { return bit_8.at[i] + 1; });
    static constexpr Bytes bit_10 = bytes([](int i) { return bit_8.at[i] + 2; });
    look_up(alternate_qwords(load_256(a.qs), load_256(b.qs)), _mm512_bitshuffle_epi64_mask(heads, bit_8),
            _mm512_bitshuffle_epi64_mask(heads, bit_9), _mm512_bitshuffle_epi64_mask(heads, bit_10));
    unpack_head(a, heads_a, deltas[0], scales[0]);
    unpack_head(b, heads_b, deltas[1], scales[1]);
  }

  static void unpack_head(const Block& w, __m128i words, __m512i& delta, __m512& scale) {
    static constexpr Bytes bit_15_to_1 = bytes([](int) { return 14; });
    static constexpr Bytes top_four = bytes([](int) { return 12; });
    __m512i head = _mm512_cvtepu16_epi64(words);
    delta = _mm512_andnot_si512(_mm512_multishift_epi64_epi8(bit_15_to_1, head), _mm512_set1_epi8(2));
    __m512i s = _mm512_multishift_epi64_epi8(top_four, head);
    scale = _mm512_mul_ps(odd_scales_of_three_bits(s, kFactor), broadcast_half(w.d));
  }
};

struct IQ1_M : Iq1 {
  using Block = BlockIQ1_M;

  explicit IQ1_M(const Block* const (&w)[kRows]) {
    const Block &a = *w[0], &b = *w[1];
    __m128i nibbles_a = load_128(a.qh), nibbles_b = load_128(b.qh);
    __m512i nibbles = alternate_dwords(nibbles_a, nibbles_b);
    static constexpr Bytes bit_8 = bytes([](int i) { return 4 * (i % 8); });
    static constexpr Bytes bit_9 = bytes([](int i) { return bit_8.at[i] + 1; });
    static constexpr Bytes bit_10 = bytes([](int i) { return bit_8.at[i] + 2; });
    look_up(alternate_qwords(load_256(a.qs), load_256(b.qs)), _mm512_bitshuffle_epi64_mask(nibbles, bit_8),
            _mm512_bitshuffle_epi64_mask(nibbles, bit_9), _mm512_bitshuffle_epi64_mask(nibbles, bit_10));
    deltas[0] = unpack_deltas(nibbles_a);
    deltas[1] = unpack_deltas(nibbles_b);
    scales[0] = unpack_scales(a);
    scales[1] = unpack_scales(b);
  }

  // Two runs per nibble; its bit 3 to bit 1.
  static __m512i unpack_deltas(__m128i nibbles) {
    static constexpr Bytes bit_3_to_1 = bytes([](int i) { return 4 * (i % 8 / 2) + 2; });
    __m512i word_per_qword = _mm512_cvtepu16_epi64(nibbles);
    return _mm512_andnot_si512(_mm512_multishift_epi64_epi8(bit_3_to_1, word_per_qword), _mm512_set1_epi8(2));
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
  auto set = [&table](BlockType type, MatmulLeaf leaf) { table.matmul_q8[static_cast<i64>(type)] = leaf; };
  set(BlockType::IQ1_S, multiply_tile<IQ1_S>);
  set(BlockType::IQ1_M, multiply_tile<IQ1_M>);
}

}  // namespace stoker

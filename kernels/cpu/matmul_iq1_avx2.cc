// AVX2 matmul of IQ1_S and IQ1_M: ternary weights -1, 0, 1 from a code book, moved by +-1/8.
//
// Integers come from counting in eighths: 8 * weight + 8 * delta is 8 g +- 1. The book has 8 (g + 1), unsigned as maddubs
// wants it, and what that adds is taken off through the sums of x.
#include "kernels/cpu/look_up_avx2.h"
#include "kernels/cpu/matmul_avx2.h"
#include "kernels/cpu/matmul_scales_avx2.h"
#include "kernels/format/blocks.h"
#include "kernels/format/codebooks.h"

namespace stoker {
namespace {

// Word i of the result: (word i of v >> 3 * (i % 4)) & 7, through the high half of a product with a power of
// two (AVX2 has no shift of words by different counts). Bit 15 of v is not used.
inline __m256i three_bit_fields(__m256i v) {
  const __m256i move = _mm256_set1_epi64x(0x0040'0200'1000'8000ull);
  return _mm256_and_si256(_mm256_mulhi_epu16(_mm256_add_epi16(v, v), move), _mm256_set1_epi16(7));
}

// Words first .. first + 3 of `words` (in both halves), each four times.
inline __m256i each_word_four_times(__m256i words, int first) {
  const long long k = 0x0100'0100'0100'0100 + first * 0x0202'0202'0202'0202;
  const long long next = 0x0202'0202'0202'0202;
  return _mm256_shuffle_epi8(words, _mm256_setr_epi64x(k, k + next, k + 2 * next, k + 3 * next));
}

// sum + d / 8 * x.d * eighths
inline __m256 add_eighths(__m256 d, const ActQ8_256& x, __m256i eighths, __m256 sum) {
  return add_scaled(_mm256_mul_ps(d, _mm256_set1_ps(0.125f)), x, eighths, sum);
}

// Codes 0, 8, 16: i16 sums stay below 2 * 16 * 127 = 4064.
struct IQ1_S {
  using Block = BlockIQ1_S;
  using Activation = ActQ8_256;

  struct Prepared {
    alignas(32) u16 index[32];
    LaneScales scales;
    __m256i offsets;  // s * (delta - 8) per 16 weights
  };

  static void prepare(const Block& w, Prepared& out) {
    __m128i heads = load_128(w.qh);
    __m256i both_heads = _mm256_broadcastsi128_si256(heads);
#pragma GCC unroll 2
    for (int half = 0; half < 2; half++) {
      __m256i high = _mm256_slli_epi16(three_bit_fields(each_word_four_times(both_heads, 4 * half)), 8);
      __m256i low = _mm256_cvtepu8_epi16(load_128(w.qs + 16 * half));
      _mm256_store_si256(reinterpret_cast<__m256i*>(out.index + 16 * half), _mm256_or_si256(low, high));
    }
    __m128i s = _mm_or_si128(_mm_and_si128(_mm_srli_epi16(heads, 11), _mm_set1_epi16(14)), _mm_set1_epi16(1));
    __m128i* pairs = reinterpret_cast<__m128i*>(out.scales.pair);
    _mm_store_si128(pairs, _mm_unpacklo_epi16(s, s));
    _mm_store_si128(pairs + 1, _mm_unpackhi_epi16(s, s));
    // 8 g + delta = 8 (g + 1) - 8 + delta, delta = -1 where bit 15 is set, else 1: |s * (delta - 8)| <= 135.
    __m128i delta = _mm_or_si128(_mm_srai_epi16(heads, 15), _mm_set1_epi16(1));
    __m128i offset = _mm_mullo_epi16(_mm_sub_epi16(delta, _mm_set1_epi16(8)), s);
    // Twice each, as x.sums has two sums per step.
    out.offsets = _mm256_inserti128_si256(_mm256_castsi128_si256(_mm_unpacklo_epi16(offset, offset)),
                                          _mm_unpackhi_epi16(offset, offset), 1);
  }

  template <int kTokens>
  static void accumulate(const Block& w, const Prepared& prepared, const Activation* const (&x)[kTokens],
                         i64 b, __m256 (&sum)[kTokens]) {
    const u64* book = entries<u64>(&kEighthsIq1S);
    __m256i total[kTokens];
    clear(total);
#pragma GCC unroll 8
    for (int step = 0; step < 8; step++)
      add_step(look_up(book, prepared.index + 4 * step), step_scale(prepared.scales, step), x, b, step, total);
    __m256 d = broadcast_half(w.d);
#pragma GCC unroll 4
    for (int t = 0; t < kTokens; t++) {
      __m256i eighths = _mm256_add_epi32(total[t], dot_sums(prepared.offsets, x[t][b]));
      sum[t] = add_eighths(d, x[t][b], eighths, sum[t]);
    }
  }
};

// A delta per 8 weights: 8 g + delta = u - 9 with u = 8 (g + 1) + (2 where delta > 0), 0 .. 18; i16 sums stay below
// 2 * 18 * 127.
struct IQ1_M {
  using Block = BlockIQ1_M;
  using Activation = ActQ8_256;

  // The 32 nibbles of qh in order.
  struct Nibbles {
    __m128i half[2];
    explicit Nibbles(const Block& w) {
      __m128i packed = load_128(w.qh), mask = _mm_set1_epi8(15);
      __m128i low = _mm_and_si128(packed, mask), high = _mm_and_si128(_mm_srli_epi16(packed, 4), mask);
      half[0] = _mm_unpacklo_epi8(low, high);
      half[1] = _mm_unpackhi_epi8(low, high);
    }
  };

  // 2 s + 1 of the sixteen groups in order.
  static __m256i unpack_scales(__m256i packed) {
    __m256i s = three_bit_fields(each_word_four_times(packed, 0));
    return _mm256_or_si256(_mm256_add_epi16(s, s), _mm256_set1_epi16(1));
  }

  // f16 from the top nibbles of the four words, the first word's lowest.
  static u16 unpack_d(const Block& w) {
    u32 d = (w.scales[0] >> 12) | ((w.scales[1] >> 8) & 0xf0u) | ((w.scales[2] >> 4) & 0xf00u) |
            (w.scales[3] & 0xf000u);
    return static_cast<u16>(d);
  }

  struct Prepared {
    alignas(32) u16 index[32];
    StepScales scales;
    __m256i positive;    // per 8 weights 2 where delta > 0, else 0
    __m256i minus_nine;  // -9 * scale per 16 weights, in order
  };

  static void prepare(const Block& w, Prepared& out) {
    Nibbles nibble(w);
    const __m128i eight = _mm_set1_epi8(8), two = _mm_set1_epi8(2);
    __m128i positive[2];
#pragma GCC unroll 2
    for (int half = 0; half < 2; half++) {
      __m128i low = load_128(w.qs + 16 * half), high = _mm_and_si128(nibble.half[half], _mm_set1_epi8(7));
      __m128i* index = reinterpret_cast<__m128i*>(out.index + 16 * half);
      _mm_store_si128(index, _mm_unpacklo_epi8(low, high));
      _mm_store_si128(index + 1, _mm_unpackhi_epi8(low, high));
      __m128i negative = _mm_cmpeq_epi8(_mm_and_si128(nibble.half[half], eight), eight);
      positive[half] = _mm_andnot_si128(negative, two);
    }
    out.positive = _mm256_inserti128_si256(_mm256_castsi128_si256(positive[0]), positive[1], 1);
    __m256i in_order = unpack_scales(_mm256_broadcastsi128_si256(load_64(w.scales)));
    out.scales = even_then_odd_words(in_order);
    out.minus_nine = _mm256_mullo_epi16(in_order, _mm256_set1_epi16(-9));
  }

  template <int kTokens>
  static void accumulate(const Block& w, const Prepared& prepared, const Activation* const (&x)[kTokens],
                         i64 b, __m256 (&sum)[kTokens]) {
    const u64* book = entries<u64>(&kEighthsIq1S);
    __m256i positive[2] = {_mm256_permute2x128_si256(prepared.positive, prepared.positive, 0x00),
                           _mm256_permute2x128_si256(prepared.positive, prepared.positive, 0x11)};
    __m256i total[kTokens];
    clear(total);
#pragma GCC unroll 8
    for (int step = 0; step < 8; step++) {
      const long long k = 0x0101'0101'0101'0101 * (4 * (step % 4)), next = 0x0101'0101'0101'0101;
      const __m256i spread = _mm256_setr_epi64x(k, k + next, k + 2 * next, k + 3 * next);
      __m256i codes = look_up(book, prepared.index + 4 * step);
      codes = _mm256_or_si256(codes, _mm256_shuffle_epi8(positive[step / 4], spread));
      add_step(codes, step_scale(prepared.scales, step), x, b, step, total);
    }
    __m256 d = broadcast_half(unpack_d(w));
#pragma GCC unroll 4
    for (int t = 0; t < kTokens; t++) {
      __m256i eighths = _mm256_add_epi32(total[t], dot_sums(prepared.minus_nine, x[t][b]));
      sum[t] = add_eighths(d, x[t][b], eighths, sum[t]);
    }
  }
};

}  // namespace

void fill_matmul_iq1_avx2(LeafTable& table) {
  auto set = [&table](BlockType type, MatmulLeaf leaf) { table.matmul_q8[static_cast<i64>(type)] = leaf; };
  set(BlockType::IQ1_S, multiply_tile<IQ1_S>);
  set(BlockType::IQ1_M, multiply_tile<IQ1_M>);
}

}  // namespace stoker

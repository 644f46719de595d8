// AVX2 matmul of the larger k-quants: super-blocks of 256 whose codes are plain unsigned integers of 4 to 6 bits. The
// constant offset of the codes of Q6_K and the minimum per group of Q4_K and Q5_K are taken off through the sums of x
// per 16, which costs one madd per super-block. And of IQ4_XS, whose nibbles are looked up in a register.
#include "kernels/cpu/matmul_avx2.h"
#include "kernels/cpu/matmul_scales_avx2.h"
#include "kernels/format/blocks.h"
#include "kernels/format/codebooks.h"

namespace stoker {
namespace {

// What Q4_K and Q5_K share: the 16 bytes f16 d, f16 dmin, 12 bytes of eight 6-bit scales and mins.
struct ScalesAndMins {
  StepScales scales;  // of 32 weights
  __m256i mins;       // of 16 weights (each twice), in the order of x.sums
  __m256 d, minus_min;

  explicit ScalesAndMins(const void* head) {
    __m128i packed = load_128(head);  // d dmin | a | b | c, 4 bytes each
    __m256 factors = _mm256_castps128_ps256(_mm_cvtph_ps(packed));
    d = _mm256_broadcastss_ps(_mm256_castps256_ps128(factors));
    minus_min = _mm256_xor_ps(_mm256_broadcastss_ps(_mm_movehdup_ps(_mm256_castps256_ps128(factors))),
                              _mm256_set1_ps(-0.0f));
    // Groups 0-3: the low six bits of a (scales) and b (mins).
    __m128i first = _mm_and_si128(_mm_shuffle_epi32(packed, 0b10'10'10'01), _mm_set1_epi8(63));
    // Groups 4-7: low (scales) and high (mins) nibbles of c, and above them the top two bits of a and b.
    __m128i low = _mm_srlv_epi32(_mm_shuffle_epi32(packed, 0b11'11'11'11), _mm_setr_epi32(0, 4, 0, 4));
    __m128i high = _mm_srli_epi16(_mm_shuffle_epi32(packed, 0b10'10'10'01), 2);
    __m128i second =
        _mm_or_si128(_mm_and_si128(low, _mm_set1_epi8(15)), _mm_and_si128(high, _mm_set1_epi8(0x30)));
    __m128i both = _mm_unpacklo_epi32(first, second);  // scales 0-7, mins 0-7
    scales = _mm256_broadcastsi128_si256(_mm_cvtepu8_epi16(both));
    mins = _mm256_cvtepu8_epi16(
        _mm_shuffle_epi8(both, _mm_setr_epi8(8, 8, 9, 9, 10, 10, 11, 11, 12, 12, 13, 13, 14, 14, 15, 15)));
  }

  template <int kTokens>
  void add(const ActQ8_256* const (&x)[kTokens], i64 b, const __m256i (&total)[kTokens],
           __m256 (&sum)[kTokens]) const {
#pragma GCC unroll 4
    for (int t = 0; t < kTokens; t++) {
      sum[t] = add_scaled(d, x[t][b], total[t], sum[t]);
      sum[t] = add_scaled(minus_min, x[t][b], dot_sums(mins, x[t][b]), sum[t]);
    }
  }
};

// Codes 0 .. 15: i16 sums stay below 2 * 15 * 127 = 3810.
struct Q4K {
  using Block = BlockQ4_K;
  using Activation = ActQ8_256;

  template <int kTokens>
  static void accumulate(const Block& w, const Activation* const (&x)[kTokens], i64 b,
                         __m256 (&sum)[kTokens]) {
    ScalesAndMins head(&w);
    __m256i total[kTokens];
    clear(total);
#pragma GCC unroll 4
    for (int pair = 0; pair < 4; pair++) {
      __m256i bits = load_256(w.qs + 32 * pair);
      add_step(masked(bits, 15), step_scale(head.scales, 2 * pair), x, b, 2 * pair, total);
      bits = masked(_mm256_srli_epi16(bits, 4), 15);
      add_step(bits, step_scale(head.scales, 2 * pair + 1), x, b, 2 * pair + 1, total);
    }
    head.add(x, b, total, sum);
  }
};

// Codes 0 .. 31: i16 sums stay below 2 * 31 * 127 = 7874.
struct Q5K {
  using Block = BlockQ5_K;
  using Activation = ActQ8_256;

  static __m256i fifth_bit(__m256i high_bits, int group) {
    __m256i moved =
        group < 4 ? _mm256_slli_epi16(high_bits, 4 - group) : _mm256_srli_epi16(high_bits, group - 4);
    return masked(moved, 16);
  }

  template <int kTokens>
  static void accumulate(const Block& w, const Activation* const (&x)[kTokens], i64 b,
                         __m256 (&sum)[kTokens]) {
    ScalesAndMins head(&w);
    __m256i high_bits = load_256(w.qh);
    __m256i total[kTokens];
    clear(total);
#pragma GCC unroll 4
    for (int pair = 0; pair < 4; pair++) {
      __m256i bits = load_256(w.qs + 32 * pair);
      __m256i codes = _mm256_or_si256(masked(bits, 15), fifth_bit(high_bits, 2 * pair));
      add_step(codes, step_scale(head.scales, 2 * pair), x, b, 2 * pair, total);
      codes = _mm256_or_si256(masked(_mm256_srli_epi16(bits, 4), 15), fifth_bit(high_bits, 2 * pair + 1));
      add_step(codes, step_scale(head.scales, 2 * pair + 1), x, b, 2 * pair + 1, total);
    }
    head.add(x, b, total, sum);
  }
};

// Codes 0 .. 63 stand for -32 .. 31: i16 sums stay below 2 * 63 * 127 = 16002.
struct Q6K {
  using Block = BlockQ6_K;
  using Activation = ActQ8_256;

  template <int kTokens>
  static void accumulate(const Block& w, const Activation* const (&x)[kTokens], i64 b,
                         __m256 (&sum)[kTokens]) {
    __m128i packed = load_128(w.scales);
    StepScales scales = _mm256_cvtepi8_epi16(even_then_odd(packed));
    __m256i total[kTokens];
    clear(total);
#pragma GCC unroll 2
    for (int half = 0; half < 2; half++) {
      __m256i low[2] = {load_256(w.ql + 64 * half), load_256(w.ql + 64 * half + 32)};
      __m256i high = load_256(w.qh + 32 * half);
#pragma GCC unroll 4
      for (int k = 0; k < 4; k++) {
        int step = 4 * half + k;
        __m256i nibble = masked(k < 2 ? low[k % 2] : _mm256_srli_epi16(low[k % 2], 4), 15);
        __m256i top =
            masked(k < 2 ? _mm256_slli_epi16(high, 4 - 2 * k) : _mm256_srli_epi16(high, 2 * k - 4), 0x30);
        add_step(_mm256_or_si256(nibble, top), step_scale(scales, step), x, b, step, total);
      }
    }
    // 32 * scale fits i16: -4096 .. 4064.
    __m256i offsets = _mm256_slli_epi16(_mm256_cvtepi8_epi16(packed), 5);
    __m256 d = broadcast_half(w.d);
#pragma GCC unroll 4
    for (int t = 0; t < kTokens; t++)
      sum[t] = add_scaled(d, x[t][b], _mm256_sub_epi32(total[t], dot_sums(offsets, x[t][b])), sum[t]);
  }
};

// A code book of -127 .. 113: i16 sums stay below 2 * 127 * 127 = 32258.
struct IQ4_XS {
  using Block = BlockIQ4_XS;
  using Activation = ActQ8_256;

  static StepScales unpack_scales(const Block& w) {
    __m256i low = _mm256_srlv_epi32(_mm256_set1_epi32(static_cast<int>(load_u32(w.scales_l))),
                                    _mm256_setr_epi32(0, 4, 8, 12, 16, 20, 24, 28));
    __m256i high =
        _mm256_srlv_epi32(_mm256_set1_epi32(w.scales_h), _mm256_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14));
    low = _mm256_and_si256(low, _mm256_set1_epi32(15));
    high = _mm256_slli_epi32(_mm256_and_si256(high, _mm256_set1_epi32(3)), 4);
    return step_scales_of_lanes(_mm256_sub_epi32(_mm256_or_si256(low, high), _mm256_set1_epi32(32)));
  }

  template <int kTokens>
  static void accumulate(const Block& w, const Activation* const (&x)[kTokens], i64 b,
                         __m256 (&sum)[kTokens]) {
    __m256i book = _mm256_broadcastsi128_si256(load_128(&kIq4Nl));
    StepScales scales = unpack_scales(w);
    __m256i total[kTokens];
    clear(total);
#pragma GCC unroll 8
    for (int step = 0; step < 8; step++) {
      __m256i weights = _mm256_shuffle_epi8(book, nibbles(load_128(w.qs + 16 * step)));
      add_signed_step(_mm256_abs_epi8(weights), weights, step_scale(scales, step), x, b, step, total);
    }
    __m256 d = broadcast_half(w.d);
#pragma GCC unroll 4
    for (int t = 0; t < kTokens; t++) sum[t] = add_scaled(d, x[t][b], total[t], sum[t]);
  }
};

}  // namespace

void fill_matmul_k_avx2(LeafTable& table) {
  auto set = [&table](BlockType type, MatmulLeaf leaf) { table.matmul_q8[static_cast<i64>(type)] = leaf; };
  set(BlockType::Q4_K, multiply_tile<Q4K>);
  set(BlockType::Q5_K, multiply_tile<Q5K>);
  set(BlockType::Q6_K, multiply_tile<Q6K>);
  set(BlockType::IQ4_XS, multiply_tile<IQ4_XS>);
}

}  // namespace stoker

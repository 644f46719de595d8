// Dots of a super-block of 256 with ActQ8_256: 8 or 16 groups of weights, each with a small integer scale.
//
// A step is 32 weights. maddubs gives sixteen i16 sums of two products, weights 2i and 2i + 1 of the step;
// madd multiplies them with the scale of their group (the same for all 16, or one per half) and adds pairs
// into i32. i16 is enough as long as 2 * 127 * largest weight code <= 32767, that is for codes up to 129:
// each format states its bound. i32 is enough for every format: a lane gets 32 products of at most 127 * 128,
// times a scale of at most 128, which is less than 2^26.
#pragma once

#include "kernels/cpu/matmul_tile_avx2.h"

namespace stoker {
namespace {

inline __m256i masked(__m256i v, char mask) { return _mm256_and_si256(v, _mm256_set1_epi8(mask)); }

// Scales of 16-bit words, ready for step_scale(). For formats with one scale per 32 weights both halves hold
// scales 0 .. 7; for one per 16 weights the low half holds the even groups' and the high half the odd
// groups'.
using StepScales = __m256i;

// Sixteen byte scales in the order of their groups -> even groups, then odd groups.
inline __m128i even_then_odd(__m128i bytes) {
  return _mm_shuffle_epi8(bytes, _mm_setr_epi8(0, 2, 4, 6, 8, 10, 12, 14, 1, 3, 5, 7, 9, 11, 13, 15));
}

// Eight scales in 32-bit lanes -> words in both halves.
inline StepScales step_scales_of_lanes(__m256i lanes) {
  return _mm256_permute4x64_epi64(_mm256_packs_epi32(lanes, lanes), 0b10'00'10'00);
}

// The scale of step 0 .. 7 at each of its sixteen i16 sums.
inline __m256i step_scale(StepScales scales, int step) {
  const __m256i word = _mm256_set1_epi16(static_cast<short>(0x0100 + 0x0202 * step));
  return _mm256_shuffle_epi8(scales, word);
}

// total[t] += scale * (codes . x[t]) for one step. Codes are unsigned.
template <int kTokens>
inline void add_step(__m256i codes, __m256i scale, const ActQ8_256* const (&x)[kTokens], i64 b, int step,
                     __m256i (&total)[kTokens]) {
#pragma GCC unroll 4
  for (int t = 0; t < kTokens; t++) {
    __m256i pairs = _mm256_maddubs_epi16(codes, load_256(x[t][b].q + 32 * step));
    add_now_i32(total[t], _mm256_madd_epi16(pairs, scale));
  }
}

// The same for magnitudes and signs given apart: `signs` is 0xff or a negative byte where the weight is
// negative and positive elsewhere; x is -127 .. 127, so that its negation exists.
template <int kTokens>
inline void add_signed_step(__m256i magnitudes, __m256i signs, __m256i scale,
                            const ActQ8_256* const (&x)[kTokens], i64 b, int step,
                            __m256i (&total)[kTokens]) {
#pragma GCC unroll 4
  for (int t = 0; t < kTokens; t++) {
    __m256i turned = _mm256_sign_epi8(load_256(x[t][b].q + 32 * step), signs);
    __m256i pairs = _mm256_maddubs_epi16(magnitudes, turned);
    add_now_i32(total[t], _mm256_madd_epi16(pairs, scale));
  }
}

// Sum over the sixteen groups of factor[g] * (sum of x over group g), in eight i32 lanes.
inline __m256i dot_sums(__m256i factors, const ActQ8_256& x) {
  return _mm256_madd_epi16(factors, load_256(x.sums));
}

// sum += d * x.d * total
inline __m256 add_scaled(__m256 d, const ActQ8_256& x, __m256i total, __m256 sum) {
  return _mm256_fmadd_ps(_mm256_mul_ps(d, _mm256_broadcast_ss(&x.d)), _mm256_cvtepi32_ps(total), sum);
}

template <int kTokens>
inline void clear(__m256i (&total)[kTokens]) {
#pragma GCC unroll 4
  for (int t = 0; t < kTokens; t++) total[t] = _mm256_setzero_si256();
}

}  // namespace
}  // namespace stoker

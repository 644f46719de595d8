// Unpacking of the formats with linear codes or a 16-entry book into panels: Q4_K, Q5_K, Q6_K
// and IQ4_XS.
//
// 256-bit intrinsics at every level: with a hundred tokens behind each block, unpacking is a few percent of the work.
// Everything is in an unnamed namespace, as in the headers it includes.
#pragma once

#include "kernels/cpu/gemm_panel.h"
#include "kernels/cpu/matmul_scales_avx2.h"
#include "kernels/format/blocks.h"
#include "kernels/format/codebooks.h"

namespace stoker {
namespace {

inline f32 half_to_float(u16 h) { return _mm_cvtss_f32(_mm_cvtph_ps(_mm_cvtsi32_si128(h))); }

inline __m256i book_of_16(const void* book, const u8* qs) {
  return _mm256_shuffle_epi8(_mm256_broadcastsi128_si256(load_128(book)), nibbles(load_128(qs)));
}

inline void store_scales(StepScales scales, Panel256& out) {
#pragma GCC unroll 8
  for (int step = 0; step < 8; step++) store_256(out.scales[step], step_scale(scales, step));
}

// Bit `step` of each byte, as bit `to`.
inline __m256i plane_bit(__m256i bits, int step, int to) {
  __m256i moved = step < to ? _mm256_slli_epi16(bits, to - step) : _mm256_srli_epi16(bits, step - to);
  return masked(moved, static_cast<char>(1 << to));
}

// What Q4_K and Q5_K share: f16 d, f16 dmin, 12 bytes of eight 6-bit scales and mins.
inline void unpack_scales_and_mins(const void* head, Panel256& out) {
  __m128i packed = load_128(head);  // d dmin | a | b | c, 4 bytes each
  __m128 factors = _mm_cvtph_ps(packed);
  out.d = _mm_cvtss_f32(factors);
  out.m = -_mm_cvtss_f32(_mm_movehdup_ps(factors));
  // Groups 0-3: the low six bits of a (scales) and b (mins).
  __m128i ab = _mm_shuffle_epi32(packed, 0b10'10'10'01);
  __m128i first = _mm_and_si128(ab, _mm_set1_epi8(63));
  // Groups 4-7: low (scales) and high (mins) nibbles of c, and above them the top two bits of a and b.
  __m128i low = _mm_srlv_epi32(_mm_shuffle_epi32(packed, 0b11'11'11'11), _mm_setr_epi32(0, 4, 0, 4));
  __m128i second = _mm_or_si128(_mm_and_si128(low, _mm_set1_epi8(15)),
                                _mm_and_si128(_mm_srli_epi16(ab, 2), _mm_set1_epi8(0x30)));
  __m128i both = _mm_unpacklo_epi32(first, second);  // scales 0-7, mins 0-7
  store_scales(_mm256_broadcastsi128_si256(_mm_cvtepu8_epi16(both)), out);
  const __m128i mins_twice = _mm_setr_epi8(8, 8, 9, 9, 10, 10, 11, 11, 12, 12, 13, 13, 14, 14, 15, 15);
  store_256(out.factors, _mm256_cvtepu8_epi16(_mm_shuffle_epi8(both, mins_twice)));
}

inline void unpack_block(const BlockQ4_K& w, Panel256& out) {
  unpack_scales_and_mins(&w, out);
#pragma GCC unroll 8
  for (int step = 0; step < 8; step++) {
    __m256i bits = load_256(w.qs + 32 * (step / 2));
    store_256(out.codes + 32 * step, masked(step % 2 == 0 ? bits : _mm256_srli_epi16(bits, 4), 15));
  }
}

inline void unpack_block(const BlockQ5_K& w, Panel256& out) {
  unpack_scales_and_mins(&w, out);
  __m256i high_bits = load_256(w.qh);
#pragma GCC unroll 8
  for (int step = 0; step < 8; step++) {
    __m256i bits = load_256(w.qs + 32 * (step / 2));
    __m256i low = masked(step % 2 == 0 ? bits : _mm256_srli_epi16(bits, 4), 15);
    store_256(out.codes + 32 * step, _mm256_or_si256(low, plane_bit(high_bits, step, 4)));
  }
}

// Codes 0 .. 63 for -32 .. 31; the factors take 32 * scale off, which fits i16.
inline void unpack_block(const BlockQ6_K& w, Panel256& out) {
  __m128i scales = load_128(w.scales);
  store_scales(_mm256_cvtepi8_epi16(even_then_odd(scales)), out);
  store_256(out.factors, _mm256_slli_epi16(_mm256_sub_epi16(_mm256_setzero_si256(), _mm256_cvtepi8_epi16(scales)), 5));
#pragma GCC unroll 8
  for (int step = 0; step < 8; step++) {
    int half = step / 4, k = step % 4;
    __m256i low = load_256(w.ql + 64 * half + 32 * (k % 2)), high = load_256(w.qh + 32 * half);
    __m256i nibble = masked(k < 2 ? low : _mm256_srli_epi16(low, 4), 15);
    __m256i top = masked(k < 2 ? _mm256_slli_epi16(high, 4 - 2 * k) : _mm256_srli_epi16(high, 2 * k - 4), 0x30);
    store_256(out.codes + 32 * step, _mm256_or_si256(nibble, top));
  }
  out.d = half_to_float(w.d);
}

inline void unpack_block(const BlockIQ4_XS& w, Panel256& out) {
  __m256i low = _mm256_srlv_epi32(_mm256_set1_epi32(static_cast<int>(load_u32(w.scales_l))),
                                  _mm256_setr_epi32(0, 4, 8, 12, 16, 20, 24, 28));
  __m256i high = _mm256_srlv_epi32(_mm256_set1_epi32(w.scales_h), _mm256_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14));
  low = _mm256_and_si256(low, _mm256_set1_epi32(15));
  high = _mm256_slli_epi32(_mm256_and_si256(high, _mm256_set1_epi32(3)), 4);
  store_scales(step_scales_of_lanes(_mm256_sub_epi32(_mm256_or_si256(low, high), _mm256_set1_epi32(32))), out);
#pragma GCC unroll 8
  for (int step = 0; step < 8; step++) store_256(out.codes + 32 * step, book_of_16(&kIq4Nl, w.qs + 16 * step));
  out.d = half_to_float(w.d);
}

}  // namespace
}  // namespace stoker

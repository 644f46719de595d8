// Blocks as floats, for products with float activations and for decoding. A sink gets 32 weights at a time:
//
//   template <bool kOffset> void step(int index, __m256i codes, f32 scale0, f32 scale1, f32 offset0, f32 offset1);
//
// codes are 32 signed bytes; scale0 and offset0 belong to the first 16, scale1 and offset1 to the others. A weight is
// scale * code, rounded, plus offset if there is one, rounded: the definition of kernels/ref/dequantize.cc, bit for bit.
// The common formats are unpacked in registers, the others by their definition.
//
// Everything is in an unnamed namespace, for the avx2 and the avx512 library alike.
#pragma once

#include <immintrin.h>

#include "kernels/cpu/matmul_tile_avx2.h"
#include "kernels/format/codebooks.h"
#include "kernels/ref/unpack.h"

namespace stoker {
namespace {

inline f32 half_to_float(u16 h) { return _mm_cvtss_f32(_mm_cvtph_ps(_mm_cvtsi32_si128(h))); }

// Sixteen bytes of two nibbles: the low ones first.
inline __m256i nibbles_16(const u8* qs) {
  __m128i bytes = load_128(qs);
  return _mm256_and_si256(_mm256_set_m128i(_mm_srli_epi16(bytes, 4), bytes), _mm256_set1_epi8(15));
}

// 0xff in byte i where bit i is set.
inline __m256i spread_bits(u32 bits) {
  const __m256i byte_of = _mm256_setr_epi64x(0, 0x0101010101010101, 0x0202020202020202, 0x0303030303030303);
  const __m256i bit_of = _mm256_set1_epi64x(static_cast<long long>(0x8040201008040201));
  __m256i bytes = _mm256_shuffle_epi8(_mm256_set1_epi32(static_cast<int>(bits)), byte_of);
  return _mm256_cmpeq_epi8(_mm256_and_si256(bytes, bit_of), bit_of);
}

// Eight or sixteen byte scales times d, as floats.
inline void scaled(__m128i bytes, f32 d, f32* out) {
  _mm256_storeu_ps(out, _mm256_mul_ps(_mm256_set1_ps(d), _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(bytes))));
}

template <class Block, class Sink>
inline void unpack_steps(const Block& block, Sink& sink) {
  ref::UnpackedBlock b;
  ref::unpack(block, b);
  for (int i = 0; i < static_cast<int>(Block::kWeights) / 32; i++) {
    f32 scale0 = b.d * static_cast<f32>(b.scale[2 * i]), scale1 = b.d * static_cast<f32>(b.scale[2 * i + 1]);
    __m256i codes = load_256(b.code + 32 * i);
    if (b.has_offset)
      sink.template step<true>(i, codes, scale0, scale1, b.m * static_cast<f32>(b.offset[2 * i]),
                               b.m * static_cast<f32>(b.offset[2 * i + 1]));
    else
      sink.template step<false>(i, codes, scale0, scale1, 0, 0);
  }
}

template <class Sink>
__attribute__((always_inline)) inline void unpack_steps(const BlockQ8_0& b, Sink& sink) {
  f32 d = half_to_float(b.d);
  sink.template step<false>(0, load_256(b.qs), d, d, 0, 0);
}

template <class Sink>
__attribute__((always_inline)) inline void unpack_steps(const BlockQ4_0& b, Sink& sink) {
  f32 d = half_to_float(b.d);
  sink.template step<false>(0, _mm256_sub_epi8(nibbles_16(b.qs), _mm256_set1_epi8(8)), d, d, 0, 0);
}

template <class Sink>
__attribute__((always_inline)) inline void unpack_steps(const BlockQ5_0& b, Sink& sink) {
  f32 d = half_to_float(b.d);
  // 16 less where the fifth bit is not set.
  __m256i less = _mm256_andnot_si256(spread_bits(load_u32(b.qh)), _mm256_set1_epi8(16));
  sink.template step<false>(0, _mm256_sub_epi8(nibbles_16(b.qs), less), d, d, 0, 0);
}

template <class Sink>
__attribute__((always_inline)) inline void unpack_steps(const BlockIQ4_NL& b, Sink& sink) {
  f32 d = half_to_float(b.d);
  const __m256i book = _mm256_broadcastsi128_si256(load_128(&kIq4Nl));
  sink.template step<false>(0, _mm256_shuffle_epi8(book, nibbles_16(b.qs)), d, d, 0, 0);
}

// The eight 6-bit scales and mins of Q4_K and Q5_K (see blocks.h) times d and -dmin.
struct KScales {
  f32 scale[8], offset[8];

  KScales(u16 d, u16 dmin, const u8* packed) {
    u32 a = load_u32(packed), b = load_u32(packed + 4), c = load_u32(packed + 8);
    u32 scale_high = (c & 0x0f0f0f0f) | (a >> 6 & 0x03030303) << 4;
    u32 min_high = (c >> 4 & 0x0f0f0f0f) | (b >> 6 & 0x03030303) << 4;
    __m128i scales = _mm_setr_epi32(static_cast<int>(a & 0x3f3f3f3f), static_cast<int>(scale_high), 0, 0);
    __m128i mins = _mm_setr_epi32(static_cast<int>(b & 0x3f3f3f3f), static_cast<int>(min_high), 0, 0);
    scaled(scales, half_to_float(d), scale);
    scaled(_mm_sub_epi8(_mm_setzero_si128(), mins), half_to_float(dmin), offset);
  }
};

template <class Sink>
__attribute__((always_inline)) inline void unpack_steps(const BlockQ4_K& b, Sink& sink) {
  KScales s(b.d, b.dmin, b.scales);
#pragma GCC unroll 8
  for (int g = 0; g < 8; g++) {
    __m256i bytes = load_256(b.qs + 32 * (g / 2));
    __m256i codes = _mm256_and_si256(g % 2 == 0 ? bytes : _mm256_srli_epi16(bytes, 4), _mm256_set1_epi8(15));
    sink.template step<true>(g, codes, s.scale[g], s.scale[g], s.offset[g], s.offset[g]);
  }
}

template <class Sink>
__attribute__((always_inline)) inline void unpack_steps(const BlockQ5_K& b, Sink& sink) {
  KScales s(b.d, b.dmin, b.scales);
  const __m256i high = load_256(b.qh);
#pragma GCC unroll 8
  for (int g = 0; g < 8; g++) {
    __m256i bytes = load_256(b.qs + 32 * (g / 2));
    __m256i low = _mm256_and_si256(g % 2 == 0 ? bytes : _mm256_srli_epi16(bytes, 4), _mm256_set1_epi8(15));
    const __m256i bit = _mm256_set1_epi8(static_cast<char>(1 << g));
    __m256i set = _mm256_cmpeq_epi8(_mm256_and_si256(high, bit), bit);
    __m256i codes = _mm256_or_si256(low, _mm256_and_si256(set, _mm256_set1_epi8(16)));
    sink.template step<true>(g, codes, s.scale[g], s.scale[g], s.offset[g], s.offset[g]);
  }
}

template <class Sink>
__attribute__((always_inline)) inline void unpack_steps(const BlockQ6_K& b, Sink& sink) {
  f32 scale[16], d = half_to_float(b.d);
  __m128i scales = load_128(b.scales);
  scaled(scales, d, scale);
  scaled(_mm_srli_si128(scales, 8), d, scale + 8);
#pragma GCC unroll 8
  for (int g = 0; g < 8; g++) {
    const int half = g / 4, k = g % 4;
    __m256i low = load_256(b.ql + 64 * half + 32 * (k % 2));
    if (k >= 2) low = _mm256_srli_epi16(low, 4);
    __m256i high = _mm256_and_si256(_mm256_srli_epi16(load_256(b.qh + 32 * half), 2 * k), _mm256_set1_epi8(3));
    __m256i codes = _mm256_or_si256(_mm256_and_si256(low, _mm256_set1_epi8(15)), _mm256_slli_epi16(high, 4));
    sink.template step<false>(g, _mm256_sub_epi8(codes, _mm256_set1_epi8(32)), scale[2 * g], scale[2 * g + 1], 0, 0);
  }
}

template <class Sink>
__attribute__((always_inline)) inline void unpack_steps(const BlockIQ4_XS& b, Sink& sink) {
  const f32 d = half_to_float(b.d);
  const __m256i book = _mm256_broadcastsi128_si256(load_128(&kIq4Nl));
#pragma GCC unroll 8
  for (int g = 0; g < 8; g++) {
    int low = b.scales_l[g / 2] >> (g % 2 * 4) & 15, high = b.scales_h >> (2 * g) & 3;
    f32 scale = d * static_cast<f32>((low | high << 4) - 32);
    sink.template step<false>(g, _mm256_shuffle_epi8(book, nibbles_16(b.qs + 16 * g)), scale, scale, 0, 0);
  }
}

// Eight codes as weights.
template <bool kOffset>
inline __m256 to_weights(__m128i codes, f32 scale, f32 offset) {
  __m256 value = _mm256_mul_ps(_mm256_set1_ps(scale), _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(codes)));
  if constexpr (kOffset) value = _mm256_add_ps(value, _mm256_set1_ps(offset));
  return value;
}

// Calls f(first of eight, their weights) four times.
template <bool kOffset, class F>
__attribute__((always_inline)) inline void for_each_eight(int index, __m256i codes, f32 scale0, f32 scale1, f32 offset0, f32 offset1, F&& f) {
  __m128i low = _mm256_castsi256_si128(codes), high = _mm256_extracti128_si256(codes, 1);
  f(32 * index, to_weights<kOffset>(low, scale0, offset0));
  f(32 * index + 8, to_weights<kOffset>(_mm_unpackhi_epi64(low, low), scale0, offset0));
  f(32 * index + 16, to_weights<kOffset>(high, scale1, offset1));
  f(32 * index + 24, to_weights<kOffset>(_mm_unpackhi_epi64(high, high), scale1, offset1));
}

struct StoreFloats {
  f32* to;
  template <bool kOffset>
  __attribute__((always_inline)) void step(int index, __m256i codes, f32 scale0, f32 scale1, f32 offset0, f32 offset1) {
    for_each_eight<kOffset>(index, codes, scale0, scale1, offset0, offset1,
                            [this](int first, __m256 weights) __attribute__((always_inline)) { _mm256_storeu_ps(to + first, weights); });
  }
};

}  // namespace
}  // namespace stoker

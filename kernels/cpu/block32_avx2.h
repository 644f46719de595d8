// What the AVX2 kernels know of the formats with blocks of 32 weights and one scale (and perhaps a minimum) each.
//
//   struct Format {
//     using Block = ...;
//     static constexpr Codes kCodes;
//     static constexpr int kOffset;        // unsigned codes stand for code - kOffset
//     static constexpr bool kMinimum;
//     static __m256i codes(const Block&);  // 32 bytes in the order of the columns
//     static __m256 scales(const Block* const (&)[8]);
//     static __m256 minima(const Block* const (&)[8]);  // with kMinimum
//   };
//
// The sum of a block is an exact integer, so a product with few tokens and a GEMM may take it in any order. They have
// the same bits because they do the same to it: the even and the odd blocks of a row are two chains in the order of the
// columns, each block is one fused multiplication with the product of both scales, then, where there is one, another
// of the minimum with the scaled sum of the activations; the two chains are added last.
//
// Everything is in an unnamed namespace: see matmul_tile_avx2.h.
#pragma once

#include "kernels/cpu/matmul_tile_avx2.h"
#include "kernels/format/blocks.h"
#include "kernels/format/codebooks.h"

namespace stoker {
namespace {

enum class Codes {
  nibble,  // 0 .. 15: eight products fit an i16 pair by pair, 16 * 15 * 127 = 30480
  small,   // 0 .. 31: half as many, 8 * 31 * 127 = 31496
  bytes,   // signed, -128 .. 127
};

// Of eight blocks. Halves that lie apart are put together and converted at once.
template <class Block>
inline __m256 scales_of(const Block* const (&b)[8]) {
  auto half = [&](int i) __attribute__((always_inline)) { return static_cast<short>(b[i]->d); };
  return _mm256_cvtph_ps(_mm_setr_epi16(half(0), half(1), half(2), half(3), half(4), half(5), half(6), half(7)));
}
template <class Block>
inline __m256 minima_of(const Block* const (&b)[8]) {
  auto half = [&](int i) __attribute__((always_inline)) { return static_cast<short>(b[i]->m); };
  return _mm256_cvtph_ps(_mm_setr_epi16(half(0), half(1), half(2), half(3), half(4), half(5), half(6), half(7)));
}

// The nibbles, with bit i of a u32 as 0x10 in byte i.
inline __m256i five_bits(const u8 (&qs)[16], const u8 (&qh)[4]) {
  __m256i high = bits_to_bytes<0>(_mm256_set1_epi32(static_cast<int>(load_u32(qh))));
  return _mm256_or_si256(nibbles(load_128(qs)), _mm256_and_si256(high, _mm256_set1_epi8(16)));
}

struct Q4_0 {
  using Block = BlockQ4_0;
  static constexpr Codes kCodes = Codes::nibble;
  static constexpr int kOffset = 8;
  static constexpr bool kMinimum = false;
  static __m256i codes(const Block& w) { return nibbles(load_128(w.qs)); }
  static __m256 scales(const Block* const (&b)[8]) { return scales_of(b); }
};

struct Q4_1 {
  using Block = BlockQ4_1;
  static constexpr Codes kCodes = Codes::nibble;
  static constexpr int kOffset = 0;
  static constexpr bool kMinimum = true;
  static __m256i codes(const Block& w) { return nibbles(load_128(w.qs)); }
  static __m256 scales(const Block* const (&b)[8]) { return scales_of(b); }
  static __m256 minima(const Block* const (&b)[8]) { return minima_of(b); }
};

struct Q5_0 {
  using Block = BlockQ5_0;
  static constexpr Codes kCodes = Codes::small;
  static constexpr int kOffset = 16;
  static constexpr bool kMinimum = false;
  static __m256i codes(const Block& w) { return five_bits(w.qs, w.qh); }
  static __m256 scales(const Block* const (&b)[8]) { return scales_of(b); }
};

struct Q5_1 {
  using Block = BlockQ5_1;
  static constexpr Codes kCodes = Codes::small;
  static constexpr int kOffset = 0;
  static constexpr bool kMinimum = true;
  static __m256i codes(const Block& w) { return five_bits(w.qs, w.qh); }
  static __m256 scales(const Block* const (&b)[8]) { return scales_of(b); }
  static __m256 minima(const Block* const (&b)[8]) { return minima_of(b); }
};

struct Q8_0 {
  using Block = BlockQ8_0;
  static constexpr Codes kCodes = Codes::bytes;
  static constexpr int kOffset = 0;
  static constexpr bool kMinimum = false;
  static __m256i codes(const Block& w) { return load_256(w.qs); }
  static __m256 scales(const Block* const (&b)[8]) { return scales_of(b); }
};

// A code book of -127 .. 113.
struct IQ4_NL {
  using Block = BlockIQ4_NL;
  static constexpr Codes kCodes = Codes::bytes;
  static constexpr int kOffset = 0;
  static constexpr bool kMinimum = false;
  static __m256i codes(const Block& w) {
    return _mm256_shuffle_epi8(_mm256_broadcastsi128_si256(load_128(&kIq4Nl)), nibbles(load_128(w.qs)));
  }
  static __m256 scales(const Block* const (&b)[8]) { return scales_of(b); }
};

// A code book of -12 .. 12 (E2M1 doubled), moved to 0 .. 24, and a power of two.
struct MXFP4 {
  using Block = BlockMXFP4;
  static constexpr Codes kCodes = Codes::small;
  static constexpr int kOffset = 12;
  static constexpr bool kMinimum = false;
  static __m256i codes(const Block& w) {
    const __m128i book = _mm_add_epi8(load_128(&kMxfp4), _mm_set1_epi8(kOffset));
    return _mm256_shuffle_epi8(_mm256_broadcastsi128_si256(book), nibbles(load_128(w.qs)));
  }
  // 2^(e - 128), as bits: a denormal for e below 2.
  static __m256 scales(const Block* const (&b)[8]) {
    const __m256i e = _mm256_setr_epi32(b[0]->e, b[1]->e, b[2]->e, b[3]->e, b[4]->e, b[5]->e, b[6]->e, b[7]->e);
    const __m256i normal = _mm256_slli_epi32(_mm256_sub_epi32(e, _mm256_set1_epi32(1)), 23);
    const __m256i denormal = _mm256_sllv_epi32(_mm256_set1_epi32(0x200000), e);
    return _mm256_castsi256_ps(
        _mm256_blendv_epi8(denormal, normal, _mm256_cmpgt_epi32(e, _mm256_set1_epi32(1))));
  }
};

}  // namespace
}  // namespace stoker

// Sign bits of the i-quants: a byte per 8 weights, of which some formats store seven bits.
#pragma once

#include "kernels/cpu/matmul_tile_avx2.h"

namespace stoker {
namespace {

// 32 bytes of seven sign bits -> sign bytes: bit 7 makes the number of ones even.
inline __m256i add_parity(__m256i seven) {
  constexpr char odd = static_cast<char>(0x80);
  const __m256i parity = _mm256_setr_epi8(0, odd, odd, 0, odd, 0, 0, odd, odd, 0, 0, odd, 0, odd, odd, 0, 0,
                                          odd, odd, 0, odd, 0, 0, odd, odd, 0, 0, odd, 0, odd, odd, 0);
  __m256i low = _mm256_shuffle_epi8(parity, seven);  // by the low four bits, as the top bit is not set
  __m256i high = _mm256_shuffle_epi8(parity, _mm256_and_si256(_mm256_srli_epi16(seven, 4), _mm256_set1_epi8(15)));
  return _mm256_or_si256(seven, _mm256_xor_si256(low, high));
}

// Eight u32 with four 7-bit fields each in their low 28 bits -> 32 bytes of seven bits. Adding what lies above a field
// to itself moves that up by a bit.
inline __m256i spread_sevens(__m256i fields) {
  fields = _mm256_add_epi32(fields, _mm256_and_si256(fields, _mm256_set1_epi32(~0x7f)));
  fields = _mm256_add_epi32(fields, _mm256_and_si256(fields, _mm256_set1_epi32(~0x7fff)));
  fields = _mm256_add_epi32(fields, _mm256_and_si256(fields, _mm256_set1_epi32(~0x7fffff)));
  return _mm256_and_si256(fields, _mm256_set1_epi8(0x7f));
}

// The sign bits of a super-block, a word per 8 weights, so that a shuffle and a product sign a part of
// matmul_turned_avx2.h.
struct Signs {
  __m256i words[2];  // [h]

  Signs() = default;
  // Of sign byte b, the low byte of the word is b + (b | 1) and the high byte b | 1: shifted left by 6 - 2 k, bit 2 k
  // is the top bit of the low byte and bit 2 k + 1 that of the high byte, and a one below keeps both from being zero:
  // the lowest bit, or of the low byte the one above where that is set in b.
  explicit Signs(__m256i bytes) {
    const __m256i odd = _mm256_or_si256(bytes, _mm256_set1_epi8(1)), even = _mm256_add_epi8(bytes, odd);
    words[0] = _mm256_unpacklo_epi8(even, odd);
    words[1] = _mm256_unpackhi_epi8(even, odd);
  }

  // Negative where the weight is, else positive.
  __m256i part(int h, int k) const {
    const long long word = 0x0100'0100'0100'0100 + k * 0x0202'0202'0202'0202, other = word + 0x0808'0808'0808'0808;
    const __m256i spread = _mm256_setr_epi64x(word, other, word, other);
    const __m256i move = _mm256_set1_epi64x(0x0001'0004'0010'0040);
    return _mm256_mullo_epi16(_mm256_shuffle_epi8(words[h], spread), move);
  }
};

}  // namespace
}  // namespace stoker

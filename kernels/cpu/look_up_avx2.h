// Code book look-ups of the i-quants.
//
// A look-up is an ordinary 8- or 4-byte load: vpgather is slower than that on Zen, and elsewhere for books of 8 bytes.
// Indices wider than a byte are put together 16 at a time in vector registers when a block is prepared, and go through
// memory, where the loads pick them up.
#pragma once

#include <immintrin.h>

#include "kernels/base/types.h"

namespace stoker {
namespace {

// Entries of a book; not std::array's operator[], which would be an inline function compiled for AVX2.
template <class Entry>
inline const Entry* entries(const void* book) {
  return static_cast<const Entry*>(book);
}

// A load that fills all lanes and a blend into place: neither needs the shuffling port, as inserting would.
inline __m256i everywhere(u64 entry) { return _mm256_set1_epi64x(static_cast<long long>(entry)); }
inline __m256i everywhere(u32 entry) { return _mm256_set1_epi32(static_cast<int>(entry)); }

// 32 magnitudes from four entries of eight, or eight entries of four.
template <class Index>
inline __m256i look_up(const u64* book, const Index* index) {
  __m256i low = _mm256_blend_epi32(everywhere(book[index[0]]), everywhere(book[index[1]]), 0x0c);
  __m256i high = _mm256_blend_epi32(everywhere(book[index[2]]), everywhere(book[index[3]]), 0xc0);
  return _mm256_blend_epi32(low, high, 0xf0);
}
template <class Index>
inline __m256i look_up(const u32* book, const Index* index) {
  __m256i first = _mm256_blend_epi32(everywhere(book[index[0]]), everywhere(book[index[1]]), 0x02);
  __m256i second = _mm256_blend_epi32(everywhere(book[index[2]]), everywhere(book[index[3]]), 0x08);
  __m256i third = _mm256_blend_epi32(everywhere(book[index[4]]), everywhere(book[index[5]]), 0x20);
  __m256i fourth = _mm256_blend_epi32(everywhere(book[index[6]]), everywhere(book[index[7]]), 0x80);
  return _mm256_blend_epi32(_mm256_blend_epi32(first, second, 0x0c), _mm256_blend_epi32(third, fourth, 0xc0), 0xf0);
}

}  // namespace
}  // namespace stoker

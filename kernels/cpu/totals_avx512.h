// The totals of several registers at once: each alone takes four shuffles and four additions, sixteen together 45 of both.
// Lanes 8, 4, 2 and 1 apart are added, in this order, as _mm512_reduce_add_ps does: the same bits.
//
// In an unnamed namespace and without inline functions of the standard library, like what includes it.
#pragma once

#include <immintrin.h>

#include "kernels/base/types.h"

namespace stoker {
namespace {

// Each joins what its two arguments have, so that the next addition is of full registers again.
inline __m512 add_halves(__m512 a, __m512 b) {
  return _mm512_add_ps(_mm512_shuffle_f32x4(a, b, 0b01'00'01'00), _mm512_shuffle_f32x4(a, b, 0b11'10'11'10));
}
inline __m512 add_quarters(__m512 a, __m512 b) {
  return _mm512_add_ps(_mm512_shuffle_f32x4(a, b, 0b10'00'10'00), _mm512_shuffle_f32x4(a, b, 0b11'01'11'01));
}
inline __m512 add_pairs(__m512 a, __m512 b) {
  return _mm512_add_ps(_mm512_shuffle_ps(a, b, 0b01'00'01'00), _mm512_shuffle_ps(a, b, 0b11'10'11'10));
}
inline __m512 add_neighbours(__m512 a, __m512 b) {
  return _mm512_add_ps(_mm512_shuffle_ps(a, b, 0b10'00'10'00), _mm512_shuffle_ps(a, b, 0b11'01'11'01));
}

// Quarter i: four parts of sum i.
inline __m512 quarters_of_four(const __m512* sums) {
  return add_quarters(add_halves(sums[0], sums[1]), add_halves(sums[2], sums[3]));
}

// out[i]: the total of the lanes of sums[i].
template <int kCount>
__attribute__((always_inline)) inline void store_totals(const __m512 (&sums)[kCount], f32* out) {
  if constexpr (kCount < 4) {
    for (int i = 0; i < kCount; i++) out[i] = _mm512_reduce_add_ps(sums[i]);
  } else {
    static_assert(kCount == 4 || kCount == 8 || kCount == 16);
    __m512 first = quarters_of_four(sums), second = first;
    if constexpr (kCount > 4) second = quarters_of_four(sums + 4);
    __m512 low = add_pairs(first, second), high = low;
    if constexpr (kCount == 16) high = add_pairs(quarters_of_four(sums + 8), quarters_of_four(sums + 12));
    // Quarter i: the totals of sums i, 4 + i, 8 + i, 12 + i, as far as there are so many.
    const __m512i order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
    const __m512 totals = _mm512_permutexvar_ps(order, add_neighbours(low, high));
    // Not by a mask: loads right behind a masked store wait until it is done.
    if constexpr (kCount == 4) _mm_storeu_ps(out, _mm512_castps512_ps128(totals));
    if constexpr (kCount == 8) _mm256_storeu_ps(out, _mm512_castps512_ps256(totals));
    if constexpr (kCount == 16) _mm512_storeu_ps(out, totals);
  }
}

}  // namespace
}  // namespace stoker

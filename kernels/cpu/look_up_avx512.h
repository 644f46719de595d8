// Look-ups of 64 bytes at once in the planes of a code book (kernels/format/codebooks.h), and what the code book
// formats share: signs and scales.
//
// vpermi2b looks 64 bytes up in a table of 128. Longer planes take several, each for the bytes whose further index bits
// select its part. Those bits come as masks: bit 7 of the index byte, then bits from elsewhere in the block.
#pragma once

#include "kernels/cpu/matmul_codebook_tile_avx512.h"
#include "kernels/format/codebooks.h"

namespace stoker {
namespace {

// The planes of a book, one after the other. Not std::array's members, which would be inline functions compiled for
// AVX-512.
template <size_t kPlanes, size_t kCount>
inline const u8* planes(const BookPlanes<kPlanes, kCount>& book) {
  return reinterpret_cast<const u8*>(&book);
}

// The same for books that do not fit into registers. Left alone, GCC would keep them there over all blocks, that is in
// a misaligned copy on the stack.
template <size_t kPlanes, size_t kCount>
inline const u8* planes_in_memory(const BookPlanes<kPlanes, kCount>& book) {
  const u8* bytes = planes(book);
  __asm__ volatile("" : "+r"(bytes));
  return bytes;
}

// plane[index & 127] where the mask is set; other bytes of `index` stay.
inline __m512i look_up_128(const u8* plane, __m512i index, __mmask64 where) {
  return _mm512_mask2_permutex2var_epi8(load_512(plane), index, where, load_512(plane + 64));
}

inline __m512i look_up_256(const u8* plane, __m512i index, __mmask64 bit_7) {
  return look_up_128(plane + 128, look_up_128(plane, index, _knot_mask64(bit_7)), bit_7);
}

inline __m512i look_up_512(const u8* plane, __m512i index, __mmask64 bit_7, __mmask64 bit_8) {
  return _mm512_mask_blend_epi8(bit_8, look_up_256(plane, index, bit_7), look_up_256(plane + 256, index, bit_7));
}

inline __m512i look_up_1024(const u8* plane, __m512i index, __mmask64 bit_7, __mmask64 bit_8, __mmask64 bit_9) {
  return _mm512_mask_blend_epi8(bit_9, look_up_512(plane, index, bit_7, bit_8),
                                look_up_512(plane + 512, index, bit_7, bit_8));
}

// 64 bytes made by the compiler: byte i is f(i), modulo 256.
struct alignas(64) Bytes {
  u8 at[64];
  operator __m512i() const { return _mm512_load_si512(at); }
};
template <class F>
consteval Bytes bytes(F f) {
  Bytes result{};
  for (int i = 0; i < 64; i++) result.at[i] = static_cast<u8>(f(i));
  return result;
}

// Bytes of seven sign bits, bit 7 anything -> sign bytes: bit 7 makes the number of ones even. With all eight bits
// counted, an odd number says that bit 7 is the wrong one.
inline __m512i make_even(__m512i sevens) {
  __m512i odd = _mm512_slli_epi16(_mm512_popcnt_epi8(sevens), 7);
  return _mm512_ternarylogic_epi64(sevens, odd, _mm512_set1_epi8(static_cast<char>(0x80)), 0x78);  // a ^ (b & c)
}

// factor * (2 s + 1) for s in the low four bits of each lane.
inline __m512 odd_scales(__m512i s, f32 factor) {
  const __m512 scales = _mm512_setr_ps(1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31);
  return _mm512_permutexvar_ps(s, _mm512_mul_ps(scales, _mm512_set1_ps(factor)));
}

// The same for the low three bits.
inline __m512 odd_scales_of_three_bits(__m512i s, f32 factor) {
  const __m512 scales = _mm512_setr_ps(1, 3, 5, 7, 9, 11, 13, 15, 1, 3, 5, 7, 9, 11, 13, 15);
  return _mm512_permutexvar_ps(s, _mm512_mul_ps(scales, _mm512_set1_ps(factor)));
}

inline __m512 broadcast_half(u16 h) {
  return _mm512_cvtph_ps(_mm256_set1_epi16(static_cast<short>(h)));
}

// a's four qwords between b's: a0 b0 a1 b1 ...
inline __m512i alternate_qwords(__m256i a, __m256i b) {
  return _mm512_permutex2var_epi64(_mm512_castsi256_si512(a), _mm512_setr_epi64(0, 8, 1, 9, 2, 10, 3, 11),
                                   _mm512_castsi256_si512(b));
}

// a's four dwords between b's, each as a qword; upper halves are anything.
inline __m512i alternate_dwords(__m128i a, __m128i b) {
  const __m512i order = _mm512_setr_epi32(0, 0, 16, 0, 1, 0, 17, 0, 2, 0, 18, 0, 3, 0, 19, 0);
  return _mm512_permutex2var_epi32(_mm512_castsi128_si512(a), order, _mm512_castsi128_si512(b));
}

}  // namespace
}  // namespace stoker

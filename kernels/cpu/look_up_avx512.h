// Look-ups of 64 bytes at once in the planes of a code book (kernels/format/codebooks.h), and what the code book
// formats share: signs and scales.
//
// vpermi2b looks 64 bytes up in a table of 128. Longer planes take several, and the further bits of the index select:
// bit 7, which is in the index byte, then bits from elsewhere in the block. What binds are the loads of the book, 64
// bytes each, so a part is used for all indices at hand.
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

// A part of a plane that is used more than once; GCC would load it again each time.
inline __m512i load_once(const u8* part) {
  __m512i bytes = load_512(part);
  __asm__("" : "+v"(bytes));
  return bytes;
}

// kSets times 64 indices into one book.
template <int kSets>
struct LookUp {
  __m512i low[kSets];  // bits 0 .. 7
  __mmask64 bit_7[kSets];
  __m512i bit_8[kSets], bit_9[kSets];  // 0xff where set; as far as the book is that long

  void set_low(int set, __m512i bytes) {
    low[set] = bytes;
    bit_7[set] = _mm512_movepi8_mask(bytes);
  }

  // out[set] = plane[index], the plane being of kEntries bytes
  template <int kEntries>
  void run(const u8* plane, __m512i (&out)[kSets]) const {
    if constexpr (kEntries == 256) {
      __m512i part[4];
#pragma GCC unroll 4
      for (int i = 0; i < 4; i++) part[i] = kSets > 1 ? load_once(plane + 64 * i) : load_512(plane + 64 * i);
#pragma GCC unroll 4
      for (int s = 0; s < kSets; s++) {
        out[s] = _mm512_mask2_permutex2var_epi8(part[0], low[s], _knot_mask64(bit_7[s]), part[1]);
        out[s] = _mm512_mask2_permutex2var_epi8(part[2], out[s], bit_7[s], part[3]);
      }
    } else {
      __m512i upper[kSets];
      run<kEntries / 2>(plane, out);
      run<kEntries / 2>(plane + kEntries / 2, upper);
      const __m512i(&bit)[kSets] = kEntries == 512 ? bit_8 : bit_9;
#pragma GCC unroll 4
      for (int s = 0; s < kSets; s++)
        out[s] = _mm512_ternarylogic_epi64(out[s], upper[s], bit[s], 0xd8);  // c ? b : a
    }
  }
};

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

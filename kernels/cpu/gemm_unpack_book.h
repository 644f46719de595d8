// Unpacking of the code book formats (IQ1, IQ2, IQ3) into panels. See gemm_unpack_linear.h.
#pragma once

#include "kernels/cpu/gemm_unpack_linear.h"
#include "kernels/cpu/look_up_avx2.h"

namespace stoker {
namespace {

// --- IQ2 and IQ3: signed bytes --------------------------------------------------------------------------------------

// 32 bytes of seven sign bits -> sign bytes: bit 7 makes the number of ones even.
inline __m256i with_parity(__m256i seven) {
  constexpr char odd = static_cast<char>(0x80);
  const __m256i parity = _mm256_setr_epi8(0, odd, odd, 0, odd, 0, 0, odd, odd, 0, 0, odd, 0, odd, odd, 0, 0, odd, odd,
                                          0, odd, 0, 0, odd, odd, 0, 0, odd, 0, odd, odd, 0);
  __m256i low = _mm256_shuffle_epi8(parity, masked(seven, 15));
  __m256i high = _mm256_shuffle_epi8(parity, masked(_mm256_srli_epi16(seven, 4), 15));
  return _mm256_or_si256(seven, _mm256_xor_si256(low, high));
}

// Eight u32 with four 7-bit sign indices each -> their 32 sign bytes.
inline __m256i signs_of_sevens(__m256i fields) {
  __m256i byte_0 = _mm256_and_si256(fields, _mm256_set1_epi32(0x7f));
  __m256i byte_1 = _mm256_and_si256(_mm256_slli_epi32(fields, 1), _mm256_set1_epi32(0x7f00));
  __m256i byte_2 = _mm256_and_si256(_mm256_slli_epi32(fields, 2), _mm256_set1_epi32(0x7f0000));
  __m256i byte_3 = _mm256_and_si256(_mm256_slli_epi32(fields, 3), _mm256_set1_epi32(0x7f000000));
  return with_parity(_mm256_or_si256(_mm256_or_si256(byte_0, byte_1), _mm256_or_si256(byte_2, byte_3)));
}

// Magnitudes by kStepIndices indices per 32 weights, negated where a sign bit is set.
template <int kStepIndices, class Entry, class Index>
inline void store_signed_codes(const Entry* book, const Index* index, __m256i sign_bytes, Panel256& out) {
  __m256i half[2] = {_mm256_permute2x128_si256(sign_bytes, sign_bytes, 0x00),
                     _mm256_permute2x128_si256(sign_bytes, sign_bytes, 0x11)};
#pragma GCC unroll 8
  for (int step = 0; step < 8; step++) {
    __m256i signs = half[step / 4], mask;
    switch (step % 4) {
      case 0: mask = bits_to_bytes<0>(signs); break;
      case 1: mask = bits_to_bytes<1>(signs); break;
      case 2: mask = bits_to_bytes<2>(signs); break;
      default: mask = bits_to_bytes<3>(signs); break;
    }
    __m256i codes = look_up(book, index + kStepIndices * step);
    store_256(out.codes + 32 * step, _mm256_sub_epi8(_mm256_xor_si256(codes, mask), mask));
  }
}

// 2 s + 1 for eight 32-bit s, each for 32 weights.
inline void store_odd_scales(__m256i s, Panel256& out) {
  store_scales(step_scales_of_lanes(_mm256_add_epi32(_mm256_add_epi32(s, s), _mm256_set1_epi32(1))), out);
}

// 2 s + 1 of sixteen nibbles s, each for 16 weights.
inline void store_odd_scales(const u8 (&nibbles_of_scales)[8], Panel256& out) {
  __m128i packed = load_64(nibbles_of_scales);
  __m128i even_odd = _mm_unpacklo_epi64(packed, _mm_srli_epi16(packed, 4));
  __m256i s = _mm256_cvtepu8_epi16(_mm_and_si128(even_odd, _mm_set1_epi8(15)));
  store_scales(_mm256_add_epi16(_mm256_add_epi16(s, s), _mm256_set1_epi16(1)), out);
}

inline void unpack_block(const BlockIQ2_XXS& w, Panel256& out) {
  // The odd u32 have signs and scales, the even ones the indices.
  __m256 first = _mm256_castsi256_ps(load_256(w.qs)), second = _mm256_castsi256_ps(load_256(w.qs + 16));
  __m256i odd = _mm256_castps_si256(_mm256_shuffle_ps(first, second, 0b11'01'11'01));
  __m256i fields = _mm256_permute4x64_epi64(odd, 0b11'01'10'00);
  store_signed_codes<8>(entries<u64>(&kGridIq2Xxs), reinterpret_cast<const u8*>(w.qs), signs_of_sevens(fields), out);
  store_odd_scales(_mm256_srli_epi32(fields, 28), out);
  out.d = half_to_float(w.d) * 0.125f;
}

inline void unpack_block(const BlockIQ2_XS& w, Panel256& out) {
  __m256i first = load_256(w.qs), second = load_256(w.qs + 16);
  const __m256i nine = _mm256_set1_epi16(511);
  alignas(32) u16 index[32];
  store_256(index, _mm256_and_si256(first, nine));
  store_256(index + 16, _mm256_and_si256(second, nine));
  __m256i sevens = _mm256_packus_epi16(_mm256_srli_epi16(first, 9), _mm256_srli_epi16(second, 9));
  __m256i signs = with_parity(_mm256_permute4x64_epi64(sevens, 0b11'01'10'00));
  store_signed_codes<4>(entries<u64>(&kGridIq2Xs), index, signs, out);
  store_odd_scales(w.scales, out);
  out.d = half_to_float(w.d) * 0.125f;
}

inline void unpack_block(const BlockIQ2_S& w, Panel256& out) {
  alignas(32) u16 index[32];
  for (int i = 0; i < 32; i++) index[i] = static_cast<u16>(w.qs[i] | (w.qh[i / 4] >> (i % 4 * 2) & 3u) << 8);
  store_signed_codes<4>(entries<u64>(&kGridIq2S), index, load_256(w.signs), out);
  store_odd_scales(w.scales, out);
  out.d = half_to_float(w.d) * 0.125f;
}

inline void unpack_block(const BlockIQ3_XXS& w, Panel256& out) {
  __m256i fields = load_256(w.signs);
  store_signed_codes<8>(entries<u32>(&kGridIq3Xxs), w.qs, signs_of_sevens(fields), out);
  store_odd_scales(_mm256_srli_epi32(fields, 28), out);
  out.d = half_to_float(w.d) * 0.25f;
}

inline void unpack_block(const BlockIQ3_S& w, Panel256& out) {
  alignas(32) u16 index[64];
  for (int i = 0; i < 64; i++) index[i] = static_cast<u16>(w.qs[i] | (w.qh[i / 8] >> (i % 8) & 1u) << 8);
  store_signed_codes<8>(entries<u32>(&kGridIq3S), index, load_256(w.signs), out);
  __m256i packed = _mm256_set1_epi32(static_cast<int>(load_u32(w.scales)));
  __m256i s = _mm256_srlv_epi32(packed, _mm256_setr_epi32(0, 4, 8, 12, 16, 20, 24, 28));
  store_odd_scales(_mm256_and_si256(s, _mm256_set1_epi32(15)), out);
  out.d = half_to_float(w.d);
}

// --- IQ1: unsigned codes, counted in eighths ------------------------------------------------------------------------

// 8 * (g +- 1/8) = 8 u - 8 +- 1 with u = g + 1, 0 .. 2: scales of 8 s and factors of s * (+-1 - 8), s odd up to 15.
inline void unpack_block(const BlockIQ1_S& w, Panel256& out) {
  const u64* book = entries<u64>(&kGridIq1S);
  for (int step = 0; step < 8; step++) {
    const u32 head = w.qh[step];
    const u8* qs = w.qs + 4 * step;
    const u32 index[4] = {qs[0] | (head << 8 & 0x700u), qs[1] | (head << 5 & 0x700u), qs[2] | (head << 2 & 0x700u),
                          qs[3] | (head >> 1 & 0x700u)};
    store_256(out.codes + 32 * step, _mm256_add_epi8(look_up(book, index), _mm256_set1_epi8(1)));
    const int s = static_cast<int>((head >> 11 & 14u) | 1u);
    store_256(out.scales[step], _mm256_set1_epi16(static_cast<short>(8 * s)));
    out.factors[2 * step] = out.factors[2 * step + 1] = static_cast<i16>(s * ((head & 0x8000u) != 0 ? -9 : -7));
  }
  out.d = half_to_float(w.d) * 0.125f;
}

// 8 * (g +- 1/8) = 2 u - 9 with u = 4 (g + 1) + (1 or 0), 0 .. 9: a sign per 8 weights.
inline void unpack_block(const BlockIQ1_M& w, Panel256& out) {
  const u64* book = entries<u64>(&kGridIq1S);
  for (int step = 0; step < 8; step++) {
    u32 index[4];
    u64 positive[4];
    for (int k = 0; k < 4; k++) {
      const u32 nibble = w.qh[2 * step + k / 2] >> (k % 2 * 4) & 15u;
      index[k] = w.qs[4 * step + k] | (nibble & 7u) << 8;
      positive[k] = nibble < 8 ? 0x0101010101010101u : 0;
    }
    __m256i codes = _mm256_slli_epi16(_mm256_add_epi8(look_up(book, index), _mm256_set1_epi8(1)), 2);
    store_256(out.codes + 32 * step, _mm256_or_si256(codes, load_256(positive)));
    int s[2];
    for (int k = 0; k < 2; k++) {
      const int group = 2 * step + k;
      s[k] = static_cast<int>(w.scales[group / 4] >> (group % 4 * 3) & 7u) * 2 + 1;
      out.factors[group] = static_cast<i16>(-9 * s[k]);
    }
    store_256(out.scales[step], _mm256_inserti128_si256(_mm256_set1_epi16(static_cast<short>(2 * s[0])),
                                                        _mm_set1_epi16(static_cast<short>(2 * s[1])), 1));
  }
  const u16* s = w.scales;
  const u32 d = (s[0] >> 12) | (s[1] >> 8 & 0xf0u) | (s[2] >> 4 & 0xf00u) | (s[3] & 0xf000u);
  out.d = half_to_float(static_cast<u16>(d)) * 0.125f;
}

}  // namespace
}  // namespace stoker

// How the AVX-512 kernels of the linear formats walk a MatmulTile.
//
// Work goes in units of 256 columns. vpdpbusd multiplies four unsigned codes with four activations per lane; a lane
// whose weights share a scale can be summed over several registers before the scale is applied. So a format names the
// order of activations that fits its packed bytes (`Arrangement`): activations are put into that order once per tile,
// in chunks of 16 bytes, and weights are only masked and shifted. Offsets and minima are taken off through the sums of
// activations. A format supplies:
//
//   struct Format {
//     using Activation = ...;                  // ActQ8_32 or ActQ8_256
//     static constexpr i64 kUnitBytes = ...;   // of 256 weights
//     using Turned = ...;                      // 256 activations of a token in the format's order
//     static void turn(const Activation* x, i64 columns, Turned& out);     // columns <= 256 are there
//     using Unpacked = ...;                    // 256 weights of a row
//     static Unpacked unpack(const std::byte* w, i64 columns);
//     static void add(const Unpacked& w, const Turned& x, __m512& sum);
//   };
//
// Several rows go side by side, so that their sums hide each other's latency. They lie an equal share of the tile
// apart: each is a long stream of its own, which memory likes, where neighbours would end before a prefetch reaches
// them (Q4_K on Zen 5 from 45 to 60 GB/s). Float additions of a (token, row) are in the order of columns, always.
//
// Everything is in an unnamed namespace and without inline functions of the standard library: nothing of it may be
// shared with files that are compiled for less.
#pragma once

#include <immintrin.h>

#include "kernels/cpu/leaf.h"
#include "kernels/cpu/totals_avx512.h"

namespace stoker {
namespace {

constexpr i64 kUnitColumns = 256;
// Units of activations turned at once, at columns that depend on nothing else: V3's 7168 columns are one chunk.
constexpr i64 kChunkUnits = 32;
// How far ahead a stream is asked for: hardware prefetchers stop at 4 KiB pages.
constexpr i64 kPrefetchBytes = 2048;
constexpr int kMaxTokens = 8;

inline __m512i load_512(const void* p) { return _mm512_loadu_si512(p); }
inline __m128i load_128(const void* p) { return _mm_loadu_si128(static_cast<const __m128i*>(p)); }
inline __m256i load_256(const void* p) { return _mm256_loadu_si256(static_cast<const __m256i*>(p)); }
template <class Word>
inline Word load_word(const void* p) {
  Word value;
  __builtin_memcpy(&value, p, sizeof value);
  return value;
}

// Four 16-byte pieces as the lanes of a register.
inline __m512i join(__m128i a, __m128i b, __m128i c, __m128i d) {
  __m512i low = _mm512_inserti32x4(_mm512_castsi128_si512(a), b, 1);
  return _mm512_inserti32x4(_mm512_inserti32x4(low, c, 2), d, 3);
}

inline __m512i low_nibbles(__m512i packed) { return _mm512_and_si512(packed, _mm512_set1_epi8(15)); }
inline __m512i high_nibbles(__m512i packed) { return low_nibbles(_mm512_srli_epi16(packed, 4)); }

template <class Format, int kTokens>
struct Chunk {
  typename Format::Turned x[kTokens][kChunkUnits];
};

// Rows that are taken together. More sums than registers would go through memory.
constexpr int rows_together(int tokens) { return tokens <= 4 ? 4 : 2; }

// kRows rows of the same columns, `step_bytes` apart.
template <class Format, int kTokens, int kRows>
__attribute__((noinline, flatten)) void multiply_rows(const std::byte* w, i64 step_bytes, i64 columns,
                                                      const Chunk<Format, kTokens>& chunk, f32 (&out)[kRows][kTokens]) {
  __m512 sum[kRows * kTokens];
#pragma GCC unroll 16
  for (__m512& s : sum) s = _mm512_setzero_ps();
  i64 unit = 0;
  for (i64 left = columns; left > 0; left -= kUnitColumns, unit++, w += Format::kUnitBytes) {
#pragma GCC unroll 4
    for (int r = 0; r < kRows; r++) {
      const std::byte* at = w + r * step_bytes;
      const char* ahead = reinterpret_cast<const char*>(at) + kPrefetchBytes;
#pragma GCC unroll 6
      for (i64 line = 0; line < Format::kUnitBytes; line += 64) _mm_prefetch(ahead + line, _MM_HINT_T0);
      const typename Format::Unpacked unpacked = Format::unpack(at, left);
#pragma GCC unroll 8
      for (int t = 0; t < kTokens; t++) Format::add(unpacked, chunk.x[t][unit], sum[r * kTokens + t]);
    }
  }
  store_totals(sum, out[0]);
}

// Rows row, row + step, ... of the tile.
template <class Format, int kTokens, int kRows>
void multiply_some_rows(const MatmulTile& tile, i64 row, i64 step, i64 first_column, i64 columns,
                        const Chunk<Format, kTokens>& chunk, f32* const (&y)[kTokens]) {
  const std::byte* w = tile.w + row * tile.w_row_bytes + first_column / kUnitColumns * Format::kUnitBytes;
  f32 out[kRows][kTokens];
  multiply_rows<Format, kTokens, kRows>(w, step * tile.w_row_bytes, columns, chunk, out);
  for (int t = 0; t < kTokens; t++)
    for (i64 r = 0; r < kRows; r++) {
      f32& to = y[t][row + r * step];
      to = first_column == 0 ? out[r][t] : to + out[r][t];
    }
}

template <class Format, int kTokens>
void multiply_tokens(const MatmulTile& tile, i64 first_token) {
  using Activation = typename Format::Activation;
  constexpr i64 kColumnsPerActivation = sizeof(Activation::q);
  constexpr int kRows = rows_together(kTokens);
  Chunk<Format, kTokens> chunk;
  const Activation* x[kTokens];
  f32* y[kTokens];
  for (int t = 0; t < kTokens; t++) {
    i64 token = first_token + t;
    i64 from = tile.x_rows != nullptr ? tile.x_rows[token] : token;
    i64 to = tile.y_rows != nullptr ? tile.y_rows[token] : token;
    x[t] = reinterpret_cast<const Activation*>(tile.x + from * tile.x_stride_bytes);
    y[t] = tile.y + to * tile.y_stride;
  }
  constexpr i64 kChunkColumns = kChunkUnits * kUnitColumns;
  for (i64 first = 0; first < tile.cols; first += kChunkColumns) {
    const i64 columns = tile.cols - first < kChunkColumns ? tile.cols - first : kChunkColumns;
    for (int t = 0; t < kTokens; t++)
      for (i64 c = 0; c < columns; c += kUnitColumns)
        Format::turn(x[t] + (first + c) / kColumnsPerActivation, columns - c, chunk.x[t][c / kUnitColumns]);
    const i64 step = tile.rows / kRows;
    for (i64 row = 0; row < step; row++)
      multiply_some_rows<Format, kTokens, kRows>(tile, row, step, first, columns, chunk, y);
    for (i64 row = step * kRows; row < tile.rows; row++)
      multiply_some_rows<Format, kTokens, 1>(tile, row, 1, first, columns, chunk, y);
  }
}

template <class Format>
void multiply_tile(const MatmulTile& tile) {
  i64 token = 0;
  for (; token + kMaxTokens <= tile.tokens; token += kMaxTokens) multiply_tokens<Format, kMaxTokens>(tile, token);
  for (; token + 4 <= tile.tokens; token += 4) multiply_tokens<Format, 4>(tile, token);
  for (; token + 2 <= tile.tokens; token += 2) multiply_tokens<Format, 2>(tile, token);
  if (token < tile.tokens) multiply_tokens<Format, 1>(tile, token);
}

// --- 256 activations in the order of a format: register k, 16-byte lane l holds piece source(k, l) of the sixteen.

struct NaturalOrder {  // register k: weights 64 k ..
  static constexpr int source(int k, int lane) { return 4 * k + lane; }
};
struct PairOrder {  // lane p: the 64 weights of pair p, 16 in each register
  static constexpr int source(int k, int lane) { return 4 * lane + k; }
};
struct HalfOrder {  // register k: weights 32 k .. of the first 128, then of the second
  static constexpr int source(int k, int lane) { return 8 * (lane / 2) + 2 * k + lane % 2; }
};
struct BlockOrder {  // registers 2 h, 2 h + 1: first and second halves of the four blocks of 32 from 4 h
  static constexpr int source(int k, int lane) { return 8 * (k / 2) + 2 * lane + k % 2; }
};

struct Turned256 {
  alignas(64) i8 q[4][64];
  f32 minus_sums[16];  // -d * (sum of activations 16 g .. 16 g + 15)
  f32 d;
};

template <class Order>
inline void turn_256(const ActQ8_256& x, Turned256& out) {
#pragma GCC unroll 4
  for (int k = 0; k < 4; k++)
#pragma GCC unroll 4
    for (int lane = 0; lane < 4; lane++)
      _mm_store_si128(reinterpret_cast<__m128i*>(out.q[k] + 16 * lane), load_128(x.q + 16 * Order::source(k, lane)));
  __m512 sums = _mm512_cvtepi32_ps(_mm512_cvtepi16_epi32(load_256(x.sums)));
  _mm512_storeu_ps(out.minus_sums, _mm512_mul_ps(sums, _mm512_set1_ps(-x.d)));
  out.d = x.d;
}

// Codes in four registers, scales of their lanes for kScales equal shares of the registers, and per 16 weights what is
// to be taken off for each activation. Scales and offsets include the block's own.
template <int kScales>
struct Codes256 {
  __m512i code[4];
  __m512 scale[kScales];
  __m512 offset;
};

template <int kScales>
inline void add_256(const Codes256<kScales>& w, const Turned256& x, __m512& sum) {
  constexpr int kShare = 4 / kScales;
  __m512 part = _mm512_setzero_ps();
#pragma GCC unroll 4
  for (int s = 0; s < kScales; s++) {
    __m512i total = _mm512_setzero_si512();
#pragma GCC unroll 4
    for (int k = s * kShare; k < (s + 1) * kShare; k++)
      total = _mm512_dpbusd_epi32(total, w.code[k], _mm512_load_si512(x.q[k]));
    __m512 value = _mm512_cvtepi32_ps(total);
    part = s == 0 ? _mm512_mul_ps(value, w.scale[s]) : _mm512_fmadd_ps(value, w.scale[s], part);
  }
  sum = _mm512_fmadd_ps(part, _mm512_set1_ps(x.d), sum);
  sum = _mm512_fmadd_ps(w.offset, _mm512_loadu_ps(x.minus_sums), sum);
}

}  // namespace
}  // namespace stoker

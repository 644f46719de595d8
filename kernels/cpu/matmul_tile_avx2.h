// How every AVX2 kernel for 8-bit activations walks a MatmulTile. A format supplies:
//
//   struct Format {
//     using Block = ...;       // one weight block in the file's layout
//     using Activation = ...;  // ActQ8_32 or ActQ8_256: the same number of columns as Block
//     template <int kTokens>
//     static void accumulate(const Block& w, const Activation* const (&x)[kTokens], i64 b, __m256
//     (&sum)[kTokens]);
//   };
//
// which adds w times block b of each token to eight partial sums per token. Unpacking w is the expensive
// part, so it is done once for up to four tokens. Integer products are exact and each token has its own float
// operations in an order fixed by the columns alone: the value of (token, row) is the same in every tile.
//
// Everything is in an unnamed namespace: this header is compiled with -mavx2 and nothing of it may be shared
// with files that are not. For the same reason no inline function of the standard library is used here.
#pragma once

#include <immintrin.h>

#include "kernels/cpu/leaf.h"

namespace stoker {
namespace {

// With many tokens, rows are taken in passes whose weights stay in L2 while the tokens go by (L2 is 512 KiB
// or more on what has AVX2 and streams experts).
constexpr i64 kPassBytes = 192 * kKiB;

// Rows that take turns on one block of activations. Of several tokens: the weights come from L2 while the activations
// (4 x 292 B) stay in L1, where four whole rows of activations would not. Of one token: the rows lie a quarter of the
// tile apart, each a long stream of its own, which memory likes.
constexpr int kRowsPerTurn = 4;

// The hardware prefetchers stop at 4 KiB pages; one long stream per thread needs to be asked for across them.
constexpr i64 kPrefetchBytes = 2048;

inline __m256i load_256(const void* p) { return _mm256_loadu_si256(static_cast<const __m256i*>(p)); }
inline void store_256(void* p, __m256i v) { _mm256_store_si256(static_cast<__m256i*>(p), v); }
inline __m128i load_128(const void* p) { return _mm_loadu_si128(static_cast<const __m128i*>(p)); }
inline __m128i load_64(const void* p) { return _mm_loadl_epi64(static_cast<const __m128i*>(p)); }
inline u32 load_u32(const void* p) {
  u32 value;
  __builtin_memcpy(&value, p, sizeof value);
  return value;
}
inline u64 load_u64(const void* p) {
  u64 value;
  __builtin_memcpy(&value, p, sizeof value);
  return value;
}

inline __m256 broadcast_half(u16 h) { return _mm256_broadcastss_ps(_mm_cvtph_ps(_mm_cvtsi32_si128(h))); }

inline f32 sum_lanes(__m256 v) {
  __m128 four = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
  __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
}

// Additions into running totals, here and now. Left alone, GCC postpones and reorders them until the products
// of a whole block fill the stack, which halves the speed of tiles of four tokens.
inline void add_now_i32(__m256i& total, __m256i part) {
  total = _mm256_add_epi32(total, part);
  __asm__("" : "+x"(total));
}
inline void add_now_i16(__m256i& total, __m256i part) {
  total = _mm256_add_epi16(total, part);
  __asm__("" : "+x"(total));
}

// The bits of four bytes as 32 byte masks: byte i is 0xff where bit i % 8 of byte 4 * kGroup + i / 8 is set.
// `bytes` holds the same 16 bytes in both halves.
template <int kGroup>
inline __m256i bits_to_bytes(__m256i bytes) {
  constexpr char k = 4 * kGroup;
  const __m256i spread = _mm256_setr_epi8(k, k, k, k, k, k, k, k, k + 1, k + 1, k + 1, k + 1, k + 1, k + 1,
                                          k + 1, k + 1, k + 2, k + 2, k + 2, k + 2, k + 2, k + 2, k + 2,
                                          k + 2, k + 3, k + 3, k + 3, k + 3, k + 3, k + 3, k + 3, k + 3);
  const __m256i bit = _mm256_set1_epi64x(static_cast<long long>(0x8040201008040201));
  return _mm256_cmpeq_epi8(_mm256_and_si256(_mm256_shuffle_epi8(bytes, spread), bit), bit);
}

// 16 bytes of nibbles as 32 bytes: low nibbles, then high nibbles.
inline __m256i nibbles(__m128i packed) {
  __m256i both = _mm256_broadcastsi128_si256(packed);
  both = _mm256_srlv_epi32(both, _mm256_setr_epi32(0, 0, 0, 0, 4, 4, 4, 4));
  return _mm256_and_si256(both, _mm256_set1_epi8(15));
}

template <class Block>
inline const Block& block_at(const std::byte* row, i64 index) {
  return *reinterpret_cast<const Block*>(row + index * i64{sizeof(Block)});
}

// The same, and asks for what lies kPrefetchBytes behind it.
template <class Block>
inline const Block& fetch(const std::byte* row, i64 index) {
  const std::byte* p = row + index * i64{sizeof(Block)};
#pragma GCC unroll 4
  for (i64 line = 0; line < i64{sizeof(Block)}; line += 64)
    _mm_prefetch(reinterpret_cast<const char*>(p + kPrefetchBytes + line), _MM_HINT_T0);
  return *reinterpret_cast<const Block*>(p);
}

// Rows row, row + step, ... of the tile.
template <class Format, int kTokens, int kRows>
__attribute__((noinline)) void multiply_rows(const MatmulTile& tile, i64 row, i64 step, i64 blocks,
                                             const typename Format::Activation* const (&x)[kTokens],
                                             f32* const (&y)[kTokens]) {
  using Block = typename Format::Block;
  const std::byte* w = tile.w + row * tile.w_row_bytes;
  const i64 step_bytes = step * tile.w_row_bytes;
  __m256 sum[kRows][kTokens];
#pragma GCC unroll 4
  for (int r = 0; r < kRows; r++)
#pragma GCC unroll 4
    for (int t = 0; t < kTokens; t++) sum[r][t] = _mm256_setzero_ps();
  for (i64 b = 0; b < blocks; b++)
    if constexpr (kTokens == 1) {
#pragma GCC unroll 4
      for (int r = 0; r < kRows; r++) Format::accumulate(fetch<Block>(w + r * step_bytes, b), x, b, sum[r]);
    } else {
#pragma GCC unroll 1
      for (int r = 0; r < kRows; r++)  // not unrolled: 4 x 4 sums are too many registers
        Format::accumulate(fetch<Block>(w + r * step_bytes, b), x, b, sum[r]);
    }
#pragma GCC unroll 4
  for (int r = 0; r < kRows; r++)
#pragma GCC unroll 4
    for (int t = 0; t < kTokens; t++) y[t][row + r * step] = sum_lanes(sum[r][t]);
}

// Rows that meet the tokens together: what a walk over a tile needs of a kernel.
template <class Format>
struct RowsOf {
  using Activation = typename Format::Activation;
  // `rows` (1 .. kRowsPerTurn) rows, `step` apart.
  template <int kTokens>
  static void multiply(const MatmulTile& tile, i64 row, i64 step, i64 rows, i64 blocks,
                       const Activation* const (&x)[kTokens], f32* const (&y)[kTokens]) {
    if (rows == kRowsPerTurn) return multiply_rows<Format, kTokens, kRowsPerTurn>(tile, row, step, blocks, x, y);
    for (i64 r = 0; r < rows; r++) multiply_rows<Format, kTokens, 1>(tile, row + r * step, 1, blocks, x, y);
  }
};

template <class Rows, int kTokens>
void walk_pass(const MatmulTile& tile, i64 first_row, i64 last_row, i64 first_token) {
  using Activation = typename Rows::Activation;
  const Activation* x[kTokens];
  f32* y[kTokens];
  for (int t = 0; t < kTokens; t++) {
    i64 token = first_token + t;
    i64 from = tile.x_rows != nullptr ? tile.x_rows[token] : token;
    i64 to = tile.y_rows != nullptr ? tile.y_rows[token] : token;
    x[t] = reinterpret_cast<const Activation*>(tile.x + from * tile.x_stride_bytes);
    y[t] = tile.y + to * tile.y_stride;
  }
  i64 blocks = tile.cols / i64{sizeof(x[0]->q)};
  const i64 turns = (last_row - first_row) / kRowsPerTurn;
  const i64 step = kTokens == 1 ? turns : 1, advance = kTokens == 1 ? 1 : kRowsPerTurn;
  for (i64 turn = 0; turn < turns; turn++)
    Rows::template multiply<kTokens>(tile, first_row + turn * advance, step, kRowsPerTurn, blocks, x, y);
  const i64 rest = first_row + turns * kRowsPerTurn;
  if (rest < last_row) Rows::template multiply<kTokens>(tile, rest, 1, last_row - rest, blocks, x, y);
}

// Calls pass<kTokens>(first_row, last_row, first_token) for up to four tokens at a time.
template <class Pass>
inline void walk_tile(const MatmulTile& tile, const Pass& pass) {
  i64 rows_per_pass = tile.rows;
  if (tile.tokens > 4) rows_per_pass = round_up(kPassBytes / (tile.w_row_bytes + 1) + 1, kRowsPerTurn);
  for (i64 row = 0; row < tile.rows; row += rows_per_pass) {
    i64 last = row + rows_per_pass < tile.rows ? row + rows_per_pass : tile.rows;
    i64 token = 0;
    for (; token + 4 <= tile.tokens; token += 4) pass.template operator()<4>(row, last, token);
    for (; token + 2 <= tile.tokens; token += 2) pass.template operator()<2>(row, last, token);
    if (token < tile.tokens) pass.template operator()<1>(row, last, token);
  }
}

template <class Rows>
void walk_rows(const MatmulTile& tile) {
  walk_tile(tile, [&]<int kTokens>(i64 first_row, i64 last_row, i64 token) {
    walk_pass<Rows, kTokens>(tile, first_row, last_row, token);
  });
}

template <class Format>
void multiply_tile(const MatmulTile& tile) {
  walk_rows<RowsOf<Format>>(tile);
}

}  // namespace
}  // namespace stoker

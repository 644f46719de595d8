// How the AVX-512 kernels of the code book formats walk a MatmulTile.
//
// A block's codes are four registers, the parts, in an order that suits how they are looked up; the activations of a
// block are put into that order too (`Turned`), once per tile. The order is such that a lane has one scale over several
// parts, which is applied to their sum.
//
// vpdpbusd wants one unsigned side. Codes are weight + Format::kBias, and what that adds is known beforehand: the
// sums start at -kBias * (sum of the lane's activations). So they are the exact products of a lane.
//
// A format supplies:
//
//   struct Format {
//     using Block = ...;                  // 256 weights
//     static constexpr i32 kBias = ...;
//     static constexpr int kRows = ...;   // 2 or 4
//     static constexpr bool kUnpackAhead = ...;  // see below
//     using Order = ...;                  // of codes and activations: RunOrder or EntryOrder
//     static constexpr int kScales = ...;        // 1: for all parts; 2: for parts 0 and 1, 2 and 3
//     explicit Format(const Block* const (&w)[kRows]);  // unpacks a block each of as many rows
//     // Part kPart of rows kRow and kRow + 1.
//     template <int kPart, int kRow> void codes(__m512i (&out)[2]) const;
//     __m512 scales[kRows][kScales];      // per lane; a weight is scale * (code - kBias)
//   };
//
// Where the constructor is a long chain of dependent steps, the format is unpacked one block ahead (kUnpackAhead), which
// hides the latency. Where codes() looks up, there is little to hide, and keeping what is unpacked costs more.
//
// Rows that are unpacked together share look-ups of 64 indices, as many as a register has bytes, or loads of the book;
// two rows share each load of activations. Where rows run out the last is repeated.
//
// Everything is in an unnamed namespace and without inline functions of the standard library: nothing of it may be
// shared with files that are compiled for less.
#pragma once

#include <immintrin.h>

#include "kernels/cpu/leaf.h"

namespace stoker {
namespace {

// Blocks of activations that are turned at once: 8 tokens take 81 KiB of stack. Longer rows are taken in pieces, at
// columns that depend on nothing else.
constexpr i64 kChunkBlocks = 32;
constexpr int kMaxTokens = 8;

// The rows that are unpacked together lie a half or a quarter of the tile apart, so that each is one long stream. The
// hardware prefetchers stop at 4 KiB pages; each stream has to be asked for across them.
constexpr i64 kPrefetchBytes = 2048;

template <class Format>
struct Turned {
  i8 q[4][64];                      // [part]: in the format's order
  i32 start[Format::kScales][16];  // -kBias * sum of the lane's activations in the parts of a scale
};

template <class Format, int kTokens>
struct Chunk {
  alignas(64) Turned<Format> x[kTokens][kChunkBlocks];
  f32 d[kTokens][kChunkBlocks];
};

inline __m512i load_512(const void* p) { return _mm512_loadu_si512(p); }
inline __m256i load_256(const void* p) { return _mm256_loadu_si256(static_cast<const __m256i*>(p)); }
inline __m128i load_128(const void* p) { return _mm_loadu_si128(static_cast<const __m128i*>(p)); }
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

// Part j holds weight j of each run of four, one byte per run: sixteen weights that follow each other are a lane.
struct RunOrder {
  static void arrange(const i8 (&q)[256], i8 (&out)[4][64]) {
    // Within 16 bytes: byte 4 i + j to 4 j + i. Then dword j of all sixteen groups of 16 to register j.
    const __m512i within = _mm512_broadcast_i32x4(_mm_setr_epi8(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15));
    const __m512i parts_0_1 = _mm512_setr_epi32(0, 4, 8, 12, 16, 20, 24, 28, 1, 5, 9, 13, 17, 21, 25, 29);
    const __m512i parts_2_3 = _mm512_add_epi32(parts_0_1, _mm512_set1_epi32(2));
    __m512i in[4];
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++) in[i] = _mm512_shuffle_epi8(load_512(q + 64 * i), within);
    auto two_parts = [&](__m512i order, int first) __attribute__((always_inline)) {
      __m512i low = _mm512_permutex2var_epi32(in[0], order, in[1]);
      __m512i high = _mm512_permutex2var_epi32(in[2], order, in[3]);
      _mm512_store_si512(out[first], _mm512_shuffle_i64x2(low, high, 0b01'00'01'00));
      _mm512_store_si512(out[first + 1], _mm512_shuffle_i64x2(low, high, 0b11'10'11'10));
    };
    two_parts(parts_0_1, 0);
    two_parts(parts_2_3, 2);
  }
};

// Part j holds entries j, 4 + j, ... of eight weights: of the 32 weights p, lanes 2 p and 2 p + 1 have all.
struct EntryOrder {
  static void arrange(const i8 (&q)[256], i8 (&out)[4][64]) {
    const __m512i parts_0_1 = _mm512_setr_epi64(0, 4, 8, 12, 1, 5, 9, 13);
    const __m512i parts_2_3 = _mm512_add_epi64(parts_0_1, _mm512_set1_epi64(2));
    auto two_parts = [&](__m512i order, int first) __attribute__((always_inline)) {
      __m512i low = _mm512_permutex2var_epi64(load_512(q), order, load_512(q + 64));
      __m512i high = _mm512_permutex2var_epi64(load_512(q + 128), order, load_512(q + 192));
      _mm512_store_si512(out[first], _mm512_shuffle_i64x2(low, high, 0b01'00'01'00));
      _mm512_store_si512(out[first + 1], _mm512_shuffle_i64x2(low, high, 0b11'10'11'10));
    };
    two_parts(parts_0_1, 0);
    two_parts(parts_2_3, 2);
  }
};

template <class Format>
inline void turn(const ActQ8_256& x, Turned<Format>& out) {
  constexpr int kShare = 4 / Format::kScales;
  Format::Order::arrange(x.q, out.q);
#pragma GCC unroll 2
  for (int s = 0; s < Format::kScales; s++) {
    __m512i added = _mm512_setzero_si512();
#pragma GCC unroll 4
    for (int part = s * kShare; part < (s + 1) * kShare; part++)
      added = _mm512_dpbusd_epi32(added, _mm512_set1_epi8(Format::kBias), _mm512_load_si512(out.q[part]));
    _mm512_store_si512(out.start[s], _mm512_sub_epi32(_mm512_setzero_si512(), added));
  }
}

// Adds block `i` of rows kRow and kRow + 1.
template <int kRow, class Format, int kTokens>
inline void add_two_rows(const Format& w, const Turned<Format>* const (&x)[kTokens], const f32* const (&d)[kTokens],
                         i64 i, __m512 (&sum)[Format::kRows][kTokens]) {
  __m512i total[2][kTokens];
  auto start = [&](int s) __attribute__((always_inline)) {
#pragma GCC unroll 8
    for (int t = 0; t < kTokens; t++) total[0][t] = total[1][t] = _mm512_load_si512(x[t][i].start[s]);
  };
  auto add = [&]<int kPart>() __attribute__((always_inline)) {
    __m512i codes[2];
    w.template codes<kPart, kRow>(codes);
#pragma GCC unroll 8
    for (int t = 0; t < kTokens; t++) {
      __m512i activations = _mm512_load_si512(x[t][i].q[kPart]);
      total[0][t] = _mm512_dpbusd_epi32(total[0][t], codes[0], activations);
      total[1][t] = _mm512_dpbusd_epi32(total[1][t], codes[1], activations);
    }
  };
  auto apply_scale = [&](int s) __attribute__((always_inline)) {
#pragma GCC unroll 2
    for (int r = 0; r < 2; r++)
#pragma GCC unroll 8
      for (int t = 0; t < kTokens; t++) {
        __m512 scale = _mm512_mul_ps(w.scales[kRow + r][s], _mm512_set1_ps(d[t][i]));
        sum[kRow + r][t] = _mm512_fmadd_ps(scale, _mm512_cvtepi32_ps(total[r][t]), sum[kRow + r][t]);
      }
  };
  start(0);
  add.template operator()<0>();
  add.template operator()<1>();
  if constexpr (Format::kScales == 2) {
    apply_scale(0);
    start(1);
  }
  add.template operator()<2>();
  add.template operator()<3>();
  apply_scale(Format::kScales - 1);
}

// kRows rows of `blocks` blocks, row r at w[r]. All is inlined here: what is unpacked has to stay in registers.
template <class Format, int kTokens>
__attribute__((noinline, flatten)) void multiply_rows(const std::byte* const (&w)[Format::kRows], i64 blocks,
                                                      const Chunk<Format, kTokens>& chunk,
                                                      f32 (&out)[Format::kRows][kTokens]) {
  using Block = typename Format::Block;
  constexpr int kRows = Format::kRows;
  const Turned<Format>* x[kTokens];
  const f32* d[kTokens];
  __m512 sum[kRows][kTokens];
#pragma GCC unroll 8
  for (int t = 0; t < kTokens; t++) {
    x[t] = chunk.x[t];
    d[t] = chunk.d[t];
#pragma GCC unroll 4
    for (int r = 0; r < kRows; r++) sum[r][t] = _mm512_setzero_ps();
  }
  auto unpack = [&](i64 i) __attribute__((always_inline)) {
    const Block* block[kRows];
#pragma GCC unroll 4
    for (int r = 0; r < kRows; r++) {
      const std::byte* at = w[r] + i * i64{sizeof(Block)};
      block[r] = reinterpret_cast<const Block*>(at);
      const char* ahead = reinterpret_cast<const char*>(at) + kPrefetchBytes;
      _mm_prefetch(ahead, _MM_HINT_T0);
      if constexpr (sizeof(Block) > 64) _mm_prefetch(ahead + 64, _MM_HINT_T0);
    }
    return Format(block);
  };
  auto add = [&](const Format& unpacked, i64 i) __attribute__((always_inline)) {
    add_two_rows<0>(unpacked, x, d, i, sum);
    if constexpr (kRows == 4) add_two_rows<2>(unpacked, x, d, i, sum);
  };
  if constexpr (Format::kUnpackAhead) {
    Format next = unpack(0);
    for (i64 i = 0; i < blocks; i++) {
      const Format current = next;
      if (i + 1 < blocks) next = unpack(i + 1);
      add(current, i);
    }
  } else {
    for (i64 i = 0; i < blocks; i++) add(unpack(i), i);
  }
#pragma GCC unroll 4
  for (int r = 0; r < kRows; r++)
#pragma GCC unroll 8
    for (int t = 0; t < kTokens; t++) out[r][t] = _mm512_reduce_add_ps(sum[r][t]);
}

template <class Format, int kTokens>
void multiply_tokens(const MatmulTile& tile, i64 first_token) {
  using Block = typename Format::Block;
  constexpr int kRows = Format::kRows;
  Chunk<Format, kTokens> chunk;
  const ActQ8_256* x[kTokens];
  f32* y[kTokens];
  for (int t = 0; t < kTokens; t++) {
    i64 token = first_token + t;
    i64 from = tile.x_rows != nullptr ? tile.x_rows[token] : token;
    i64 to = tile.y_rows != nullptr ? tile.y_rows[token] : token;
    x[t] = reinterpret_cast<const ActQ8_256*>(tile.x + from * tile.x_stride_bytes);
    y[t] = tile.y + to * tile.y_stride;
  }
  const i64 all_blocks = tile.cols / Block::kWeights;
  for (i64 first = 0; first < all_blocks; first += kChunkBlocks) {
    const i64 blocks = all_blocks - first < kChunkBlocks ? all_blocks - first : kChunkBlocks;
    for (int t = 0; t < kTokens; t++)
      for (i64 i = 0; i < blocks; i++) {
        turn(x[t][first + i], chunk.x[t][i]);
        chunk.d[t][i] = x[t][first + i].d;
      }
    auto multiply = [&](i64 row, i64 apart, i64 rows) {
      const std::byte* w[kRows];
      for (i64 r = 0; r < kRows; r++)
        w[r] = tile.w + (row + (r < rows ? r : rows - 1) * apart) * tile.w_row_bytes + first * i64{sizeof(Block)};
      f32 out[kRows][kTokens];
      multiply_rows<Format, kTokens>(w, blocks, chunk, out);
      for (int t = 0; t < kTokens; t++)
        for (i64 r = 0; r < rows; r++) {
          f32& result = y[t][row + r * apart];
          result = first == 0 ? out[r][t] : result + out[r][t];
        }
    };
    const i64 apart = tile.rows / kRows;
    for (i64 row = 0; row < apart; row++) multiply(row, apart, kRows);
    if (kRows * apart < tile.rows) multiply(kRows * apart, 1, tile.rows - kRows * apart);
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

}  // namespace
}  // namespace stoker

// How the GEMMs of float weights with float activations walk a MatmulTile.
//
// One chain of kLanes partial sums per (token, row) over the columns, as in the leaf for few tokens and with the same
// bits. A piece of the columns at a time, rows are widened to f32 in L1 and meet four tokens in registers. Several such
// panels are taken before the next piece: the activations of a pass are too large for L2, and read for every panel from
// L3 they would be what binds. A piece of them is copied, so that its rows lie side by side, and the next one is asked
// for meanwhile, as are the weights of the next panel: pieces of rows are too short for the hardware to foresee. A
// level supplies:
//
//   struct Level {
//     static constexpr int kLanes, kRows;     // floats of a register; rows that meet the tokens together
//     static constexpr i64 kPanelRows;        // a multiple of kRows; with 8 KiB of activations they stay in L1
//     using Vector = ...;
//     static Vector load(const f32* p);       // aligned or not
//     static Vector load_first(const f32* p, i64 count);  // the first `count` < kLanes, the others 0; reads no more
//     static void store(f32* p, Vector v);    // aligned
//     static Vector multiply_add(Vector a, Vector b, Vector c);  // a * b + c
//     static f32 total(Vector sum);           // as the leaf adds the lanes
//   };
//   struct Weight {
//     using Element = ...;
//     // Aligned `out`; zeros up to the next multiple of kLanes. Reads no weight but these.
//     static void to_floats(const Element* w, i64 cols, f32* out);
//   };
//
// Everything is in an unnamed namespace: the header is compiled for more than one instruction level.
#pragma once

#include <immintrin.h>

#include "kernels/cpu/leaf.h"

namespace stoker {
namespace {

constexpr i64 kPanelCols = 512;
constexpr i64 kBlockRows = 96, kPassTokens = 64;  // activations and sums in L2: 128 and up to 384 KiB
constexpr int kTurnTokens = 4;

template <class Level>
struct FloatScratch {
  alignas(64) f32 weights[Level::kPanelRows][kPanelCols];
  alignas(64) f32 x[kPassTokens][kPanelCols];
  alignas(64) f32 sums[kPassTokens][kBlockRows][Level::kLanes];
};

// Adds `steps` registers of columns of kRows rows of weights and kTokens tokens to their sums, which begin at `row`.
template <class Level, int kTokens, int kRows>
__attribute__((noinline)) void multiply(const f32 (*weights)[kPanelCols], const f32 (*x)[kPanelCols], i64 steps,
                                        f32 (*sums)[kBlockRows][Level::kLanes], i64 row) {
  using Vector = typename Level::Vector;
  Vector sum[kTokens][kRows];
#pragma GCC unroll 4
  for (int t = 0; t < kTokens; t++)
#pragma GCC unroll 6
    for (int r = 0; r < kRows; r++) sum[t][r] = Level::load(sums[t][row + r]);
  for (i64 i = 0; i < steps * Level::kLanes; i += Level::kLanes) {
    Vector w[kRows];
#pragma GCC unroll 6
    for (int r = 0; r < kRows; r++) w[r] = Level::load(weights[r] + i);
#pragma GCC unroll 4
    for (int t = 0; t < kTokens; t++) {
      Vector activations = Level::load(x[t] + i);
#pragma GCC unroll 6
      for (int r = 0; r < kRows; r++) sum[t][r] = Level::multiply_add(w[r], activations, sum[t][r]);
    }
  }
#pragma GCC unroll 4
  for (int t = 0; t < kTokens; t++)
#pragma GCC unroll 6
    for (int r = 0; r < kRows; r++) Level::store(sums[t][row + r], sum[t][r]);
}

// The widened panel, whose sums begin at `first`.
template <class Level, int kTokens>
void multiply_panel(FloatScratch<Level>& scratch, i64 steps, i64 token, i64 first, i64 rows) {
  i64 r = 0;
  for (; r + Level::kRows <= rows; r += Level::kRows)
    multiply<Level, kTokens, Level::kRows>(scratch.weights + r, scratch.x + token, steps, scratch.sums + token,
                                           first + r);
  for (; r < rows; r++)
    multiply<Level, kTokens, 1>(scratch.weights + r, scratch.x + token, steps, scratch.sums + token, first + r);
}

// Columns of `x`; zeros up to the next multiple of kLanes.
template <class Level>
void copy_columns(const f32* x, i64 cols, f32* out) {
  i64 i = 0;
  for (; i + Level::kLanes <= cols; i += Level::kLanes) Level::store(out + i, Level::load(x + i));
  if (i < cols) Level::store(out + i, Level::load_first(x + i, cols - i));
}

// Asks for sixteen lines of the activations from column `col` on: the `turn`-th of all tokens.
inline void ask_for(const f32* const* x, i64 tokens, i64 col, i64 cols, i64 turn) {
  constexpr i64 kHalf = kPanelCols / 2;
  const i64 token = turn / 2, begin = col + turn % 2 * kHalf;
  if (token >= tokens) return;
  for (i64 i = begin; i < begin + kHalf && i < cols; i += 16)
    _mm_prefetch(reinterpret_cast<const char*>(x[token] + i), _MM_HINT_T1);
}

// Asks for `rows` rows of weights, each of `bytes` from `w` on: the turn-th of `turns` shares of each row.
inline void ask_for(const std::byte* w, i64 w_row_bytes, i64 rows, i64 bytes, i64 turn, i64 turns) {
  const i64 share = (bytes / turns + 63) / 64 * 64, begin = turn * share;
  for (i64 r = 0; r < rows; r++)
    for (i64 i = begin; i < begin + share && i < bytes; i += 64)
      _mm_prefetch(reinterpret_cast<const char*>(w + r * w_row_bytes + i), _MM_HINT_T1);
}

template <class Level, class Weight>
void gemm_float_block(FloatScratch<Level>& scratch, const MatmulTile& tile, i64 row, i64 rows, const f32* const* x,
                      i64 tokens) {
  using Element = typename Weight::Element;
  constexpr i64 kPanelRows = Level::kPanelRows;
  __builtin_memset(scratch.sums, 0, static_cast<unsigned long>(tokens) * sizeof scratch.sums[0]);
  for (i64 col = 0; col < tile.cols; col += kPanelCols) {
    const i64 cols = tile.cols - col < kPanelCols ? tile.cols - col : kPanelCols;
    const i64 steps = (cols + Level::kLanes - 1) / Level::kLanes;
    const std::byte* piece = tile.w + row * tile.w_row_bytes + col * i64{sizeof(Element)};
    for (i64 t = 0; t < tokens; t++) copy_columns<Level>(x[t] + col, cols, scratch.x[t]);
    i64 turn = 0;
    for (i64 first = 0; first < rows; first += kPanelRows) {
      const i64 panel_rows = rows - first < kPanelRows ? rows - first : kPanelRows;
      for (i64 r = 0; r < panel_rows; r++)
        Weight::to_floats(reinterpret_cast<const Element*>(piece + (first + r) * tile.w_row_bytes), cols,
                          scratch.weights[r]);
      // The next panel, which may be the first one of the next columns.
      const bool last = first + kPanelRows >= rows;
      const i64 next_cols = last ? tile.cols - col - kPanelCols : cols;
      const std::byte* next = last ? piece + kPanelCols * i64{sizeof(Element)}
                                   : piece + (first + kPanelRows) * tile.w_row_bytes;
      const i64 next_rows = last ? rows : rows - first - kPanelRows;
      i64 t = 0;
      for (; t + kTurnTokens <= tokens; t += kTurnTokens) {
        ask_for(x, tokens, col + kPanelCols, tile.cols, turn++);
        ask_for(next, tile.w_row_bytes, next_rows < kPanelRows ? next_rows : kPanelRows,
                (next_cols < kPanelCols ? next_cols : kPanelCols) * i64{sizeof(Element)}, t / kTurnTokens,
                tokens / kTurnTokens);
        multiply_panel<Level, kTurnTokens>(scratch, steps, t, first, panel_rows);
      }
      for (; t < tokens; t++) multiply_panel<Level, 1>(scratch, steps, t, first, panel_rows);
    }
  }
}

template <class Level, class Weight>
void gemm_float_tile(const MatmulTile& tile) {
  FloatScratch<Level> scratch;
  const f32* x[kPassTokens];
  for (i64 first = 0; first < tile.tokens; first += kPassTokens) {
    const i64 tokens = tile.tokens - first < kPassTokens ? tile.tokens - first : kPassTokens;
    for (i64 t = 0; t < tokens; t++) {
      i64 from = tile.x_rows != nullptr ? tile.x_rows[first + t] : first + t;
      x[t] = reinterpret_cast<const f32*>(tile.x + from * tile.x_stride_bytes);
    }
    for (i64 row = 0; row < tile.rows; row += kBlockRows) {
      const i64 rows = tile.rows - row < kBlockRows ? tile.rows - row : kBlockRows;
      gemm_float_block<Level, Weight>(scratch, tile, row, rows, x, tokens);
      for (i64 t = 0; t < tokens; t++) {
        i64 to = tile.y_rows != nullptr ? tile.y_rows[first + t] : first + t;
        f32* y = tile.y + to * tile.y_stride + row;
        for (i64 r = 0; r < rows; r++) y[r] = Level::total(Level::load(scratch.sums[t][r]));
      }
    }
  }
}

}  // namespace
}  // namespace stoker

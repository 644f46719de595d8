// How the GEMMs of float weights with float activations walk a MatmulTile.
//
// One chain of kLanes partial sums per (token, row) over the columns, as in the leaf for few tokens and with the same
// bits. A piece of the columns at a time, rows are widened to f32 in L1 and meet four tokens in registers. Several such
// panels are taken before the next piece: the activations of a pass are too large for L2, and read for every panel from
// L3 they would be what binds. A piece of them is copied, so that its rows lie side by side; the first rows that meet it
// do that on the way, because a copy of its own took 4 % of the time. Meanwhile the next piece is asked for, as are the
// weights of the next panel: pieces of rows are too short for the hardware to foresee. A level supplies:
//
//   struct Level {
//     static constexpr int kLanes, kRows;     // floats of a register; rows that meet four tokens together
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

constexpr i64 kPanelRows = 24, kPanelCols = 256;  // with 4 KiB of activations in 32 KiB of L1, as Zen has
constexpr i64 kBlockRows = 64, kPassTokens = 128;  // activations and sums in L2: 128 and up to 512 KiB
constexpr int kTurnTokens = 4;
constexpr i64 kAskCols = 64;  // after so many columns of a turn, lines are asked for

template <class Level>
struct FloatScratch {
  alignas(64) f32 weights[kPanelRows][kPanelCols];
  alignas(64) f32 x[kPassTokens][kPanelCols];
  alignas(64) f32 sums[kPassTokens][kBlockRows][Level::kLanes];
};

// Pieces of rows that will be wanted, to be asked for a few lines at a time: many at once keep from L1 what is multiplied,
// which took 6 % of the time.
class Ahead {
 public:
  // `bytes` from `offset` on of `count` rows; none if bytes <= 0. Asking for `present` costs nothing.
  Ahead(const std::byte* const* rows, i64 count, i64 offset, i64 bytes, const void* present)
      : rows_(rows), count_(bytes > 0 ? count : 0), offset_(offset), bytes_(bytes),
        present_(static_cast<const char*>(present)) {}

  // The first of the next `lines` lines, of one row.
  const char* next(i64 lines) {
    if (row_ == count_) return present_;
    const char* line = reinterpret_cast<const char*>(rows_[row_] + offset_ + at_);
    at_ += 64 * lines;
    if (at_ >= bytes_) at_ = 0, row_++;
    return line;
  }

 private:
  const std::byte* const* rows_;
  i64 count_, offset_, bytes_;
  const char* present_;
  i64 row_ = 0, at_ = 0;
};

// Tokens that meet a panel together.
template <class Level>
struct Turn {
  const std::byte* const* from;  // [tokens] rows of activations
  i64 col;
  f32 (*x)[kPanelCols];  // [tokens] their columns from `col` on, side by side
  i64 cols;              // rounded up to whole registers
  f32 (*sums)[kBlockRows][Level::kLanes];
  Ahead *x_ahead, *w_ahead;
};

// Adds kRows rows of weights and kTokens tokens to their sums, which begin at `row`. With kCopy it fills turn.x.
template <class Level, int kTokens, int kRows, bool kCopy>
__attribute__((noinline)) void multiply(const f32 (*weights)[kPanelCols], const Turn<Level>& turn, i64 row) {
  using Vector = typename Level::Vector;
  Vector sum[kTokens][kRows];
  f32 (*x)[kPanelCols] = turn.x;
  const f32* from[kTokens];
#pragma GCC unroll 4
  for (int t = 0; t < kTokens; t++) {
    from[t] = kCopy ? reinterpret_cast<const f32*>(turn.from[t]) + turn.col : x[t];
#pragma GCC unroll 6
    for (int r = 0; r < kRows; r++) sum[t][r] = Level::load(turn.sums[t][row + r]);
  }
  auto step = [&](i64 i) __attribute__((always_inline)) {
    Vector w[kRows];
#pragma GCC unroll 6
    for (int r = 0; r < kRows; r++) w[r] = Level::load(weights[r] + i);
#pragma GCC unroll 4
    for (int t = 0; t < kTokens; t++) {
      Vector activations = Level::load((kCopy ? from[t] : x[t]) + i);
      if constexpr (kCopy) Level::store(x[t] + i, activations);
#pragma GCC unroll 6
      for (int r = 0; r < kRows; r++) sum[t][r] = Level::multiply_add(w[r], activations, sum[t][r]);
    }
  };
  constexpr i64 kAsks = kPanelCols / kAskCols;
  const char *x_line = turn.x_ahead->next(2 * kAsks), *w_line = turn.w_ahead->next(kAsks);
  i64 i = 0;
  for (; i + kAskCols <= turn.cols; x_line += 128, w_line += 64) {
    _mm_prefetch(x_line, _MM_HINT_T1);
    _mm_prefetch(x_line + 64, _MM_HINT_T1);
    _mm_prefetch(w_line, _MM_HINT_T1);
    for (const i64 end = i + kAskCols; i < end; i += Level::kLanes) step(i);
  }
  for (; i < turn.cols; i += Level::kLanes) step(i);
#pragma GCC unroll 4
  for (int t = 0; t < kTokens; t++)
#pragma GCC unroll 6
    for (int r = 0; r < kRows; r++) Level::store(turn.sums[t][row + r], sum[t][r]);
}

// The widened panel of `rows` rows, whose sums begin at `first`. `copy`: turn.x is still to be filled.
template <class Level, int kTokens>
void multiply_panel(const f32 (*weights)[kPanelCols], const Turn<Level>& turn, i64 first, i64 rows, bool copy) {
  i64 r = 0;
  if (copy) {
    multiply<Level, kTokens, Level::kRows, true>(weights, turn, first);
    r = Level::kRows;
  }
  for (; r + Level::kRows <= rows; r += Level::kRows)
    multiply<Level, kTokens, Level::kRows, false>(weights + r, turn, first + r);
  for (; r + 2 <= rows; r += 2) multiply<Level, kTokens, 2, false>(weights + r, turn, first + r);
  if (r < rows) multiply<Level, kTokens, 1, false>(weights + r, turn, first + r);
}

// Columns of `x`; zeros up to the next multiple of kLanes.
template <class Level>
void copy_columns(const f32* x, i64 cols, f32* out) {
  i64 i = 0;
  for (; i + Level::kLanes <= cols; i += Level::kLanes) Level::store(out + i, Level::load(x + i));
  if (i < cols) Level::store(out + i, Level::load_first(x + i, cols - i));
}

// Columns [col, col + cols) of a block of `rows` rows from `w` on.
template <class Level, class Weight>
void gemm_float_piece(FloatScratch<Level>& scratch, const MatmulTile& tile, const std::byte* w, i64 rows,
                      const std::byte* const* x, i64 tokens, i64 col, i64 cols) {
  using Element = typename Weight::Element;
  constexpr i64 kElementBytes = i64{sizeof(Element)};
  const bool copy_on_the_way = rows >= Level::kRows && cols % Level::kLanes == 0;
  if (!copy_on_the_way)
    for (i64 t = 0; t < tokens; t++)
      copy_columns<Level>(reinterpret_cast<const f32*>(x[t]) + col, cols, scratch.x[t]);
  auto cols_from = [&tile](i64 begin) { return tile.cols - begin < kPanelCols ? tile.cols - begin : kPanelCols; };
  Ahead x_ahead(x, tokens, (col + kPanelCols) * i64{sizeof(f32)}, cols_from(col + kPanelCols) * i64{sizeof(f32)},
                scratch.weights);
  for (i64 first = 0; first < rows; first += kPanelRows) {
    const i64 panel_rows = rows - first < kPanelRows ? rows - first : kPanelRows;
    for (i64 r = 0; r < panel_rows; r++)
      Weight::to_floats(reinterpret_cast<const Element*>(w + (first + r) * tile.w_row_bytes) + col, cols,
                        scratch.weights[r]);
    // The next panel, which may be the first one of the next columns.
    const bool last = first + kPanelRows >= rows;
    const i64 next_first = last ? 0 : first + kPanelRows, next_col = last ? col + kPanelCols : col;
    const std::byte* next[kPanelRows];
    i64 next_rows = 0;
    for (; next_rows < kPanelRows && next_first + next_rows < rows; next_rows++)
      next[next_rows] = w + (next_first + next_rows) * tile.w_row_bytes;
    Ahead w_ahead(next, next_rows, next_col * kElementBytes, cols_from(next_col) * kElementBytes, scratch.weights);
    i64 t = 0;
    auto turn = [&] {
      return Turn<Level>{.from = x + t, .col = col, .x = scratch.x + t, .cols = round_up(cols, i64{Level::kLanes}),
                         .sums = scratch.sums + t, .x_ahead = &x_ahead, .w_ahead = &w_ahead};
    };
    const bool copy = copy_on_the_way && first == 0;
    for (; t + kTurnTokens <= tokens; t += kTurnTokens)
      multiply_panel<Level, kTurnTokens>(scratch.weights, turn(), first, panel_rows, copy);
    for (; t < tokens; t++) multiply_panel<Level, 1>(scratch.weights, turn(), first, panel_rows, copy);
  }
}

template <class Level, class Weight>
void gemm_float_tile(const MatmulTile& tile) {
  FloatScratch<Level> scratch;
  const std::byte* x[kPassTokens];
  for (i64 first = 0; first < tile.tokens; first += kPassTokens) {
    const i64 tokens = tile.tokens - first < kPassTokens ? tile.tokens - first : kPassTokens;
    for (i64 t = 0; t < tokens; t++) {
      i64 from = tile.x_rows != nullptr ? tile.x_rows[first + t] : first + t;
      x[t] = tile.x + from * tile.x_stride_bytes;
    }
    for (i64 row = 0; row < tile.rows; row += kBlockRows) {
      const i64 rows = tile.rows - row < kBlockRows ? tile.rows - row : kBlockRows;
      __builtin_memset(scratch.sums, 0, static_cast<unsigned long>(tokens) * sizeof scratch.sums[0]);
      for (i64 col = 0; col < tile.cols; col += kPanelCols)
        gemm_float_piece<Level, Weight>(scratch, tile, tile.w + row * tile.w_row_bytes, rows, x, tokens, col,
                                        tile.cols - col < kPanelCols ? tile.cols - col : kPanelCols);
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

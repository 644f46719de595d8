// AVX2 GEMM of float weights with float activations.
//
// One chain of eight partial sums per (token, row) over the columns, as in matmul_float_avx2.cc and with the same bits.
// Rows are widened to f32 in L1, a piece of the columns at a time; three of them meet four tokens in registers.
#include <immintrin.h>

#include "kernels/cpu/gemm_avx2.h"
#include "kernels/cpu/matmul_tile_avx2.h"

namespace stoker {
namespace {

constexpr i64 kRows = 12, kCols = 512, kTokens = 128;

// The first `count` (0 .. 8) lanes are on.
inline __m256i lanes_below(i64 count) {
  return _mm256_cmpgt_epi32(_mm256_set1_epi32(static_cast<int>(count)), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}

// Widens `cols` weights; zeros up to the next multiple of eight.
inline void widen(const f32* w, i64 cols, f32* out) {
  i64 i = 0;
  for (; i + 8 <= cols; i += 8) _mm256_store_ps(out + i, _mm256_loadu_ps(w + i));
  if (i < cols) _mm256_store_ps(out + i, _mm256_maskload_ps(w + i, lanes_below(cols - i)));
}

struct F16ToFloat {
  static __m256 widen(__m128i words) { return _mm256_cvtph_ps(words); }
};
struct Bf16ToFloat {
  static __m256 widen(__m128i words) {
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(words), 16));
  }
};

template <class Convert>
inline void widen_words(const u16* w, i64 cols, f32* out) {
  i64 i = 0;
  for (; i + 8 <= cols; i += 8) _mm256_store_ps(out + i, Convert::widen(load_128(w + i)));
  if (i == cols) return;
  alignas(16) u16 words[8] = {};  // nothing behind the row may be read
  for (i64 k = 0; k < cols - i; k++) words[k] = w[i + k];
  _mm256_store_ps(out + i, Convert::widen(load_128(words)));
}

struct WeightF32 {
  using Element = f32;
  static void to_floats(const f32* w, i64 cols, f32* out) { widen(w, cols, out); }
};
struct WeightF16 {
  using Element = u16;
  static void to_floats(const u16* w, i64 cols, f32* out) { widen_words<F16ToFloat>(w, cols, out); }
};
struct WeightBF16 {
  using Element = u16;
  static void to_floats(const u16* w, i64 cols, f32* out) { widen_words<Bf16ToFloat>(w, cols, out); }
};

struct Scratch {
  alignas(64) f32 weights[kRows][kCols];
  alignas(64) f32 sums[kTokens][kRows][8];
};

// Adds columns [0, cols) of kRowCount rows of weights and kTokenCount tokens to their sums.
template <int kTokenCount, int kRowCount>
__attribute__((noinline)) void multiply(const f32 (*weights)[kCols], const f32* const* x, i64 col, i64 cols,
                                        f32 (*sums)[kRows][8], i64 row) {
  const f32* at[kTokenCount];
  __m256 sum[kTokenCount][kRowCount];
#pragma GCC unroll 4
  for (int t = 0; t < kTokenCount; t++) {
    at[t] = x[t] + col;
#pragma GCC unroll 4
    for (int r = 0; r < kRowCount; r++) sum[t][r] = _mm256_load_ps(sums[t][row + r]);
  }
  auto step = [&](i64 i, auto load) __attribute__((always_inline)) {
    __m256 w[kRowCount];
#pragma GCC unroll 4
    for (int r = 0; r < kRowCount; r++) w[r] = _mm256_load_ps(weights[row + r] + i);
#pragma GCC unroll 4
    for (int t = 0; t < kTokenCount; t++) {
      __m256 activations = load(at[t] + i);
#pragma GCC unroll 4
      for (int r = 0; r < kRowCount; r++) sum[t][r] = _mm256_fmadd_ps(w[r], activations, sum[t][r]);
    }
  };
  i64 i = 0;
  for (; i + 8 <= cols; i += 8) step(i, [](const f32* p) { return _mm256_loadu_ps(p); });
  if (i < cols) step(i, [&](const f32* p) { return _mm256_maskload_ps(p, lanes_below(cols - i)); });
#pragma GCC unroll 4
  for (int t = 0; t < kTokenCount; t++)
#pragma GCC unroll 4
    for (int r = 0; r < kRowCount; r++) _mm256_store_ps(sums[t][row + r], sum[t][r]);
}

template <int kTokenCount>
void multiply_rows(Scratch& scratch, const f32* const* x, i64 col, i64 cols, i64 token, i64 rows) {
  i64 r = 0;
  for (; r + 3 <= rows; r += 3)
    multiply<kTokenCount, 3>(scratch.weights, x + token, col, cols, scratch.sums + token, r);
  for (; r < rows; r++) multiply<kTokenCount, 1>(scratch.weights, x + token, col, cols, scratch.sums + token, r);
}

template <class Weight>
void gemm_rows(Scratch& scratch, const MatmulTile& tile, i64 row, i64 rows, const f32* const* x, i64 tokens) {
  using Element = typename Weight::Element;
  __builtin_memset(scratch.sums, 0, static_cast<unsigned long>(tokens) * sizeof scratch.sums[0]);
  for (i64 col = 0; col < tile.cols; col += kCols) {
    const i64 cols = tile.cols - col < kCols ? tile.cols - col : kCols;
    for (i64 r = 0; r < rows; r++)
      Weight::to_floats(reinterpret_cast<const Element*>(tile.w + (row + r) * tile.w_row_bytes) + col, cols,
                        scratch.weights[r]);
    i64 t = 0;
    for (; t + 4 <= tokens; t += 4) multiply_rows<4>(scratch, x, col, cols, t, rows);
    for (; t < tokens; t++) multiply_rows<1>(scratch, x, col, cols, t, rows);
  }
}

template <class Weight>
void gemm_float_tile(const MatmulTile& tile) {
  Scratch scratch;
  const f32* x[kTokens];
  for (i64 first = 0; first < tile.tokens; first += kTokens) {
    const i64 tokens = tile.tokens - first < kTokens ? tile.tokens - first : kTokens;
    for (i64 t = 0; t < tokens; t++) {
      i64 from = tile.x_rows != nullptr ? tile.x_rows[first + t] : first + t;
      x[t] = reinterpret_cast<const f32*>(tile.x + from * tile.x_stride_bytes);
    }
    for (i64 row = 0; row < tile.rows; row += kRows) {
      const i64 rows = tile.rows - row < kRows ? tile.rows - row : kRows;
      gemm_rows<Weight>(scratch, tile, row, rows, x, tokens);
      for (i64 t = 0; t < tokens; t++) {
        i64 to = tile.y_rows != nullptr ? tile.y_rows[first + t] : first + t;
        f32* y = tile.y + to * tile.y_stride + row;
        for (i64 r = 0; r < rows; r++) y[r] = sum_lanes(_mm256_load_ps(scratch.sums[t][r]));
      }
    }
  }
}

}  // namespace

void fill_gemm_float_avx2(LeafTable& table) {
  auto set = [&table](BlockType type, MatmulLeaf leaf) { table.gemm_f32[static_cast<i64>(type)] = leaf; };
  set(BlockType::F32, gemm_float_tile<WeightF32>);
  set(BlockType::F16, gemm_float_tile<WeightF16>);
  set(BlockType::BF16, gemm_float_tile<WeightBF16>);
}

}  // namespace stoker

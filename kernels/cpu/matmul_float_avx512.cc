// AVX-512 matmul of float weights with float activations.
//
// One chain of sixteen partial sums per (token, row), several rows or tokens side by side as in the avx2 level: they
// hide the latency of an FMA and share each load of activations. Masked loads take the columns beyond the last sixteen.
// From many tokens on, four of them meet six widened rows in registers (gemm_float.h).
#include <immintrin.h>

#include "kernels/cpu/gemm_float.h"
#include "kernels/cpu/matmul_avx512.h"
#include "kernels/cpu/totals_avx512.h"

namespace stoker {
namespace {

// Far enough ahead that a line arrives before it is used; the hardware prefetchers stop at 4 KiB pages.
constexpr i64 kPrefetchBytes = 2048;

struct WeightF32 {
  using Element = f32;
  static __m512 load(const f32* p, __mmask16 lanes) { return _mm512_maskz_loadu_ps(lanes, p); }
};

struct WeightF16 {
  using Element = u16;
  static __m512 load(const u16* p, __mmask16 lanes) { return _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(lanes, p)); }
};

struct WeightBF16 {
  using Element = u16;
  static __m512 load(const u16* p, __mmask16 lanes) {
    __m512i wide = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(lanes, p));
    return _mm512_castsi512_ps(_mm512_slli_epi32(wide, 16));
  }
};

inline __mmask16 lanes_below(i64 count) { return static_cast<__mmask16>((1u << count) - 1); }

template <class Weight, int kTokens, int kRows>
__attribute__((noinline)) void multiply_rows(const std::byte* w, i64 w_row_bytes, i64 cols,
                                             const f32* const (&x)[kTokens], f32* const (&y)[kTokens], i64 row) {
  using Element = typename Weight::Element;
  const Element* rows[kRows];
  __m512 sum[kTokens * kRows];
#pragma GCC unroll 16
  for (__m512& s : sum) s = _mm512_setzero_ps();
  for (int r = 0; r < kRows; r++) rows[r] = reinterpret_cast<const Element*>(w + r * w_row_bytes);
  auto step = [&](i64 col, __mmask16 lanes) __attribute__((always_inline)) {
    __m512 weights[kRows];
#pragma GCC unroll 4
    for (int r = 0; r < kRows; r++) {
      _mm_prefetch(reinterpret_cast<const char*>(rows[r] + col) + kPrefetchBytes, _MM_HINT_T0);
      weights[r] = Weight::load(rows[r] + col, lanes);
    }
#pragma GCC unroll 4
    for (int t = 0; t < kTokens; t++) {
      __m512 activations = _mm512_maskz_loadu_ps(lanes, x[t] + col);
#pragma GCC unroll 4
      for (int r = 0; r < kRows; r++) sum[t * kRows + r] = _mm512_fmadd_ps(weights[r], activations, sum[t * kRows + r]);
    }
  };
  i64 col = 0;
  for (; col + 16 <= cols; col += 16) step(col, 0xffff);
  if (col < cols) step(col, lanes_below(cols - col));
  if constexpr (kTokens == 1) return store_totals(sum, y[0] + row);
  f32 out[kTokens][kRows];
  store_totals(sum, out[0]);
#pragma GCC unroll 4
  for (int t = 0; t < kTokens; t++) __builtin_memcpy(y[t] + row, out[t], sizeof out[t]);
}

template <class Weight, int kTokens>
void multiply_tokens(const MatmulTile& tile, i64 first_token) {
  constexpr int kRows = 4;
  const f32* x[kTokens];
  f32* y[kTokens];
  for (int t = 0; t < kTokens; t++) {
    i64 token = first_token + t;
    i64 from = tile.x_rows != nullptr ? tile.x_rows[token] : token;
    i64 to = tile.y_rows != nullptr ? tile.y_rows[token] : token;
    x[t] = reinterpret_cast<const f32*>(tile.x + from * tile.x_stride_bytes);
    y[t] = tile.y + to * tile.y_stride;
  }
  const std::byte* w = tile.w;
  i64 row = 0;
  for (; row + kRows <= tile.rows; row += kRows, w += kRows * tile.w_row_bytes)
    multiply_rows<Weight, kTokens, kRows>(w, tile.w_row_bytes, tile.cols, x, y, row);
  for (; row < tile.rows; row++, w += tile.w_row_bytes)
    multiply_rows<Weight, kTokens, 1>(w, tile.w_row_bytes, tile.cols, x, y, row);
}

template <class Weight>
void multiply_tile(const MatmulTile& tile) {
  i64 token = 0;
  for (; token + 4 <= tile.tokens; token += 4) multiply_tokens<Weight, 4>(tile, token);
  for (; token + 2 <= tile.tokens; token += 2) multiply_tokens<Weight, 2>(tile, token);
  if (token < tile.tokens) multiply_tokens<Weight, 1>(tile, token);
}

struct Avx512 {
  static constexpr int kLanes = 16, kRows = 6;
  using Vector = __m512;
  static Vector load(const f32* p) { return _mm512_loadu_ps(p); }
  static Vector load_first(const f32* p, i64 count) { return _mm512_maskz_loadu_ps(lanes_below(count), p); }
  static void store(f32* p, Vector v) { _mm512_store_ps(p, v); }
  static Vector multiply_add(Vector a, Vector b, Vector c) { return _mm512_fmadd_ps(a, b, c); }
  static f32 total(Vector sum) { return _mm512_reduce_add_ps(sum); }
};

template <class Weight>
struct Widened {
  using Element = typename Weight::Element;
  static void to_floats(const Element* w, i64 cols, f32* out) {
    i64 i = 0;
    for (; i + 16 <= cols; i += 16) _mm512_store_ps(out + i, Weight::load(w + i, 0xffff));
    if (i < cols) _mm512_store_ps(out + i, Weight::load(w + i, lanes_below(cols - i)));
  }
};

template <class Weight>
void set_leaves(LeafTable& table, BlockType type) {
  table.matmul_f32[static_cast<i64>(type)] = multiply_tile<Weight>;
  table.gemm_f32[static_cast<i64>(type)] = gemm_float_tile<Avx512, Widened<Weight>>;
}

}  // namespace

void fill_matmul_float_avx512(LeafTable& table) {
  set_leaves<WeightF32>(table, BlockType::F32);
  set_leaves<WeightF16>(table, BlockType::F16);
  set_leaves<WeightBF16>(table, BlockType::BF16);
}

}  // namespace stoker

// The leaves of attention with AVX2.
//
// product keeps a tile of y in registers while rows of x go by: 6 outputs x 2 vectors, 12 chains, which hide
// the latency of an FMA, two vectors of x and a weight fill the sixteen registers. A panel of x (16 columns
// of 256 rows, 16 KiB) stays in L1 while all outputs meet it.
#include <immintrin.h>

#include "kernels/cpu/exp_avx2.h"
#include "kernels/cpu/matmul_avx2.h"
#include "kernels/cpu/transpose_avx2.h"

namespace stoker {
namespace {

constexpr i64 kPanelRows = 256;

__m256i first_lanes(i64 count) {
  return _mm256_cmpgt_epi32(_mm256_set1_epi32(static_cast<i32>(count)),
                            _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}

// Whole vectors, or with kMasked one vector of which some lanes are off.
template <bool kMasked>
__m256 load(const f32* p, __m256i lanes) {
  if constexpr (kMasked) return _mm256_maskload_ps(p, lanes);
  return _mm256_loadu_ps(p);
}
template <bool kMasked>
void store(f32* p, __m256i lanes, __m256 value) {
  if constexpr (kMasked)
    _mm256_maskstore_ps(p, lanes, value);
  else
    _mm256_storeu_ps(p, value);
}

template <int kOutputs, int kVectors, bool kMasked>
__attribute__((noinline)) void multiply_panel(const Product& a, i64 output, i64 row, i64 rows, i64 col,
                                              __m256i lanes) {
  const f32* w[kOutputs];
  __m256 sum[kOutputs][kVectors];
  f32* y = a.y + output * a.y_stride + col;
  const bool from_zero = row == 0 && !a.accumulate;
#pragma GCC unroll 12
  for (int o = 0; o < kOutputs; o++) {
    w[o] = a.w + (output + o) * a.w_output_stride + row * a.w_row_stride;
#pragma GCC unroll 2
    for (int v = 0; v < kVectors; v++)
      sum[o][v] = from_zero ? _mm256_setzero_ps() : load<kMasked>(y + o * a.y_stride + 8 * v, lanes);
  }
  const f32* x = a.x + row * a.x_stride + col;
  for (i64 r = 0, at = 0; r < rows; r++, at += a.w_row_stride, x += a.x_stride) {
    __m256 values[kVectors];
#pragma GCC unroll 2
    for (int v = 0; v < kVectors; v++) values[v] = load<kMasked>(x + 8 * v, lanes);
#pragma GCC unroll 12
    for (int o = 0; o < kOutputs; o++) {
      __m256 weight = _mm256_broadcast_ss(w[o] + at);
#pragma GCC unroll 2
      for (int v = 0; v < kVectors; v++) sum[o][v] = _mm256_fmadd_ps(weight, values[v], sum[o][v]);
    }
  }
#pragma GCC unroll 12
  for (int o = 0; o < kOutputs; o++)
#pragma GCC unroll 2
    for (int v = 0; v < kVectors; v++) store<kMasked>(y + o * a.y_stride + 8 * v, lanes, sum[o][v]);
}

template <int kVectors, bool kMasked>
void multiply_outputs(const Product& a, i64 row, i64 rows, i64 col, __m256i lanes) {
  constexpr int kOutputs = kVectors == 2 ? 6 : 12;
  i64 o = 0;
  for (; o + kOutputs <= a.outputs; o += kOutputs)
    multiply_panel<kOutputs, kVectors, kMasked>(a, o, row, rows, col, lanes);
  for (; o + 4 <= a.outputs; o += 4) multiply_panel<4, kVectors, kMasked>(a, o, row, rows, col, lanes);
  for (; o < a.outputs; o++) multiply_panel<1, kVectors, kMasked>(a, o, row, rows, col, lanes);
}

void product(const Product& a) {
  for (i64 col = 0; col < a.cols; col += 16) {
    i64 cols = a.cols - col < 16 ? a.cols - col : 16;
    for (i64 row = 0; row == 0 || row < a.rows; row += kPanelRows) {
      i64 rows = a.rows - row < kPanelRows ? a.rows - row : kPanelRows;
      if (cols == 16) {
        multiply_outputs<2, false>(a, row, rows, col, first_lanes(8));
        continue;
      }
      if (cols >= 8) multiply_outputs<1, false>(a, row, rows, col, first_lanes(8));
      if (cols % 8 != 0) multiply_outputs<1, true>(a, row, rows, col + cols / 8 * 8, first_lanes(cols % 8));
    }
  }
}

// e^x for x <= 0; 0 where the result would not be a normal float; a NaN stays one.
__m256 exp_ps(__m256 x) {
  __m256 normal = _mm256_cmp_ps(x, _mm256_set1_ps(-87.3f), _CMP_NLT_UQ);
  return _mm256_and_ps(exp_normal(x), normal);
}

void softmax_columns(const SoftmaxColumns& a) {
  for (i64 col = 0; col < a.cols; col += 8) {
    __m256i lanes = first_lanes(a.cols - col);
    f32* scores = a.scores + col;
    const __m256 before = _mm256_maskload_ps(a.best + col, lanes);
    __m256 best = before;
    for (i64 r = 0; r < a.rows; r++)  // the second operand is returned when one is a NaN
      best = _mm256_max_ps(_mm256_maskload_ps(scores + r * a.stride, lanes), best);
    __m256 shrink = exp_ps(_mm256_sub_ps(before, best));
    __m256 sum = _mm256_mul_ps(_mm256_maskload_ps(a.sum + col, lanes), shrink);
    for (i64 r = 0; r < a.rows; r++) {
      __m256 value = exp_ps(_mm256_sub_ps(_mm256_maskload_ps(scores + r * a.stride, lanes), best));
      _mm256_maskstore_ps(scores + r * a.stride, lanes, value);
      sum = _mm256_add_ps(sum, value);
    }
    _mm256_maskstore_ps(a.best + col, lanes, best);
    _mm256_maskstore_ps(a.sum + col, lanes, sum);
    _mm256_maskstore_ps(a.shrink + col, lanes, shrink);
  }
}

// --- transposing

void transpose_scaled(const f32* from, i64 from_stride, __m256 factor, f32* to, i64 to_stride) {
  __m256i row[8];
#pragma GCC unroll 8
  for (int i = 0; i < 8; i++) row[i] = _mm256_castps_si256(_mm256_mul_ps(factor, _mm256_loadu_ps(from + i * from_stride)));
  transpose_8x8(row);
#pragma GCC unroll 8
  for (int i = 0; i < 8; i++) _mm256_storeu_ps(to + i * to_stride, _mm256_castsi256_ps(row[i]));
}

// Eight rows at a time: their lines stay in L1 until all columns are taken.
void transpose(const Transpose& a) {
  const __m256 factor = _mm256_set1_ps(a.factor);
  for (i64 r = 0; r < a.rows; r += 8) {
    i64 rows = a.rows - r < 8 ? a.rows - r : 8, c = 0;
    if (rows == 8)
      for (; c + 8 <= a.cols; c += 8)
        transpose_scaled(a.from + r * a.from_stride + c, a.from_stride, factor, a.to + c * a.to_stride + r,
                         a.to_stride);
    for (; c < a.cols; c++)
      for (i64 i = r; i < r + rows; i++) a.to[c * a.to_stride + i] = a.factor * a.from[i * a.from_stride + c];
  }
}

// --- the 8-bit cache

f32 largest_32(const f32* x) {
  const __m256 magnitude_bits = _mm256_castsi256_ps(_mm256_set1_epi32(0x7fffffff));
  __m256i max = _mm256_setzero_si256();
  for (i64 i = 0; i < 32; i += 8)  // ordered like their bits, a NaN above all
    max = _mm256_max_epi32(max, _mm256_castps_si256(_mm256_and_ps(_mm256_loadu_ps(x + i), magnitude_bits)));
  __m128i m = _mm_max_epi32(_mm256_castsi256_si128(max), _mm256_extracti128_si256(max, 1));
  m = _mm_max_epi32(m, _mm_shuffle_epi32(m, 0x4e));
  m = _mm_max_epi32(m, _mm_shuffle_epi32(m, 0xb1));
  return _mm_cvtss_f32(_mm_castsi128_ps(m));
}

f32 from_half(u16 h) { return _mm_cvtss_f32(_mm_cvtph_ps(_mm_cvtsi32_si128(h))); }

u16 half_above(f32 x) {
  __m128i half = _mm_cvtps_ph(_mm_set_ss(x), _MM_FROUND_TO_POS_INF | _MM_FROUND_NO_EXC);
  return static_cast<u16>(_mm_extract_epi16(half, 0));
}

void quantize_q8_0(const f32* x, BlockQ8_0* out, i64 count) {
  for (i64 b = 0; b < count / 32; b++, x += 32) {
    out[b].d = half_above(largest_32(x) / 127.0f);
    f32 d = from_half(out[b].d);
    __m256i bytes = _mm256_setzero_si256();
    if (d > 0 && d - d == 0.0f) {
      __m256i q[4];
      for (i64 k = 0; k < 4; k++)
        q[k] = _mm256_cvtps_epi32(_mm256_div_ps(_mm256_loadu_ps(x + 8 * k), _mm256_set1_ps(d)));
      bytes = _mm256_packs_epi16(_mm256_packs_epi32(q[0], q[1]), _mm256_packs_epi32(q[2], q[3]));
      bytes = _mm256_permutevar8x32_epi32(bytes, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
    }
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(out[b].qs), bytes);
  }
}

}  // namespace

void fill_attention_avx2(LeafTable& table) {
  table.quantize_q8_0 = quantize_q8_0;
  table.product = product;
  table.transpose = transpose;
  table.softmax_columns = softmax_columns;
}

}  // namespace stoker

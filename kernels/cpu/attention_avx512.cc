// The leaves of attention with AVX-512.
//
// product keeps a tile of y in registers while rows of x go by: 6 outputs x 4 vectors, 24 chains, need 10
// loads per 24 FMAs, where two loads and two FMAs can start in a cycle. A panel of x (64 columns of 64 rows,
// 16 KiB) stays in L1 while all outputs meet it.
#include <immintrin.h>

#include "kernels/cpu/matmul_avx512.h"

namespace stoker {
namespace {

constexpr i64 kPanelRows = 96;

// The last vector's lanes beyond the columns are off.
template <int kOutputs, int kVectors>
__attribute__((noinline)) void multiply_panel(const Product& a, i64 output, i64 row, i64 rows, i64 col,
                                              __mmask16 last) {
  const f32* w[kOutputs];
  __m512 sum[kOutputs][kVectors];
  f32* y = a.y + output * a.y_stride + col;
  const __mmask16 before = row == 0 && !a.accumulate ? 0 : 0xffff;  // off: from zero
  auto lanes = [last](int v) __attribute__((always_inline)) {
    return v + 1 == kVectors ? last : __mmask16{0xffff};
  };
#pragma GCC unroll 12
  for (int o = 0; o < kOutputs; o++) {
    w[o] = a.w + (output + o) * a.w_output_stride + row * a.w_row_stride;
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; v++)
      sum[o][v] = _mm512_maskz_loadu_ps(before & lanes(v), y + o * a.y_stride + 16 * v);
  }
  const f32* x = a.x + row * a.x_stride + col;
  for (i64 r = 0, at = 0; r < rows; r++, at += a.w_row_stride, x += a.x_stride) {
    __m512 values[kVectors];
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; v++) values[v] = _mm512_maskz_loadu_ps(lanes(v), x + 16 * v);
#pragma GCC unroll 12
    for (int o = 0; o < kOutputs; o++) {
      __m512 weight = _mm512_set1_ps(w[o][at]);
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; v++) sum[o][v] = _mm512_fmadd_ps(weight, values[v], sum[o][v]);
    }
  }
#pragma GCC unroll 12
  for (int o = 0; o < kOutputs; o++)
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; v++)
      _mm512_mask_storeu_ps(y + o * a.y_stride + 16 * v, lanes(v), sum[o][v]);
}

template <int kVectors>
void multiply_outputs(const Product& a, i64 row, i64 rows, i64 col, __mmask16 last) {
  constexpr int kOutputs = kVectors > 2 ? 6 : 12;
  i64 o = 0;
  for (; o + kOutputs <= a.outputs; o += kOutputs)
    multiply_panel<kOutputs, kVectors>(a, o, row, rows, col, last);
  for (; o + 4 <= a.outputs; o += 4) multiply_panel<4, kVectors>(a, o, row, rows, col, last);
  for (; o < a.outputs; o++) multiply_panel<1, kVectors>(a, o, row, rows, col, last);
}

void product(const Product& a) {
  for (i64 col = 0; col < a.cols; col += 64) {
    i64 cols = a.cols - col < 64 ? a.cols - col : 64;
    i64 vectors = (cols + 15) / 16;
    __mmask16 last = static_cast<__mmask16>(0xffffu >> (16 * vectors - cols));
    for (i64 row = 0; row == 0 || row < a.rows; row += kPanelRows) {
      i64 rows = a.rows - row < kPanelRows ? a.rows - row : kPanelRows;
      switch (vectors) {
        case 4:
          multiply_outputs<4>(a, row, rows, col, last);
          break;
        case 3:
          multiply_outputs<3>(a, row, rows, col, last);
          break;
        case 2:
          multiply_outputs<2>(a, row, rows, col, last);
          break;
        default:
          multiply_outputs<1>(a, row, rows, col, last);
      }
    }
  }
}

// e^x for x <= 0: x = n ln2 + r with |r| <= ln2 / 2, Taylor series of e^r to degree 7 (relative error below
// 1e-8), then n goes into the exponent. 0 where the result would not be a normal float; a NaN stays one.
__m512 exp_ps(__m512 x) {
  __mmask16 normal = _mm512_cmp_ps_mask(x, _mm512_set1_ps(-87.3f), _CMP_NLT_UQ);
  __m512 n = _mm512_roundscale_ps(_mm512_mul_ps(x, _mm512_set1_ps(1.44269504f)),
                                  _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  __m512 r = _mm512_fnmadd_ps(n, _mm512_set1_ps(0.693359375f), x);
  r = _mm512_fnmadd_ps(n, _mm512_set1_ps(-2.12194440e-4f), r);
  __m512 p = _mm512_set1_ps(1.0f / 5040);
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.0f / 720));
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.0f / 120));
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.0f / 24));
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.0f / 6));
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(0.5f));
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.0f));
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.0f));
  return _mm512_maskz_scalef_ps(normal, p, n);
}

void softmax_columns(const SoftmaxColumns& a) {
  for (i64 col = 0; col < a.cols; col += 16) {
    i64 count = a.cols - col < 16 ? a.cols - col : 16;
    __mmask16 lanes = static_cast<__mmask16>(0xffffu >> (16 - count));
    f32* scores = a.scores + col;
    const __m512 before = _mm512_maskz_loadu_ps(lanes, a.best + col);
    __m512 best = before;
    for (i64 r = 0; r < a.rows; r++)  // the second operand is returned when one is a NaN
      best = _mm512_max_ps(_mm512_maskz_loadu_ps(lanes, scores + r * a.stride), best);
    __m512 shrink = exp_ps(_mm512_sub_ps(before, best));
    __m512 sum = _mm512_mul_ps(_mm512_maskz_loadu_ps(lanes, a.sum + col), shrink);
    for (i64 r = 0; r < a.rows; r++) {
      __m512 value = exp_ps(_mm512_sub_ps(_mm512_maskz_loadu_ps(lanes, scores + r * a.stride), best));
      _mm512_mask_storeu_ps(scores + r * a.stride, lanes, value);
      sum = _mm512_add_ps(sum, value);
    }
    _mm512_mask_storeu_ps(a.best + col, lanes, best);
    _mm512_mask_storeu_ps(a.sum + col, lanes, sum);
    _mm512_mask_storeu_ps(a.shrink + col, lanes, shrink);
  }
}

void from_f16(const u16* x, f32* y, i64 count) {
  for (i64 i = 0; i < count; i += 16) {
    __mmask16 lanes = static_cast<__mmask16>(count - i < 16 ? (1u << (count - i)) - 1 : 0xffffu);
    _mm512_mask_storeu_ps(y + i, lanes, _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(lanes, x + i)));
  }
}

// Exact: an f16 times 8 bits.
void dequantize_q8_0(const void* blocks, f32* y, i64 count) {
  const BlockQ8_0* block = static_cast<const BlockQ8_0*>(blocks);
  for (i64 first = 0; first < count; first += 32, block++) {
    const __m512 d = _mm512_cvtph_ps(_mm256_set1_epi16(static_cast<i16>(block->d)));
    for (i64 k = 0; k < 2; k++) {
      __m512i q = _mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(block->qs + 16 * k)));
      _mm512_storeu_ps(y + first + 16 * k, _mm512_mul_ps(d, _mm512_cvtepi32_ps(q)));
    }
  }
}

}  // namespace

void fill_attention_avx512(LeafTable& table) {
  table.from_f16 = from_f16;
  table.dequantize[static_cast<i64>(BlockType::Q8_0)] = dequantize_q8_0;
  table.product = product;
  table.softmax_columns = softmax_columns;
}

}  // namespace stoker

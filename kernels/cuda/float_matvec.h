// Matrices of F32, F16 or BF16 weights times few float vectors: the router, k_b, and models kept in floats. A warp per
// row of the matrix; lanes take groups of four columns in turn and add their parts up in a fixed pattern, so that a
// result depends on its row and token alone.
#pragma once

#include "kernels/cuda/gpu.h"
#include "kernels/format/byte_ops.h"

namespace stoker::cuda {

constexpr int kFloatTokens = 8;  // that share a pass over the weights
constexpr int kFloatWarps = 8;

// y of matrix h, token t, row r at y + y_rows[t] * y_stride + h * y_matrix_stride + r; x row x_rows[t] * matrices + h.
// Without a list the row is t.
struct FloatMatvecArgs {
  const std::byte* weights;
  i64 matrix_stride_bytes;
  i64 matrices, rows, cols;  // cols: any number
  const f32* x;
  i64 x_stride;
  const i32* x_rows;  // [tokens] or nullptr
  i64 tokens;
  f32* y;
  const i32* y_rows;  // [tokens] or nullptr
  i64 y_stride, y_matrix_stride;
};

// Weight i of a row.
struct WeightF32 {
  f32 value;
  HOST_DEVICE f32 get() const { return value; }
};
struct WeightF16 {
  u16 bits;
  HOST_DEVICE f32 get() const { return half_value(bits); }
};
struct WeightBF16 {
  u16 bits;
  HOST_DEVICE f32 get() const { return bf16_to_f32(bits); }
};

// Four weights, in one load when they are aligned.
template <class Weight>
HOST_DEVICE void four_weights(const Weight* at, bool aligned, f32 (&w)[4]) {
  struct alignas(4 * sizeof(Weight)) Four {
    Weight each[4];
  };
  if (aligned) {
    const Four four = *reinterpret_cast<const Four*>(at);
    UNROLL
    for (int k = 0; k < 4; k++) w[k] = four.each[k].get();
  } else {
    UNROLL
    for (int k = 0; k < 4; k++) w[k] = at[k].get();
  }
}

// Blocks of kFloatWarps warps.
template <class Weight, class Machine>
HOST_DEVICE void float_matvec(const Machine& m, const FloatMatvecArgs& a) {
  const int lane = m.thread() % kWarp;
  const i64 whole = a.cols / 4 * 4;
  const bool aligned = a.cols % 4 == 0 && reinterpret_cast<u64>(a.weights) % (4 * sizeof(Weight)) == 0 &&
                       a.matrix_stride_bytes % static_cast<i64>(4 * sizeof(Weight)) == 0;
  for (i64 i = m.block() * kFloatWarps + m.thread() / kWarp; i < a.matrices * a.rows; i += m.blocks() * kFloatWarps) {
    const i64 matrix = i / a.rows, row = i % a.rows;
    const Weight* w = reinterpret_cast<const Weight*>(a.weights + matrix * a.matrix_stride_bytes) + row * a.cols;
    for (i64 first = 0; first < a.tokens; first += kFloatTokens) {
      const int tokens = static_cast<int>(a.tokens - first < kFloatTokens ? a.tokens - first : kFloatTokens);
      const f32* x[kFloatTokens];
      UNROLL
      for (int t = 0; t < kFloatTokens; t++) {
        const i64 token = first + (t < tokens ? t : 0);
        x[t] = a.x + ((a.x_rows != nullptr ? a.x_rows[token] : token) * a.matrices + matrix) * a.x_stride;
      }
      f32 sums[kFloatTokens] = {};
      for (i64 col = 4 * lane; col < whole; col += 4 * kWarp) {
        f32 four[4];
        four_weights(w + col, aligned, four);
        UNROLL
        for (int t = 0; t < kFloatTokens; t++)
          if (t < tokens) {
            UNROLL
            for (int k = 0; k < 4; k++) sums[t] += four[k] * x[t][col + k];
          }
      }
      if (whole + lane < a.cols) {
        UNROLL
        for (int t = 0; t < kFloatTokens; t++)
          if (t < tokens) sums[t] += w[whole + lane].get() * x[t][whole + lane];
      }
      UNROLL
      for (int t = 0; t < kFloatTokens; t++) {
        if (t >= tokens) continue;
        const f32 total = warp_sum(m, sums[t]);
        const i64 to = a.y_rows != nullptr ? a.y_rows[first + t] : first + t;
        if (lane == 0) a.y[to * a.y_stride + matrix * a.y_matrix_stride + row] = total;
      }
    }
  }
}

}  // namespace stoker::cuda

// LeafTable: what one instruction level computes on one thread. ref/ fills every entry and defines what is
// right; avx2 and avx512 overwrite what they improve. ops.cc splits an op over the workers and calls these.
//
// Leaves are pure functions: no globals, no allocation, no threads. Weights may be aligned to 2 bytes only.
#pragma once

#include "kernels/base/types.h"
#include "kernels/device/stream.h"
#include "kernels/format/activation.h"
#include "kernels/format/block_type.h"
#include "kernels/format/blocks.h"

namespace stoker {

// y[t][r] = dot(w[r], x[t]) for a range of rows and some tokens. Token t reads activation row x_rows[t] (or t
// when x_rows is null) and writes row y_rows[t] (or t). The value of (t, r) must not depend on the other
// tokens or rows.
struct MatmulTile {
  const std::byte* w;  // [rows] rows of w_row_bytes
  i64 w_row_bytes;
  i64 rows, cols;
  const std::byte* x;  // row i at x + i * x_stride_bytes, in the leaf's activation form
  i64 x_stride_bytes;
  const i32* x_rows;
  f32* y;  // row i at y + i * y_stride; column r
  i64 y_stride;
  const i32* y_rows;
  i64 tokens;
};
using MatmulLeaf = void (*)(const MatmulTile&);

// y[o][c] = sum over r in order of w[o][r] * x[r][c], added to what is there when `accumulate`. One chain of fused
// products per element, so its value does not depend on the other outputs or columns, and rows of weight zero do not
// change it.
struct Product {
  const f32* w;  // element (o, r) at w + o * w_output_stride + r * w_row_stride
  i64 w_output_stride, w_row_stride;
  const f32* x;  // [rows, cols], row r at x + r * x_stride
  i64 x_stride;
  f32* y;  // [outputs, cols], row o at y + o * y_stride
  i64 y_stride;
  i64 outputs, rows, cols;
  bool accumulate;
};

// to[c][r] = factor * from[r][c]
struct Transpose {
  const f32* from;  // [rows, cols], row r at from + r * from_stride
  i64 from_stride, rows, cols;
  f32 factor;
  f32* to;  // [cols, rows], row c at to + c * to_stride
  i64 to_stride;
};

// One step of an online softmax (Milakov and Gimelshein, arXiv 1805.02867) for every column on its own: `scores` become
// exp(score - best) with best the largest of the column so far; -infinity becomes 0. What was summed under the former
// best is to be multiplied by `shrink`; `sum` already is.
struct SoftmaxColumns {
  f32* scores;  // [rows, cols], row r at scores + r * stride
  i64 stride, rows, cols;
  f32* best;    // [cols]; -infinity before the first step. A column must not consist of -infinity alone
  f32* sum;     // [cols] of exponentials; 0 before the first step
  f32* shrink;  // [cols] is written: 1 where the best is as before, 0 in the first step
};

struct LeafTable {
  // By static_cast<i64>(BlockType). nullptr where a format does not exist.
  void (*dequantize[kBlockTypeLimit])(const void* blocks, f32* y, i64 count);
  MatmulLeaf matmul_f32[kBlockTypeLimit];  // float activations: every format
  MatmulLeaf matmul_q8[kBlockTypeLimit];   // 8-bit activations: formats whose weight_input() is not F32
  // The same products, bit for bit, by a kernel that is faster from kLeastGemmTokens tokens on (tiles.h), or nullptr.
  MatmulLeaf gemm_f32[kBlockTypeLimit];
  MatmulLeaf gemm_q8[kBlockTypeLimit];

  void (*quantize_q8_32)(const f32* x, ActQ8_32* out, i64 cols);
  void (*quantize_q8_256)(const f32* x, ActQ8_256* out, i64 cols);
  // For the cache. The scale is the f16 next above largest / 127, so that no value is off by more than half of it.
  void (*quantize_q8_0)(const f32* x, BlockQ8_0* out, i64 count);

  // y = x * weight / sqrt(mean(x^2) + epsilon)
  void (*rms_norm)(const f32* x, const f32* weight, f32* y, i64 cols, f32 epsilon);
  // y[i] = silu(gate[i]) * up[i]
  void (*silu_mul)(const f32* gate, const f32* up, f32* y, i64 count);
  void (*add)(f32* y, const f32* x, i64 count);                // y += x
  void (*add_scaled)(f32* y, const f32* x, f32 a, i64 count);  // y += a * x
  void (*product)(const Product&);
  void (*transpose)(const Transpose&);
  void (*softmax_columns)(const SoftmaxColumns&);
  void (*scale)(f32* y, f32 a, i64 count);  // y *= a
  f32 (*dot)(const f32* a, const f32* b, i64 count);
  void (*to_f16)(const f32* x, u16* y, i64 count);
  void (*from_f16)(const u16* x, f32* y, i64 count);
};

// The table of a level: ref overlaid by every level up to and including `level`. Built once; any thread.
const LeafTable& leaf_table(IsaLevel level);

// What each level's library exports. Only a CPU that has the level may call them: where two kernels of a format give the
// same bits, they try which is faster.
void fill_ref(LeafTable& table);
void fill_avx2(LeafTable& table);
void fill_avx512(LeafTable& table);

}  // namespace stoker

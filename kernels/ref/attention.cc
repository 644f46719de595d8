// Twins of the leaves that attention is made of. Sums run in double, so faster orders stay close to them.
#include <algorithm>
#include <cmath>

#include "kernels/ref/ref.h"

namespace stoker::ref {

namespace {

void product(const Product& a) {
  for (i64 o = 0; o < a.outputs; o++)
    for (i64 c = 0; c < a.cols; c++) {
      f64 sum = a.accumulate ? static_cast<f64>(a.y[o * a.y_stride + c]) : 0;
      for (i64 r = 0; r < a.rows; r++)
        sum += static_cast<f64>(a.w[o * a.w_output_stride + r * a.w_row_stride]) *
               static_cast<f64>(a.x[r * a.x_stride + c]);
      a.y[o * a.y_stride + c] = static_cast<f32>(sum);
    }
}

void transpose(const Transpose& a) {
  for (i64 r = 0; r < a.rows; r++)
    for (i64 c = 0; c < a.cols; c++) a.to[c * a.to_stride + r] = a.factor * a.from[r * a.from_stride + c];
}

void softmax_columns(const SoftmaxColumns& a) {
  for (i64 c = 0; c < a.cols; c++) {
    f32 best = a.best[c];
    for (i64 r = 0; r < a.rows; r++) best = std::max(best, a.scores[r * a.stride + c]);
    a.shrink[c] = std::exp(a.best[c] - best);
    f64 sum = static_cast<f64>(a.sum[c]) * static_cast<f64>(a.shrink[c]);
    for (i64 r = 0; r < a.rows; r++) {
      f32& score = a.scores[r * a.stride + c];
      score = std::exp(score - best);
      sum += static_cast<f64>(score);
    }
    a.best[c] = best;
    a.sum[c] = static_cast<f32>(sum);
  }
}

}  // namespace

void fill_attention(LeafTable& table) {
  table.product = product;
  table.transpose = transpose;
  table.softmax_columns = softmax_columns;
}

}  // namespace stoker::ref

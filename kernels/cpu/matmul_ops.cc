#include "kernels/base/check.h"
#include "kernels/cpu/cpu_ops.h"
#include "kernels/cpu/tiles.h"
#include "kernels/device/stream.h"

namespace stoker::cpu {

void quantize(Stream& stream, const QuantizeArgs& a) {
  const LeafTable& leaves = leaf_table(stream.level());
  i64 out_bytes = activation_row_bytes(a.form, a.cols);
  auto row = [&](i64 r) {
    std::byte* out = static_cast<std::byte*>(a.out) + r * out_bytes;
    const f32* x = a.x + r * a.x_stride;
    if (a.form == ActivationForm::Q8_32)
      leaves.quantize_q8_32(x, reinterpret_cast<ActQ8_32*>(out), a.cols);
    else
      leaves.quantize_q8_256(x, reinterpret_cast<ActQ8_256*>(out), a.cols);
  };
  // Rows of one token (its heads) are short: several of them pay for a region.
  i64 grain = std::max<i64>(1, 8192 / a.cols);
  stream.workers().for_ranges(a.rows, grain, [&](i64 begin, i64 end) {
    for (i64 r = begin; r < end; r++) row(r);
  });
}

void matmul(Stream& stream, const MatmulArgs& a) {
  const Matrix& w = a.weights;
  MatmulLeaves leaf = matmul_leaf(stream, w.type, a.x.form);
  MatmulTile whole{.w = static_cast<const std::byte*>(w.data),
                   .w_row_bytes = row_bytes(w.type, w.cols),
                   .rows = w.rows,
                   .cols = w.cols,
                   .x = static_cast<const std::byte*>(a.x.x),
                   .x_stride_bytes = a.x.stride_bytes,
                   .x_rows = nullptr,
                   .y = a.y,
                   .y_stride = a.y_stride,
                   .y_rows = nullptr,
                   .tokens = a.tokens};
  // Ranges of at least 32 KiB of weights: below that a region costs more than it saves. Twice as much for several tokens,
  // which share the unpacking, and whose activations are put into the leaf's order anew for each range.
  i64 grain = round_up(div_up((a.tokens > 1 ? 64 : 32) * kKiB, whole.w_row_bytes * a.tokens), 16);
  // A GEMM prepares the activations for each piece of rows anew, and wants whole panels: four pieces for each worker.
  if (leaf.many != nullptr && a.tokens >= kLeastGemmTokens) {
    const i64 rows = w.rows / (4 * stream.workers().size());
    grain = std::max(grain, rows <= 16 ? 16 : round_up(rows, 32));
  }
  stream.workers().for_ranges(w.rows, grain, [&](i64 begin, i64 end) { run_tiles(leaf, whole, begin, end); });
}

void head_matmul(Stream& stream, const HeadMatmulArgs& a) {
  const Matrix& w = a.weights;
  MatmulLeaves leaf = matmul_leaf(stream, w.type, a.x.form);
  stream.workers().for_ranges(a.heads, 1, [&](i64 begin, i64 end) {
    for (i64 h = begin; h < end; h++) {
      MatmulTile whole{.w = static_cast<const std::byte*>(w.data) + h * a.head_stride_bytes,
                       .w_row_bytes = row_bytes(w.type, w.cols),
                       .rows = w.rows,
                       .cols = w.cols,
                       .x = static_cast<const std::byte*>(a.x.x) + h * a.x.stride_bytes,
                       .x_stride_bytes = a.heads * a.x.stride_bytes,
                       .x_rows = nullptr,
                       .y = a.y + h * a.y_head_stride,
                       .y_stride = a.y_token_stride,
                       .y_rows = nullptr,
                       .tokens = a.tokens};
      run_tiles(leaf, whole, 0, w.rows);
    }
  });
}

}  // namespace stoker::cpu

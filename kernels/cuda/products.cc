#include "kernels/cuda/products.h"

#include <algorithm>

#include "kernels/base/error.h"

namespace stoker::cuda {

void require_eight_bits(BlockType type, ActivationForm form) {
  if (form != weight_input(type, false))
    fail("CUDA has no exact arithmetic: {} matrices want 8-bit activations; use --device cpu with --exact",
         info(type).name);
}

void multiply(const Target& target, const Product& p) {
  const MatvecUniform& m = p.matrices;
  if (!has_blocks(p.type)) {
    start_float_matvec(p.type,
                       {.weights = m.first,
                        .matrix_stride_bytes = m.matrix_stride_bytes,
                        .matrices = m.matrices,
                        .rows = p.rows,
                        .cols = p.cols,
                        .x = static_cast<const f32*>(p.x),
                        .x_stride = p.x_stride_bytes / i64{sizeof(f32)},
                        .x_rows = nullptr,
                        .tokens = m.tokens,
                        .y = p.y,
                        .y_rows = nullptr,
                        .y_stride = p.y_stride,
                        .y_matrix_stride = m.y_matrix_stride},
                       target.card, target.stream);
    return;
  }
  const bool gemm = m.tokens >= kGemmFromTokens;
  const MatvecArgs args{.jobs = nullptr,
                        .job_count = nullptr,
                        .job_limit = uniform_jobs(m, gemm ? m.tokens : kMatvecTokens),
                        .uniform = m,
                        .rows = p.rows,
                        .cols = p.cols,
                        .x = static_cast<const std::byte*>(p.x),
                        .x_stride_bytes = p.x_stride_bytes,
                        .y = p.y,
                        .y_stride = p.y_stride,
                        .books = target.card.books};
  const MatvecLaunch kernels = matvec_launch(p.type);
  (gemm ? kernels.gemm : kernels.matvec)(args, nullptr, m.tokens, target.card.processors, target.stream);
}

JobBatch::JobBatch(const Target& target, BlockType type, const MatvecArgs& args, bool gemm)
    : target_(target), kernels_(matvec_launch(type)), args_(args), gemm_(gemm) {
  args_.jobs = nullptr;
  args_.uniform = {};
  args_.books = target.card.books;
}

void JobBatch::add(const MatvecJob& job) {
  list_.at[count_++] = job;
  tokens_ = std::max(tokens_, i64{job.tokens});
  if (count_ == kLaunchJobs) launch();
}

void JobBatch::launch() {
  if (count_ == 0) return;
  args_.job_limit = count_;
  (gemm_ ? kernels_.gemm : kernels_.matvec)(args_, &list_, tokens_, target_.card.processors, target_.stream);
  count_ = tokens_ = 0;
}

}  // namespace stoker::cuda

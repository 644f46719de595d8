// Matrix products on a card whatever the format: which kernel computes what.
#pragma once

#include "kernels/cuda/card.h"
#include "kernels/cuda/matvec_launch.h"

namespace stoker::cuda {

inline bool has_blocks(BlockType type) { return info(type).block_weights > 1; }

// Throws Error where a block format meets activations that are not in its 8-bit form.
void require_eight_bits(BlockType type, ActivationForm form);

// Matrices of one shape and format at equal distances, or one: MatvecUniform.
struct Product {
  BlockType type;
  MatvecUniform matrices;
  i64 rows, cols;
  const void* x;
  i64 x_stride_bytes;
  f32* y;
  i64 y_stride;
};
void multiply(const Target& target, const Product& product);

// Collects jobs with matrices of one format and shape, and launches them when there are enough.
class JobBatch {
 public:
  // `args` without jobs and books. `gemm`: jobs of any number of tokens instead of at most kMatvecTokens.
  JobBatch(const Target& target, BlockType type, const MatvecArgs& args, bool gemm);

  void add(const MatvecJob& job);
  void launch();  // what is left

 private:
  const Target& target_;
  MatvecLaunch kernels_;
  MatvecArgs args_;
  bool gemm_;
  MatvecJobList list_;
  i64 count_ = 0, tokens_ = 0;
};

}  // namespace stoker::cuda

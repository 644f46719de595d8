#include "kernels/cuda/matvec_kernels.cuh"

namespace stoker::cuda {

MatvecStart gemm_k(BlockType type) {
  switch (type) {
    case BlockType::Q2_K: return start_gemm<BlockQ2_K>;
    case BlockType::Q3_K: return start_gemm<BlockQ3_K>;
    case BlockType::Q4_K: return start_gemm<BlockQ4_K>;
    case BlockType::Q5_K: return start_gemm<BlockQ5_K>;
    case BlockType::Q6_K: return start_gemm<BlockQ6_K>;
    default: return nullptr;
  }
}

}  // namespace stoker::cuda

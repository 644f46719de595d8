#include "kernels/cuda/matvec_kernels.cuh"

namespace stoker::cuda {

MatvecStart matvec_k(BlockType type) {
  switch (type) {
    case BlockType::Q2_K: return start_matvec<BlockQ2_K>;
    case BlockType::Q3_K: return start_matvec<BlockQ3_K>;
    case BlockType::Q4_K: return start_matvec<BlockQ4_K>;
    case BlockType::Q5_K: return start_matvec<BlockQ5_K>;
    case BlockType::Q6_K: return start_matvec<BlockQ6_K>;
    default: return nullptr;
  }
}

}  // namespace stoker::cuda

#include "kernels/cuda/matvec_kernels.cuh"

namespace stoker::cuda {

MatvecStart matvec_iq(BlockType type) {
  switch (type) {
    case BlockType::IQ1_S: return start_matvec<BlockIQ1_S>;
    case BlockType::IQ1_M: return start_matvec<BlockIQ1_M>;
    case BlockType::IQ2_XXS: return start_matvec<BlockIQ2_XXS>;
    case BlockType::IQ2_XS: return start_matvec<BlockIQ2_XS>;
    case BlockType::IQ2_S: return start_matvec<BlockIQ2_S>;
    case BlockType::IQ3_XXS: return start_matvec<BlockIQ3_XXS>;
    case BlockType::IQ3_S: return start_matvec<BlockIQ3_S>;
    case BlockType::IQ4_XS: return start_matvec<BlockIQ4_XS>;
    default: return nullptr;
  }
}

}  // namespace stoker::cuda

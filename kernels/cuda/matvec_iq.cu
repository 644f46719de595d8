#include "kernels/cuda/matvec_kernels.cuh"

namespace stoker::cuda {

MatvecLaunch matvec_launch_iq(BlockType type) {
  switch (type) {
    case BlockType::IQ1_S: return launch_matvec<BlockIQ1_S>;
    case BlockType::IQ1_M: return launch_matvec<BlockIQ1_M>;
    case BlockType::IQ2_XXS: return launch_matvec<BlockIQ2_XXS>;
    case BlockType::IQ2_XS: return launch_matvec<BlockIQ2_XS>;
    case BlockType::IQ2_S: return launch_matvec<BlockIQ2_S>;
    case BlockType::IQ3_XXS: return launch_matvec<BlockIQ3_XXS>;
    case BlockType::IQ3_S: return launch_matvec<BlockIQ3_S>;
    case BlockType::IQ4_XS: return launch_matvec<BlockIQ4_XS>;
    default: return nullptr;
  }
}

}  // namespace stoker::cuda

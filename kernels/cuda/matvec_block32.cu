#include "kernels/cuda/matvec_kernels.cuh"

namespace stoker::cuda {

MatvecLaunch matvec_launch_block32(BlockType type) {
  switch (type) {
    case BlockType::Q4_0: return launch_matvec<BlockQ4_0>;
    case BlockType::Q4_1: return launch_matvec<BlockQ4_1>;
    case BlockType::Q5_0: return launch_matvec<BlockQ5_0>;
    case BlockType::Q5_1: return launch_matvec<BlockQ5_1>;
    case BlockType::Q8_0: return launch_matvec<BlockQ8_0>;
    case BlockType::IQ4_NL: return launch_matvec<BlockIQ4_NL>;
    case BlockType::MXFP4: return launch_matvec<BlockMXFP4>;
    default: return nullptr;
  }
}

}  // namespace stoker::cuda

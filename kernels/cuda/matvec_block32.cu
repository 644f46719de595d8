#include "kernels/cuda/matvec_kernels.cuh"

namespace stoker::cuda {

MatvecStart matvec_block32(BlockType type) {
  switch (type) {
    case BlockType::Q4_0: return start_matvec<BlockQ4_0>;
    case BlockType::Q4_1: return start_matvec<BlockQ4_1>;
    case BlockType::Q5_0: return start_matvec<BlockQ5_0>;
    case BlockType::Q5_1: return start_matvec<BlockQ5_1>;
    case BlockType::Q8_0: return start_matvec<BlockQ8_0>;
    case BlockType::IQ4_NL: return start_matvec<BlockIQ4_NL>;
    case BlockType::MXFP4: return start_matvec<BlockMXFP4>;
    default: return nullptr;
  }
}

}  // namespace stoker::cuda

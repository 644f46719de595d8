#include "kernels/cuda/matvec_kernels.cuh"

namespace stoker::cuda {

MatvecStart gemm_block32(BlockType type) {
  switch (type) {
    case BlockType::Q4_0: return start_gemm<BlockQ4_0>;
    case BlockType::Q4_1: return start_gemm<BlockQ4_1>;
    case BlockType::Q5_0: return start_gemm<BlockQ5_0>;
    case BlockType::Q5_1: return start_gemm<BlockQ5_1>;
    case BlockType::Q8_0: return start_gemm<BlockQ8_0>;
    case BlockType::IQ4_NL: return start_gemm<BlockIQ4_NL>;
    case BlockType::MXFP4: return start_gemm<BlockMXFP4>;
    default: return nullptr;
  }
}

}  // namespace stoker::cuda

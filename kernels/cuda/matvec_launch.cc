#include "kernels/cuda/matvec_launch.h"

namespace stoker::cuda {

static MatvecStart first_of(BlockType type, std::initializer_list<MatvecStart (*)(BlockType)> families) {
  for (auto family : families)
    if (MatvecStart start = family(type); start != nullptr) return start;
  return nullptr;
}

MatvecLaunch matvec_launch(BlockType type) {
  return {first_of(type, {matvec_block32, matvec_k, matvec_iq}), first_of(type, {gemm_block32, gemm_k, gemm_iq})};
}

}  // namespace stoker::cuda

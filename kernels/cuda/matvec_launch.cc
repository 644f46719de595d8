#include "kernels/cuda/matvec_launch.h"

namespace stoker::cuda {

MatvecLaunch matvec_launch(BlockType type) {
  for (auto family : {matvec_launch_block32, matvec_launch_k, matvec_launch_iq})
    if (MatvecLaunch launch = family(type); launch != nullptr) return launch;
  return nullptr;
}

}  // namespace stoker::cuda

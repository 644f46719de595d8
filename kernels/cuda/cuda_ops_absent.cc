// cuda_ops.h in a build without the CUDA toolkit.
#include "kernels/base/error.h"
#include "kernels/cuda/cuda_ops.h"

namespace stoker {

const Ops& cuda_ops() { fail("this build has no CUDA: nvcc was not found when it was configured"); }

}  // namespace stoker

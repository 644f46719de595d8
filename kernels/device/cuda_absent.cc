// cuda_device.h in a build without the CUDA toolkit.
#include "kernels/device/cuda_device.h"

namespace stoker {

const CudaPresence& cuda_presence() {
  static const CudaPresence none{0, "this build has no CUDA: nvcc was not found when it was configured"};
  return none;
}

std::unique_ptr<Device> open_cuda_device(int ordinal, const std::string&) {
  fail("--device cuda:{}: {}; --device cpu needs no card", ordinal, cuda_presence().why_none);
}

}  // namespace stoker

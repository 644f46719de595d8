#include "kernels/cpu/host_device_ops.h"
#include "kernels/cuda/cuda_ops.h"
#include "kernels/device/device.h"
#include "kernels/ops.h"

namespace stoker {

const Ops& device_ops(const Device& device) {
  if (device.kind() == DeviceKind::cuda) return cuda_ops();
  return device.properties().packed ? packed_host_device_ops() : host_device_ops();
}

}  // namespace stoker

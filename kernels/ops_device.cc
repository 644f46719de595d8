#include "kernels/cpu/host_device_ops.h"
#include "kernels/device/device.h"
#include "kernels/ops.h"

namespace stoker {

const Ops* device_ops(DeviceKind kind) {
  switch (kind) {
    case DeviceKind::host: return &host_device_ops();
    case DeviceKind::cuda: return nullptr;
  }
  return nullptr;
}

}  // namespace stoker

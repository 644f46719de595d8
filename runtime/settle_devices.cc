#include "runtime/settle_devices.h"

#include "kernels/device/cuda_device.h"

namespace stoker {

SettledDevices settle_devices(const DeviceChoice& wanted) {
  if (wanted.kind != DeviceChoice::Kind::automatic) return {wanted, "asked for"};
  const CudaPresence& cuda = cuda_presence();
  return {{.kind = DeviceChoice::Kind::cpu, .cards = {}, .host = {}},
          cuda.cards == 0 ? cuda.why_none : "cards compute when they are named: no card has run this code yet"};
}

}  // namespace stoker

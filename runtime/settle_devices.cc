#include "runtime/settle_devices.h"

#include "kernels/device/cuda_device.h"
#include "kernels/ops.h"

namespace stoker {

namespace {

constexpr const char* kNoKernels = "this build does not compute on CUDA cards";

}  // namespace

SettledDevices settle_devices(const DeviceChoice& wanted) {
  bool computes = device_ops(DeviceKind::cuda) != nullptr;
  if (wanted.kind == DeviceChoice::Kind::cuda && !computes) fail("--device cuda: {}", kNoKernels);
  if (wanted.kind != DeviceChoice::Kind::automatic) return {wanted, "asked for"};
  const CudaPresence& cuda = cuda_presence();
  if (cuda.cards == 0) return {{.kind = DeviceChoice::Kind::cpu, .cards = {}, .host = {}}, cuda.why_none};
  if (!computes) return {{.kind = DeviceChoice::Kind::cpu, .cards = {}, .host = {}}, kNoKernels};
  DeviceChoice all{.kind = DeviceChoice::Kind::cuda, .cards = {}, .host = {}};
  for (int i = 0; i < cuda.cards; i++) all.cards.push_back(i);
  return {all, "all cards"};
}

}  // namespace stoker

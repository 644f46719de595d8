// Which devices somebody wants, as data, and how to get them.
#pragma once

#include <memory>
#include <vector>

#include "kernels/device/device.h"
#include "kernels/device/host_device.h"

namespace stoker {

struct DeviceChoice {
  enum class Kind { automatic, cpu, cuda, host } kind = Kind::cpu;
  std::vector<int> cards;               // cuda: a logical device for each; a card may come more than once
  std::vector<HostDeviceOptions> host;  // host: one for each

  bool operator==(const DeviceChoice&) const = default;
};

// The devices, in order: none for cpu. A choice of `automatic` must have been settled before (runtime/settle_devices.h).
// Throws Error when there is no such device.
std::vector<std::unique_ptr<Device>> open_devices(const DeviceChoice& choice);

}  // namespace stoker

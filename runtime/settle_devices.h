// What `--device auto` means on this machine: the cards that this build can compute on, else the CPU alone.
#pragma once

#include <string>

#include "kernels/device/open_devices.h"

namespace stoker {

struct SettledDevices {
  DeviceChoice choice;  // not automatic
  std::string why;      // for automatic: "no CUDA driver ..."
};

// Throws Error for cards that this build cannot compute on.
SettledDevices settle_devices(const DeviceChoice& wanted);

}  // namespace stoker

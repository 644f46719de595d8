// What `--device auto` means on this machine: the CPU alone, because CUDA's kernels have only run on an emulated card; a
// default should have run on a real one.
#pragma once

#include <string>

#include "kernels/device/open_devices.h"

namespace stoker {

struct SettledDevices {
  DeviceChoice choice;  // not automatic
  std::string why;      // for automatic: "no CUDA driver ..."
};

SettledDevices settle_devices(const DeviceChoice& wanted);

}  // namespace stoker

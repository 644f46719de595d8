// How fast a device's link and memory are, measured with the copies that will use them.
#pragma once

#include "kernels/device/device.h"

namespace stoker {

struct LinkMeasure {
  f64 to_device_gb_per_second = 0;  // from pinned memory
  f64 to_host_gb_per_second = 0;
  f64 memory_gb_per_second = 0;     // a copy within the device: bytes read and written
};

// Takes twice `bytes` of the device's memory and `bytes` of the host's for a moment; the best of `rounds` counts.
// Failure: not enough memory, or the device is lost.
Status measure_link(Device& device, i64 bytes, int rounds, LinkMeasure& result);

}  // namespace stoker

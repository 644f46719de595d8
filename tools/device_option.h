// The values of --device and --vram.
#pragma once

#include <string_view>
#include <vector>

#include "kernels/device/open_devices.h"

namespace stoker {

// "auto", "cpu", "cuda:0,1", "host:2,vram=256MiB,link=13GB/s,compute=900GB/s,...". Throws Error.
DeviceChoice parse_device_choice(std::string_view text);

// "24GiB" or "22G,8G": bytes for each device in order; one size is for all. Empty for "". Throws Error.
std::vector<i64> parse_vram(std::string_view text);

}  // namespace stoker

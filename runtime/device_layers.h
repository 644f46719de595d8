// DeviceLayers: what an engine has on one device. The scheduler keeps experts in the arena; the rest is of the layers whose
// home the device is, and a part of the output head. Owner: the engine thread.
#pragma once

#include <memory>

#include "runtime/device_attention.h"
#include "runtime/device_head.h"
#include "runtime/device_heads.h"
#include "runtime/device_lane.h"

namespace stoker {

// What follows the message of a lost device.
constexpr const char* kElsewhere = "; its experts are computed elsewhere from now on";
// What a pass ends with that has lost a device to another one in its middle. Before the next one it is read.
constexpr const char* kNotInRam = "a device is lost, and what it was home of has not been read again yet";

struct DeviceLayers {
  DeviceBuffer arena;
  DeviceWeights weights;
  std::unique_ptr<DeviceLane> lane;
  std::unique_ptr<DeviceHeads> heads;          // on another device; none: attention has all heads
  std::unique_ptr<DeviceAttention> attention;  // none: of no layer
  std::unique_ptr<DeviceHead> head;            // none: no part of it

  i64 kv_bytes() const { return attention != nullptr ? attention->cache_bytes() : 0; }
  // Who computes its part of the output head there; nullptr: the CPU does.
  DeviceHead* head_part() const { return lane->failed() ? nullptr : head.get(); }
  // Who computes a layer's attention there; nullptr: the CPU does.
  DeviceAttention* attention_of(LayerId layer) const {
    return attention != nullptr && !lane->failed() && weights.attention(layer) != nullptr ? attention.get() : nullptr;
  }
};

}  // namespace stoker

// EngineDevices: the devices of an engine, what is allocated on them, and who copies to them. None for the CPU alone.
// Owner: the engine thread.
#pragma once

#include <memory>
#include <span>
#include <string>
#include <vector>

#include "kernels/device/open_devices.h"
#include "runtime/device_lane.h"
#include "runtime/engine_packing.h"
#include "scheduler/plan.h"
#include "scheduler/planner.h"
#include "scheduler/tiers/device_copier.h"

namespace stoker {

class EngineDevices {
 public:
  // The table must outlive it. Throws Error when there is no such device, or it cannot compute what `limits` say.
  EngineDevices(const DeviceChoice& choice, const DeviceLane::Limits& limits, const ExpertTable& table);

  // Gives the layers their homes, and says what the planner may use of each device for experts. `vram_bytes`: for
  // weights, those that every row passes first; one for each device or one for all; none: what is free beside the
  // lane's own. Throws Error when their number does not fit.
  std::vector<DeviceRequest> requests(const std::vector<i64>& vram_bytes, std::span<const LayerWeights> shapes);
  // Uploads what every row passes. Throws Error when a device has less memory than that, or fails.
  void allocate(const Plan& plan, const Weights& weights, IsaLevel level);

  // Before allocate(). The timeline must outlive this.
  void record(Timeline& timeline);

  std::span<DeviceArenaLane> lanes() { return lanes_; }
  Copier* copier() { return copier_.get(); }
  std::string id(size_t device) const { return devices_[device]->properties().id; }
  i64 host_bytes() const;
  const DeviceWeights& weights(size_t device) const { return lanes_[device].weights; }

 private:
  i64 staging_bytes(const Device& device) const;

  DeviceChoice choice_;
  DeviceLane::Limits limits_;
  const ExpertTable& table_;
  std::vector<std::unique_ptr<Device>> devices_;
  std::vector<i32> homes_;  // [layers], see home_devices()
  std::vector<DeviceArenaLane> lanes_;
  std::vector<std::unique_ptr<EnginePacking>> packings_;  // [devices], none where the file's order is the device's
  std::unique_ptr<DeviceCopier> copier_;
};

}  // namespace stoker

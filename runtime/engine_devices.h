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

  // What the planner may use of each. `vram_bytes`: for experts, one for each device or one for all; none: what is free
  // beside what is not for experts. Throws Error when their number does not fit.
  std::vector<DeviceRequest> requests(const std::vector<i64>& vram_bytes) const;
  // Throws Error when a device has less memory than that.
  void allocate(const Plan& plan, IsaLevel level);

  // Before allocate(). The timeline must outlive this.
  void record(Timeline& timeline);

  std::span<DeviceArenaLane> lanes() { return lanes_; }
  Copier* copier() { return copier_.get(); }
  std::string id(size_t device) const { return devices_[device]->properties().id; }
  i64 host_bytes() const;

 private:
  i64 staging_bytes(const Device& device) const;

  DeviceChoice choice_;
  DeviceLane::Limits limits_;
  const ExpertTable& table_;
  std::vector<std::unique_ptr<Device>> devices_;
  std::vector<DeviceArenaLane> lanes_;
  std::vector<std::unique_ptr<EnginePacking>> packings_;  // [devices], none where the file's order is the device's
  std::unique_ptr<DeviceCopier> copier_;
};

}  // namespace stoker

// EngineDevices: the devices of an engine, what is allocated on them, and who copies to them. None for the CPU alone.
// Owner: the engine thread.
#pragma once

#include <memory>
#include <span>
#include <string>
#include <vector>

#include "kernels/device/open_devices.h"
#include "runtime/device_layers.h"
#include "runtime/engine_packing.h"
#include "scheduler/plan.h"
#include "scheduler/planner.h"
#include "scheduler/tiers/device_copier.h"

namespace stoker {

class EngineDevices {
 public:
  // Table and hparams must outlive it. Throws Error when there is no such device, or it cannot compute what `limits` say.
  EngineDevices(const DeviceChoice& choice, const Hparams& hparams, const DeviceAttention::Limits& limits,
                const ExpertTable& table);

  // Gives layers and head their homes, and says what the planner may use of each device for experts. `vram_bytes`: for
  // KV cache and weights, those that every row passes first; one for each device or one for all; none: what is free beside
  // scratch. Throws Error when their number does not fit.
  std::vector<DeviceRequest> requests(const std::vector<i64>& vram_bytes, const Weights::Shapes& shapes);
  // Uploads what every row passes. Throws Error when a device has less memory than that, or fails.
  void allocate(const Plan& plan, const Weights& weights, IsaLevel level);

  // Before allocate(). The timeline must outlive this.
  void record(Timeline& timeline);

  std::span<DeviceLayers> lanes() { return lanes_; }
  Copier* copier() { return copier_.get(); }
  std::string id(size_t device) const { return devices_[device]->properties().id; }
  i64 host_bytes() const;
  const DeviceLayers& layers(size_t device) const { return lanes_[device]; }

 private:
  i64 staging_bytes(const Device& device) const;

  i64 scratch_bytes(const Device& device) const;
  void give_homes(const Weights::Shapes& shapes, std::vector<DeviceRequest>& requests);
  bool attends() const;

  DeviceChoice choice_;
  const Hparams& hparams_;
  DeviceAttention::Limits attention_limits_;
  DeviceLane::Limits lane_limits_;
  DeviceHead::Limits head_limits_;
  const ExpertTable& table_;
  std::vector<std::unique_ptr<Device>> devices_;
  Homes homes_;
  std::vector<DeviceLayers> lanes_;
  std::vector<std::unique_ptr<EnginePacking>> packings_;  // [devices], none where the file's order is the device's
  std::unique_ptr<DeviceCopier> copier_;
};

}  // namespace stoker

// EngineDevices: the devices of an engine, what is allocated on them, and who copies to them. None for the CPU alone.
// Owner: the engine thread.
#pragma once

#include <atomic>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "kernels/device/open_devices.h"
#include "runtime/device_layers.h"
#include "runtime/engine_packing.h"
#include "scheduler/plan.h"
#include "scheduler/planner.h"
#include "scheduler/scheduler.h"
#include "scheduler/tiers/device_copier.h"

namespace stoker {

class EngineDevices {
 public:
  // Table and hparams must outlive it. Throws Error when there is no such device, or it cannot compute what `limits` say.
  // Contexts of `split_heads` positions on have the heads of a layer on two devices (DeviceHeads); 0: none.
  EngineDevices(const DeviceChoice& choice, const Hparams& hparams, const DeviceAttention::Limits& limits, i64 split_heads,
                const ExpertTable& table);

  // Gives layers and head their homes, and says what the planner may use of each device for experts. `vram_bytes`: for
  // KV cache and weights, those that every row passes first; one for each device or one for all; none: what is free beside
  // scratch. Throws Error when their number does not fit.
  std::vector<DeviceRequest> requests(const std::vector<i64>& vram_bytes, const WeightPlaces& shapes);
  // As requests() gave them.
  const Homes& homes() const { return homes_; }
  // Of this machine's RAM, what host devices will take.
  i64 host_device_bytes() const { return host_device_bytes_; }
  // Reads what every row passes into the devices that are its home. Throws Error when a device has less memory than that,
  // or fails; and as Weights does.
  void allocate(const Plan& plan, const Weights& weights, IsaLevel level, const ReadProgress& progress);
  // What lost devices were home of comes to RAM, in place of experts if there is no other. To be called before a pass;
  // cheap when there is nothing to do. Failure: it cannot be had; the next call tries again.
  Status restore_lost(Weights& weights, Scheduler& scheduler, const std::atomic<bool>* interrupt);

  // Before allocate(). The timeline must outlive this.
  void record(Timeline& timeline);

  std::span<DeviceLayers> lanes() { return lanes_; }
  Copier* copier() { return copier_.get(); }
  std::string id(size_t device) const { return devices_[device]->properties().id; }
  i64 host_bytes() const;
  // Layers of other devices of which this one has the last heads, and what of its memory that takes.
  i64 shared_layers(size_t device) const;
  i64 shared_bytes(size_t device) const;
  const DeviceLayers& layers(size_t device) const { return lanes_[device]; }

 private:
  i64 staging_bytes(const Device& device) const;

  i64 scratch_bytes(const Device& device) const;
  Status restore(size_t device, Weights& weights, Scheduler& scheduler, const std::atomic<bool>* interrupt);
  void make_room(size_t device, i64 bytes, Scheduler& scheduler);
  void give_homes(const WeightPlaces& shapes, std::vector<DeviceRequest>& requests);
  bool attends() const;
  i64 attention_layers(size_t device) const;
  void share_heads();

  DeviceChoice choice_;
  const Hparams& hparams_;
  DeviceAttention::Limits attention_limits_;
  DeviceLane::Limits lane_limits_;
  DeviceHead::Limits head_limits_;
  const ExpertTable& table_;
  std::vector<std::unique_ptr<Device>> devices_;
  Homes homes_;
  i64 split_heads_;
  std::vector<i32> helpers_;  // [devices] which device has the last heads of its layers; -1: itself
  i64 host_device_bytes_ = 0;
  std::vector<DeviceLayers> lanes_;
  std::vector<bool> restored_, made_room_;  // [devices] lost ones
  std::vector<std::unique_ptr<EnginePacking>> packings_;  // [devices], none where the file's order is the device's
  std::unique_ptr<DeviceCopier> copier_;
};

}  // namespace stoker

// DeviceCopier: the scheduler's copies of experts, over devices' streams: one for each direction of each device, so that
// both directions of a link are used and neither waits for what the device computes. Blocks are copied as they are.
//
// A copy that fails breaks its stream (device.h), and what was in the device's memory cannot be trusted to move on: the
// device then counts as lost.
//
// Owner: the engine thread.
#pragma once

#include <memory>
#include <vector>

#include "kernels/device/device_buffer.h"
#include "scheduler/tiers/copier.h"

namespace stoker {

class DeviceCopier final : public Copier {
 public:
  struct Arena {
    Device* device;
    const DeviceBuffer* memory;  // for experts
  };
  // The arenas must outlive it.
  explicit DeviceCopier(const std::vector<Arena>& arenas);
  // Waits for what is under way.
  ~DeviceCopier() override = default;

  i64 devices() const override { return static_cast<i64>(devices_.size()); }
  i64 arena_bytes(i64 device) const override { return devices_[static_cast<size_t>(device)].arena->bytes(); }
  i64 capacity() const override { return kCapacity; }

  i64 submit(std::span<const Copy> copies) override;
  i64 poll(std::span<CopyDone> done) override;
  bool wait(i64 timeout_ns) override;
  std::string describe() const override;

 private:
  static constexpr i64 kCapacity = 128;

  struct Lane {
    std::unique_ptr<DeviceStream> stream;
    std::vector<std::unique_ptr<DeviceEvent>> events;  // [kCapacity], a ring with tags
    std::vector<u64> tags;
    i64 first = 0, count = 0;

    size_t at(i64 i) const { return static_cast<size_t>((first + i) % kCapacity); }
  };
  struct PerDevice {
    const DeviceBuffer* arena;
    Lane lanes[kCopyDirections];
    bool lost = false;
  };

  void post(const Copy& copy);
  bool any_ended();

  std::vector<PerDevice> devices_;
  i64 under_way_ = 0;
};

}  // namespace stoker

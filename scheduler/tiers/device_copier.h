// DeviceCopier: the scheduler's copies of experts, over devices' streams: one for each direction of each device, so that
// both directions of a link are used and neither waits for what the device computes. Where a device wants its own order
// of a matrix, the copy goes to a staging buffer there and an op behind it, in the same stream, puts it into its slot;
// on the way down the op comes first. The staging buffer is free for the next matrix when its turn in the stream comes.
//
// A copy that fails breaks its stream (device.h), and what was in the device's memory cannot be trusted to move on: the
// device then counts as lost.
//
// Owner: the engine thread.
#pragma once

#include <atomic>
#include <memory>
#include <vector>

#include "kernels/device/device_buffer.h"
#include "scheduler/tiers/copier.h"

namespace stoker {

// A device's order of matrices. It depends on layer and matrix, not on the expert.
class DeviceOrder {
 public:
  virtual ~DeviceOrder() = default;

  // Whether this matrix (0 gate, 1 up, 2 down) has another order there than in the file.
  virtual bool differs(LayerId layer, size_t matrix) const = 0;
  // Posts to `stream`, one of the device: from the file's order into the device's, or back. Not overlapping.
  virtual Status to_device_order(DeviceStream& stream, LayerId layer, size_t matrix, DevicePtr from, DevicePtr to) = 0;
  virtual Status to_file_order(DeviceStream& stream, LayerId layer, size_t matrix, DevicePtr from, DevicePtr to) = 0;
};

class DeviceCopier final : public Copier {
 public:
  struct Arena {
    Device* device;
    const DeviceBuffer* memory;  // for experts
    DeviceOrder* order = nullptr;  // or none: the file's
    i64 staging_bytes = 0;         // with an order: the largest matrix
  };
  // What the arenas point to must outlive it. Throws Error when a device has no room for staging: that is
  // kCopyDirections times staging_bytes.
  explicit DeviceCopier(const std::vector<Arena>& arenas);
  // Waits for what is under way.
  ~DeviceCopier() override = default;

  i64 devices() const override { return static_cast<i64>(devices_.size()); }
  i64 arena_bytes(i64 device) const override { return devices_[static_cast<size_t>(device)].arena.memory->bytes(); }
  i64 capacity() const override { return kCapacity; }

  i64 submit(std::span<const Copy> copies) override;
  i64 poll(std::span<CopyDone> done) override;
  bool wait(i64 timeout_ns) override;
  void add_memory(std::byte* data, i64 bytes) override;
  void remove_memory(std::byte* data, i64 bytes) override;
  std::string describe() const override;

 private:
  static constexpr i64 kCapacity = 128;

  struct Lane {
    DeviceBuffer staging;  // a matrix, in the file's order
    std::unique_ptr<DeviceStream> stream;
    std::vector<std::unique_ptr<DeviceEvent>> events;  // [kCapacity], a ring with tags
    std::vector<u64> tags;
    i64 first = 0, count = 0;

    size_t at(i64 i) const { return static_cast<size_t>((first + i) % kCapacity); }
  };
  struct PerDevice {
    Arena arena;
    Lane lanes[kCopyDirections];
    bool lost = false;
  };

  void post(const Copy& copy);
  Status post_matrix(PerDevice& device, Lane& lane, const Copy& copy, size_t matrix);
  bool any_ended();

  std::vector<PerDevice> devices_;
  i64 under_way_ = 0;
  std::atomic<bool> told_{false};  // that memory cannot be pinned
};

}  // namespace stoker

// Vram: slots for experts in the memory of devices. Numbers only: who copies and computes there is the copier's and the
// runtime's business.
//
// A slot that an expert has left may still be read by work that the device has been given and has not ended. So it is
// retired with the epoch (scheduler.h) in which it could last be read, and free once the device has finished that.
//
// Owner: the scheduler's thread.
#pragma once

#include <array>
#include <vector>

#include "kernels/base/ids.h"
#include "kernels/base/types.h"
#include "scheduler/plan.h"

namespace stoker {

class ExpertTable;

constexpr i64 kVramAlignment = 256;  // of each matrix

// How an expert of this layer lies in a slot.
struct VramLayout {
  std::array<i64, 3> at_slot{};  // gate, up, down
  i64 bytes = 0;                 // a multiple of kVramAlignment
};
VramLayout vram_layout(const ExpertTable& table, LayerId layer);

struct VramSlot {
  i32 device = -1;
  i32 slot_class = 0;
  i32 index = 0;  // within device and class

  bool valid() const { return device >= 0; }
  bool operator==(const VramSlot&) const = default;
};

class Vram {
 public:
  explicit Vram(const Plan& plan);

  i64 devices() const { return static_cast<i64>(devices_.size()); }
  // A free slot, or none.
  VramSlot take(i64 device, i64 slot_class);
  // Nobody reads it.
  void give_back(VramSlot slot);
  // Nobody reads it after `epoch`.
  void retire(VramSlot slot, i64 epoch);
  // The device has ended all work of this epoch and those before.
  void finish(i64 device, i64 epoch);
  // The device is gone, and with it all its slots.
  void lose(i64 device);

  bool lost(i64 device) const { return devices_[static_cast<size_t>(device)].lost; }
  i64 free_slots(i64 device, i64 slot_class) const;
  i64 retired_slots(i64 device, i64 slot_class) const;  // not free yet
  // From the beginning of the device's arena.
  i64 offset(VramSlot slot) const;

 private:
  struct Retired {
    VramSlot slot;
    i64 epoch;
  };
  struct Device {
    std::vector<std::vector<i32>> free;  // [classes] indices; taken from the back
    std::vector<i64> base;               // [classes] where the class begins
    std::vector<Retired> retired;
    i64 finished = -1;  // epoch
    bool lost = false;
  };
  Device& device(i64 index) { return devices_[static_cast<size_t>(index)]; }

  std::vector<i64> slot_bytes_;  // [classes]
  std::vector<Device> devices_;
};

}  // namespace stoker

// MappedFlag: a word in memory of the host's that a device sees in place. What hands rows over (Ops::hand_over) writes it behind
// them, and the CPU watches it, which takes no copy, no event and no call of a driver.
// Owner: one thread, that of the device.
#pragma once

#include "kernels/device/device_buffer.h"

namespace stoker {

class MappedFlag {
 public:
  // The device must outlive it.
  explicit MappedFlag(Device& device);

  // Whether the device sees it.
  bool usable() const { return static_cast<bool>(memory_.mapped()); }
  // What is to be written, and where: a new value each time.
  u32 next() { return ++value_; }
  u32* at_device() const { return memory_.mapped().as<u32>(); }
  // Blocks until the last next() is there, posted to `stream`; then what was written before it is seen. Failure: what broke the
  // stream.
  Status wait(DeviceStream& stream) const;

 private:
  bool raised() const;

  PinnedBuffer memory_;
  u32 value_ = 0;
};

}  // namespace stoker

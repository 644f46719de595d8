// The memory of a host device. The addresses that it hands out lie in a mapping without any rights, so that the CPU
// faults when it follows one; the bytes are in a second mapping that only the device's threads use. Memory is filled
// with NaN when it is handed out and when it is given back: whoever uses it too early or too late computes NaN.
// Any thread.
#pragma once

#include <map>
#include <mutex>

#include "kernels/device/device.h"

namespace stoker {

class HostMemory {
 public:
  // Throws Error when the machine refuses the addresses. Bytes are taken from the machine as they are allocated.
  explicit HostMemory(i64 bytes);
  ~HostMemory();
  HostMemory(const HostMemory&) = delete;
  HostMemory& operator=(const HostMemory&) = delete;

  // Empty when there is no room, or the machine has none left.
  DevicePtr allocate(i64 bytes);
  void free(DevicePtr memory);

  i64 bytes() const { return bytes_; }
  i64 free_bytes() const;

  bool owns(DevicePtr memory) const;
  std::byte* real(DevicePtr memory) const { return real_ + (memory.address - protected_); }

 private:
  i64 bytes_;
  int file_ = -1;
  u64 protected_ = 0;
  std::byte* real_ = nullptr;
  mutable std::mutex mutex_;
  // Offset -> bytes; they never touch.
  std::map<i64, i64> free_;
  std::map<i64, i64> used_;
};

}  // namespace stoker

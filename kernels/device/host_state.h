// What the streams of a host device share: memory, speeds, pinned ranges, and what is to fail.
#pragma once

#include <atomic>
#include <map>
#include <mutex>
#include <string>

#include "kernels/base/timeline.h"
#include "kernels/device/host_device.h"
#include "kernels/device/host_memory.h"

namespace stoker {

// A speed that streams share: whoever comes is served when those before are done. Any thread.
class ModelledSpeed {
 public:
  explicit ModelledSpeed(f64 gb_per_second) : gb_per_second_(gb_per_second) {}

  // When a transfer of so many bytes that comes now is served, on the steady clock.
  struct Turn {
    i64 begin_ns, end_ns;
  };
  Turn reserve(i64 bytes);

  i32 lane = 0;  // of the device's timeline, when it has one

 private:
  f64 gb_per_second_;  // or 0: any amount at once
  std::mutex mutex_;
  i64 free_at_ns_ = 0;
};

// Any thread.
class PinnedRanges {
 public:
  // False when a range with this beginning is there already.
  bool add(const void* begin, i64 bytes, bool mapped);
  void remove(const void* begin);
  bool is_mapped(DevicePtr memory) const;
  enum class Cover { none, part, all };
  // How much of this memory is in the pinned range that it begins in.
  Cover cover(const void* begin, i64 bytes) const;

 private:
  struct Range {
    i64 bytes;
    bool mapped;
  };
  // The range that begins there or before. Under the mutex.
  const std::pair<const u64, Range>* range_before(u64 address) const;

  mutable std::mutex mutex_;
  std::map<u64, Range> ranges_;
};

enum class HostFault { none, copy, pinning, lost };

class HostDeviceState {
 public:
  HostDeviceState(const HostDeviceOptions& options, const std::string& id);

  const HostDeviceOptions options;
  const std::string id;
  HostMemory memory;
  ModelledSpeed up, down, compute;
  PinnedRanges pinned;
  Timeline* timeline = nullptr;  // or none; set before there are streams

  // Any thread. Once lost, everything fails.
  void lose() { lost_.store(true); }
  Status status() const;

  // Owner. What becomes of the operation that is posted now, so that it does not depend on the threads.
  HostFault next_fault(bool is_copy);
  // The same of a copy from or to this memory of the host.
  HostFault next_fault(const void* host, i64 bytes);
  bool next_allocation_fails() { return ++allocations_ == options.fail_allocation; }

  // For streams: where the bytes of an address are.
  std::byte* real(DevicePtr memory) const;

 private:
  std::atomic<bool> lost_{false};
  i64 allocations_ = 0, operations_ = 0, copies_ = 0;
};

}  // namespace stoker

// Host devices: logical cards made of CPU memory and threads. They exist to be tested and measured against, so they are
// as unforgiving as cards: the CPU faults on their addresses (host_memory.h), each stream is a thread that runs what was
// posted later and in order, a copy reads its source when its turn and its modelled time have come and not before,
// delays are seeded, and failures can be asked for.
//
// With a link's or a compute speed, an operation ends when the modelled time has passed, however fast this machine is;
// streams share the speeds of their device, and the link has one for each direction.
#pragma once

#include <cstddef>
#include <memory>
#include <new>
#include <type_traits>

#include "kernels/device/device.h"

namespace stoker {

class WorkerPool;

struct HostDeviceOptions {
  i64 vram_bytes = 256 * kMiB;
  f64 link_gb_per_second = 0;     // each direction; 0: not modelled
  f64 compute_gb_per_second = 0;  // of memory that ops read; 0: not modelled
  i64 delay_us_max = 0;           // each operation waits up to this long, by chance
  u64 seed = 1;                   // of these delays
  bool packed = false;            // keep matrices in the order in which a card would
  bool only_pinned = false;       // copies from and to host memory that is not pinned fail
  // Failures, counted from 1 in the order of posting; 0: none.
  i64 fail_copy = 0;        // this copy fails
  i64 fail_allocation = 0;  // this allocation fails
  i64 lose_at = 0;          // the device is lost with this copy or op

  bool operator==(const HostDeviceOptions&) const = default;
};

// Something to run in a stream's thread, kept in place: posting allocates nothing.
class HostWork {
 public:
  HostWork() : HostWork([] {}) {}
  template <class F>
    requires std::is_trivially_copyable_v<F> && std::is_trivially_destructible_v<F>
  explicit HostWork(const F& work) : run_([](void* self) { (*static_cast<F*>(self))(); }) {
    static_assert(sizeof(F) <= kBytes && alignof(F) <= alignof(std::max_align_t));
    new (bytes_) F(work);
  }
  void operator()() { run_(bytes_); }

 private:
  static constexpr size_t kBytes = 256;
  alignas(std::max_align_t) std::byte bytes_[kBytes];
  void (*run_)(void*);
};

// What the host devices' ops know of a stream (kernels/cpu/host_device_ops.cc).
class HostDeviceStream : public DeviceStream {
 public:
  // Posts `work`; `read_bytes`: of the device's memory that it reads, for the modelled time.
  virtual void post(const HostWork& work, i64 read_bytes) = 0;
  // For posted work alone: where the bytes of an address are, and a pool that consists of the stream's thread.
  virtual std::byte* real(DevicePtr memory) const = 0;
  virtual WorkerPool& workers() = 0;
};

// Throws Error when the machine refuses the memory.
std::unique_ptr<Device> open_host_device(const HostDeviceOptions& options, const std::string& id);

}  // namespace stoker

#include "kernels/device/mapped_flag.h"

#include <immintrin.h>

#include <atomic>
#include <thread>

namespace stoker {

// Looks between two questions to the stream, some tens of microseconds: a lost device writes nothing any more.
static constexpr int kLooks = 1000;

MappedFlag::MappedFlag(Device& device) : memory_(device, sizeof(u32), "a flag", PinnedUse::mapped) {}

bool MappedFlag::raised() const {
  return std::atomic_ref(*memory_.as<u32>()).load(std::memory_order_acquire) == value_;
}

Status MappedFlag::wait(DeviceStream& stream) const {
  for (;;) {
    for (int i = 0; i < kLooks; i++) {
      if (raised()) return {};
      _mm_pause();
    }
    // Also for a machine with fewer cores than threads, where a host device needs this one.
    std::this_thread::yield();
    if (stream.busy()) continue;
    const Status ended = stream.synchronize();
    if (raised()) return {};
    return ended.ok() ? Status::failure("a device has ended what it was to hand over, and has not done so") : ended;
  }
}

}  // namespace stoker

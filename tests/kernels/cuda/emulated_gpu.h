// A CPU that plays a card: runs kernel bodies (kernels/cuda) block after block, the threads of a block as fibers that
// change at barriers and warp operations. What it finds are wrong indices, sums and barriers, bit for bit; what it
// cannot find is a missing barrier between threads that happen to run in the right order, and speed.
#pragma once

#include <functional>

#include "kernels/base/types.h"

namespace stoker::test {

class EmulatedBlock;

// One thread of a block; has what kernels/cuda/gpu.h has.
class EmulatedThread {
 public:
  EmulatedThread(EmulatedBlock& owner, int thread) : block_(owner), thread_(thread) {}

  int thread() const { return thread_; }
  int threads() const;
  i64 block() const;
  i64 blocks() const;
  void sync() const;
  f32 from_lane_xor(f32 value, int bits) const;
  i32 from_lane_xor(i32 value, int bits) const;
  void multiply(f32 (&c)[4], const u32 (&a)[4], const u32 (&b)[2]) const;
  void load_rows(u32 (&b)[2], const u16* row) const;
  template <class T>
  T* shared(i64 offset_bytes) const {
    return reinterpret_cast<T*>(shared_memory() + offset_bytes);
  }

 private:
  std::byte* shared_memory() const;

  EmulatedBlock& block_;
  int thread_;
};

struct Launch {
  i64 blocks;
  int threads;
  i64 shared_bytes;  // guarded by bytes that the kernel must leave alone
};

// Runs `body` for every thread of every block. Fails a doctest CHECK when shared memory was overrun.
void emulate(const Launch& launch, const std::function<void(const EmulatedThread&)>& body);

}  // namespace stoker::test

// A CPU that plays a card: runs kernel bodies (kernels/cuda) block after block, the threads of a block as fibers that
// change at barriers and warp operations. What it finds are wrong indices, sums and barriers, bit for bit.
//
// A warp runs on alone as far as it can, up to the block's next barrier, and the order of warps and lanes changes all the
// time: what one thread reads and another writes without a barrier between them is read too early in some block. It refuses
// what a card does not do or answers with an error: launches beyond its limits, shared memory read or written beyond the
// block's (a page without rights follows it), addresses that a wide load does not take, barriers and operations of a warp
// that not all reach, or that meet another one.
//
// It cannot find what needs two warps at the same instant, the order in which a card makes writes visible, and speed.
#pragma once

#include <atomic>
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
  void sync_warp() const;
  f32 from_lane_xor(f32 value, int bits) const;
  i32 from_lane_xor(i32 value, int bits) const;
  void multiply(f32 (&c)[4], const u32 (&a)[4], const u32 (&b)[2]) const;
  void load_rows(u32 (&b)[2], const u16* row) const;
  void fence_host() const {}
  void publish(u32* word, u32 value) const { std::atomic_ref(*word).store(value, std::memory_order_release); }
  template <class T>
  T* shared(i64 offset_bytes) const {
    return reinterpret_cast<T*>(shared_at(offset_bytes, alignof(T)));
  }

 private:
  std::byte* shared_at(i64 offset_bytes, i64 alignment) const;

  EmulatedBlock& block_;
  int thread_;
};

struct Launch {
  i64 blocks;
  int threads;
  i64 shared_bytes;
};

// Runs `body` for every thread of every block. Fails a doctest CHECK for what a card would refuse.
void emulate(const Launch& launch, const std::function<void(const EmulatedThread&)>& body);

}  // namespace stoker::test

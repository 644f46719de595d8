// WorkerPool: the compute threads. One per physical core, pinned there (hwloc), because SMT siblings share the
// load ports that our kernels saturate. The calling thread is worker 0.
//
// A region costs about a microsecond while workers are awake: they spin, then yield, then sleep. A region does not wait
// for workers that have not come yet, because all work is taken piece by piece (WorkRanges): one that sleeps or was
// pushed off its core misses the region instead of delaying it. Every index is computed by one worker, so results do not
// depend on the number of threads or on who came.
#pragma once

#include <atomic>
#include <thread>
#include <type_traits>
#include <vector>

#include "kernels/base/types.h"

namespace stoker {

// Non-owning reference to a callable; the callable must outlive the call it is passed to.
template <class Signature>
class FunctionRef;
template <class R, class... Args>
class FunctionRef<R(Args...)> {
 public:
  template <class F>
    requires(!std::is_same_v<std::remove_cvref_t<F>, FunctionRef>)
  FunctionRef(F&& f)  // NOLINT: implicit, as std::function is
      : object_(const_cast<void*>(static_cast<const void*>(&f))), call_([](void* object, Args... args) -> R {
          return (*static_cast<std::remove_reference_t<F>*>(object))(args...);
        }) {}
  R operator()(Args... args) const { return call_(object_, args...); }

 private:
  void* object_;
  R (*call_)(void*, Args...);
};

// Physical cores this process may run on.
int physical_cores();

// Undoes a pinning that this thread inherited: it may run on every core the process was started with.
// For threads that wait (I/O) and are created by a pinned one.
void unpin_this_thread();

class WorkerPool {
 public:
  struct Options {
    int workers = 0;  // 0: one per physical core
    bool pin = true;
  };

  // Pins the calling thread too: it becomes worker 0 and must be the one that calls run().
  explicit WorkerPool(Options options);
  ~WorkerPool();
  WorkerPool(const WorkerPool&) = delete;
  WorkerPool& operator=(const WorkerPool&) = delete;

  int size() const { return size_; }

  // A region: body(0) on the caller and body(worker), once, on every other worker that comes before body(0) returns.
  // Returns when all of them are done. Body takes its work from a queue that they share. Owner thread only; not
  // reentrant.
  void run(FunctionRef<void(int worker)> body);

  // body(begin, end) over [0, count) in ranges with borders at multiples of `grain`, a few per worker.
  void for_ranges(i64 count, i64 grain, FunctionRef<void(i64 begin, i64 end)> body);

  // body(index, worker) for every index, one at a time: for items of unequal cost.
  void for_each(i64 count, FunctionRef<void(i64 index, int worker)> body);

 private:
  void worker_loop(int worker, int core);
  void enter(u32& seen_epoch);

  int size_;
  std::vector<std::thread> threads_;  // size_ - 1
  // One word, so that entering and closing exclude each other: workers inside the region (bits 0 .. 10), whether it is
  // open (bit 11), and its number, which wraps.
  static constexpr u32 kInside = (1u << 11) - 1, kOpen = 1u << 11, kEpochStep = 1u << 12;
  static constexpr int kMaxWorkers = 2048;  // the caller is not counted
  alignas(64) std::atomic<u32> state_{0};
  const FunctionRef<void(int)>* body_ = nullptr;  // of the open region; read by those inside only
  std::atomic<bool> stop_{false};
};

}  // namespace stoker

#include "kernels/base/threads.h"

#include <hwloc.h>
#include <immintrin.h>
#include <sched.h>

#include <algorithm>
#include <iterator>
#include <memory>

#include "kernels/base/check.h"
#include "kernels/base/work_ranges.h"

namespace stoker {

namespace {

struct TopologyFree {
  void operator()(hwloc_topology* t) const { hwloc_topology_destroy(t); }
};
using Topology = std::unique_ptr<hwloc_topology, TopologyFree>;

Topology load_topology() {
  hwloc_topology_t t = nullptr;
  if (hwloc_topology_init(&t) != 0) return nullptr;
  Topology owner(t);
  if (hwloc_topology_load(t) != 0) return nullptr;
  return owner;  // only what this process is allowed to use (hwloc's default)
}

// First hardware thread of each allowed physical core, as OS indices. Empty when hwloc knows nothing.
std::vector<int> first_threads_of_cores() {
  std::vector<int> result;
  Topology topology = load_topology();
  if (!topology) return result;
  int cores = hwloc_get_nbobjs_by_type(topology.get(), HWLOC_OBJ_CORE);
  for (int i = 0; i < cores; i++) {
    hwloc_obj_t core = hwloc_get_obj_by_type(topology.get(), HWLOC_OBJ_CORE, static_cast<unsigned>(i));
    int first = core != nullptr ? hwloc_bitmap_first(core->cpuset) : -1;
    if (first >= 0) result.push_back(first);
  }
  return result;
}

// The affinity the process was started with, read before anything is pinned.
cpu_set_t read_start_affinity() {
  cpu_set_t set;
  CPU_ZERO(&set);
  sched_getaffinity(0, sizeof set, &set);
  return set;
}
const cpu_set_t start_affinity = read_start_affinity();

// A failure (container without the right) only costs speed, so it is not reported.
void pin_this_thread(int cpu) {
  cpu_set_t set;
  CPU_ZERO(&set);
  CPU_SET(static_cast<size_t>(cpu), &set);
  sched_setaffinity(0, sizeof set, &set);
}

// Waits until done() holds: 20 us of spinning covers the gap between two ops of a layer, the yields that follow
// let the I/O thread run where cores are few.
template <class Done>
bool spin_then_yield(Done done) {
  for (int i = 0; i < 400; i++) {
    if (done()) return true;
    _mm_pause();
  }
  for (int i = 0; i < 200; i++) {
    if (done()) return true;
    std::this_thread::yield();
  }
  return false;
}

// Where for_ranges() cuts a worker's share, in sixty-fourths: enough pieces for the others to take over from one that is
// late, few enough for streams of weights to stay long, and the last ones short, so that all end together.
constexpr i64 kCuts[] = {0, 8, 16, 24, 32, 40, 48, 52, 56, 58, 60, 61, 62, 63, 64};
constexpr i64 kPiecesPerWorker = std::size(kCuts) - 1;

}  // namespace

int physical_cores() {
  int cores = static_cast<int>(first_threads_of_cores().size());
  return cores > 0 ? cores : std::max(1, static_cast<int>(std::thread::hardware_concurrency()));
}

void unpin_this_thread() { sched_setaffinity(0, sizeof start_affinity, &start_affinity); }

WorkerPool::WorkerPool(Options options) {
  std::vector<int> cores = first_threads_of_cores();
  int available = cores.empty() ? physical_cores() : static_cast<int>(cores.size());
  size_ = std::min(options.workers > 0 ? options.workers : available, kMaxWorkers);
  // More workers than cores (tests on small machines): pinning would stack them, so leave them to the kernel.
  bool pin = options.pin && size_ <= static_cast<int>(cores.size());
  if (pin) pin_this_thread(cores[0]);
  for (int i = 1; i < size_; i++)
    threads_.emplace_back([this, i, core = pin ? cores[static_cast<size_t>(i)] : -1] { worker_loop(i, core); });
}

WorkerPool::~WorkerPool() {
  stop_.store(true);
  state_.fetch_add(kEpochStep | kOpen);
  state_.notify_all();
  for (std::thread& t : threads_) t.join();
}

void WorkerPool::run(FunctionRef<void(int)> body) {
  if (size_ == 1) return body(0);
  body_ = &body;
  state_.fetch_add(kEpochStep | kOpen, std::memory_order_release);
  state_.notify_all();
  body(0);
  state_.fetch_and(~kOpen, std::memory_order_relaxed);
  // What is left are pieces in progress: too short to sleep for.
  auto done = [this] { return (state_.load(std::memory_order_acquire) & kInside) == 0; };
  while (!spin_then_yield(done)) continue;
}

// Waits for the next region and enters it.
void WorkerPool::enter(u32& seen) {
  for (;;) {
    u32 state = 0;
    auto open = [&] {
      state = state_.load(std::memory_order_acquire);
      return (state & kOpen) != 0 && state / kEpochStep != seen;
    };
    if (!spin_then_yield(open)) {
      state_.wait(state, std::memory_order_acquire);
    } else if (state_.compare_exchange_strong(state, state + 1, std::memory_order_acquire)) {
      seen = state / kEpochStep;
      return;
    }
  }
}

void WorkerPool::worker_loop(int worker, int core) {
  if (core >= 0) pin_this_thread(core);
  u32 seen = 0;
  for (;;) {
    enter(seen);
    if (stop_.load()) return;
    (*body_)(worker);
    state_.fetch_sub(1, std::memory_order_release);
  }
}

void WorkerPool::for_ranges(i64 count, i64 grain, FunctionRef<void(i64, i64)> body) {
  CHECK(grain > 0);
  i64 units = div_up(count, grain);
  if (units <= 1) {
    if (count > 0) body(0, count);
    return;
  }
  if (units <= size_ * kPiecesPerWorker) {
    for_each(units, [&](i64 i, int) { body(i * grain, std::min(count, (i + 1) * grain)); });
    return;
  }
  for_each(size_ * kPiecesPerWorker, [&](i64 i, int) {
    const i64 share = i / kPiecesPerWorker, first = units * share / size_, last = units * (share + 1) / size_;
    auto cut = [&](i64 k) { return (first + (last - first) * kCuts[k] / 64) * grain; };
    const i64 begin = cut(i % kPiecesPerWorker), end = std::min(count, cut(i % kPiecesPerWorker + 1));
    if (begin < end) body(begin, end);  // the last ones may have no grain
  });
}

void WorkerPool::for_each(i64 count, FunctionRef<void(i64, int)> body) {
  if (count <= 0) return;
  WorkRanges ranges(count, size_);
  run([&](int worker) {
    for (i64 i = ranges.take(worker); i >= 0; i = ranges.take(worker)) body(i, worker);
  });
}

}  // namespace stoker

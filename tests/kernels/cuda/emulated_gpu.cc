#include "tests/kernels/cuda/emulated_gpu.h"

#include <doctest/doctest.h>
#include <sys/mman.h>
#include <ucontext.h>
#include <unistd.h>

#include <algorithm>
#include <bit>
#include <cstring>
#include <memory>
#include <numeric>
#include <string>
#include <vector>

#include "kernels/base/rng.h"
#include "kernels/format/f16.h"

namespace stoker::test {

namespace {

constexpr size_t kStackBytes = 128 * 1024;
constexpr int kWarp = 32;
constexpr std::byte kJunk{0xa5};

// Of every card since Turing, and shared memory of sm_86.
constexpr i64 kMostBlocks = 0x7fffffff, kMostSharedBytes = 99 * kKiB;
constexpr int kMostThreads = 1024;

// Kept from launch to launch.
std::byte* stack_of(int thread) {
  static std::vector<std::unique_ptr<std::byte[]>> stacks;
  while (static_cast<int>(stacks.size()) <= thread)
    stacks.push_back(std::make_unique_for_overwrite<std::byte[]>(kStackBytes));
  return stacks[static_cast<size_t>(thread)].get();
}

// Shared memory of a block: ends, but for less than 16 bytes, where a page begins that nobody may touch.
class SharedMemory {
 public:
  explicit SharedMemory(i64 bytes) : bytes_(bytes) {
    const i64 page = sysconf(_SC_PAGESIZE), pages = round_up(bytes, page);
    mapped_ = pages + page;
    void* memory = mmap(nullptr, static_cast<size_t>(mapped_), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    REQUIRE(memory != MAP_FAILED);
    map_ = static_cast<std::byte*>(memory);
    REQUIRE(mprotect(map_ + pages, static_cast<size_t>(page), PROT_NONE) == 0);
    end_ = map_ + pages;
    begin_ = end_ - round_up(bytes, 16);
  }
  ~SharedMemory() { munmap(map_, static_cast<size_t>(mapped_)); }
  SharedMemory(const SharedMemory&) = delete;
  SharedMemory& operator=(const SharedMemory&) = delete;

  // It is not zero on a card either.
  void spoil() { std::fill(begin_, end_, kJunk); }
  std::byte* begin() const { return begin_; }
  i64 bytes() const { return bytes_; }
  bool tail_is_spoilt() const {
    return std::all_of(begin_ + bytes_, end_, [](std::byte b) { return b == kJunk; });
  }

 private:
  std::byte *map_, *begin_, *end_;
  i64 mapped_, bytes_;
};

}  // namespace

class EmulatedBlock {
 public:
  enum class Operation { sync, shuffle, multiply, load };

  // What a lane hands to the others of its warp.
  struct Exchange {
    Operation operation;
    int bits;
    u32 words[4 + 2];
    const u16* row;
  };

  explicit EmulatedBlock(const Launch& launch)
      : launch_(launch),
        shared_(launch.shared_bytes),
        exchange_(static_cast<size_t>(2 * launch.threads)),
        fibers_(static_cast<size_t>(launch.threads)),
        threads_(static_cast<size_t>(launch.threads)),
        warps_(static_cast<size_t>(launch.threads / kWarp)) {}

  void run(i64 index, const std::function<void(const EmulatedThread&)>& body) {
    index_ = index;
    body_ = &body;
    shared_.spoil();
    whole_ = {};
    std::fill(warps_.begin(), warps_.end(), Meeting{});
    for (int t = 0; t < launch_.threads; t++) start(t);
    left_ = launch_.threads;
    Rng rng(static_cast<u64>(index));
    std::vector<int> order(warps_.size());
    std::iota(order.begin(), order.end(), 0);
    for (i64 round = index; left_ > 0; round++) {
      if (round % 2 == 0)
        for (size_t i = order.size(); i > 1; i--) std::swap(order[i - 1], order[static_cast<size_t>(rng.below(static_cast<i64>(i)))]);
      else
        std::reverse(order.begin(), order.end());
      bool moved = false;
      for (int warp : order) moved |= run_warp(warp, round);
      if (!moved) {
        refuse("threads wait for each other: not all reach a barrier, or a warp's operation");
        break;
      }
    }
    CHECK_MESSAGE(problem_.empty(), problem_);
    CHECK_MESSAGE(shared_.tail_is_spoilt(), "shared memory was written beyond its end");
  }

  // Every thread waits here until all have come. On a card those that have ended may not count; a kernel should not need that.
  void barrier() { wait_for_all(whole_, launch_.threads); }

  // Puts this lane's words up, waits for the warp's others, reads theirs. Words of one turn are in one half, those of the next
  // in the other: no lane begins a third before all have read the first.
  template <class Read>
  void exchange(int thread, const Exchange& mine, Read&& read) {
    Meeting& warp = warps_[static_cast<size_t>(thread / kWarp)];
    Exchange* lanes = exchange_.data() + warp.turn % 2 * launch_.threads + thread / kWarp * kWarp;
    lanes[thread % kWarp] = mine;
    wait_for_all(warp, kWarp);
    if (lanes->operation == mine.operation && lanes->bits == mine.bits)
      read(lanes);
    else
      refuse("lanes of a warp meet in different operations");
  }

  // What a card does not do; the first is told.
  void refuse(const char* what) {
    if (problem_.empty()) problem_ = what;
  }

  const Launch& launch() const { return launch_; }
  i64 index() const { return index_; }
  const SharedMemory& shared() const { return shared_; }

 private:
  struct Meeting {
    i64 waiting = 0, turn = 0;
  };
  struct Thread {
    bool finished = false;
    const Meeting* waits_at = nullptr;
    i64 turn = 0;  // of the meeting it waits for

    bool can_run() const { return !finished && (waits_at == nullptr || waits_at->turn != turn); }
  };

  // As far as it can go alone. Whether any thread ran.
  bool run_warp(int warp, i64 round) {
    bool moved = false;
    for (bool again = true; again; moved |= again) {
      again = false;
      for (int lane = 0; lane < kWarp; lane++) {
        const int t = warp * kWarp + (round % 3 == 0 ? lane : kWarp - 1 - lane);
        if (!threads_[static_cast<size_t>(t)].can_run()) continue;
        again = true;
        current_ = t;
        swapcontext(&main_, &fibers_[static_cast<size_t>(t)]);
        left_ -= threads_[static_cast<size_t>(t)].finished;
      }
    }
    return moved;
  }

  void wait_for_all(Meeting& meeting, i64 count) {
    Thread& mine = threads_[static_cast<size_t>(current_)];
    mine.waits_at = &meeting;
    mine.turn = meeting.turn;
    if (++meeting.waiting == count) {
      meeting.waiting = 0;
      meeting.turn++;
      return;
    }
    swapcontext(&fibers_[static_cast<size_t>(current_)], &main_);
  }

  void start(int thread) {
    threads_[static_cast<size_t>(thread)] = {};
    ucontext_t& fiber = fibers_[static_cast<size_t>(thread)];
    getcontext(&fiber);
    fiber.uc_stack.ss_sp = stack_of(thread);
    fiber.uc_stack.ss_size = kStackBytes;
    fiber.uc_link = &main_;
    const u64 self = reinterpret_cast<u64>(this);
    makecontext(&fiber, reinterpret_cast<void (*)()>(enter), 3, static_cast<u32>(self), static_cast<u32>(self >> 32),
                thread);
  }

  static void enter(u32 low, u32 high, int thread) {
    auto* self = reinterpret_cast<EmulatedBlock*>(static_cast<u64>(high) << 32 | low);
    (*self->body_)(EmulatedThread(*self, thread));
    self->threads_[static_cast<size_t>(thread)].finished = true;
  }

  Launch launch_;
  i64 index_ = 0;
  const std::function<void(const EmulatedThread&)>* body_ = nullptr;
  SharedMemory shared_;
  std::vector<Exchange> exchange_;  // [2, threads]
  std::vector<ucontext_t> fibers_;
  std::vector<Thread> threads_;
  ucontext_t main_;
  int current_ = 0, left_ = 0;
  Meeting whole_;
  std::vector<Meeting> warps_;
  std::string problem_;
};

int EmulatedThread::threads() const { return block_.launch().threads; }
i64 EmulatedThread::block() const { return block_.index(); }
i64 EmulatedThread::blocks() const { return block_.launch().blocks; }
void EmulatedThread::sync() const { block_.barrier(); }
void EmulatedThread::sync_warp() const {
  block_.exchange(thread_, {.operation = EmulatedBlock::Operation::sync, .bits = 0, .words = {}, .row = nullptr},
                  [](const EmulatedBlock::Exchange*) {});
}

std::byte* EmulatedThread::shared_at(i64 offset_bytes, i64 alignment) const {
  if (offset_bytes < 0 || offset_bytes > block_.shared().bytes()) block_.refuse("shared memory begins beyond the block's");
  if (offset_bytes % alignment != 0) block_.refuse("shared memory is not aligned to what it holds");
  return block_.shared().begin() + offset_bytes;
}

i32 EmulatedThread::from_lane_xor(i32 value, int bits) const {
  EmulatedBlock::Exchange mine{.operation = EmulatedBlock::Operation::shuffle, .bits = bits, .words = {}, .row = nullptr};
  mine.words[0] = static_cast<u32>(value);
  i32 result = 0;
  block_.exchange(thread_, mine, [&](const EmulatedBlock::Exchange* lanes) {
    result = static_cast<i32>(lanes[(thread_ % kWarp) ^ bits].words[0]);
  });
  return result;
}

f32 EmulatedThread::from_lane_xor(f32 value, int bits) const {
  return std::bit_cast<f32>(from_lane_xor(std::bit_cast<i32>(value), bits));
}

namespace {

f32 half_in(u32 word, i64 which) { return f16_to_f32(static_cast<u16>(word >> (16 * which))); }

}  // namespace

// PTX ISA, "Matrix Fragments for mma.m16n8k16 with floating point type".
void EmulatedThread::multiply(f32 (&c)[4], const u32 (&a)[4], const u32 (&b)[2]) const {
  EmulatedBlock::Exchange mine{.operation = EmulatedBlock::Operation::multiply, .bits = 0, .words = {}, .row = nullptr};
  std::copy(a, a + 4, mine.words);
  std::copy(b, b + 2, mine.words + 4);
  block_.exchange(thread_, mine, [&](const EmulatedBlock::Exchange* lanes) {
    auto a_at = [&](i64 row, i64 col) {
      const u32 word = lanes[row % 8 * 4 + col % 8 / 2].words[row / 8 + 2 * (col / 8)];
      return half_in(word, col % 2);
    };
    auto b_at = [&](i64 row, i64 col) { return half_in(lanes[col * 4 + row % 8 / 2].words[4 + row / 8], row % 2); };
    const i64 lane = thread_ % kWarp;
    for (i64 i = 0; i < 4; i++) {
      const i64 row = lane / 4 + i / 2 * 8, col = lane % 4 * 2 + i % 2;
      f64 sum = static_cast<f64>(c[i]);
      for (i64 k = 0; k < 16; k++) sum += static_cast<f64>(a_at(row, k)) * static_cast<f64>(b_at(k, col));
      c[i] = static_cast<f32>(sum);
    }
  });
}

// PTX ISA, "ldmatrix": with .trans lane l gets rows 2 (l % 4) and the next of column l / 4.
void EmulatedThread::load_rows(u32 (&b)[2], const u16* row) const {
  const EmulatedBlock::Exchange mine{.operation = EmulatedBlock::Operation::load, .bits = 0, .words = {}, .row = row};
  const i64 offset = reinterpret_cast<const std::byte*>(row) - block_.shared().begin();
  // Those of lanes 16 .. 31 must be addresses too on Turing, though nothing is read there.
  if (offset < 0 || offset + 16 > block_.shared().bytes()) block_.refuse("ldmatrix beyond shared memory");
  if (offset % 16 != 0) block_.refuse("ldmatrix at an address that is not a multiple of 16");
  block_.exchange(thread_, mine, [&](const EmulatedBlock::Exchange* lanes) {
    const i64 lane = thread_ % kWarp;
    for (i64 i = 0; i < 2; i++) {
      const i64 first = 8 * i + 2 * (lane % 4);
      b[i] = lanes[first].row[lane / 4] | static_cast<u32>(lanes[first + 1].row[lane / 4]) << 16;
    }
  });
}

void emulate(const Launch& launch, const std::function<void(const EmulatedThread&)>& body) {
  REQUIRE(launch.blocks >= 1);
  REQUIRE(launch.blocks <= kMostBlocks);
  REQUIRE(launch.threads % kWarp == 0);
  REQUIRE(launch.threads <= kMostThreads);
  REQUIRE(launch.shared_bytes <= kMostSharedBytes);
  EmulatedBlock block(launch);
  for (i64 i = 0; i < launch.blocks; i++) block.run(i, body);
}

}  // namespace stoker::test

#include "tests/kernels/cuda/emulated_gpu.h"

#include <doctest/doctest.h>
#include <ucontext.h>

#include <algorithm>
#include <bit>
#include <cstring>
#include <memory>
#include <vector>

#include "kernels/format/f16.h"

namespace stoker::test {

namespace {

constexpr size_t kStackBytes = 128 * 1024;
constexpr int kWarp = 32;
constexpr i64 kGuardBytes = 256;
constexpr std::byte kGuard{0xa5};

// Kept from launch to launch.
std::byte* stack_of(int thread) {
  static std::vector<std::unique_ptr<std::byte[]>> stacks;
  while (static_cast<int>(stacks.size()) <= thread)
    stacks.push_back(std::make_unique_for_overwrite<std::byte[]>(kStackBytes));
  return stacks[static_cast<size_t>(thread)].get();
}

}  // namespace

class EmulatedBlock {
 public:
  // What a lane hands to the others of its warp.
  struct Exchange {
    u32 words[4 + 2 + 4];
    const u16* row;
  };

  explicit EmulatedBlock(const Launch& launch)
      : launch_(launch),
        shared_(static_cast<size_t>(launch.shared_bytes + kGuardBytes)),
        exchange_(static_cast<size_t>(launch.threads)),
        fibers_(static_cast<size_t>(launch.threads)),
        finished_(static_cast<size_t>(launch.threads)),
        warps_(static_cast<size_t>(launch.threads / kWarp)) {}

  void run(i64 index, const std::function<void(const EmulatedThread&)>& body) {
    index_ = index;
    body_ = &body;
    // Shared memory is not zero on a card either.
    std::fill(shared_.begin(), shared_.end(), kGuard);
    std::fill(finished_.begin(), finished_.end(), false);
    for (int t = 0; t < launch_.threads; t++) start(t);
    // Each round every thread runs on until it has to wait.
    for (int left = launch_.threads; left > 0;) {
      for (int t = 0; t < launch_.threads; t++) {
        if (finished_[static_cast<size_t>(t)]) continue;
        current_ = t;
        swapcontext(&main_, &fibers_[static_cast<size_t>(t)]);
        left -= finished_[static_cast<size_t>(t)];
      }
    }
    const auto guard = shared_.end() - kGuardBytes;
    CHECK(std::all_of(guard, shared_.end(), [](std::byte b) { return b == kGuard; }));
  }

  // Every thread waits here until all have come; those that have ended do not count, as on a card.
  void barrier() { wait_for_all(whole_, 0, launch_.threads); }

  // Puts this lane's words up, waits for the warp's others, reads theirs, waits until all have.
  template <class Read>
  void exchange(int thread, const Exchange& mine, Read&& read) {
    const int first = thread / kWarp * kWarp;
    Meeting& warp = warps_[static_cast<size_t>(thread / kWarp)];
    exchange_[static_cast<size_t>(thread)] = mine;
    wait_for_all(warp, first, first + kWarp);
    read(exchange_.data() + first);
    wait_for_all(warp, first, first + kWarp);
  }

  const Launch& launch() const { return launch_; }
  i64 index() const { return index_; }
  std::byte* shared() { return shared_.data(); }

 private:
  struct Meeting {
    i64 waiting = 0, turn = 0;
  };

  void yield() { swapcontext(&fibers_[static_cast<size_t>(current_)], &main_); }

  // Until all threads [first, last) that have not ended are in this call.
  void wait_for_all(Meeting& meeting, int first, int last) {
    const i64 turn = meeting.turn;
    const i64 ended = std::count(finished_.begin() + first, finished_.begin() + last, true);
    if (++meeting.waiting == last - first - ended) {
      meeting.waiting = 0;
      meeting.turn++;
    }
    while (meeting.turn == turn) yield();
  }

  void start(int thread) {
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
    self->finished_[static_cast<size_t>(thread)] = true;
  }

  Launch launch_;
  i64 index_ = 0;
  const std::function<void(const EmulatedThread&)>* body_ = nullptr;
  std::vector<std::byte> shared_;
  std::vector<Exchange> exchange_;
  std::vector<ucontext_t> fibers_;
  std::vector<bool> finished_;
  ucontext_t main_;
  int current_ = 0;
  Meeting whole_;
  std::vector<Meeting> warps_;
};

int EmulatedThread::threads() const { return block_.launch().threads; }
i64 EmulatedThread::block() const { return block_.index(); }
i64 EmulatedThread::blocks() const { return block_.launch().blocks; }
void EmulatedThread::sync() const { block_.barrier(); }
std::byte* EmulatedThread::shared_memory() const { return block_.shared(); }

i32 EmulatedThread::from_lane_xor(i32 value, int bits) const {
  EmulatedBlock::Exchange mine{};
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
  EmulatedBlock::Exchange mine{};
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
  EmulatedBlock::Exchange mine{};
  mine.row = row;
  block_.exchange(thread_, mine, [&](const EmulatedBlock::Exchange* lanes) {
    const i64 lane = thread_ % kWarp;
    for (i64 i = 0; i < 2; i++) {
      const i64 first = 8 * i + 2 * (lane % 4);
      b[i] = lanes[first].row[lane / 4] | static_cast<u32>(lanes[first + 1].row[lane / 4]) << 16;
    }
  });
}

void emulate(const Launch& launch, const std::function<void(const EmulatedThread&)>& body) {
  EmulatedBlock block(launch);
  for (i64 i = 0; i < launch.blocks; i++) block.run(i, body);
}

}  // namespace stoker::test

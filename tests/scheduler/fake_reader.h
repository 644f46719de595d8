// FakeReader: a drive on a virtual clock, with seeded delays and failures, that delivers pattern bytes. It
// checks what a real one would suffer from: misaligned or overlapping reads, reads outside the file, too many
// at once. Pieces wait in the real readers' queue until fewer than `depth` are with the drive.
#pragma once

#include <vector>

#include "kernels/base/clock.h"
#include "kernels/base/rng.h"
#include "scheduler/tiers/read_queue.h"

namespace stoker::test {

class VirtualClock final : public Clock {
 public:
  i64 now_ns() const override { return now_; }
  void advance(i64 ns) { now_ += ns; }
  void set(i64 ns) { now_ = ns > now_ ? ns : now_; }

 private:
  i64 now_ = 0;
};

class FakeReader final : public Reader {
 public:
  struct Options {
    std::vector<i64> file_bytes = {};
    u64 seed = 1;
    i64 alignment = 512;
    i64 capacity = 16;
    i64 depth = 0;  // as the capacity
    i64 max_piece_bytes = 8192;
    i64 longest_ns = 1000;  // of one read, from its submission; 0: at once
    f64 failure_rate = 0;   // of pieces
  };
  FakeReader(Options options, VirtualClock& clock)
      : options_(options), clock_(clock), rng_(options.seed), queue_(options.capacity) {}

  i64 alignment(i32) const override { return options_.alignment; }
  i64 file_bytes(i32 file) const override { return options_.file_bytes[static_cast<size_t>(file)]; }
  std::string file_name(i32 file) const override { return "fake" + std::to_string(file) + ".gguf"; }
  i64 depth() const override { return options_.depth > 0 ? options_.depth : options_.capacity; }
  i64 capacity() const override { return options_.capacity; }
  i64 max_piece_bytes() const override { return options_.max_piece_bytes; }
  i64 submit(std::span<const ReadPiece> pieces) override;
  void limit(ReadPriority priority, i64 pieces) override { queue_.limit(priority, pieces); }
  i64 promote(ReadPriority from, u32 owner) override;
  void recall(ReadPriority from, u32 owner) override;
  i64 poll(std::span<ReadDone> done) override;
  bool wait(i64 timeout_ns) override;  // moves the clock
  void add_memory(std::byte* data, i64 bytes) override;
  void remove_memory(std::byte* data, i64 bytes) override;
  std::string describe() const override { return "fake"; }

  // The pattern of a file is seeded with its number.
  void set_failure_rate(f64 rate) { options_.failure_rate = rate; }
  // The next piece of this file that covers `offset` fails with EIO.
  void fail_once(i32 file, i64 offset) { fail_file_ = file, fail_offset_ = offset; }

  i64 in_flight() const { return static_cast<i64>(flights_.size()); }
  i64 failures() const { return failures_; }
  i64 busy_ns() const { return busy_ns_; }  // by its own bookkeeping
  i64 memory_bytes() const { return memory_bytes_; }
  std::vector<ReadPiece> history;  // everything submitted
  std::vector<ReadPiece> begun;    // of it, what the drive has taken

 private:
  struct Flight {
    ReadPiece piece;
    i64 due_ns;
    i32 error;
  };
  void start(i64 at_ns);
  void run();
  void deliver(const Flight& flight);

  Options options_;
  VirtualClock& clock_;
  Rng rng_;
  ReadQueue queue_;
  std::vector<Flight> flights_;  // with the drive
  i64 failures_ = 0, busy_ns_ = 0, busy_until_ns_ = 0, memory_bytes_ = 0;
  i32 fail_file_ = -1;
  i64 fail_offset_ = 0;
};

}  // namespace stoker::test

// SimDisk: a Reader whose reads land in virtual time and move no data: checksums are not looked at. Requests wait in a queue,
// by priority, until fewer than depth() are with the drive, and of those that are held back no more than it was told; the
// drive answers them in order, the first byte no
// earlier than `latency_ns` after it has got the request, at its bandwidth.
#pragma once

#include <array>
#include <deque>
#include <vector>

#include "scheduler/sim/virtual_clock.h"
#include "scheduler/tiers/reader.h"

namespace stoker {

struct SimDiskLimits {
  f64 gb_per_second = 1;
  i64 latency_ns = 0;
  i64 depth = 64;
  i64 capacity = 256;
  i64 max_piece_bytes = 1 << 20;
  i64 alignment = 4096;
};

class SimDisk final : public Reader {
 public:
  SimDisk(VirtualClock& clock, std::vector<i64> file_bytes, const SimDiskLimits& limits);

  i64 alignment(i32) const override { return limits_.alignment; }
  i64 file_bytes(i32 file) const override { return file_bytes_[static_cast<size_t>(file)]; }
  std::string file_name(i32 file) const override;
  i64 depth() const override { return limits_.depth; }
  i64 capacity() const override { return limits_.capacity; }
  i64 max_piece_bytes() const override { return limits_.max_piece_bytes; }

  i64 submit(std::span<const ReadPiece> pieces) override;
  void limit(ReadPriority priority, i64 pieces) override { held_limits_[static_cast<size_t>(priority)] = pieces; }
  i64 promote(ReadPriority from, u32 owner) override;
  void recall(ReadPriority from, u32 owner) override;
  i64 poll(std::span<ReadDone> done) override;
  // Advances the clock to when the next read lands, or by the timeout.
  bool wait(i64 timeout_ns) override;
  void add_memory(std::byte*, i64) override {}
  void remove_memory(std::byte*, i64) override {}
  std::string describe() const override;

  // Whether bytes arrive now, and until when that stays so if nobody submits: later than now.
  struct Activity {
    bool transferring = false;
    i64 until_ns = 0;
  };
  Activity activity();

 private:
  struct Flight {
    u64 tag;
    ReadPriority priority;
    i64 start_ns, finish_ns;  // of the transfer
  };
  void run_until(i64 ns);
  std::vector<ReadPiece> take_out(ReadPriority from, u32 owner);
  void issue(i64 at_ns);

  VirtualClock& clock_;
  std::vector<i64> file_bytes_;
  SimDiskLimits limits_;
  std::array<std::deque<ReadPiece>, kReadPriorities> queues_;
  std::deque<Flight> flights_;  // with the drive, in the order in which they land
  std::deque<ReadDone> done_;
  std::array<i64, kReadPriorities> out_{};  // with the drive
  std::array<i64, kReadPriorities> held_limits_;  // of those that are held back
  i64 outstanding_ = 0;    // submitted, not yet polled
  i64 drive_free_ns_ = 0;  // when the last flight lands
};

}  // namespace stoker

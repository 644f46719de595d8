// FakeCopier: devices on a virtual clock, whose memory is a buffer, with seeded delays and failures. Copies are done when
// they are due, not when they are submitted, so that memory which is reused too early shows. It checks what a real one
// would suffer from: overlapping copies, places outside the arena, too many at once.
#pragma once

#include <map>
#include <vector>

#include "kernels/base/rng.h"
#include "scheduler/tiers/copier.h"
#include "tests/scheduler/fake_reader.h"

namespace stoker::test {

class FakeCopier final : public Copier {
 public:
  struct Options {
    std::vector<i64> arena_bytes = {};  // [devices]
    u64 seed = 1;
    i64 capacity = 8;
    i64 longest_ns = 1000;  // of one copy
    f64 failure_rate = 0;
  };
  FakeCopier(Options options, VirtualClock& clock);

  i64 devices() const override { return static_cast<i64>(options_.arena_bytes.size()); }
  i64 arena_bytes(i64 device) const override { return options_.arena_bytes[static_cast<size_t>(device)]; }
  i64 capacity() const override { return options_.capacity; }
  i64 submit(std::span<const Copy> copies) override;
  i64 poll(std::span<CopyDone> done) override;
  bool wait(i64 timeout_ns) override;  // moves the clock
  void add_memory(std::byte* data, i64 bytes) override { memory_[data] = bytes; }
  void remove_memory(std::byte* data, i64 bytes) override;
  std::string describe() const override { return "fake"; }

  const std::byte* memory(i64 device) const { return devices_[static_cast<size_t>(device)].memory.data(); }
  // From now on, also for copies under way.
  void lose(i64 device);
  void set_failure_rate(f64 rate) { options_.failure_rate = rate; }
  i64 in_flight() const { return static_cast<i64>(flights_.size()); }
  i64 failures() const { return failures_; }
  i64 most_in_flight() const { return most_in_flight_; }
  i64 memory_pieces() const { return static_cast<i64>(memory_.size()); }

 private:
  struct Flight {
    Copy copy;
    i64 due_ns;
    bool fails;
  };
  struct Device {
    std::vector<std::byte> memory;
    i64 free_ns[kCopyDirections] = {0, 0};
    bool lost = false;
  };
  void check(const Copy& copy) const;
  CopyError carry_out(const Flight& flight);

  Options options_;
  VirtualClock& clock_;
  Rng rng_;
  std::vector<Device> devices_;
  std::vector<Flight> flights_;
  std::map<const std::byte*, i64> memory_;  // pieces that it was told of
  i64 failures_ = 0, most_in_flight_ = 0;
};

}  // namespace stoker::test

// SimCopier: a Copier whose copies land in virtual time and move no data. Each direction of each link takes one copy after
// the other at the link's speed.
#pragma once

#include <deque>
#include <vector>

#include "scheduler/sim/virtual_clock.h"
#include "scheduler/tiers/copier.h"

namespace stoker {

class SimCopier final : public Copier {
 public:
  struct Link {
    f64 gb_per_second = 1;  // one direction
    i64 arena_bytes = 0;    // of the device at its end
  };
  SimCopier(VirtualClock& clock, std::vector<Link> links);

  i64 devices() const override { return static_cast<i64>(links_.size()); }
  i64 arena_bytes(i64 device) const override { return links_[static_cast<size_t>(device)].arena_bytes; }
  i64 capacity() const override { return 1024; }
  i64 submit(std::span<const Copy> copies) override;
  i64 poll(std::span<CopyDone> done) override;
  // Advances the clock to when the next copy lands, or by the timeout.
  bool wait(i64 timeout_ns) override;
  void add_memory(std::byte*, i64) override {}
  void remove_memory(std::byte*, i64) override {}
  std::string describe() const override { return "simulated"; }

  // GB/s of the memory that copies take now, and until when that stays so if nobody submits: later than now.
  struct Activity {
    f64 gb_per_second = 0;
    i64 until_ns = 0;
  };
  Activity activity() const;
  i64 busy_ns(i64 device, CopyDirection direction) const { return lanes_[lane(device, direction)].busy_ns; }

 private:
  struct Flight {
    u64 tag;
    i64 finish_ns;
  };
  struct Lane {  // one direction of a link
    std::deque<Flight> flights;
    i64 free_ns = 0;
    i64 busy_ns = 0;
  };
  static size_t lane(i64 device, CopyDirection direction) {
    return static_cast<size_t>(device * kCopyDirections + static_cast<i64>(direction));
  }
  i64 next_finish_ns() const;

  VirtualClock& clock_;
  std::vector<Link> links_;
  std::vector<Lane> lanes_;  // [devices, directions]
};

}  // namespace stoker

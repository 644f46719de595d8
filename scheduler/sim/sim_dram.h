// SimDram: the memory that cores and drive share. What the drive delivers is written into it first; the cores get
// the rest of its bandwidth.
#pragma once

#include "scheduler/sim/sim_disk.h"
#include "scheduler/sim/virtual_clock.h"

namespace stoker {

class SimDram {
 public:
  SimDram(VirtualClock& clock, SimDisk& disk, f64 gb_per_second, f64 ssd_gb_per_second);

  // The cores read and compute with `bytes`, at most at `cap` GB/s: advances the clock to when they have done.
  void read(i64 bytes, f64 cap);

 private:
  VirtualClock& clock_;
  SimDisk& disk_;
  f64 alone_, beside_disk_;  // GB/s
};

}  // namespace stoker

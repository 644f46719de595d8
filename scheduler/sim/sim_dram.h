// SimDram: the memory that cores, drive and links share. What the drive delivers is written into it and what the links
// carry is read from it or written into it first; the cores get the rest of its bandwidth.
#pragma once

#include "scheduler/sim/sim_copier.h"
#include "scheduler/sim/sim_disk.h"
#include "scheduler/sim/virtual_clock.h"

namespace stoker {

class SimDram {
 public:
  SimDram(VirtualClock& clock, SimDisk& disk, const SimCopier& copier, f64 gb_per_second, f64 ssd_gb_per_second);

  // The cores read and compute with `bytes`, at most at `cap` GB/s: advances the clock to when they have done.
  void read(i64 bytes, f64 cap);

 private:
  VirtualClock& clock_;
  SimDisk& disk_;
  const SimCopier& copier_;
  f64 alone_, disk_takes_;  // GB/s
};

}  // namespace stoker

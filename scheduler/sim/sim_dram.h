// SimDram: the memory that cores, drive and links share. What the drive delivers is written into it and what the links
// carry is read from it or written into it first; the cores get the rest of its bandwidth.
#pragma once

#include "scheduler/sim/sim_copier.h"
#include "scheduler/sim/sim_disk.h"
#include "scheduler/sim/virtual_clock.h"

namespace stoker {

// GB/s of weights: when memory does not hold the cores up, and with the memory to themselves (0: not known).
struct SimKernel {
  f64 most = 0, streamed = 0;
};

class SimDram {
 public:
  SimDram(VirtualClock& clock, SimDisk& disk, const SimCopier& copier, f64 gb_per_second, f64 ssd_gb_per_second);

  // The cores read and compute with `bytes`: advances the clock to when they have done. With streamed speed known, what it
  // takes more time than computing alone is the memory's, and grows as drive and links leave less of it.
  void read(i64 bytes, const SimKernel& kernel);

 private:
  f64 speed(const SimKernel& kernel, f64 left) const;

  VirtualClock& clock_;
  SimDisk& disk_;
  const SimCopier& copier_;
  f64 alone_, disk_takes_;  // GB/s
};

}  // namespace stoker

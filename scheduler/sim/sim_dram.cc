#include "scheduler/sim/sim_dram.h"

#include <algorithm>
#include <cmath>

#include "kernels/base/check.h"

namespace stoker {

// The cores keep a share of the memory whatever else goes on: for drives of unlimited speed, which stand for "everything is
// there already" and whose deliveries take no time.
constexpr f64 kCoresKeep = 1. / 8;

SimDram::SimDram(VirtualClock& clock, SimDisk& disk, const SimCopier& copier, f64 gb_per_second, f64 ssd_gb_per_second)
    : clock_(clock), disk_(disk), copier_(copier), alone_(gb_per_second), disk_takes_(ssd_gb_per_second) {
  CHECK(gb_per_second > 0);
}

// Bytes per nanosecond, when so much of the memory's bandwidth is left.
f64 SimDram::speed(const SimKernel& kernel, f64 left) const {
  if (kernel.streamed <= 0) return std::min(kernel.most, left);
  f64 computing = 1 / kernel.most, waiting = std::max(0., 1 / kernel.streamed - computing);
  return 1 / (computing + waiting * alone_ / left);
}

void SimDram::read(i64 bytes, const SimKernel& kernel) {
  CHECK(kernel.most > 0);
  f64 left = static_cast<f64>(bytes);
  for (;;) {
    SimDisk::Activity reads = disk_.activity();
    SimCopier::Activity copies = copier_.activity();
    f64 taken = copies.gb_per_second + (reads.transferring ? disk_takes_ : 0);
    f64 now = speed(kernel, std::max(alone_ - taken, alone_ * kCoresKeep));
    i64 needed = std::llround(left / now);
    i64 lasts = std::min(reads.until_ns, copies.until_ns) - clock_.now_ns();
    if (needed <= lasts) {
      clock_.advance(needed);
      return;
    }
    left -= now * static_cast<f64>(lasts);
    clock_.advance(lasts);
  }
}

}  // namespace stoker

#include "scheduler/sim/sim_dram.h"

#include <algorithm>
#include <cmath>

#include "kernels/base/check.h"

namespace stoker {

// The half is for drives of unlimited speed, which stand for "everything is there already": what they deliver takes
// no time and must not stop the cores.
SimDram::SimDram(VirtualClock& clock, SimDisk& disk, f64 gb_per_second, f64 ssd_gb_per_second)
    : clock_(clock),
      disk_(disk),
      alone_(gb_per_second),
      beside_disk_(std::max(gb_per_second - ssd_gb_per_second, gb_per_second / 2)) {
  CHECK(gb_per_second > 0);
}

void SimDram::read(i64 bytes, f64 cap) {
  CHECK(cap > 0);
  f64 left = static_cast<f64>(bytes);
  for (;;) {
    SimDisk::Activity activity = disk_.activity();
    f64 speed = std::min(cap, activity.transferring ? beside_disk_ : alone_);  // bytes per nanosecond
    i64 needed = std::llround(left / speed);
    i64 lasts = activity.until_ns - clock_.now_ns();
    if (needed <= lasts) {
      clock_.advance(needed);
      return;
    }
    left -= speed * static_cast<f64>(lasts);
    clock_.advance(lasts);
  }
}

}  // namespace stoker

#include "scheduler/sim/sim_machine.h"

#include <cmath>

namespace stoker {

f64 SimMachine::ssd_speed(i64 piece_bytes, i64 depth) const {
  auto apart = [&](const SimSsdSpeed& s) {
    auto factor = [](i64 a, i64 b) { return std::abs(std::log(static_cast<f64>(a) / static_cast<f64>(b))); };
    return factor(s.piece_bytes, piece_bytes) + factor(s.depth, depth);
  };
  auto nearest = std::min_element(ssd_speeds.begin(), ssd_speeds.end(),
                                  [&](const SimSsdSpeed& a, const SimSsdSpeed& b) { return apart(a) < apart(b); });
  return nearest == ssd_speeds.end() ? ssd_gb_per_second : nearest->gb_per_second;
}

}  // namespace stoker

// What the page at / draws: counters since the start, and where every expert is. The page asks about once a second and
// takes differences; unasked, nothing is collected.
#pragma once

#include "tools/serve/service.h"

namespace stoker {

Json live_json(const Service& service);

// A byte per expert: the two upper bits are its ExpertTier, the lower six how recently it was used: 63 in the last pass,
// 5 less with each doubling of the passes since then, 0 for longer ago and never.
std::string residency_bytes(const ResidencyView& view);

// What this machine can do at most, in bytes per second; 0: not measured.
struct MachineLimits {
  f64 disk = 0, dram = 0;
  f64 link = 0;  // of all devices, both directions together
};
// As `stoker tune` measured it; a host device's link is as fast as the command line says.
MachineLimits machine_limits(const Service& service);

}  // namespace stoker

// What the page at / draws: counters since the start, and where every expert is. The page asks about once a second and
// takes differences; unasked, nothing is collected.
#pragma once

#include "tools/serve/service.h"

namespace stoker {

Json live_json(const Service& service);

// A byte per expert: the two upper bits are its ExpertTier, the lower six how recently it was used: 63 in the last pass,
// 5 less with each doubling of the passes since then, 0 for longer ago and never.
std::string residency_bytes(const ResidencyView& view);

// Of all links of a machine, both directions together.
f64 link_gb_per_second(const SimMachine& machine);

}  // namespace stoker

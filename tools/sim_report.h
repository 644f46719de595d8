// What `stoker simulate` prints.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "scheduler/sim/simulator.h"
#include "tools/sim_setup.h"

namespace stoker {

// The first tokens, which meet an empty cache, and the others.
struct SimPhase {
  std::string_view name;
  SimTotals totals;
  i64 belady_hits = 0;
};

struct SimReport {
  const Options& options;
  const SimSetup& setup;
  std::string routing;
  bool resident_on_gpu = false;
  std::vector<SimPhase> phases;
  f64 real_seconds = 0;
};

std::string sim_text(const SimReport& report);
std::string sim_json(const SimReport& report);

}  // namespace stoker

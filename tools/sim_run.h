// Runs a simulation as the options of `stoker simulate` and `stoker plan` say.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "scheduler/sim/bounds.h"
#include "scheduler/sim/simulator.h"
#include "tools/sim_setup.h"

namespace stoker {

// The prompt, if there is one; the first tokens, which meet an empty cache or what the prompt left there; the others.
struct SimPhase {
  std::string_view name;
  SimTotals totals;
  i64 belady_hits = 0;         // in RAM and VRAM together
  i64 belady_device_hits = 0;  // in VRAM, if experts went there and back for nothing
};

struct SimReport {
  const Options& options;
  const SimSetup& setup;
  std::string routing;
  bool preloaded = false;  // all experts were in memory before the first token
  RoutingRecord record;  // the prompt's tokens first
  std::vector<Simulator::Gpu> gpus = {};
  std::string_view predictor = "none", prefetch = "off";
  f32 threshold = 0;   // least probability that is worth a read, in the end
  i64 lookahead = 1;  // layers that gates guess ahead, in the end
  std::array<ForecastScore, Predictor::kMaxDistance> forecasts{};
  std::vector<ForecastScore> layer_forecasts = {};  // [moe layers, Predictor::kMaxDistance]
  std::vector<SimPhase> phases;  // at least one; the last is the warmest

  const SimPhase* phase(std::string_view name) const;  // null: there is none
  f64 real_seconds = 0;
};

// Both must outlive the report. Throws Interrupted.
SimReport run_simulation(const Options& options, const SimSetup& setup);

// The least that any schedule of the phase's reads, of Belady's, of none would take.
struct SimBounds {
  SimBound roofline, belady, infinite;
};
SimBounds sim_bounds(const SimReport& report, const SimPhase& phase);

// The warmest phase, simulated again by those who know what comes.
struct SimForeknown {
  f64 foreseen = 0;  // tokens per second of this policy, told the experts of the next layers; 0: nothing is read
  // Of a policy that knows all of the routing, with the same scheduler, drive, links and memory: no bound, but the best that
  // was found. tokens = 0: there is nothing to decide.
  SimTotals clairvoyant;
};
SimForeknown foreknown(const SimReport& report);

f64 tokens_per_second(const SimTotals& totals);

}  // namespace stoker

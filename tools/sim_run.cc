#include "tools/sim_run.h"

#include <algorithm>
#include <numeric>

#include "kernels/base/clock.h"
#include "kernels/base/error.h"
#include "runtime/interrupted.h"
#include "scheduler/planner.h"
#include "scheduler/sim/belady.h"
#include "tools/interrupt.h"
#include "tools/terminal.h"

namespace stoker {

namespace {

constexpr i64 kColdTokens = 64;

// Tokens [from, to) as a phase; none when there are no such tokens.
void run_phase(Simulator& simulator, const RoutingRecord& record, const std::vector<i64>& belady, std::string_view name,
               i64 from, i64 to, std::vector<SimPhase>& phases) {
  if (from >= to) return;
  SimTotals before = simulator.totals();
  for (i64 token = from; token < to; token++) {
    if (interrupt_flag().load()) throw Interrupted();
    simulator.run_token(record, token);
    show_progress("simulating", token + 1, record.tokens(), ProgressUnit::tokens);
  }
  phases.push_back({name, simulator.totals() - before,
                    std::accumulate(belady.begin() + from, belady.begin() + to, i64{0})});
}

}  // namespace

SimReport run_simulation(const Options& options, const SimSetup& setup) {
  const ExpertTable& table = setup.table;
  std::unique_ptr<RoutingSource> source = sim_routing(options, table);
  std::string warning = plan_warning(table, setup.plan);
  if (!warning.empty()) note("{}", warning);
  i64 begin = steady_clock().now_ns();
  RoutingRecord record = record_routing(*source, table.moe_layers(), table.top_k(), options.sim_tokens);
  if (record.tokens() == 0) fail("--routing {}: has no tokens", options.sim_routing);

  Simulator simulator(setup.machine, table, setup.plan, setup.resident, sim_policy(options, setup));
  std::vector<i64> belady = belady_hits(record, table.experts_per_layer(), setup.plan);
  bool preloaded = setup.plan.all_resident && !options.no_preload;
  if (preloaded) {
    simulator.preload();
    std::fill(belady.begin(), belady.end(), table.moe_layers() * table.top_k());
  }
  SimReport report{.options = options, .setup = setup, .routing = source->describe(),
                   .resident_on_gpu = simulator.resident_on_gpu(), .phases = {}};
  i64 cold = preloaded ? 0 : std::min(kColdTokens, record.tokens());
  run_phase(simulator, record, belady, "cold", 0, cold, report.phases);
  run_phase(simulator, record, belady, "warm", cold, record.tokens(), report.phases);
  clear_progress();
  report.real_seconds = static_cast<f64>(steady_clock().now_ns() - begin) * 1e-9;
  if (options.verbose)
    note("{} tokens simulated in {:.2f} s: {:.0f} per second", record.tokens(), report.real_seconds,
         static_cast<f64>(record.tokens()) / report.real_seconds);
  return report;
}

SimBounds sim_bounds(const SimReport& r, const SimPhase& phase) {
  const SimTotals& t = phase.totals;
  auto at = [&](f64 bytes) { return bound(r.setup.machine, r.setup.table, r.setup.resident, bytes); };
  f64 expert_bytes = static_cast<f64>(t.expert_bytes) / static_cast<f64>(t.stats.requests);
  f64 missed = static_cast<f64>(t.stats.requests - phase.belady_hits) / static_cast<f64>(t.tokens);
  return {.roofline = at(static_cast<f64>(t.stats.bytes_read) / static_cast<f64>(t.tokens)),
          .belady = at(missed * expert_bytes),
          .infinite = at(0)};
}

f64 tokens_per_second(const SimTotals& t) { return static_cast<f64>(t.tokens) / static_cast<f64>(t.total_ns) * 1e9; }

}  // namespace stoker

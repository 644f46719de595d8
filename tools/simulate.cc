// stoker simulate: how fast a model would decode on a machine that is not here.
#include <algorithm>
#include <numeric>

#include "kernels/base/clock.h"
#include "kernels/base/error.h"
#include "runtime/interrupted.h"
#include "scheduler/planner.h"
#include "scheduler/sim/belady.h"
#include "scheduler/sim/simulator.h"
#include "tools/commands.h"
#include "tools/interrupt.h"
#include "tools/sim_report.h"
#include "tools/sim_setup.h"
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

int simulate_command(const Options& options) {
  SimSetup setup = sim_setup(options);
  std::unique_ptr<RoutingSource> source = sim_routing(options, setup.table);
  std::string warning = plan_warning(setup.table, setup.plan);
  if (!warning.empty()) note("{}", warning);
  i64 begin = steady_clock().now_ns();
  RoutingRecord record = record_routing(*source, setup.table.moe_layers(), setup.table.top_k(), options.sim_tokens);
  if (record.tokens() == 0) fail("--routing {}: has no tokens", options.routing);

  Simulator simulator(setup.machine, setup.table, setup.plan, setup.resident, sim_policy(options, setup));
  std::vector<i64> belady = belady_hits(record, setup.table.experts_per_layer(), setup.plan);
  bool preloaded = setup.plan.all_resident && !options.no_preload;
  if (preloaded) {
    simulator.preload();
    i64 all = setup.table.moe_layers() * setup.table.top_k();
    std::fill(belady.begin(), belady.end(), all);
  }
  SimReport report{.options = options, .setup = setup, .routing = source->describe(),
                   .resident_on_gpu = simulator.resident_on_gpu(), .phases = {}};
  i64 cold = preloaded ? 0 : std::min(kColdTokens, record.tokens());
  run_phase(simulator, record, belady, "cold", 0, cold, report.phases);
  run_phase(simulator, record, belady, "warm", cold, record.tokens(), report.phases);
  clear_progress();
  report.real_seconds = static_cast<f64>(steady_clock().now_ns() - begin) * 1e-9;
  print(options.json ? sim_json(report) : sim_text(report));
  if (options.verbose)
    note("{} tokens simulated in {:.2f} s: {:.0f} per second", record.tokens(), report.real_seconds,
         static_cast<f64>(record.tokens()) / report.real_seconds);
  return 0;
}

}  // namespace stoker

#include "tools/sim_run.h"

#include <algorithm>
#include <numeric>

#include "kernels/base/clock.h"
#include "kernels/base/error.h"
#include "runtime/interrupted.h"
#include "scheduler/planner.h"
#include "scheduler/sim/belady.h"
#include "tools/engine_setup.h"
#include "tools/interrupt.h"
#include "tools/terminal.h"

namespace stoker {

namespace {

constexpr i64 kColdTokens = 64;

// Tokens [from, to) as a phase; none when there are no such tokens.
void run_phase(Simulator& simulator, const std::vector<i64>& belady, std::string_view name, i64 from, i64 to,
               SimReport& report) {
  if (from >= to) return;
  SimTotals before = simulator.totals();
  for (i64 token = from; token < to; token++) {
    if (interrupt_flag().load()) throw Interrupted();
    simulator.run_token(report.record, token);
    show_progress("simulating", token + 1, report.record.tokens(), ProgressUnit::tokens);
  }
  report.phases.push_back({name, simulator.totals() - before,
                           std::accumulate(belady.begin() + from, belady.begin() + to, i64{0})});
}

void run_phases(Simulator& simulator, SimReport& report) {
  const ExpertTable& table = report.setup.table;
  i64 tokens = report.record.tokens(), cold = report.preloaded ? 0 : std::min(kColdTokens, tokens);
  std::vector<i64> belady;
  if (report.preloaded) {
    simulator.preload();
    belady.assign(static_cast<size_t>(tokens), table.moe_layers() * table.top_k());
  } else {
    belady = belady_hits(report.record, table.experts_per_layer(), report.setup.plan);
  }
  run_phase(simulator, belady, "cold", 0, cold, report);
  run_phase(simulator, belady, "warm", cold, tokens, report);
  clear_progress();
}

}  // namespace

SimReport run_simulation(const Options& options, const SimSetup& setup) {
  const ExpertTable& table = setup.table;
  std::unique_ptr<RoutingSource> source = sim_routing(options, setup);
  std::string warning = plan_warning(table, setup.plan);
  if (!warning.empty()) note("{}", warning);
  i64 begin = steady_clock().now_ns();
  SimReport report{.options = options, .setup = setup, .routing = source->describe(),
                   .preloaded = setup.plan.all_resident && !options.no_preload, .record = {}, .phases = {}};
  PredictorKind kind = report.preloaded ? PredictorKind::none : predictor_kind(options);
  EmulatedLookahead gates(setup.routing, {.quality = gate_quality(kind), .distances = options.lookahead,
                                          .seed = static_cast<u64>(options.synth_seed)});
  report.record = record_routing(*source, table.moe_layers(), table.top_k(), options.sim_tokens,
                                 is_gate(kind) ? &gates : nullptr);
  if (report.record.tokens() == 0) fail("--routing {}: has no tokens", options.sim_routing);

  Simulator simulator(setup.machine, table, setup.plan, setup.resident, sim_policy(options, setup));
  if (kind != PredictorKind::none)
    simulator.look_ahead({.kind = kind, .distance = options.lookahead}, gates, prefetch_mode(options));
  run_phases(simulator, report);
  if (simulator.predictor() != nullptr) {
    report.predictor = name(kind);
    report.prefetch = name(simulator.governor().state());
    report.threshold = simulator.governor().threshold();
    for (i64 d = 1; d <= Predictor::kMaxDistance; d++)
      report.forecasts[static_cast<size_t>(d - 1)] = simulator.predictor()->score(d);
  }
  report.resident_on_gpu = simulator.resident_on_gpu();
  report.real_seconds = static_cast<f64>(steady_clock().now_ns() - begin) * 1e-9;
  if (options.verbose)
    note("{} tokens simulated in {:.2f} s: {:.0f} per second", report.record.tokens(), report.real_seconds,
         static_cast<f64>(report.record.tokens()) / report.real_seconds);
  return report;
}

f64 foreseen_tokens_per_second(const SimReport& report) {
  const SimSetup& setup = report.setup;
  EmulatedLookahead gates(setup.routing, {.quality = kPerfectQuality, .distances = Predictor::kMaxDistance});
  TraceRecord known;
  for (i64 token = 0; token < report.record.tokens(); token++) {
    known.ids.clear();
    for (i64 layer = 0; layer < report.record.moe_layers; layer++)
      for (const RoutedExpert& route : report.record.layer(token, layer))
        known.ids.push_back(static_cast<u16>(route.expert.value));
    gates.add(known);
  }
  Simulator simulator(setup.machine, setup.table, setup.plan, setup.resident, sim_policy(report.options, setup));
  simulator.look_ahead({.kind = PredictorKind::gate, .distance = Predictor::kMaxDistance}, gates, PrefetchMode::on);
  SimReport foreseen{.options = report.options, .setup = setup, .routing = report.routing, .preloaded = report.preloaded,
                     .record = report.record, .phases = {}};
  run_phases(simulator, foreseen);
  return tokens_per_second(foreseen.phases.back().totals);
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

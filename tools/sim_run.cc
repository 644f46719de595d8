#include "tools/sim_run.h"

#include <algorithm>
#include <numeric>

#include "kernels/base/clock.h"
#include "kernels/base/error.h"
#include "runtime/interrupted.h"
#include "scheduler/planner.h"
#include "scheduler/sim/belady.h"
#include "scheduler/sim/clairvoyant_cache.h"
#include "tools/engine_setup.h"
#include "tools/interrupt.h"
#include "tools/terminal.h"

namespace stoker {

namespace {

constexpr i64 kColdTokens = 64;

void append(RoutingRecord& record, const RoutingRecord& more) {
  record.routes.insert(record.routes.end(), more.routes.begin(), more.routes.end());
}

// Hits per token of a cache that knows the future: of everything in memory, and of VRAM alone.
struct Belady {
  std::vector<i64> all, devices;
};

Belady belady_of(const SimReport& report) {
  const ExpertTable& table = report.setup.table;
  Plan all = report.setup.plan, devices = report.setup.plan;
  for (size_t c = 0; c < all.classes.size(); c++) {
    devices.classes[c].slots = 0;
    for (const DevicePlan& d : report.setup.plan.devices) devices.classes[c].slots += d.slots[c];
    all.classes[c].slots += devices.classes[c].slots;
  }
  Belady belady;
  if (report.preloaded)
    belady.all.assign(static_cast<size_t>(report.record.tokens()), table.moe_layers() * table.top_k());
  else
    belady.all = belady_hits(report.record, table.experts_per_layer(), all);
  belady.devices = belady_hits(report.record, table.experts_per_layer(), devices);
  return belady;
}

// Tokens [from, to) as a phase, so many together; none when there are no such tokens.
void run_phase(Simulator& simulator, const Belady& belady, std::string_view name, i64 from, i64 to, i64 together, SimReport& report) {
  if (from >= to) return;
  SimTotals before = simulator.totals();
  for (i64 token = from; token < to; token += together) {
    if (interrupt_flag().load()) throw Interrupted();
    i64 count = std::min(together, to - token);
    together == 1 ? simulator.run_token(report.record, token) : simulator.run_piece(report.record, token, count);
    show_progress("simulating", token + count, report.record.tokens(), ProgressUnit::tokens);
  }
  auto sum = [&](const std::vector<i64>& hits) { return std::accumulate(hits.begin() + from, hits.begin() + to, i64{0}); };
  report.phases.push_back({name, simulator.totals() - before, sum(belady.all), sum(belady.devices)});
}

void run_phases(Simulator& simulator, SimReport& report) {
  // With all experts in RAM nothing warms up; what is best in VRAM is still found out.
  i64 tokens = report.record.tokens(), prompt = report.options.sim_prompt;
  i64 cold = report.preloaded && report.setup.plan.devices.empty() ? 0 : std::min(kColdTokens, tokens - prompt);
  if (report.preloaded) simulator.preload();
  Belady belady = belady_of(report);
  run_phase(simulator, belady, "prompt", 0, prompt, std::max<i64>(2, report.setup.piece), report);
  run_phase(simulator, belady, "cold", prompt, prompt + cold, 1, report);
  run_phase(simulator, belady, "warm", prompt + cold, tokens, 1, report);
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
  EmulatedLookahead gates(setup.routing, {.quality = gate_quality(kind), .distances = Predictor::kMaxDistance,
                                          .seed = static_cast<u64>(options.synth_seed)});
  // Nobody looks ahead in a prompt.
  report.record = record_routing(*source, table.moe_layers(), table.top_k(), options.sim_prompt);
  append(report.record, record_routing(*source, table.moe_layers(), table.top_k(), options.sim_tokens, is_gate(kind) ? &gates : nullptr));
  if (report.record.tokens() <= options.sim_prompt)
    fail("--routing {}: has {} tokens, none to generate", options.sim_routing, report.record.tokens());

  Simulator simulator(setup.machine, table, setup.plan, setup.resident, setup.homes, sim_policy(options, setup));
  if (kind != PredictorKind::none)
    simulator.look_ahead({.kind = kind, .distance = options.lookahead}, gates, governor_options(options));
  if (!report.preloaded && !options.no_preload) simulator.fill_empty_slots();
  run_phases(simulator, report);
  if (simulator.predictor() != nullptr) {
    report.predictor = name(kind);
    report.prefetch = name(simulator.governor().state());
    report.threshold = simulator.governor().threshold();
    report.lookahead = options.lookahead > 0 ? options.lookahead : simulator.governor().lookahead();
    for (i64 d = 1; d <= Predictor::kMaxDistance; d++)
      report.forecasts[static_cast<size_t>(d - 1)] = simulator.predictor()->score(d);
    std::span<const ForecastScore> layers = simulator.predictor()->layer_scores();
    report.layer_forecasts.assign(layers.begin(), layers.end());
  }
  for (size_t d = 0; d < setup.plan.devices.size(); d++) report.gpus.push_back(simulator.gpu(static_cast<i64>(d)));
  report.real_seconds = static_cast<f64>(steady_clock().now_ns() - begin) * 1e-9;
  if (options.verbose)
    note("{} tokens simulated in {:.2f} s: {:.0f} per second", report.record.tokens(), report.real_seconds,
         static_cast<f64>(report.record.tokens()) / report.real_seconds);
  return report;
}

const SimPhase* SimReport::phase(std::string_view name) const {
  auto it = std::find_if(phases.begin(), phases.end(), [&](const SimPhase& p) { return p.name == name; });
  return it == phases.end() ? nullptr : &*it;
}

namespace {

// The same tokens again, by another simulator.
SimTotals warmest_phase(Simulator& simulator, const SimReport& report) {
  if (!report.preloaded && !report.options.no_preload) simulator.fill_empty_slots();
  SimReport run{.options = report.options, .setup = report.setup, .routing = report.routing, .preloaded = report.preloaded,
                .record = report.record, .phases = {}};
  run_phases(simulator, run);
  return run.phases.back().totals;
}

// An exchange's time of the memory that the cores compute from, in units of what a use on a device is faster than there.
f64 exchange_cost(const SimSetup& setup) {
  f64 devices = 0;
  for (const DevicePlan& d : setup.plan.devices) devices = std::max(devices, d.gb_per_second);
  f64 saved = devices > 0 ? 1 / setup.plan.cpu_gb_per_second - 1 / devices : 0;
  return saved > 0 ? 2 / setup.machine.dram_gb_per_second / saved : 0;
}

f64 foreseen(const SimReport& report) {
  const SimSetup& setup = report.setup;
  EmulatedLookahead gates(setup.routing, {.quality = kPerfectQuality, .distances = Predictor::kMaxDistance});
  TraceRecord known;
  for (i64 token = report.options.sim_prompt; token < report.record.tokens(); token++) {
    known.ids.clear();
    for (i64 layer = 0; layer < report.record.moe_layers; layer++)
      for (const RoutedExpert& route : report.record.layer(token, layer))
        known.ids.push_back(static_cast<u16>(route.expert.value));
    gates.add(known);
  }
  Simulator simulator(setup.machine, setup.table, setup.plan, setup.resident, setup.homes, sim_policy(report.options, setup));
  simulator.look_ahead({.kind = PredictorKind::gate, .distance = Predictor::kMaxDistance}, gates, {PrefetchMode::on});
  return tokens_per_second(warmest_phase(simulator, report));
}

SimTotals clairvoyant(const SimReport& report) {
  const SimSetup& setup = report.setup;
  i64 places = 0, experts = setup.table.experts_per_layer();
  for (size_t d = 0; d < setup.plan.devices.size(); d++) places += setup.plan.device_experts(d);
  Future future(report.record, experts, places, exchange_cost(setup));
  Simulator simulator(setup.machine, setup.table, setup.plan, setup.resident, setup.homes,
                      std::make_unique<ClairvoyantCache>(setup.plan, experts, future));
  simulator.foresee(future);
  return warmest_phase(simulator, report);
}

}  // namespace

SimForeknown foreknown(const SimReport& report) {
  SimForeknown known;
  if (!report.preloaded) known.foreseen = foreseen(report);
  if (!report.preloaded || !report.setup.plan.devices.empty()) known.clairvoyant = clairvoyant(report);
  return known;
}

SimBounds sim_bounds(const SimReport& r, const SimPhase& phase) {
  const SimTotals& t = phase.totals;
  auto at = [&](const SimTraffic& traffic) { return bound(r.setup.machine, r.setup.table, r.setup.resident, r.setup.homes, traffic); };
  auto per_token = [&](i64 n) { return static_cast<f64>(n) / static_cast<f64>(t.tokens); };
  f64 expert_bytes = static_cast<f64>(t.expert_bytes) / static_cast<f64>(t.stats.requests);
  f64 device_bytes = per_token(t.device_bytes);
  return {.roofline = at({.ssd_bytes = per_token(t.stats.bytes_read), .device_bytes = device_bytes,
                          .copied_bytes = per_token(t.stats.uploaded_bytes + t.stats.downloaded_bytes)}),
          .belady = at({.ssd_bytes = per_token(t.stats.requests - phase.belady_hits) * expert_bytes,
                        .device_bytes = per_token(phase.belady_device_hits) * expert_bytes}),
          .infinite = at({.device_bytes = per_token(phase.belady_device_hits) * expert_bytes})};
}

f64 tokens_per_second(const SimTotals& t) { return static_cast<f64>(t.tokens) / static_cast<f64>(t.total_ns) * 1e9; }

}  // namespace stoker

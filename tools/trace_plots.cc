#include "tools/trace_plots.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cmath>

#include "runtime/interrupted.h"
#include "scheduler/policy/make_policy.h"
#include "scheduler/sim/cache_replay.h"
#include "tools/interrupt.h"
#include "tools/terminal.h"

namespace stoker {

namespace {

constexpr std::array<i64, 10> kPercents = {4, 8, 12, 20, 30, 40, 50, 60, 75, 90};

void check_interrupt() {
  if (interrupt_flag().load()) throw Interrupted();
}

// Those that need no file to begin with.
size_t learning_policies() {
  auto rows = policy_rows();
  return static_cast<size_t>(std::count_if(rows.begin(), rows.end(), [](const PolicyRow& p) { return !p.needs_popularity; }));
}

}  // namespace

LineChart hit_rate_chart(const RoutingTrace& trace) {
  LineChart chart{.title = fmt::format("{}: experts found in memory", trace.name),
                  .subtitle = fmt::format("{} tokens, {} layers, {} of {} experts; first reads are misses", trace.tokens(),
                                          trace.layers, trace.top_k, trace.experts),
                  .x_label = "experts that have a slot, %",
                  .y_label = "hit rate, %",
                  .series = {},
                  .y_max = 100};
  i64 done = 0, all = static_cast<i64>(kPercents.size() * (learning_policies() + 1));
  auto curve = [&](const std::string& name, bool is_bound, auto&& hits_of) {
    ChartSeries& series = chart.series.emplace_back(ChartSeries{name, {}, is_bound});
    for (i64 percent : kPercents) {
      check_interrupt();
      show_progress("replaying", ++done, all, ProgressUnit::steps);
      i64 slots = std::lround(static_cast<f64>(trace.experts * percent) / 100);
      if (slots < trace.top_k) continue;
      series.points.emplace_back(static_cast<f64>(percent), hit_percent(trace, hits_of(slots), 0, trace.tokens()));
    }
  };
  curve("Belady", true, [&](i64 slots) { return replay_belady(trace, Budget::global, slots); });
  for (const PolicyRow& policy : policy_rows())
    if (!policy.needs_popularity)
      curve(std::string(policy.name), false,
            [&](i64 slots) { return replay(trace, Budget::global, slots, std::string(policy.name)); });
  clear_progress();
  return chart;
}

HeatMap residency_map(const RoutingTrace& trace, i64 first_layer, i64 slots) {
  std::string policy(policy_rows()[0].name);
  HeatMap map{.title = fmt::format("{}: which experts were in memory", trace.name),
              .subtitle = fmt::format("{} tokens, {} slots per layer of {} experts, policy {}", trace.tokens(), slots,
                                      trace.experts, policy),
              .x_label = "expert",
              .y_label = "layer",
              .value_label = "of the tokens",
              .first_row = first_layer,
              .columns = trace.experts,
              .values = std::vector<f64>(static_cast<size_t>(trace.layers * trace.experts))};
  CacheReplay replay(trace, Budget::global, slots, policy);
  for (i64 t = 0; t < trace.tokens(); t++) {
    check_interrupt();
    show_progress("replaying", t, trace.tokens(), ProgressUnit::tokens);
    for (i64 l = 0; l < trace.layers; l++) replay.step(t, l);
    for (i64 l = 0; l < trace.layers; l++)
      for (i64 e = 0; e < trace.experts; e++)
        map.values[static_cast<size_t>(l * trace.experts + e)] += replay.resident(l, e) ? 1 : 0;
  }
  clear_progress();
  for (f64& value : map.values) value /= static_cast<f64>(trace.tokens());
  return map;
}

}  // namespace stoker

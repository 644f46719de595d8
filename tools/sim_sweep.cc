#include "tools/sim_sweep.h"

#include <fmt/format.h>

#include <algorithm>
#include <nlohmann/json.hpp>

#include "kernels/base/check.h"
#include "scheduler/planner.h"
#include "tools/plot/svg_chart.h"
#include "tools/sim_report.h"
#include "tools/sim_run.h"
#include "tools/terminal.h"
#include "tools/text_file.h"

namespace stoker {

namespace {

constexpr i64 kBudgets = 9;

struct Row {
  i64 ram_bytes;
  f64 cold, warm;  // tokens per second; cold is 0 when nothing is read
  f64 hit_rate;
  SimBounds bounds;
  nlohmann::ordered_json json;
};

Row simulate_with(const Options& options, i64 ram_bytes) {
  Options o = options;
  o.ram.bytes = ram_bytes;
  SimSetup setup = sim_setup(o);
  SimReport report = run_simulation(o, setup);
  const SimPhase& last = report.phases.back();
  const SchedulerStats& stats = last.totals.stats;
  const SimPhase* cold = &last == report.phase("cold") ? nullptr : report.phase("cold");
  return {.ram_bytes = ram_bytes,
          .cold = cold != nullptr ? tokens_per_second(cold->totals) : 0,
          .warm = tokens_per_second(last.totals),
          .hit_rate = static_cast<f64>(stats.hits + stats.device_hits) / static_cast<f64>(std::max<i64>(1, stats.requests)),
          .bounds = sim_bounds(report, last),
          .json = nlohmann::ordered_json::parse(sim_json(report, {}))};
}

LineChart chart_of(const SimSetup& setup, const std::string& policy, const std::vector<Row>& rows) {
  bool small = rows.back().ram_bytes < 4 * kGiB;
  LineChart chart{.title = fmt::format("{}: speed by RAM (simulated)", setup.model),
                  .subtitle = fmt::format("{}; policy {}", setup.machine.name, policy),
                  .x_label = small ? "RAM for experts, MiB" : "RAM for experts, GiB",
                  .y_label = "tokens per second",
                  .series = {}};
  auto curve = [&](const char* name, bool is_bound, auto&& value) {
    ChartSeries& series = chart.series.emplace_back(ChartSeries{name, {}, is_bound});
    for (const Row& row : rows) {
      f64 y = value(row);
      if (y > 0) series.points.emplace_back(static_cast<f64>(row.ram_bytes) / static_cast<f64>(small ? kMiB : kGiB), y);
    }
    if (series.points.empty()) chart.series.pop_back();
  };
  curve("all overlapped", true, [](const Row& r) { return r.bounds.roofline.tokens_per_second(); });
  curve("warm", false, [](const Row& r) { return r.warm; });
  curve("first 64 tokens", false, [](const Row& r) { return r.cold; });
  return chart;
}

std::string table(const SimSetup& setup, const std::vector<Row>& rows) {
  std::string text = fmt::format("simulated: {} on {}\n{:>10}{:>14}{:>8}{:>12}{:>16}\n", setup.model, setup.machine.name, "RAM",
                                 "tokens/s warm", "hits", "first 64", "all overlapped");
  for (const Row& r : rows)
    text += fmt::format("{:>10}{:>14.2f}{:>7.1f}%{:>12}{:>16.2f}\n", human_bytes(r.ram_bytes), r.warm, 100 * r.hit_rate,
                        r.cold > 0 ? fmt::format("{:.2f}", r.cold) : "-", r.bounds.roofline.tokens_per_second());
  return text;
}

}  // namespace

int sweep_ram(const Options& o) {
  i64 from = 0, to = 0;
  CHECK(parse_ram_range(o.sweep_ram, from, to));  // validated with the options
  Options first = o;
  first.ram.bytes = from;
  SimSetup setup = sim_setup(first);
  to = std::max(from, std::min(to, full_budget(setup.table, setup.plan.alignment)));
  std::vector<Row> rows;
  for (i64 i = 0; i < kBudgets; i++) {
    i64 ram = from + (to - from) * i / (kBudgets - 1);
    if (rows.empty() || ram > rows.back().ram_bytes) rows.push_back(simulate_with(o, ram));
  }
  if (!o.plot.empty()) write_text_file(o.plot, svg(chart_of(setup, o.policy, rows)));
  if (!o.json) {
    print(table(setup, rows));
    return 0;
  }
  nlohmann::ordered_json json = nlohmann::ordered_json::array();
  for (const Row& r : rows) json.push_back(r.json);
  print(json.dump(2) + "\n");
  return 0;
}

}  // namespace stoker

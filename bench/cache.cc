// bench/cache: residency policies on routing traces of real models. One token after the other goes through the policy
// objects of the engine; the share of wanted experts that were in memory is printed per policy and capacity, beside
// Belady's optimum, which knows the future. Nothing is read or computed: a hit rate is not a speed.
//
// Sequences follow each other without a reset, and first reads count as misses. `--budget layer` gives every layer its
// own slots, `global` all of them together, as the engine does.
#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <cmath>
#include <string>
#include <vector>

#include "bench/routing_traces.h"
#include "kernels/base/error.h"
#include "scheduler/policy/make_policy.h"
#include "scheduler/sim/cache_replay.h"

using namespace stoker;

namespace {

struct Settings {
  std::string data;
  std::vector<i64> capacities = {12, 20, 30, 50, 66};  // percent
  std::vector<std::string> policies;
  std::string budget = "both";
  i64 tokens = 1 << 30;
};

constexpr i64 kCold = 64;      // tokens
constexpr i64 kWindow = 1024;  // tokens after a change of subject

i64 slots_per_layer(const RoutingTrace& trace, i64 percent) {
  return std::max(trace.top_k, static_cast<i64>(std::lround(static_cast<f64>(trace.experts * percent) / 100)));
}

struct Row {
  std::string policy;
  std::vector<f64> hits, cold;  // [capacities] percent of all tokens, of the first ones
};

void print_row(const Row& row, const Row& best) {
  std::string line = fmt::format("  {:<12}", row.policy);
  for (f64 hit : row.hits) line += fmt::format("{:7.1f}", hit);
  line += "   |";
  for (size_t i = 0; i < row.hits.size(); i++) line += fmt::format("{:7.1f}", 100 * row.hits[i] / best.hits[i]);
  line += "   |";
  for (f64 hit : row.cold) line += fmt::format("{:7.1f}", hit);
  fmt::print("{}\n", line);
}

std::vector<Row> measure(const Settings& s, const RoutingTrace& trace, Budget budget) {
  std::vector<Row> rows;
  auto row = [&](const std::string& name, auto&& run) {
    Row& r = rows.emplace_back(Row{name, {}, {}});
    for (i64 percent : s.capacities) {
      TokenHits hits = run(slots_per_layer(trace, percent));
      r.hits.push_back(hit_percent(trace, hits, 0, trace.tokens()));
      r.cold.push_back(hit_percent(trace, hits, 0, kCold));
    }
  };
  row("Belady", [&](i64 slots) { return replay_belady(trace, budget, slots); });
  for (const std::string& policy : s.policies)
    row(policy, [&](i64 slots) { return replay(trace, budget, slots, policy); });
  return rows;
}

void print_table(const Settings& s, const std::string& title, const std::vector<Row>& rows) {
  fmt::print("{}\n  {:<12}", title, "");
  for (const char* part : {" % hits", "% of Belady", "% hits, first 64"})
    fmt::print("{:<{}}", part, 7 * s.capacities.size() + 4);
  fmt::print("\n  {:<12}", "slots, %");
  for (int part = 0; part < 3; part++) {
    for (i64 percent : s.capacities) fmt::print("{:7}", percent);
    fmt::print("{}", part < 2 ? "   |" : "\n");
  }
  for (const Row& r : rows) print_row(r, rows[0]);
  fmt::print("\n");
}

// The mean over traces of equal importance.
std::vector<Row> mean(const std::vector<std::vector<Row>>& tables) {
  std::vector<Row> rows = tables[0];
  for (size_t r = 0; r < rows.size(); r++)
    for (size_t i = 0; i < rows[r].hits.size(); i++) {
      rows[r].hits[i] = rows[r].cold[i] = 0;
      for (const std::vector<Row>& table : tables) {
        rows[r].hits[i] += table[r].hits[i] / static_cast<f64>(tables.size());
        rows[r].cold[i] += table[r].cold[i] / static_cast<f64>(tables.size());
      }
    }
  return rows;
}

// What the past costs: hits some time after a change of subject, less those of a cache that never saw another.
void print_changes(const Settings& s, const std::vector<RoutingTrace>& traces, Budget budget) {
  fmt::print("After a change of subject without a restart: % hits of tokens {} to {}, and how many points more than with a "
             "cache that saw only the second.\n", kCold, kWindow);
  for (const RoutingTrace& a : traces)
    for (const RoutingTrace& b : traces) {
      bool fit = a.layers == b.layers && a.experts == b.experts && a.top_k == b.top_k;
      if (&a == &b || !fit) continue;
      for (const std::string& policy : s.policies) {
        std::string line = fmt::format("  {:<20}{:<12}", a.name + " > " + b.name, policy);
        RoutingTrace second = b.first(kWindow), both = a.then(second);
        for (i64 percent : s.capacities) {
          i64 slots = slots_per_layer(b, percent);
          f64 after = hit_percent(both, replay(both, budget, slots, policy), a.tokens() + kCold, a.tokens() + kWindow);
          f64 alone = hit_percent(second, replay(second, budget, slots, policy), kCold, kWindow);
          line += fmt::format("{:7.1f} ({:+.1f})", after, after - alone);
        }
        fmt::print("{}\n", line);
      }
    }
  fmt::print("\n");
}

void run(const Settings& s) {
  std::vector<RoutingTrace> traces = read_routing_traces(s.data);
  for (RoutingTrace& trace : traces) trace = trace.first(s.tokens);
  for (Budget budget : {Budget::per_layer, Budget::global}) {
    const char* name = budget == Budget::global ? "global" : "layer";
    if (s.budget != "both" && s.budget != name) continue;
    std::vector<std::vector<Row>> tables;
    for (const RoutingTrace& t : traces) {
      tables.push_back(measure(s, t, budget));
      print_table(s, fmt::format("{}: {} tokens, {} layers, {} of {} experts; budget: {}", t.name, t.tokens(), t.layers,
                                 t.top_k, t.experts, name), tables.back());
    }
    print_table(s, fmt::format("Mean of {} traces; budget: {}", traces.size(), name), mean(tables));
    print_changes(s, traces, budget);
  }
}

}  // namespace

int main(int argc, char** argv) {
  Settings s;
  CLI::App app{"hit rates of residency policies on routing traces of real models"};
  app.add_option("--data", s.data, "folder with traces: NAME.tar.xz of ESFT, NAME.route.csv.gz of BigMoeOnEdge")
      ->required();
  app.add_option("--capacity", s.capacities, "slots, percent of the experts")->delimiter(',')->check(CLI::Range(1, 100));
  app.add_option("--policy", s.policies, "which ones (default: all)")->delimiter(',');
  app.add_option("--budget", s.budget, "whose slots")->check(CLI::IsMember({"layer", "global", "both"}));
  app.add_option("--tokens", s.tokens, "most tokens of a trace")->check(CLI::PositiveNumber);
  CLI11_PARSE(app, argc, argv);
  try {
    if (s.policies.empty())
      for (const PolicyRow& row : policy_rows())
        if (!row.needs_popularity) s.policies.emplace_back(row.name);
    run(s);
  } catch (const Error& error) {
    fmt::print(stderr, "error: {}\n", error.what());
    return 1;
  }
}

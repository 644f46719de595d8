#include "tools/tune/search.h"

#include <fmt/format.h>

#include <algorithm>

#include "runtime/interrupted.h"
#include "scheduler/policy/make_policy.h"
#include "scheduler/sim/routing_trace.h"
#include "scheduler/sim/simulator.h"
#include "scheduler/trace/trace_reader.h"
#include "tools/interrupt.h"
#include "tools/sim_run.h"
#include "tools/terminal.h"

namespace stoker {

namespace {

RoutingRecord record_of(const std::string& path) {
  TraceReader reader(path);
  RoutingTrace trace = read_routing_trace(reader);
  RoutingRecord record{.moe_layers = trace.layers, .top_k = trace.top_k, .routes = {}};
  for (size_t i = 0; i < trace.ids.size(); i++) record.routes.push_back({ExpertId(trace.ids[i]), trace.weights[i]});
  for (auto layer = record.routes.begin(); layer != record.routes.end(); layer += trace.top_k)
    std::sort(layer, layer + trace.top_k,
              [](const RoutedExpert& a, const RoutedExpert& b) { return a.expert.value < b.expert.value; });
  return record;
}

// Tokens per second after the first quarter, which fills the cache.
f64 simulated_speed(const Options& options, const SimSetup& setup, const RoutingRecord& record) {
  Simulator simulator(setup.machine, setup.table, setup.plan, setup.resident, sim_policy(options, setup));
  SimTotals filled;
  for (i64 token = 0; token < record.tokens(); token++) {
    if (interrupt_flag().load()) throw Interrupted();
    if (token == record.tokens() / 4) filled = simulator.totals();
    simulator.run_token(record, token);
  }
  return tokens_per_second(simulator.totals() - filled);
}

}  // namespace

std::string Candidate::describe() const {
  std::string guess = options.prefetch == "off"
                          ? std::string("no prefetch")
                          : fmt::format("{} {} ahead, prefetch {}", options.predictor, options.lookahead, options.prefetch);
  return fmt::format("{}, {}; {} reads of {} KiB", options.policy, guess, options.ring_depth, options.piece.bytes / kKiB);
}

std::vector<Setting> Candidate::settings() const {
  return {{"policy", options.policy},
          {"predictor", options.predictor},
          {"lookahead", fmt::format("{}", options.lookahead)},
          {"prefetch", options.prefetch},
          {"ring-depth", fmt::format("{}", options.ring_depth)},
          {"piece", fmt::format("{}KiB", options.piece.bytes / kKiB)}};
}

std::vector<Candidate> search_policies(const SearchRequest& request) {
  Options options = request.options;
  options.machine = request.machine;
  SimSetup setup = sim_setup(options);
  RoutingRecord record = record_of(request.routing);
  std::vector<Candidate> candidates;
  i64 done = 0, all = static_cast<i64>(policy_rows().size());
  for (const PolicyRow& policy : policy_rows()) {
    show_progress("simulating", ++done, all, ProgressUnit::steps);
    if (policy.needs_popularity) continue;
    Candidate c{.options = request.options};
    c.options.policy = options.policy = policy.name;
    c.simulated_tokens_per_second = simulated_speed(options, setup, record);
    candidates.push_back(c);
  }
  clear_progress();
  std::stable_sort(candidates.begin(), candidates.end(), [](const Candidate& a, const Candidate& b) {
    return a.simulated_tokens_per_second > b.simulated_tokens_per_second;
  });
  return candidates;
}

}  // namespace stoker

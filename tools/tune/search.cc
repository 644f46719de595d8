#include "tools/tune/search.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>

#include "runtime/interrupted.h"
#include "scheduler/policy/make_policy.h"
#include "scheduler/sim/routing_trace.h"
#include "scheduler/sim/simulator.h"
#include "scheduler/trace/trace_reader.h"
#include "tools/engine_setup.h"
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

constexpr size_t kPoliciesWithGuesses = 2;
constexpr std::array kGuesses = {PredictorKind::previous, PredictorKind::count, PredictorKind::pair, PredictorKind::gate,
                                 PredictorKind::gate_shared};
constexpr std::array<i64, 4> kLayersAhead = {0, 1, 2, 3};
constexpr std::array<f64, 4> kThresholds = {.3, .5, .7, .9};

class Search {
 public:
  explicit Search(const SearchRequest& request)
      : request_(request), setup_(sim_setup(with_machine(request))), record_(record_of(request.routing)) {
    LookaheadQuality shared = fit_gates(request.routing, request.gate_recall, kGateSharedQuality), plain = shared;
    for (size_t d = 0; d < plain.size(); d++) plain[d] -= kGateSharedQuality[d] - kGateQuality[d];
    for (const LookaheadQuality& quality : {plain, shared})
      gates_.emplace_back(setup_.routing, EmulatedLookahead::Options{.quality = quality, .distances = Predictor::kMaxDistance});
    TraceReader reader(request.routing);
    for (TraceRecord record; reader.next(record);)
      for (EmulatedLookahead& gates : gates_) gates.add(record);
  }

  SearchResult run() {
    SearchResult result;
    for (const PolicyRow& policy : policy_rows())
      if (!policy.needs_popularity) result.without.push_back(candidate(policy.name, PredictorKind::none, 0, 0));
    sort(result.without);
    for (size_t i = 0; i < std::min(kPoliciesWithGuesses, result.without.size()); i++)
      for (PredictorKind kind : kGuesses)
        for (i64 ahead : kLayersAhead)
          if (is_gate(kind) || ahead == 1) result.with.push_back(candidate(result.without[i].options.policy, kind, ahead, 0));
    sort(result.with);
    Options best = result.with.front().options;
    for (f64 threshold : kThresholds)
      result.with.push_back(candidate(best.policy, predictor_kind(best), best.lookahead, threshold));
    sort(result.with);
    clear_progress();
    return result;
  }

 private:
  static Options with_machine(const SearchRequest& request) {
    Options options = request.options;
    options.machine = request.machine;
    return options;
  }
  static void sort(std::vector<Candidate>& candidates) {
    std::stable_sort(candidates.begin(), candidates.end(), [](const Candidate& a, const Candidate& b) {
      return a.simulated_tokens_per_second > b.simulated_tokens_per_second;
    });
  }

  Candidate candidate(std::string_view policy, PredictorKind kind, i64 ahead, f64 threshold) {
    show_progress("simulating", ++done_, steps(), ProgressUnit::steps);
    Candidate c{.options = request_.options};
    c.options.policy = policy;
    c.options.predictor = name(kind);
    c.options.lookahead = ahead;
    c.options.prefetch = kind == PredictorKind::none ? "off" : "auto";
    c.options.prefetch_threshold = threshold;
    c.simulated_tokens_per_second = speed(c.options);
    return c;
  }

  static i64 steps() {
    i64 gates = 0;
    for (PredictorKind kind : kGuesses) gates += is_gate(kind);
    i64 guesses = static_cast<i64>(kGuesses.size()) - gates + gates * static_cast<i64>(kLayersAhead.size());
    return static_cast<i64>(policy_rows().size() + kThresholds.size()) + static_cast<i64>(kPoliciesWithGuesses) * guesses;
  }

  // Tokens per second after the first quarter, which fills the cache. Prefetch is on: whether it pays is what is asked.
  f64 speed(const Options& options) {
    Simulator simulator(setup_.machine, setup_.table, setup_.plan, setup_.resident, setup_.homes, sim_policy(options, setup_));
    PredictorKind kind = predictor_kind(options);
    GovernorOptions governor = governor_options(options);
    governor.mode = PrefetchMode::on;
    if (kind != PredictorKind::none)
      simulator.look_ahead({.kind = kind, .distance = options.lookahead}, gates_[kind == PredictorKind::gate ? 0 : 1], governor);
    simulator.fill_empty_slots();
    SimTotals filled;
    for (i64 token = 0; token < record_.tokens(); token++) {
      if (interrupt_flag().load()) throw Interrupted();
      if (token == record_.tokens() / 4) filled = simulator.totals();
      simulator.run_token(record_, token);
    }
    return tokens_per_second(simulator.totals() - filled);
  }

  const SearchRequest& request_;
  SimSetup setup_;
  RoutingRecord record_;
  std::vector<EmulatedLookahead> gates_;  // of gate, of gate+shared
  i64 done_ = 0;
};

}  // namespace

std::string Candidate::describe() const {
  std::string ahead = options.lookahead > 0 ? fmt::format(" {} ahead", options.lookahead) : "";
  std::string guess = options.prefetch == "off"
                          ? std::string("no prefetch")
                          : fmt::format("{}{}, prefetch {}", options.predictor, ahead, options.prefetch);
  if (options.prefetch != "off" && options.prefetch_threshold > 0)
    guess += fmt::format(" at probability {:.2f}", options.prefetch_threshold);
  return fmt::format("{}, {}; {} reads of {} KiB", options.policy, guess, options.ring_depth, options.piece.bytes / kKiB);
}

std::vector<Setting> Candidate::settings() const {
  return {{"policy", options.policy},
          {"predictor", options.predictor},
          {"lookahead", fmt::format("{}", options.lookahead)},
          {"prefetch", options.prefetch},
          {"prefetch-threshold", fmt::format("{}", options.prefetch_threshold)},
          {"ring-depth", fmt::format("{}", options.ring_depth)},
          {"piece", fmt::format("{}KiB", options.piece.bytes / kKiB)}};
}

SearchResult search_settings(const SearchRequest& request) { return Search(request).run(); }

}  // namespace stoker

#include "tools/tune/search.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>

#include "kernels/base/clock.h"
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
constexpr std::array<i64, 3> kOtherWindows = {16, 32, 128};  // tokens; the default's is tried first
constexpr std::array<f64, 2> kOtherGains = {0, 3};           // percent
// Prefetch that is always on must be so much faster than governed: it is not turned off when it no longer pays.
constexpr f64 kUngovernedGain = 1.01;
constexpr i64 kLeastTokens = 32;
// A governor shows what it is worth in so many times the tokens of other runs, and in as many windows: those before its first
// comparison, this one, and the rest that follows.
constexpr i64 kGovernedRounds = 10, kGovernedWindows = 20;
constexpr i64 kGovernors = static_cast<i64>(kOtherWindows.size() + kOtherGains.size()) + 2;  // the default one, and none

class Search {
 public:
  explicit Search(const SearchRequest& request)
      : request_(request), setup_(sim_setup(with_machine(request))), record_(record_of(request.routing)) {
    LookaheadQuality shared = fit_gates(request.routing, request.gate_recall, kGateSharedQuality), plain = shared;
    for (size_t d = 0; d < plain.size(); d++) plain[d] -= kGateSharedQuality[d] - kGateQuality[d];
    for (const LookaheadQuality& quality : {plain, shared})
      gates_.emplace_back(setup_.routing, EmulatedLookahead::Options{.quality = quality, .distances = Predictor::kMaxDistance});
    // Again and again for the governor.
    for (i64 round = 0; round < kGovernedRounds; round++) {
      TraceReader reader(request.routing);
      for (TraceRecord record; reader.next(record);)
        for (EmulatedLookahead& gates : gates_) gates.add(record);
    }
  }

  SearchResult run() {
    SearchResult result;
    limit_tokens();
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
    govern(result);
    clear_progress();
    result.tokens = tokens_;
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

  // One run says how long all will take.
  void limit_tokens() {
    i64 begin = steady_clock().now_ns();
    candidate("auto", PredictorKind::none, 0, 0);
    i64 runs = steps() + (kGovernedRounds - 1) * kGovernors;
    f64 seconds = static_cast<f64>(steady_clock().now_ns() - begin) * 1e-9 * static_cast<f64>(runs);
    if (seconds <= request_.seconds) return;
    i64 fit = static_cast<i64>(static_cast<f64>(record_.tokens()) * request_.seconds / seconds);
    tokens_ = std::min(record_.tokens(), std::max(kLeastTokens, fit));
  }

  // What the best guesses are worth under the governor, that now and then goes without them to see what they gain: how long and
  // how much they must gain; the windows first, then gains with the best of them.
  void govern(SearchResult& result) {
    std::vector<Candidate>& governed = result.governed;
    Options best = result.with.front().options;
    governed.push_back(governed_candidate(best));
    for (i64 window : kOtherWindows) {
      if (window * kGovernedWindows > tokens_ * kGovernedRounds) continue;
      best.prefetch_window = window;
      governed.push_back(governed_candidate(best));
    }
    sort(governed);
    best = governed.front().options;
    for (f64 gain : kOtherGains) {
      best.prefetch_gain = gain;
      governed.push_back(governed_candidate(best));
    }
    sort(governed);
    Options always = result.with.front().options;
    always.prefetch = "on";
    Candidate on = governed_candidate(always);
    bool first = on.simulated_tokens_per_second > kUngovernedGain * governed.front().simulated_tokens_per_second;
    governed.insert(first ? governed.begin() : governed.end(), on);
  }

  Candidate governed_candidate(const Options& options) {
    show_progress("simulating", ++done_, steps(), ProgressUnit::steps);
    return {.options = options, .simulated_tokens_per_second = speed(options, governor_options(options), kGovernedRounds)};
  }

  // Prefetch is on: whether it pays is what is asked.
  Candidate candidate(std::string_view policy, PredictorKind kind, i64 ahead, f64 threshold) {
    show_progress("simulating", ++done_, steps(), ProgressUnit::steps);
    Candidate c{.options = request_.options};
    c.options.policy = policy;
    c.options.predictor = name(kind);
    c.options.lookahead = ahead;
    c.options.prefetch = kind == PredictorKind::none ? "off" : "auto";
    c.options.prefetch_threshold = threshold;
    GovernorOptions governor = governor_options(c.options);
    governor.mode = PrefetchMode::on;
    c.simulated_tokens_per_second = speed(c.options, governor, 1);
    return c;
  }

  static i64 steps() {
    i64 gates = 0;
    for (PredictorKind kind : kGuesses) gates += is_gate(kind);
    i64 guesses = static_cast<i64>(kGuesses.size()) - gates + gates * static_cast<i64>(kLayersAhead.size());
    return static_cast<i64>(policy_rows().size() + kThresholds.size()) + static_cast<i64>(kPoliciesWithGuesses) * guesses + kGovernors;
  }

  // Tokens per second after the first quarter, which fills the cache; the routing so many times.
  f64 speed(const Options& options, const GovernorOptions& governor, i64 rounds) {
    Simulator simulator(setup_.machine, setup_.table, setup_.plan, setup_.resident, setup_.homes, sim_policy(options, setup_));
    PredictorKind kind = predictor_kind(options);
    if (kind != PredictorKind::none)
      simulator.look_ahead({.kind = kind, .distance = options.lookahead}, gates_[kind == PredictorKind::gate ? 0 : 1], governor);
    simulator.fill_empty_slots();
    SimTotals filled;
    for (i64 token = 0; token < tokens_ * rounds; token++) {
      if (interrupt_flag().load()) throw Interrupted();
      if (token == tokens_ / 4) filled = simulator.totals();
      simulator.run_token(record_, token % record_.tokens());
    }
    return tokens_per_second(simulator.totals() - filled);
  }

  const SearchRequest& request_;
  SimSetup setup_;
  RoutingRecord record_;
  std::vector<EmulatedLookahead> gates_;  // of gate, of gate+shared
  i64 tokens_ = record_.tokens();         // that are simulated
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
  if (options.prefetch == "auto")
    guess += fmt::format(" by {} tokens and {:.0f} %", options.prefetch_window, options.prefetch_gain);
  return fmt::format("{}, {}; {} reads of {} KiB", options.policy, guess, options.ring_depth, options.piece.bytes / kKiB);
}

std::vector<Setting> Candidate::settings() const {
  return {{"policy", options.policy},
          {"predictor", options.predictor},
          {"lookahead", fmt::format("{}", options.lookahead)},
          {"prefetch", options.prefetch},
          {"prefetch-threshold", fmt::format("{}", options.prefetch_threshold)},
          {"prefetch-window", fmt::format("{}", options.prefetch_window)},
          {"prefetch-gain", fmt::format("{}", options.prefetch_gain)},
          {"ring-depth", fmt::format("{}", options.ring_depth)},
          {"piece", fmt::format("{}KiB", options.piece.bytes / kKiB)}};
}

SearchResult search_settings(const SearchRequest& request) { return Search(request).run(); }

}  // namespace stoker

#include "scheduler/sim/routing_source.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <numeric>
#include <utility>

#include "kernels/base/check.h"
#include "kernels/base/rng.h"

namespace stoker {

namespace {

class UniformRouting final : public RoutingSource {
 public:
  UniformRouting(i64 experts, u64 seed) : rng_(seed), order_(static_cast<size_t>(experts)) {
    std::iota(order_.begin(), order_.end(), 0);
  }
  bool next_token() override { return true; }
  // The first places of a shuffle, whatever order it starts from.
  void route(i64, std::span<RoutedExpert> experts) override {
    for (size_t i = 0; i < experts.size(); i++) {
      std::swap(order_[i], order_[i + static_cast<size_t>(rng_.below(static_cast<i64>(order_.size() - i)))]);
      experts[i] = {ExpertId(order_[i])};
    }
  }
  std::string describe() const override { return "uniform: every expert equally likely"; }

 private:
  Rng rng_;
  std::vector<i32> order_;
};

class ZipfRouting final : public RoutingSource {
 public:
  ZipfRouting(i64 moe_layers, i64 experts, f64 exponent, u64 seed)
      : rng_(seed), exponent_(exponent), log_weight_(static_cast<size_t>(moe_layers)), keys_(static_cast<size_t>(experts)) {
    for (std::vector<f64>& layer : log_weight_) {
      for (i64 rank = 1; rank <= experts; rank++) layer.push_back(-exponent * std::log(static_cast<f64>(rank)));
      for (i64 i = experts - 1; i > 0; i--)
        std::swap(layer[static_cast<size_t>(i)], layer[static_cast<size_t>(rng_.below(i + 1))]);
    }
  }
  bool next_token() override { return true; }
  // Drawing without replacement by weight is taking the largest of log weight + Gumbel noise.
  void route(i64 moe_layer, std::span<RoutedExpert> experts) override {
    const std::vector<f64>& weights = log_weight_[static_cast<size_t>(moe_layer)];
    for (size_t e = 0; e < keys_.size(); e++) {
      f64 noise = -std::log(-std::log(std::max(rng_.uniform(), 1e-300)));
      keys_[e] = {weights[e] + noise, static_cast<i32>(e)};
    }
    auto end = keys_.begin() + static_cast<std::ptrdiff_t>(experts.size());
    std::nth_element(keys_.begin(), end - 1, keys_.end(), std::greater<>());
    for (size_t i = 0; i < experts.size(); i++) experts[i] = {ExpertId(keys_[i].second)};
  }
  std::string describe() const override {
    return fmt::format("zipf: independent tokens, expert of rank r with weight r^-{}", exponent_);
  }

 private:
  Rng rng_;
  f64 exponent_;
  std::vector<std::vector<f64>> log_weight_;  // [moe layers][experts]
  std::vector<std::pair<f64, i32>> keys_;
};

class TraceRouting final : public RoutingSource {
 public:
  TraceRouting(std::unique_ptr<TraceSource> trace, std::string what) : trace_(std::move(trace)), what_(std::move(what)) {}
  bool next_token() override { return trace_->next(record_); }
  void route(i64 moe_layer, std::span<RoutedExpert> experts) override {
    const TraceHeader& h = trace_->header();
    layer_ = moe_layer % h.layers;
    for (size_t k = 0; k < experts.size(); k++) {
      size_t at = static_cast<size_t>(layer_ * h.top_k) + k;
      experts[k] = {ExpertId(record_.ids[at]), record_.weights[at]};
    }
  }
  std::span<const f32> scores() const override {
    size_t experts = static_cast<size_t>(trace_->header().experts);
    if (record_.scores.empty()) return {};
    return std::span(record_.scores).subspan(static_cast<size_t>(layer_) * experts, experts);
  }
  std::string describe() const override { return what_; }

 private:
  std::unique_ptr<TraceSource> trace_;
  std::string what_;
  TraceRecord record_;
  i64 layer_ = 0;
};

}  // namespace

std::unique_ptr<RoutingSource> trace_routing(std::unique_ptr<TraceSource> trace, std::string what) {
  return std::make_unique<TraceRouting>(std::move(trace), std::move(what));
}

std::unique_ptr<RoutingSource> uniform_routing(i64 experts, u64 seed) {
  return std::make_unique<UniformRouting>(experts, seed);
}

std::unique_ptr<RoutingSource> zipf_routing(i64 moe_layers, i64 experts, f64 exponent, u64 seed) {
  return std::make_unique<ZipfRouting>(moe_layers, experts, exponent, seed);
}

RoutingRecord record_routing(RoutingSource& source, i64 moe_layers, i64 top_k, i64 tokens, EmulatedLookahead* lookahead) {
  CHECK(moe_layers > 0 && top_k > 0);
  RoutingRecord record{.moe_layers = moe_layers, .top_k = top_k, .routes = {}};
  TraceRecord for_lookahead;
  for (i64 token = 0; token < tokens && source.next_token(); token++) {
    for_lookahead.ids.clear();
    for_lookahead.scores.clear();
    for (i64 layer = 0; layer < moe_layers; layer++) {
      size_t at = record.routes.size();
      record.routes.resize(at + static_cast<size_t>(top_k));
      std::span<RoutedExpert> places = std::span(record.routes).subspan(at);
      source.route(layer, places);
      for (const RoutedExpert& route : places) for_lookahead.ids.push_back(static_cast<u16>(route.expert.value));
      std::span<const f32> scores = source.scores();
      for_lookahead.scores.insert(for_lookahead.scores.end(), scores.begin(), scores.end());
      std::sort(places.begin(), places.end(),
                [](const RoutedExpert& a, const RoutedExpert& b) { return a.expert < b.expert; });
    }
    if (lookahead != nullptr) lookahead->add(for_lookahead);
  }
  return record;
}

}  // namespace stoker

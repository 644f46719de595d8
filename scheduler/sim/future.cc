#include "scheduler/sim/future.h"

#include <algorithm>

namespace stoker {

namespace {

constexpr int kHalvings = 24;  // of the price's range

}  // namespace

Future::Future(const RoutingRecord& record, i64 experts_per_layer, i64 places, f64 move)
    : record_(record), experts_(experts_per_layer), move_(move), passed_(static_cast<size_t>(record.moe_layers)) {
  collect_uses();
  find_price(places);
}

void Future::collect_uses() {
  first_.assign(static_cast<size_t>(record_.moe_layers * experts_) + 1, 0);
  for (size_t i = 0; i < record_.routes.size(); i++) {
    i64 layer = static_cast<i64>(i) / record_.top_k % record_.moe_layers;
    first_[node({layer, record_.routes[i].expert}) + 1]++;
  }
  for (size_t n = 1; n < first_.size(); n++) first_[n] += first_[n - 1];
  next_.assign(first_.begin(), first_.end() - 1);
  uses_.resize(record_.routes.size());
  std::vector<size_t> end = next_;
  for (i64 token = 0; token < record_.tokens(); token++)
    for (i64 layer = 0; layer < record_.moe_layers; layer++)
      for (const RoutedExpert& route : record_.layer(token, layer)) uses_[end[node({layer, route.expert})]++].token = token;
}

void Future::value(f64 price) {
  for (size_t n = 0; n + 1 < first_.size(); n++) {
    std::span<Use> uses = uses_of(n);
    for (size_t i = uses.size(); i > 0; i--) {
      f64 later = i < uses.size() ? uses[i].worth : 0;
      f64 idle = i < uses.size() ? static_cast<f64>(uses[i].token - uses[i - 1].token - 1) * price : 0;
      uses[i - 1].worth = 1 - price + std::max(0., std::min(later, move_) - idle);
    }
  }
}

// Experts that are there in the mean of all tokens, if all do what is best for them at this price.
f64 Future::mean_stay(f64 price) {
  value(price);
  i64 stay = 0;  // in tokens
  for (size_t n = 0; n + 1 < first_.size(); n++) {
    bool there = false;
    i64 before = 0;
    for (const Use& use : uses_of(n)) {
      f64 idle = static_cast<f64>(use.token - before) * price;
      if (there && std::min(use.worth, move_) > idle) stay += use.token - before;
      else there = false;
      there = there || use.worth >= move_;
      stay += there;
      before = use.token + 1;
    }
  }
  return static_cast<f64>(stay) / static_cast<f64>(std::max<i64>(1, record_.tokens()));
}

void Future::find_price(i64 places) {
  f64 low = 0, high = 1;
  for (int i = 0; i < kHalvings; i++) {
    price_ = (low + high) / 2;
    (mean_stay(price_) > static_cast<f64>(places) ? low : high) = price_;
  }
  value(price_);
}

void Future::pass(i64 moe_layer, i64 first, i64 tokens) {
  passed_[static_cast<size_t>(moe_layer)] = first + tokens;
  for (i64 token = first; token < first + tokens; token++)
    for (const RoutedExpert& route : record_.layer(token, moe_layer)) next_[node({moe_layer, route.expert})]++;
}

i64 Future::next_use(ExpertKey key) const {
  size_t n = node(key);
  return next_[n] < first_[n + 1] ? uses_[next_[n]].token * record_.moe_layers + key.moe_layer : kNever;
}

f64 Future::device_worth(ExpertKey key) const {
  size_t n = node(key), i = next_[n];
  i64 from = passed_[static_cast<size_t>(key.moe_layer)] + 1;
  if (i < first_[n + 1] && uses_[i].token < from) i++;
  if (i == first_[n + 1]) return 0;
  return std::max(0., uses_[i].worth - static_cast<f64>(uses_[i].token - from) * price_);
}

}  // namespace stoker

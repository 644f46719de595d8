// Belady's hits on sequences that can be followed by hand; the sources of routes.
#include "scheduler/sim/belady.h"

#include <doctest/doctest.h>

#include <set>

namespace stoker {

namespace {

RoutingRecord record_of(const std::vector<i64>& experts, i64 layers, i64 top_k) {
  RoutingRecord record{.moe_layers = layers, .top_k = top_k, .routes = {}};
  for (i64 e : experts) record.routes.push_back({ExpertId(e)});
  return record;
}

Plan plan_of(std::vector<i64> slots, std::vector<i64> class_of_layer) {
  Plan plan;
  for (i64 s : slots) plan.classes.push_back({.slot_bytes = 4096, .slots = s, .moe_layers = {}});
  plan.class_of_moe_layer = std::move(class_of_layer);
  return plan;
}

class ThreeTokens final : public RoutingSource {
 public:
  bool next_token() override { return ++token_ < 3; }
  void route(i64, std::span<RoutedExpert> experts) override {
    for (size_t i = 0; i < experts.size(); i++) experts[i] = {ExpertId(9 - static_cast<i64>(i)), 0.5f};
  }
  std::string describe() const override { return "three tokens"; }

 private:
  int token_ = -1;
};

}  // namespace

TEST_CASE("Belady keeps what comes again first and lets the rest pass by") {
  RoutingRecord record = record_of({0, 1, 2, 0, 1, 2}, 1, 1);
  CHECK(belady_hits(record, 3, plan_of({2}, {0})) == std::vector<i64>{0, 0, 0, 1, 1, 0});
  CHECK(belady_hits(record, 3, plan_of({3}, {0})) == std::vector<i64>{0, 0, 0, 1, 1, 1});
  CHECK(belady_hits(record, 3, plan_of({0}, {0})) == std::vector<i64>{0, 0, 0, 0, 0, 0});
}

TEST_CASE("a layer's hits count before its misses take their slots") {
  // Token 1 wants 0 (new) and 1 (there): with the miss first, one slot would lose 1 before it is counted.
  RoutingRecord record = record_of({1, 2, 0, 1, 0, 3}, 1, 2);
  CHECK(belady_hits(record, 4, plan_of({1}, {0})) == std::vector<i64>{0, 1, 1});
}

TEST_CASE("layers share the slots of their class and no others") {
  // Two layers, one expert each and always the same: with one class of one slot only one of them stays.
  RoutingRecord record = record_of({0, 0, 0, 0, 0, 0}, 2, 1);
  CHECK(belady_hits(record, 1, plan_of({1}, {0, 0})) == std::vector<i64>{0, 1, 1});
  CHECK(belady_hits(record, 1, plan_of({1, 1}, {0, 1})) == std::vector<i64>{0, 2, 2});
}

TEST_CASE("records end with their source and are sorted within a layer") {
  ThreeTokens source;
  RoutingRecord record = record_routing(source, 2, 3, 100);
  CHECK(record.tokens() == 3);
  CHECK(record.layer(2, 1)[0].expert == ExpertId(7));
  CHECK(record.layer(2, 1)[2].expert == ExpertId(9));
  CHECK(record.layer(0, 0)[0].gate_weight == 0.5f);
}

TEST_CASE("generators draw distinct experts, the same for the same seed, as skewed as asked for") {
  auto hottest = [](RoutingSource& source) {
    RoutingRecord record = record_routing(source, 2, 4, 500);
    std::vector<i64> uses(32);
    for (i64 token = 0; token < record.tokens(); token++) {
      std::set<i32> distinct;
      for (const RoutedExpert& route : record.layer(token, 1)) {
        distinct.insert(route.expert.value);
        uses[static_cast<size_t>(route.expert.value)]++;
      }
      REQUIRE(distinct.size() == 4);
      REQUIRE(*distinct.begin() >= 0);
      REQUIRE(*distinct.rbegin() < 32);
    }
    return static_cast<f64>(*std::max_element(uses.begin(), uses.end())) / 2000;
  };
  f64 uniform = hottest(*uniform_routing(32, 1));
  f64 flat = hottest(*zipf_routing(2, 32, 0, 1));
  f64 skewed = hottest(*zipf_routing(2, 32, 1.5, 1));
  CHECK(uniform < 0.045);  // 1/32 = 0.031
  CHECK(flat < 0.045);
  CHECK(skewed > 0.2);  // nearly every token wants it: at most 0.25
  auto a = zipf_routing(2, 32, 1, 7), b = zipf_routing(2, 32, 1, 7), c = zipf_routing(2, 32, 1, 8);
  auto experts = [](RoutingSource& source) {
    std::vector<i32> all;
    for (const RoutedExpert& r : record_routing(source, 2, 4, 50).routes) all.push_back(r.expert.value);
    return all;
  };
  std::vector<i32> first = experts(*a);
  CHECK(first == experts(*b));
  CHECK(first != experts(*c));
}

}  // namespace stoker

#include "scheduler/policy/predictor.h"

#include <doctest/doctest.h>

#include <vector>

#include "kernels/base/rng.h"

using namespace stoker;

namespace {

// One layer, 16 experts, 2 per token.
Predictor small() { return Predictor({.moe_layers = 1, .experts = 16, .top_k = 2}); }

std::vector<RankedExpert> ranking(std::vector<i64> ids) {
  std::vector<RankedExpert> ranked;
  for (size_t i = 0; i < ids.size(); i++) ranked.push_back({ExpertId(ids[i]), 0.5f - 0.25f * static_cast<f32>(i)});
  return ranked;
}

void observe(Predictor& predictor, std::vector<i32> ids, std::vector<f32> weights = {}) {
  if (weights.empty()) weights.resize(ids.size(), 1.f);
  predictor.observe(0, ids, weights, static_cast<i64>(ids.size()) / 2);
}

}  // namespace

TEST_CASE("recall counts slots, narrow and wide, and weighs them") {
  Predictor predictor = small();
  predictor.begin(0, 1);
  predictor.add_row(0, 1, ranking({3, 4, 5, 6}));
  observe(predictor, {3, 5}, {0.75f, 0.25f});
  const ForecastScore& score = predictor.score(1);
  CHECK(score.slots == 2);
  CHECK(score.recall_narrow() == doctest::Approx(0.5));
  CHECK(score.recall_wide() == doctest::Approx(1.0));
  CHECK(score.gate_mass_recall() == doctest::Approx(0.75));
  CHECK(score.brier() > 0);
  CHECK(predictor.score(2).slots == 0);
}

TEST_CASE("a batch that was not forecast is not judged") {
  Predictor predictor = small();
  predictor.begin(0, 1);
  predictor.add_row(0, 1, ranking({3, 4}));
  observe(predictor, {3, 4, 3, 5});
  observe(predictor, {3, 4});  // the forecast is over
  CHECK(predictor.score(1).slots == 0);
}

TEST_CASE("probabilities come to say how often the ranking is right") {
  // The first two are right nine times of ten, the others hardly ever.
  Predictor predictor = small();
  Rng rng(1);
  auto token = [&] {
    std::vector<i64> ids = {};
    i64 first = rng.below(14);
    for (i64 i = 0; i < 4; i++) ids.push_back((first + i) % 16);
    predictor.begin(0, 1);
    predictor.add_row(0, 1, ranking(ids));
    bool right = rng.uniform() < 0.9;
    i64 a = right ? ids[0] : (first + 7) % 16, b = right ? ids[1] : (first + 8) % 16;
    observe(predictor, {static_cast<i32>(a), static_cast<i32>(b)});
    return first;
  };
  for (int i = 0; i < 2000; i++) token();
  predictor.begin(0, 1);
  predictor.add_row(0, 1, ranking({1, 2, 3, 4}));
  std::vector<LikelyExpert> likely(predictor.likely(0, 1).begin(), predictor.likely(0, 1).end());
  REQUIRE(likely.size() == 4);
  CHECK(likely[0].probability > 0.75f);
  CHECK(likely[3].probability < 0.2f);
  CHECK(predictor.score(1).brier() < 0.12);
}

TEST_CASE("several rows: an expert is likely when any of them wants it") {
  Predictor predictor = small();
  predictor.begin(0, 1);
  predictor.add_row(0, 1, ranking({1, 2}));
  f32 alone = predictor.likely(0, 1)[0].probability;
  predictor.add_row(0, 1, ranking({1, 3}));
  auto likely = predictor.likely(0, 1);
  REQUIRE(likely.size() == 3);
  CHECK(likely[0].expert == ExpertId(1));
  CHECK(likely[0].probability == doctest::Approx(1 - (1 - alone) * (1 - alone)));
}

TEST_CASE("counts and the previous token rank by themselves") {
  Predictor predictor = small();
  CHECK(predictor.by_previous(0).empty());
  for (int i = 0; i < 10; i++) observe(predictor, {7, 9});
  observe(predictor, {2, 9});
  CHECK(predictor.by_previous(0)[0].expert == ExpertId(2));
  CHECK(predictor.by_count(0)[0].expert == ExpertId(9));
  CHECK(predictor.by_count(0)[1].expert == ExpertId(7));
  CHECK(static_cast<i64>(predictor.by_count(0).size()) == predictor.width(1));
}

TEST_CASE("pairs tell the next layer by the one before") {
  Predictor predictor({.moe_layers = 2, .experts = 16, .top_k = 2, .pairs = true});
  std::vector<f32> weights(2, 0.5f);
  Rng rng(4);
  auto token = [&](i32 first) {
    predictor.observe(0, std::vector<i32>{first, (first + 1) % 16}, weights, 1);
    return std::vector<i32>{(first * 5) % 16, (first * 5 + 3) % 16};  // what layer 1 then chooses
  };
  for (int i = 0; i < 600; i++) predictor.observe(1, token(static_cast<i32>(rng.below(16))), weights, 1);
  i64 found = 0;
  for (i32 first = 0; first < 16; first++) {
    std::vector<i32> wanted = token(first);
    auto ranking = predictor.by_pair(1);
    REQUIRE(static_cast<i64>(ranking.size()) == predictor.width(1));
    CHECK(ranking[1].margin == 0);
    for (i32 id : wanted) found += ranking[0].expert.value == id || ranking[1].expert.value == id;
    predictor.observe(1, wanted, weights, 1);
  }
  CHECK(found >= 28);
  CHECK(predictor.by_pair(0)[0].expert == predictor.by_count(0)[0].expert);
}

TEST_CASE("the width shrinks with distance") {
  Predictor predictor({.moe_layers = 1, .experts = 256, .top_k = 8});
  CHECK(predictor.width(1) == 16);
  CHECK(predictor.width(2) == 12);
  CHECK(predictor.width(3) == 8);
}

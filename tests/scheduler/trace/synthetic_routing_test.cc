// The model is held to what was measured on real models; see synthetic_routing.h.
#include "scheduler/trace/synthetic_routing.h"

#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <numeric>
#include <set>

#include "scheduler/trace/trace_stats.h"
#include "tests/scheduler/model_file/raw_gguf.h"

namespace stoker {
namespace {

using test::error_of;

TraceStats stats_of(i64 tokens, i64 prompts, std::string_view profile = "default") {
  SyntheticRouting routing({.shape = deepseek_v3_routing(), .profile = profile, .tokens = tokens, .prompts = prompts});
  return measure_trace(routing, 8);
}

std::vector<TraceRecord> records_of(const SyntheticOptions& options) {
  SyntheticRouting routing(options);
  std::vector<TraceRecord> records;
  for (TraceRecord record; routing.next(record);) records.push_back(record);
  return records;
}

}  // namespace

TEST_CASE("the default profile repeats experts as a GLM-like model does") {
  TraceStats stats = stats_of(4000, 8);
  const RoutingStats& mean = stats.mean;
  MESSAGE("lag 1, 4, 16, 64: " << mean.reuse[0] << " " << mean.reuse[1] << " " << mean.reuse[2] << " " << mean.reuse[3]
                               << ", Belady " << mean.belady << ", LRU " << mean.lru);
  CHECK(std::fabs(mean.reuse[0] - .357) < .01);
  CHECK(std::fabs(mean.reuse[1] - .223) < .02);
  CHECK(std::fabs(mean.reuse[2] - .188) < .02);
  CHECK(std::fabs(mean.reuse[3] - .151) < .02);
  CHECK(std::fabs(mean.belady - .546) < .01);
  CHECK(mean.lru < mean.belady);
  CHECK(stats.rank_shares.front() == doctest::Approx(.192).epsilon(.02));
  CHECK(stats.rank_shares.back() == doctest::Approx(.093).epsilon(.03));
}

// Over many prompts: in a few, what they are about adds to the skew.
TEST_CASE("experts are as unequal as DeepSeek-V3's") {
  RoutingStats mean = stats_of(4000, 800).mean;
  MESSAGE("hottest 10, 20, 30, 50 %: " << mean.top_share[0] << " " << mean.top_share[1] << " " << mean.top_share[2] << " "
                                       << mean.top_share[3]);
  std::array<f64, 4> want = {.289, .435, .551, .729};
  for (size_t i = 0; i < want.size(); i++) CHECK(std::fabs(mean.top_share[i] - want[i]) < .015);
}

TEST_CASE("profiles are ordered by how much they repeat") {
  f64 before = 0;
  for (std::string_view profile : {"pessimistic", "mid", "default", "optimistic"}) {
    f64 reuse = stats_of(200, 2, profile).mean.reuse[0];
    CHECK(reuse > before + .02);
    before = reuse;
  }
  CHECK(error_of([] { stats_of(10, 1, "best"); }).find("no such routing profile") != std::string::npos);
}

TEST_CASE("the same seed gives the same records, another seed others") {
  SyntheticOptions options{.shape = deepseek_v3_routing(), .tokens = 20, .prompts = 2, .seed = 5};
  std::vector<TraceRecord> a = records_of(options), b = records_of(options);
  options.seed = 6;
  std::vector<TraceRecord> c = records_of(options);
  REQUIRE(a.size() == 20);
  for (size_t i = 0; i < a.size(); i++) {
    CHECK(a[i].ids == b[i].ids);
    CHECK(a[i].weights == b[i].weights);
    CHECK(a[i].ids != c[i].ids);
  }
  CHECK(a[10].sequence == 1);
  CHECK(a[10].position == 0);
}

TEST_CASE("experts are distinct, from as many groups as the rule allows; weights fall and sum to 1") {
  TraceHeader odd{.model_name = "odd", .layers = 2, .first_layer = 0, .experts = 30, .top_k = 5, .groups = 5, .groups_used = 2};
  for (const TraceHeader& shape : {deepseek_v3_routing(), odd}) {
    i64 size = shape.experts / shape.groups;
    for (const TraceRecord& r : records_of({.shape = shape, .tokens = 20, .prompts = 1}))
      for (i64 l = 0; l < shape.layers; l++) {
        auto ids = r.ids.begin() + l * shape.top_k;
        auto weights = r.weights.begin() + l * shape.top_k;
        std::set<i64> experts(ids, ids + shape.top_k), groups;
        for (i64 id : experts) groups.insert(id / size);
        REQUIRE(static_cast<i64>(experts.size()) == shape.top_k);
        REQUIRE(*experts.rbegin() < shape.experts);
        REQUIRE(static_cast<i64>(groups.size()) <= shape.groups_used);
        REQUIRE(std::is_sorted(weights, weights + shape.top_k, std::greater<>()));
        REQUIRE(std::accumulate(weights, weights + shape.top_k, 0.f) == doctest::Approx(1).epsilon(1e-4));
      }
  }
}

// Only the new part of a token is shared, so the share of all is small; without coupling it is chance.
TEST_CASE("coupling makes a layer tell about the next one") {
  TraceHeader shape = deepseek_v3_routing();
  shape.groups = shape.groups_used = 1;
  auto paired = [&](f64 coupling) {
    i64 found = 0, all = 0;
    for (const TraceRecord& r : records_of({.shape = shape, .profile = "pessimistic", .tokens = 100, .prompts = 1, .coupling = coupling}))
      for (i64 l = 0; l + 1 < shape.layers; l++)
        for (i64 k = 0; k < shape.top_k; k++, all++) {
          auto next = r.ids.begin() + (l + 1) * shape.top_k;
          u16 partner = static_cast<u16>((r.ids[static_cast<size_t>(l * shape.top_k + k)] + shape.experts - 1) % shape.experts);
          found += std::find(next, next + shape.top_k, partner) != next + shape.top_k ? 1 : 0;
        }
    return static_cast<f64>(found) / static_cast<f64>(all);
  };
  CHECK(paired(0) < .06);
  CHECK(paired(.9) > .2);
}

TEST_CASE("the normal table has mean 0, variance 1, and the quantiles") {
  CHECK(normal_quantile(.5) == doctest::Approx(0));
  CHECK(normal_quantile(.975) == doctest::Approx(1.959964).epsilon(1e-6));
  CHECK(normal_quantile(1e-5) == doctest::Approx(-4.264891).epsilon(1e-6));
  Rng rng(3);
  std::vector<f32> values(400000);
  NormalTable().fill(rng, values.data(), static_cast<i64>(values.size()));
  f64 sum = 0, squares = 0;
  for (f32 v : values) sum += v, squares += static_cast<f64>(v) * v;
  CHECK(std::fabs(sum / 400000) < .01);
  CHECK(std::fabs(squares / 400000 - 1) < .01);
}

}  // namespace stoker

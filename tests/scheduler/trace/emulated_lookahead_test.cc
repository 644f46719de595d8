// How good the emulated guesses are is held to what was measured on real models; see emulated_lookahead.h.
#include "scheduler/trace/emulated_lookahead.h"

#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <set>

#include "scheduler/trace/synthetic_routing.h"

namespace stoker {
namespace {

constexpr i64 kTokens = 160;

std::vector<TraceRecord> records_of(bool with_scores, std::string_view profile = "default") {
  SyntheticRouting routing({.shape = deepseek_v3_routing(), .profile = profile, .tokens = kTokens, .prompts = 1});
  std::vector<TraceRecord> records;
  for (TraceRecord record; routing.next(record);) {
    records.push_back(record);
    if (!with_scores) records.back().scores.clear();
  }
  return records;
}

struct Recall {
  f64 narrow = 0, wide = 0;  // of the chosen: in the first top_k, in all of the ranking
};

bool chosen(const TraceRecord& record, i64 layer, ExpertId expert) {
  auto first = record.ids.begin() + layer * 8;
  return std::find(first, first + 8, expert.value) != first + 8;
}

// Mean over layers, all but the first, from a token on.
Recall recall(const std::vector<TraceRecord>& records, EmulatedLookahead& gates, i64 distance, i64 from = 0) {
  Recall r;
  i64 slots = 0;
  for (i64 t = from; t < kTokens; t++)
    for (i64 layer = 1; layer < 58; layer++, slots += 8) {
      auto ranking = gates.ranking(t, layer, distance);
      for (size_t i = 0; i < ranking.size(); i++) {
        f64 hit = chosen(records[static_cast<size_t>(t)], layer, ranking[i].expert) ? 1 : 0;
        r.wide += hit;
        r.narrow += i < 8 ? hit : 0;
      }
    }
  return {r.narrow / static_cast<f64>(slots), r.wide / static_cast<f64>(slots)};
}

EmulatedLookahead emulate(const std::vector<TraceRecord>& records, const LookaheadQuality& quality, u64 seed = 1) {
  EmulatedLookahead gates(deepseek_v3_routing(), {.quality = quality, .distances = 3, .seed = seed});
  for (const TraceRecord& record : records) gates.add(record);
  return gates;
}

}  // namespace

TEST_CASE("guesses are as good as gates of real models, with known scores and without") {
  for (bool with_scores : {true, false}) {
    for (std::string_view profile : {"default", "pessimistic"}) {
      CAPTURE(with_scores);
      CAPTURE(std::string(profile));
      std::vector<TraceRecord> records = records_of(with_scores, profile);
      EmulatedLookahead gates = emulate(records, kGateQuality);
      i64 from = with_scores ? 0 : 64;  // counts must have been filled
      Recall one = recall(records, gates, 1, from), two = recall(records, gates, 2, from), three = recall(records, gates, 3, from);
      MESSAGE("recall@8 " << one.narrow << " " << two.narrow << " " << three.narrow << ", wide " << one.wide << " " << two.wide);
      CHECK(one.narrow > .70);
      CHECK(one.narrow < .78);
      CHECK(one.wide == doctest::Approx(.92).epsilon(.04));
      CHECK(two.narrow == doctest::Approx(.62).epsilon(.07));
      CHECK(two.wide > .72);
      CHECK(three.narrow == doctest::Approx(.55).epsilon(.07));
      EmulatedLookahead shared = emulate(records, kGateSharedQuality);
      f64 gain = recall(records, shared, 1, from).narrow - one.narrow;
      CHECK(gain == doctest::Approx(.03).epsilon(.5));
    }
  }
}

TEST_CASE("perfect guesses name what is chosen") {
  for (bool with_scores : {true, false}) {
    std::vector<TraceRecord> records = records_of(with_scores);
    EmulatedLookahead gates = emulate(records, kPerfectQuality);
    for (i64 d = 1; d <= 3; d++) CHECK(recall(records, gates, d).narrow == 1);
  }
}

TEST_CASE("rankings are of distinct experts, best first, the last that would be chosen at 0") {
  std::vector<TraceRecord> records = records_of(true);
  EmulatedLookahead gates = emulate(records, kGateQuality);
  CHECK(gates.records() == kTokens);
  for (i64 d = 1; d <= 3; d++)
    for (i64 layer = 0; layer < 58; layer++) {
      auto ranking = gates.ranking(7, layer, d);
      REQUIRE(static_cast<i64>(ranking.size()) == ranking_width(256, 8, d));
      std::set<i32> experts;
      for (const RankedExpert& r : ranking) experts.insert(r.expert.value);
      CHECK(experts.size() == ranking.size());
      CHECK(ranking[7].margin == 0);
      CHECK(std::is_sorted(ranking.begin(), ranking.begin() + 8, [](auto& a, auto& b) { return a.margin > b.margin; }));
    }
}

// What is guessed wrongly matters too: an expert that is chosen often is probably in memory and costs nothing.
TEST_CASE("wrong guesses are of experts that are chosen often, whether scores are known or not") {
  f64 popularity[2] = {};
  for (bool with_scores : {true, false}) {
    std::vector<TraceRecord> records = records_of(with_scores);
    EmulatedLookahead gates = emulate(records, kGateQuality);
    f64 uses = 0, wrong = 0;
    for (i64 layer = 1; layer < 58; layer++)
      for (const RankedExpert& r : gates.ranking(kTokens - 1, layer, 1).first(8)) {
        if (chosen(records.back(), layer, r.expert)) continue;
        wrong++;
        for (i64 t = 0; t < kTokens; t++) uses += chosen(records[static_cast<size_t>(t)], layer, r.expert) ? 1 : 0;
      }
    popularity[with_scores] = uses / wrong / kTokens / (8.0 / 256);  // relative to the average expert
  }
  MESSAGE("relative to the average expert: " << popularity[1] << ", reconstructed " << popularity[0]);
  CHECK(popularity[1] > 2);
  CHECK(popularity[0] == doctest::Approx(popularity[1]).epsilon(.3));
}

TEST_CASE("the same seed gives the same guesses, another one others") {
  std::vector<TraceRecord> records = records_of(true);
  EmulatedLookahead a = emulate(records, kGateQuality), b = emulate(records, kGateQuality), c = emulate(records, kGateQuality, 2);
  i64 same = 0;
  for (i64 layer = 0; layer < 58; layer++) {
    auto x = a.ranking(5, layer, 1), y = b.ranking(5, layer, 1), z = c.ranking(5, layer, 1);
    for (size_t i = 0; i < x.size(); i++) {
      CHECK(x[i].expert == y[i].expert);
      same += x[i].expert == z[i].expert;
    }
  }
  CHECK(same < 58 * 16 / 2);
}

}  // namespace stoker

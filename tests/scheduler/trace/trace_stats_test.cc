#include "scheduler/trace/trace_stats.h"

#include <doctest/doctest.h>

#include <algorithm>
#include <map>
#include <set>

#include "kernels/base/rng.h"
#include "tests/scheduler/model_file/raw_gguf.h"

namespace stoker {
namespace {

using test::error_of;

// Records given one by one.
class Given final : public TraceSource {
 public:
  Given(const TraceHeader& header, std::vector<TraceRecord> records) : header_(header), records_(std::move(records)) {}
  const TraceHeader& header() const override { return header_; }
  bool next(TraceRecord& record) override {
    if (at_ == records_.size()) return false;
    record = records_[at_++];
    return true;
  }

 private:
  TraceHeader header_;
  std::vector<TraceRecord> records_;
  size_t at_ = 0;
};

TraceRecord record(i64 sequence, i64 position, std::vector<u16> ids) {
  TraceRecord r;
  r.sequence = sequence;
  r.position = position;
  r.weights.assign(ids.size(), .5f);
  r.ids = std::move(ids);
  return r;
}

// Most hits by trying every choice of what to keep: states are sets of experts.
i64 best_hits(const std::vector<u16>& ids, i64 top_k, i64 slots) {
  std::map<std::set<u16>, i64> states = {{{}, 0}};
  for (size_t first = 0; first < ids.size(); first += static_cast<size_t>(top_k)) {
    std::map<std::set<u16>, i64> next;
    for (const auto& [cache, hits] : states) {
      std::set<u16> all = cache;
      i64 now = hits;
      for (size_t i = first; i < first + static_cast<size_t>(top_k); i++) now += static_cast<i64>(cache.count(ids[i]));
      all.insert(ids.begin() + static_cast<i64>(first), ids.begin() + static_cast<i64>(first) + top_k);
      std::vector<u16> have(all.begin(), all.end());
      for (u32 mask = 0; mask < (1u << have.size()); mask++) {
        std::set<u16> kept;
        for (size_t i = 0; i < have.size(); i++)
          if ((mask >> i & 1) != 0) kept.insert(have[i]);
        if (static_cast<i64>(kept.size()) <= slots) next[kept] = std::max(next[kept], now);
      }
    }
    states = std::move(next);
  }
  i64 best = 0;
  for (const auto& [cache, hits] : states) best = std::max(best, hits);
  return best;
}

}  // namespace

TEST_CASE("Belady's rate is the best of all choices") {
  Rng rng(11);
  for (int round = 0; round < 20; round++) {
    std::vector<u16> ids;
    for (i64 t = 0; t < 10; t++) {
      u16 first = static_cast<u16>(rng.below(6));
      ids.push_back(first);
      ids.push_back(static_cast<u16>((first + 1 + rng.below(5)) % 6));
    }
    for (i64 slots : {1, 2, 3}) {
      CAPTURE(round);
      CAPTURE(slots);
      CHECK(belady_hit_rate(ids, 2, 6, slots) == doctest::Approx(static_cast<f64>(best_hits(ids, 2, slots)) / 20));
      CHECK(lru_hit_rate(ids, 2, 6, slots) <= belady_hit_rate(ids, 2, 6, slots));
    }
  }
}

TEST_CASE("LRU by hand") {
  CHECK(lru_hit_rate({0, 1, 0, 2, 0, 1}, 1, 3, 2) == doctest::Approx(2. / 6));  // 0 again, twice
  CHECK(lru_hit_rate({0, 1, 2, 0, 1, 2}, 1, 3, 2) == 0);
  CHECK(lru_hit_rate({0, 1, 2, 0, 1, 2}, 1, 3, 3) == doctest::Approx(.5));
}

TEST_CASE("skew and reuse by hand; reuse stays within a sequence and over no gap") {
  TraceHeader h{.model_name = "h", .layers = 2, .first_layer = 0, .experts = 10, .top_k = 2};
  Given source(h, {record(0, 0, {0, 1, 5, 6}), record(1, 0, {0, 1, 5, 6}), record(0, 1, {1, 2, 5, 6}),
                   record(1, 1, {3, 4, 7, 8}), record(0, 5, {1, 2, 5, 6})});
  TraceStats stats = measure_trace(source, 2);
  CHECK(stats.records == 5);
  CHECK(stats.sequences == 2);
  CHECK(stats.layers[0].reuse[0] == doctest::Approx(.25));  // of 0,1 -> 1,2 and 0,1 -> 3,4
  CHECK(stats.layers[1].reuse[0] == doctest::Approx(.5));
  CHECK(stats.layers[0].top_share[0] == doctest::Approx(.4));  // expert 1: 4 of 10
  CHECK(stats.layers[0].used == 5);
  CHECK(stats.mean.reuse[0] == doctest::Approx(.375));
  CHECK(stats.rank_shares[0] == doctest::Approx(.5));
  Given none(h, {});
  CHECK(error_of([&] { measure_trace(none, 2); }).find("no record") != std::string::npos);
}

}  // namespace stoker

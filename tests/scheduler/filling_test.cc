// What is read before anybody asks for it: the order of preload and warming, and the rules of filling empty slots.
#include <doctest/doctest.h>

#include <algorithm>
#include <memory>
#include <string_view>
#include <utility>
#include <vector>

#include "scheduler/planner.h"
#include "scheduler/policy/make_policy.h"
#include "scheduler/scheduler.h"
#include "scheduler/tiers/slab.h"
#include "tests/scheduler/fake_reader.h"
#include "tests/scheduler/small_model.h"

using namespace stoker;
using namespace stoker::test;

namespace {

struct Rig {
  struct Options {
    SmallModel model = {.sizes = 1};
    f64 share = 1;  // of the budget that holds all experts
    std::string_view policy = "lru";
    FakeReader::Options drive = {.capacity = 64};
  };
  explicit Rig(const Options& o) : table(small_table(o.model)), reader(drive_of(o, table), clock) {
    plan = make_plan(table, {.ram_bytes = static_cast<i64>(o.share * static_cast<f64>(full_budget(table, 4096))),
                             .ring_depth = 8,
                             .piece_bytes = 8192});
    scheduler = std::make_unique<Scheduler>(table, plan,
                                            make_policy(o.policy, plan, table.experts_per_layer(), table.top_k()), reader,
                                            clock, SlabOptions{.piece_bytes = 256 * kKiB, .background = false});
  }
  static FakeReader::Options drive_of(const Options& o, const ExpertTable& table) {
    FakeReader::Options drive = o.drive;
    drive.file_bytes = table.file_bytes();
    return drive;
  }

  LayerId layer(i64 moe_layer) const { return table.layers()[static_cast<size_t>(moe_layer)].layer; }
  ExpertTier tier(i64 moe_layer, i64 expert) const { return scheduler->tier(layer(moe_layer), ExpertId(expert)); }
  i64 count(ExpertTier where) const {
    std::vector<ExpertTier> tiers = scheduler->view().tiers;
    return std::count(tiers.begin(), tiers.end(), where);
  }
  Scheduler::Lease acquire(i64 moe_layer, std::initializer_list<i64> ids) {
    std::vector<ExpertRequest> requests;
    for (i64 id : ids) requests.push_back({ExpertId(id)});
    return scheduler->acquire(layer(moe_layer), requests);
  }
  bool use(i64 moe_layer, std::initializer_list<i64> ids) {
    auto lease = acquire(moe_layer, ids);
    while (lease.pending() > 0) {
      std::vector<ReadyExpert> ready;
      if (!lease.wait(ready).ok()) return false;
      for (const ReadyExpert& r : ready) lease.release(r);
    }
    return true;
  }
  void let_land(i64 step_ns = 300) {
    for (int i = 0; i < 500; i++) {
      scheduler->tend();
      clock.advance(step_ns);
    }
    scheduler->tend();
  }

  VirtualClock clock;
  ExpertTable table;
  Plan plan;
  FakeReader reader;
  std::unique_ptr<Scheduler> scheduler;
};

Extent first_gate(const Rig& rig, i64 moe_layer) {
  return rig.table.extent(rig.layer(moe_layer), ExpertId(0), ExpertMatrix::gate);
}

// MoE layers in the order of the files.
std::vector<i64> layers_as_they_lie(const Rig& rig) {
  std::vector<i64> layers;
  for (i64 l = 0; l < rig.table.moe_layers(); l++) layers.push_back(l);
  std::sort(layers.begin(), layers.end(), [&](i64 a, i64 b) {
    Extent x = first_gate(rig, a), y = first_gate(rig, b);
    return std::pair(x.file, x.offset) < std::pair(y.file, y.offset);
  });
  return layers;
}

// MoE layers in the order in which the first expert's gate matrices were read.
std::vector<i64> layers_as_read(const Rig& rig) {
  std::vector<std::pair<i64, i64>> first;  // place in the history
  for (i64 l = 0; l < rig.table.moe_layers(); l++) {
    Extent gate = first_gate(rig, l);
    const auto& history = rig.reader.history;
    auto covers = [&](const ReadPiece& p) {
      return p.file == gate.file && p.offset <= gate.offset && gate.offset < p.offset + p.bytes;
    };
    auto found = std::find_if(history.begin(), history.end(), covers);
    REQUIRE(found != history.end());
    first.push_back({found - history.begin(), l});
  }
  std::sort(first.begin(), first.end());
  std::vector<i64> layers;
  for (auto [place, l] : first) layers.push_back(l);
  return layers;
}

i64 of_priority(const std::vector<ReadPiece>& pieces, ReadPriority priority) {
  return std::count_if(pieces.begin(), pieces.end(), [&](const ReadPiece& p) { return p.priority == priority; });
}

constexpr i64 kSlowNs = 4'000'000;  // of a piece, at most

}  // namespace

TEST_CASE("preload and warming read the layers as they lie in the files") {
  i64 shown = 0;
  for (u64 seed = 1; seed <= 4; seed++)
    for (bool warming : {false, true}) {
      CAPTURE(seed);
      CAPTURE(warming);
      Rig rig({.model = {.layers = 6, .sizes = 1, .seed = seed}});
      if (!warming) CHECK(rig.scheduler->preload(nullptr, nullptr).ok());
      for (int calls = 0; warming && rig.scheduler->warm().done < 6 * 12; calls++) {
        REQUIRE(calls < 1000);
        rig.clock.advance(1000);
      }
      rig.let_land();
      std::vector<i64> expected = layers_as_they_lie(rig);
      CHECK(layers_as_read(rig) == expected);
      shown += !std::is_sorted(expected.begin(), expected.end());
      for (const ReadPiece& p : rig.reader.history) CHECK(p.priority == ReadPriority::background);
    }
  CHECK(shown > 0);
}

TEST_CASE("what warming has brought leaves before what was wanted earlier") {
  Rig rig({.share = 0.5});
  for (i64 l = 0; l < 4; l++) CHECK(rig.use(l, {0, 1}));
  for (int calls = 0; rig.scheduler->warm().done < 4 * 12; calls++) {
    REQUIRE(calls < 1000);
    rig.clock.advance(1000);
  }
  rig.let_land();
  for (i64 l = 0; l < 4; l++) CHECK(rig.use(l, {9, 10, 11}));
  CHECK(rig.scheduler->stats().evictions > 0);
  for (i64 l = 0; l < 4; l++)
    for (i64 e : {0, 1}) CHECK(rig.tier(l, e) == ExpertTier::ram);
}

TEST_CASE("a layer is warmed by what its experts are worth when its turn comes") {
  Rig rig({.model = {.layers = 6, .experts = 32, .sizes = 1},
           .share = 0.5,
           .policy = "auto",
           .drive = {.capacity = 4, .longest_ns = 1000}});
  REQUIRE(rig.scheduler->warm().done < 4 * 32);
  i64 last = layers_as_they_lie(rig).back();
  { auto lease = rig.acquire(last, {29, 30, 31}); }  // given up before a byte of them is read
  for (i64 e : {29, 30, 31}) REQUIRE(rig.tier(last, e) == ExpertTier::disk);
  for (int calls = 0; rig.scheduler->warm().done < 6 * 32; calls++) {
    REQUIRE(calls < 1000);
    rig.clock.advance(1000);
  }
  rig.let_land();
  for (i64 e : {29, 30, 31}) CHECK(rig.tier(last, e) == ExpertTier::ram);
}

TEST_CASE("of what fills slots two experts are under way before the drive is known, and never more than 32") {
  Rig rig({.model = {.layers = 4, .experts = 64, .sizes = 1}, .drive = {.capacity = 1024, .longest_ns = 10}});
  rig.scheduler->fill_empty_slots();
  rig.scheduler->tend();
  CHECK(rig.count(ExpertTier::arriving) == 2);
  i64 most = 0;
  for (int i = 0; i < 200; i++) {
    rig.clock.advance(1);
    rig.scheduler->tend();
    most = std::max(most, rig.count(ExpertTier::arriving));
  }
  CHECK(most > 2);
  CHECK(most <= 32);
}

TEST_CASE("slots that are free again are filled again, from the end of a pass on") {
  Rig rig({.share = 0.5, .drive = {.capacity = 2, .longest_ns = 1000}});
  rig.scheduler->fill_empty_slots();
  rig.let_land();
  const i64 slots = rig.plan.total_slots();
  REQUIRE(rig.count(ExpertTier::ram) == slots);
  { auto lease = rig.acquire(0, {9, 10, 11}); }  // the reads of two have not begun
  rig.let_land();
  CHECK(rig.count(ExpertTier::ram) == slots - 2);
  rig.scheduler->end_pass(1, 1000, true);
  rig.let_land();
  CHECK(rig.count(ExpertTier::ram) == slots);
}

TEST_CASE("what fills a slot goes on with demand when it is wanted, and is read again when that fails") {
  for (bool fails : {false, true}) {
    CAPTURE(fails);
    Rig rig({.share = 0.5, .drive = {.capacity = 64, .depth = 1, .longest_ns = kSlowNs}});
    Extent gate = first_gate(rig, 0);
    if (fails) rig.reader.fail_once(gate.file, gate.offset);
    rig.scheduler->fill_empty_slots();
    rig.scheduler->tend();
    REQUIRE(rig.tier(0, 0) == ExpertTier::arriving);
    REQUIRE(of_priority(rig.reader.begun, ReadPriority::spare) == 1);
    CHECK(rig.use(0, {0}));
    CHECK(rig.reader.failures() == (fails ? 1 : 0));
    const i64 pieces = rig.table.expert_bytes(rig.layer(0)) / 8192;  // at least
    for (i64 i = 1; i < pieces; i++) CHECK(rig.reader.begun[static_cast<size_t>(i)].priority == ReadPriority::demand);
  }
}

TEST_CASE("a drive that only fills slots is no busy one to the governor") {
  const FakeReader::Options slow{.capacity = 64, .depth = 1, .longest_ns = kSlowNs};
  Rig rig({.model = {.layers = 4, .experts = 64, .sizes = 1}, .drive = slow});
  rig.scheduler->set_prefetch({PrefetchMode::on});
  const f32 first = rig.scheduler->governor().threshold();
  rig.scheduler->fill_empty_slots();
  for (i64 token = 0; token < 2 * GovernorOptions{}.window_tokens; token++) {
    rig.scheduler->tend();
    rig.clock.advance(kSlowNs);
    rig.scheduler->tend();
    rig.scheduler->end_pass(1, kSlowNs, true);
  }
  REQUIRE(rig.count(ExpertTier::disk) > 0);
  CHECK(rig.scheduler->governor().threshold() < first);
}

TEST_CASE("with the kernel are predictions for two milliseconds at most, and fills for half of one") {
  i64 with_kernel[2];
  for (bool fills : {false, true}) {
    Rig rig({.share = 0.9, .drive = {.capacity = 256, .longest_ns = 2'000'000}});
    rig.scheduler->set_prefetch({PrefetchMode::on});
    CHECK(rig.use(0, {1, 2, 3}));  // now the drive's speed is known
    std::vector<ExpertExpectation> all;
    for (i64 e = 0; e < 12; e++) all.push_back({ExpertId(e), 1.f});
    if (!fills) rig.scheduler->hint(rig.layer(1), all);
    if (fills) rig.scheduler->fill_empty_slots();
    rig.scheduler->tend();
    ReadPriority priority = fills ? ReadPriority::spare : ReadPriority::predicted;
    with_kernel[fills] = of_priority(rig.reader.begun, priority);
    CHECK(of_priority(rig.reader.history, priority) > with_kernel[fills]);
  }
  CHECK(with_kernel[1] >= 1);
  CHECK(with_kernel[0] > 2 * with_kernel[1]);
}

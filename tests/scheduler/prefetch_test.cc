// Hints: the real scheduler, policy and streamer on a virtual clock and drive.
#include <doctest/doctest.h>

#include <algorithm>
#include <memory>
#include <vector>

#include "scheduler/planner.h"
#include "scheduler/policy/make_policy.h"
#include "scheduler/policy/piece_wants.h"
#include "scheduler/scheduler.h"
#include "scheduler/tiers/slab.h"
#include "tests/scheduler/fake_reader.h"
#include "tests/scheduler/pattern_file.h"
#include "tests/scheduler/small_model.h"

using namespace stoker;
using namespace stoker::test;

namespace {

// Prefetch is on. All experts have slots, or as few as may be, or, with a policy that has probabilities, a share of them.
struct Rig {
  explicit Rig(PrefetchMode mode = PrefetchMode::on, i64 capacity = 64, bool smallest = false, f64 share = 1,
               i64 longest_ns = 1000, i64 depth = 0)
      : table(small_table({.layers = 4, .sizes = 1})),
        reader({.file_bytes = table.file_bytes(), .capacity = capacity, .depth = depth, .longest_ns = longest_ns}, clock) {
    i64 budget = smallest ? smallest_budget(table, 4096) : static_cast<i64>(share * static_cast<f64>(full_budget(table, 4096)));
    plan = make_plan(table, {.ram_bytes = budget, .piece_bytes = 8192});
    scheduler = std::make_unique<Scheduler>(
        table, plan, make_policy(share < 1 ? "auto" : "lru", plan, table.experts_per_layer(), table.top_k()), reader, clock,
        SlabOptions{.piece_bytes = 256 * kKiB, .background = false});
    scheduler->set_prefetch({mode});
  }

  LayerId layer(i64 moe_layer) const { return table.layers()[static_cast<size_t>(moe_layer)].layer; }
  void hint(i64 moe_layer, std::vector<ExpertExpectation> expected) { scheduler->hint(layer(moe_layer), expected); }

  // Acquires, waits and checks bytes; false when a read failed.
  bool use(i64 moe_layer, const std::vector<i64>& ids) {
    std::vector<ExpertRequest> requests;
    for (i64 id : ids) requests.push_back({ExpertId(id)});
    auto lease = scheduler->acquire(layer(moe_layer), requests);
    while (lease.pending() > 0) {
      std::vector<ReadyExpert> ready;
      if (!lease.wait(ready).ok()) return false;
      for (const ReadyExpert& r : ready) {
        Extent up = table.extent(layer(moe_layer), requests[static_cast<size_t>(r.request)].expert, ExpertMatrix::up);
        CHECK(matches_pattern(r.up, static_cast<u64>(up.file), up.offset, up.bytes));
        lease.release(r);
      }
    }
    return true;
  }
  void let_land() {
    for (int i = 0; i < 100; i++) {
      clock.advance(1000);
      scheduler->tend();
    }
  }
  i64 pieces(ReadPriority priority) const {
    return std::count_if(reader.history.begin(), reader.history.end(),
                         [&](const ReadPiece& p) { return p.priority == priority; });
  }
  const SchedulerStats& stats() const { return scheduler->stats(); }

  VirtualClock clock;
  ExpertTable table;
  Plan plan;
  FakeReader reader;
  std::unique_ptr<Scheduler> scheduler;
};

}  // namespace

TEST_CASE("what was hinted and has landed is a hit, and its bytes were useful") {
  Rig rig;
  rig.hint(1, {{ExpertId(4), 0.9f}, {ExpertId(5), 0.8f}});
  rig.let_land();
  CHECK(rig.pieces(ReadPriority::predicted) > 0);
  CHECK(rig.stats().predicted_bytes == 2 * rig.table.expert_bytes(rig.layer(1)));
  CHECK(rig.stats().useful_bytes == 0);
  CHECK(rig.use(1, {4, 6}));
  CHECK(rig.stats().hits == 1);
  CHECK(rig.stats().misses == 1);
  CHECK(rig.stats().useful_bytes == rig.table.expert_bytes(rig.layer(1)));
  CHECK(rig.use(1, {4}));  // useful once
  CHECK(rig.stats().useful_bytes == rig.table.expert_bytes(rig.layer(1)));
}

TEST_CASE("what is unlikely, or hinted while prefetch is off, is not read") {
  Rig rig, off(PrefetchMode::off);
  rig.hint(1, {{ExpertId(4), 0.1f}});
  off.hint(1, {{ExpertId(4), 1.f}});
  CHECK(rig.reader.history.empty());
  CHECK(off.reader.history.empty());
}

TEST_CASE("what is hinted is read a few at a time, the nearest layer first") {
  Rig rig;
  CHECK(rig.use(0, {1}));
  std::vector<ExpertExpectation> all;
  for (i64 e = 0; e < 12; e++) all.push_back({ExpertId(e), 1.f});
  rig.hint(2, all);
  auto there = [&](i64 moe_layer, ExpertTier tier) {
    i64 n = 0;
    for (i64 e = 0; e < 12; e++) n += rig.scheduler->tier(rig.layer(moe_layer), ExpertId(e)) == tier;
    return n;
  };
  i64 at_once = there(2, ExpertTier::arriving);
  CHECK(at_once >= 2);
  CHECK(at_once < 12);
  rig.hint(1, all);
  CHECK(there(1, ExpertTier::arriving) == 0);
  for (int i = 0; i < 1000 && there(1, ExpertTier::ram) < 12; i++) {
    rig.clock.advance(100);
    rig.scheduler->tend();
    CHECK(there(1, ExpertTier::arriving) + there(2, ExpertTier::arriving) <= at_once);
    // Of the farther layer no more is begun before all of the nearer one is.
    if (there(1, ExpertTier::disk) > 0) CHECK(there(2, ExpertTier::disk) == 12 - at_once);
  }
  CHECK(there(1, ExpertTier::ram) == 12);
  rig.let_land();
  CHECK(there(2, ExpertTier::ram) == 12);
}

TEST_CASE("a predicted read that is wanted goes on as demand and reads nothing twice") {
  Rig rig;
  rig.hint(1, {{ExpertId(4), 0.9f}});  // before a bandwidth is known: one piece at a time
  CHECK(rig.reader.history.size() == 1);
  CHECK(rig.use(1, {4}));
  CHECK(rig.stats().misses == 1);
  CHECK(rig.stats().upgrades == 1);
  CHECK(rig.pieces(ReadPriority::predicted) == 1);
  CHECK(rig.pieces(ReadPriority::demand) > 1);
  i64 bytes = 0;
  for (const ReadPiece& p : rig.reader.history) bytes += p.bytes;
  CHECK(bytes == rig.stats().bytes_read);
  CHECK(bytes < rig.table.expert_bytes(rig.layer(1)) + 3 * 2 * 4096);
}

namespace {

constexpr i64 kPieceNs = 4'000'000;  // at most, one after the other

}  // namespace

TEST_CASE("what the reader holds back of a prediction goes with demand when it is wanted") {
  Rig rig(PrefetchMode::on, 64, false, 1, kPieceNs, 1);
  CHECK(rig.use(0, {1, 2, 3}));  // a bandwidth is known
  size_t submitted = rig.reader.history.size(), begun = rig.reader.begun.size();
  rig.hint(1, {{ExpertId(4), 0.9f}});
  REQUIRE(rig.reader.history.size() > submitted + 1);
  CHECK(rig.reader.begun.size() == begun + 1);
  CHECK(rig.use(1, {4}));
  CHECK(rig.reader.begun.size() > begun + 2);
  for (size_t i = begun + 1; i < rig.reader.begun.size(); i++) CHECK(rig.reader.begun[i].priority == ReadPriority::demand);
}

TEST_CASE("a layer that passes without it ends an expert's read, unless there is a slot that would stay empty") {
  for (bool full : {true, false}) {
    CAPTURE(full);
    Rig rig(PrefetchMode::on, 64, full, 1, kPieceNs, 1);
    for (i64 l = 0; l < 4; l++) CHECK(rig.use(l, {1, 2, 3}));
    i64 bytes = rig.table.expert_bytes(rig.layer(1)), before = rig.stats().bytes_read;
    rig.hint(1, {{ExpertId(4), 0.9f}});
    CHECK(rig.use(1, {1}));
    for (int i = 0; i < 20; i++) {
      rig.clock.advance(kPieceNs);
      rig.scheduler->tend();
    }
    i64 again = full ? rig.table.expert_bytes(rig.layer(1)) : 0;  // the smallest budget keeps no layer
    i64 read = rig.stats().bytes_read - before - again;
    CHECK(rig.scheduler->tier(rig.layer(1), ExpertId(4)) == (full ? ExpertTier::disk : ExpertTier::ram));
    CHECK(read > 0);
    CHECK((read < bytes) == full);
    CHECK((rig.stats().predicted_bytes < bytes) == full);
    CHECK(rig.stats().predicted_bytes > 0);
    CHECK(rig.stats().useful_bytes == 0);
    CHECK(rig.use(1, {4, 5}));
  }
}

TEST_CASE("an expert whose read has just been ended can be wanted") {
  Rig rig(PrefetchMode::on, 64, true, 1, kPieceNs, 1);
  for (i64 l = 0; l < 4; l++) CHECK(rig.use(l, {1, 2, 3}));
  rig.hint(1, {{ExpertId(4), 0.9f}});
  std::vector<ExpertRequest> requests{{ExpertId(1)}};
  { auto lease = rig.scheduler->acquire(rig.layer(1), requests); }
  CHECK(rig.scheduler->tier(rig.layer(1), ExpertId(4)) == ExpertTier::arriving);  // a piece is with the drive
  CHECK(rig.use(1, {4}));
}

TEST_CASE("demand overtakes predictions") {
  Rig rig;
  rig.hint(2, {{ExpertId(4), 0.9f}, {ExpertId(5), 0.9f}, {ExpertId(6), 0.9f}});
  size_t before = rig.reader.history.size();
  CHECK(rig.use(1, {1, 2, 3}));
  auto& history = rig.reader.history;
  auto demand = std::find_if(history.begin(), history.end(), [](auto& p) { return p.priority == ReadPriority::demand; });
  CHECK(demand == history.begin() + static_cast<std::ptrdiff_t>(before));
}

TEST_CASE("queued predictions of a layer that has passed are cancelled") {
  Rig rig;
  rig.hint(1, {{ExpertId(4), 0.9f}, {ExpertId(5), 0.9f}, {ExpertId(6), 0.9f}});
  CHECK(rig.use(1, {1}));
  rig.let_land();
  // The first had begun.
  CHECK(rig.stats().predicted_bytes == rig.table.expert_bytes(rig.layer(1)));
}

TEST_CASE("a prediction whose read failed is read again when wanted; a second failure ends the request") {
  for (bool upgraded : {true, false}) {
    CAPTURE(upgraded);
    Rig rig;
    Extent gate = rig.table.extent(rig.layer(1), ExpertId(4), ExpertMatrix::gate);
    rig.reader.fail_once(gate.file, gate.offset);
    rig.hint(1, {{ExpertId(4), 0.9f}});
    if (!upgraded) rig.let_land();
    CHECK(rig.use(1, {4, 5}));
    CHECK(rig.reader.failures() == 1);
    rig.reader.set_failure_rate(1);
    rig.hint(2, {{ExpertId(4), 0.9f}});
    CHECK(!rig.use(2, {4}));
    rig.reader.set_failure_rate(0);
    CHECK(rig.use(2, {4}));
  }
}

TEST_CASE("with the smallest budget predictions give their slots up to demand") {
  Rig rig(PrefetchMode::on, 2, true);
  for (int round = 0; round < 20; round++) {
    i64 next = (round + 1) % 4;
    rig.hint(next, {{ExpertId(7), 0.9f}, {ExpertId(8), 0.9f}, {ExpertId(9), 0.9f}});
    CHECK(rig.use(round % 4, {round % 5, 5, 6}));
  }
}

TEST_CASE("a hint takes no slot that the lease still needs") {
  Rig rig(PrefetchMode::on, 64, true);
  std::vector<ExpertRequest> requests;
  for (i64 e = 0; e < 12; e++) requests.push_back({ExpertId(e)});
  auto lease = rig.scheduler->acquire(rig.layer(0), requests);
  rig.hint(1, {{ExpertId(4), 1.f}});
  while (lease.pending() > 0) {
    std::vector<ReadyExpert> ready;
    REQUIRE(lease.wait(ready).ok());
    for (const ReadyExpert& r : ready) lease.release(r);
    if (lease.pending() <= rig.plan.total_slots()) continue;
    rig.hint(1, {{ExpertId(4), 1.f}});
    CHECK(rig.pieces(ReadPriority::predicted) == 0);
  }
}

TEST_CASE("what is expected itself is not given up for something less likely") {
  Rig rig(PrefetchMode::on, 64, true);
  CHECK(rig.use(1, {1, 2, 3}));
  rig.hint(1, {{ExpertId(1), 0.9f}, {ExpertId(2), 0.9f}, {ExpertId(3), 0.9f}, {ExpertId(4), 0.8f}});
  CHECK(rig.pieces(ReadPriority::predicted) == 0);
}

namespace {

// All experts of a layer, as a piece of so many tokens wants them.
bool use_as_piece(Rig& rig, i64 moe_layer, i64 tokens, const std::vector<i64>& ids, i64 computing_ns = 0) {
  std::vector<ExpertRequest> requests;
  for (i64 id : ids) requests.push_back({ExpertId(id)});
  requests[0].tokens = static_cast<i32>(tokens * rig.table.top_k() - static_cast<i64>(ids.size()) + 1);
  auto lease = rig.scheduler->acquire(rig.layer(moe_layer), requests);
  while (lease.pending() > 0) {
    std::vector<ReadyExpert> ready;
    if (!lease.wait(ready).ok()) return false;
    for (const ReadyExpert& r : ready) {
      Extent up = rig.table.extent(rig.layer(moe_layer), requests[static_cast<size_t>(r.request)].expert, ExpertMatrix::up);
      CHECK(matches_pattern(r.up, static_cast<u64>(up.file), up.offset, up.bytes));
      rig.clock.advance(computing_ns);
      lease.release(r);
    }
  }
  return true;
}

std::vector<i64> all_experts(const Rig& rig) {
  std::vector<i64> ids;
  for (i64 e = 0; e < rig.table.experts_per_layer(); e++) ids.push_back(e);
  return ids;
}

constexpr i64 kPieceTokens = 400;  // so many that every expert is sure to be wanted

}  // namespace

TEST_CASE("while a piece of a prompt passes a layer the next one's experts are read, each once") {
  Rig rig(PrefetchMode::on, 64, false, 0.7);
  rig.scheduler->begin_piece(kPieceTokens);
  rig.let_land();
  i64 layers = rig.table.moe_layers();
  for (i64 l = 0; l < layers; l++) {
    i64 misses = rig.stats().misses;
    CHECK(use_as_piece(rig, l, kPieceTokens, all_experts(rig)));
    CHECK(rig.stats().misses == misses);  // it has all been read before it came
    rig.let_land();
  }
  rig.scheduler->end_piece();
  i64 bytes = 0;
  for (i64 l = 0; l < layers; l++) bytes += rig.table.experts_per_layer() * rig.table.expert_bytes(rig.layer(l));
  CHECK(rig.stats().ahead_bytes == bytes);
  CHECK(rig.stats().ahead_useful_bytes == bytes);
  CHECK(rig.stats().predicted_bytes == 0);
}

TEST_CASE("reading ahead takes no slot of what the layer under way still uses, nor of what a piece waits for") {
  // Little more than a layer has a slot.
  Rig rig(PrefetchMode::on, 64, false, 0.3);
  i64 slots = rig.plan.total_slots(), experts = rig.table.experts_per_layer();
  REQUIRE(slots > experts);
  REQUIRE(slots < 2 * experts);
  rig.scheduler->begin_piece(kPieceTokens);
  rig.let_land();
  std::vector<ExpertRequest> requests;
  for (i64 id : all_experts(rig)) requests.push_back({ExpertId(id)});
  requests[0].tokens = static_cast<i32>(kPieceTokens * rig.table.top_k() - experts + 1);
  {
    auto lease = rig.scheduler->acquire(rig.layer(0), requests);
    std::vector<ReadyExpert> held;
    REQUIRE(lease.wait(held).ok());
    CHECK(static_cast<i64>(held.size()) == experts);
    rig.let_land();
    CHECK(rig.scheduler->view().tiers.size() == static_cast<size_t>(4 * experts));
    i64 ahead = 0;
    for (i64 e = 0; e < experts; e++) {
      CHECK(rig.scheduler->tier(rig.layer(0), ExpertId(e)) == ExpertTier::ram);
      ahead += rig.scheduler->tier(rig.layer(1), ExpertId(e)) == ExpertTier::ram;
    }
    CHECK(ahead == slots - experts);
    // Slots that the layer has done with go to the next one.
    std::sort(held.begin(), held.end(), [](const ReadyExpert& a, const ReadyExpert& b) { return a.request > b.request; });
    for (size_t i = 0; i < 4; i++) lease.release(held[i]);
    rig.let_land();
    for (i64 e = 0; e < experts; e++) ahead -= rig.scheduler->tier(rig.layer(1), ExpertId(e)) == ExpertTier::ram;
    CHECK(ahead == -4);
    for (size_t i = 4; i < held.size(); i++) lease.release(held[i]);
  }
  rig.let_land();
  // The layer that is waited for is there, and rows of others that pass it change nothing.
  i64 read = rig.stats().bytes_read;
  CHECK(rig.use(1, {1, 2, 3}));
  rig.let_land();
  CHECK(rig.stats().bytes_read == read);
  CHECK(use_as_piece(rig, 1, kPieceTokens, all_experts(rig)));
}

TEST_CASE("rows of others between two layers of a piece do not cancel what is read for it") {
  Rig rig(PrefetchMode::on, 2, false, 0.7);
  rig.scheduler->begin_piece(kPieceTokens);
  CHECK(rig.use(0, {1, 2, 3}));
  rig.hint(0, {{ExpertId(4), 0.9f}});
  CHECK(rig.use(0, {2, 3, 4}));
  rig.let_land();
  i64 misses = rig.stats().misses;
  CHECK(use_as_piece(rig, 0, kPieceTokens, all_experts(rig)));
  CHECK(rig.stats().misses == misses);
}

TEST_CASE("what has not begun when a piece ends is not read") {
  for (bool far : {true, false}) {
    CAPTURE(far);
    Rig rig(PrefetchMode::on, 2, false, 0.7);
    if (far) rig.scheduler->begin_piece(kPieceTokens);
    rig.scheduler->end_piece();
    rig.let_land();
    CHECK(rig.stats().ahead_bytes == (far ? rig.table.expert_bytes(rig.layer(0)) : 0));
    CHECK(use_as_piece(rig, 0, kPieceTokens, all_experts(rig)));
    rig.let_land();
    for (i64 e = 0; e < rig.table.experts_per_layer(); e++)
      CHECK(rig.scheduler->tier(rig.layer(1), ExpertId(e)) == ExpertTier::disk);
  }
}

TEST_CASE("nothing is read ahead of a piece while prefetch is off") {
  Rig rig(PrefetchMode::off, 64, false, 0.7);
  rig.scheduler->begin_piece(kPieceTokens);
  rig.let_land();
  CHECK(rig.reader.history.empty());
}

TEST_CASE("a few tokens want few experts, and a piece wants what earlier ones wanted") {
  PieceWants wants(1, 256, 8);
  CHECK(wants.probability({0, ExpertId(0)}, 1) == doctest::Approx(8. / 256));
  // Nothing is known: it may be one of the many cold ones.
  CHECK(wants.probability({0, ExpertId(0)}, 512) > 0.75f);
  CHECK(wants.probability({0, ExpertId(0)}, 512) < 0.9f);
  for (int i = 0; i < 20; i++) {
    wants.on_layer(0, 512);
    for (i64 e = 0; e < 8; e++) wants.on_use({0, ExpertId(e)}, 512);
  }
  CHECK(wants.probability({0, ExpertId(7)}, 1) > 0.98f);
  CHECK(wants.probability({0, ExpertId(8)}, 128) < 0.2f);
}

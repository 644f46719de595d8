// The real scheduler, policy, slab and streamer on a virtual clock and drive.
#include "scheduler/scheduler.h"

#include <doctest/doctest.h>

#include <algorithm>
#include <atomic>
#include <memory>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "kernels/base/buffer.h"
#include "kernels/base/rng.h"
#include "scheduler/planner.h"
#include "scheduler/policy/lru_cache.h"
#include "scheduler/policy/make_policy.h"
#include "scheduler/policy/popularity.h"
#include "scheduler/tiers/slab.h"
#include "tests/scheduler/fake_reader.h"
#include "tests/scheduler/pattern_file.h"
#include "tests/scheduler/small_model.h"

using namespace stoker;
using namespace stoker::test;

namespace {

struct Rig {
  struct Options {
    SmallModel model = {};
    i64 budget = 0;  // 0: the smallest
    FakeReader::Options drive = {};
    std::string policy = "lru";
    const Popularity* known = nullptr;  // that auto knows, or none
  };
  explicit Rig(Options o) : table(small_table(o.model)), reader(drive_of(o, table), clock), options(o) {
    make_scheduler(table);
  }
  void make_scheduler(ExpertTable experts) {
    const Options& o = options;
    scheduler.reset();
    table = std::move(experts);
    plan = make_plan(table, {.ram_bytes = o.budget > 0 ? o.budget : smallest_budget(table, 4096),
                             .ring_depth = 8,
                             .piece_bytes = 8192});
    auto policy = make_policy(o.known != nullptr ? "auto" : o.policy, plan, table.experts_per_layer(),
                              table.top_k(), o.known);
    scheduler = std::make_unique<Scheduler>(table, plan, std::move(policy), reader, clock,
                                            SlabOptions{.piece_bytes = 256 * kKiB, .background = false});
  }
  static FakeReader::Options drive_of(const Options& o, const ExpertTable& table) {
    FakeReader::Options drive = o.drive;
    drive.file_bytes = table.file_bytes();
    return drive;
  }

  LayerId layer(i64 moe_layer) const { return table.layers()[static_cast<size_t>(moe_layer)].layer; }
  bool right_bytes(LayerId l, ExpertId expert, const ReadyExpert& ready) const {
    const std::byte* data[] = {ready.gate, ready.up, ready.down};
    for (i64 m = 0; m < kExpertMatrices; m++) {
      Extent e = table.extent(l, expert, static_cast<ExpertMatrix>(m));
      if (!matches_pattern(data[m], static_cast<u64>(e.file), e.offset, e.bytes)) return false;
    }
    return true;
  }
  // Acquires, waits for, checks and releases everything. The most experts that were held at once, or -1 on
  // failure.
  i64 use_all(i64 moe_layer, const std::vector<ExpertRequest>& requests, std::string* message = nullptr) {
    auto lease = scheduler->acquire(layer(moe_layer), requests);
    std::set<i64> seen;
    i64 most = 0;
    while (lease.pending() > 0) {
      std::vector<ReadyExpert> ready;
      Status status = lease.wait(ready);
      if (!status.ok()) {
        if (message != nullptr) *message = status.message();
        return -1;
      }
      REQUIRE(!ready.empty());
      most = std::max(most, static_cast<i64>(ready.size()));
      for (const ReadyExpert& r : ready) {
        CHECK(seen.insert(r.request).second);
        CHECK(right_bytes(layer(moe_layer), requests[static_cast<size_t>(r.request)].expert, r));
        clock.advance(300);  // computing
        lease.release(r);
      }
    }
    CHECK(seen.size() == requests.size());
    return most;
  }

  VirtualClock clock;
  ExpertTable table;
  Plan plan;
  FakeReader reader;
  Options options;
  std::unique_ptr<Scheduler> scheduler;
};

std::vector<ExpertRequest> experts(std::initializer_list<i64> ids) {
  std::vector<ExpertRequest> requests;
  for (i64 id : ids) requests.push_back({ExpertId(id)});
  return requests;
}

std::vector<ExpertRequest> random_experts(Rng& rng, i64 of, i64 count) {
  std::vector<ExpertRequest> all;
  for (i64 e = 0; e < of; e++) all.push_back({ExpertId(e)});
  for (i64 i = 0; i < count; i++)
    std::swap(all[static_cast<size_t>(i)], all[static_cast<size_t>(i + rng.below(of - i))]);
  all.resize(static_cast<size_t>(count));
  return all;
}

// A random life: tokens and prompt pieces that read ahead, leases held and dropped, failing reads, memory given up. Returns a
// digest of what happened.
std::string random_life(u64 seed, f64 failure_rate) {
  Rng rng(seed);
  Rig::Options o;
  o.model = {
      .layers = 1 + rng.below(5), .experts = 6 + rng.below(10), .top_k = 1 + rng.below(4), .seed = seed};
  o.model.sizes = 1 + rng.below(3);
  o.model.packed = seed % 3 == 0;
  ExpertTable table = small_table(o.model);
  i64 least = smallest_budget(table, 4096), full = full_budget(table, 4096);
  o.budget = rng.below(3) == 0 ? least : least + rng.below(full - least + 1);
  o.drive = {.seed = seed,
             .capacity = 1 + rng.below(20),
             .max_piece_bytes = 4096 << rng.below(3),
             .longest_ns = rng.below(3000),
             .failure_rate = failure_rate};
  if (seed % 5 < 3) o.policy = "auto";
  Rig rig(o);
  REQUIRE(rig.plan.arena_bytes() <= o.budget);
  CHECK(rig.reader.memory_bytes() == rig.plan.arena_bytes());
  rig.scheduler->set_prefetch({PrefetchMode::on});
  if (seed % 4 == 2) rig.scheduler->fill_empty_slots();

  constexpr i64 kPiece = 100;  // tokens
  i64 piece_layer = -1;        // it comes to next
  for (int step = 0; step < 80; step++) {
    if (seed % 4 == 1 && rng.below(3) == 0) rig.scheduler->warm();
    if (seed % 4 == 2) rig.scheduler->tend();
    i64 moe_layer = rng.below(o.model.layers);
    i64 count = rng.below(4) == 0 ? 1 + rng.below(o.model.experts) : o.model.top_k;
    // Pieces of a prompt in two thirds of the lives, given up here and there, and others' leases between theirs.
    if (seed % 3 > 0 && rng.below(8) == 0) {
      piece_layer = 0;
      rig.scheduler->begin_piece(kPiece);
    }
    bool of_piece = piece_layer >= 0 && rng.below(2) == 0;
    if (of_piece) {
      moe_layer = piece_layer++;
      count = std::max(count, o.model.top_k);
    }
    std::vector<ExpertRequest> requests = random_experts(rng, o.model.experts, count);
    if (of_piece) requests[0].tokens = static_cast<i32>(kPiece * o.model.top_k - (count - 1));
    if (piece_layer >= 0 && (piece_layer == o.model.layers || rng.below(20) == 0)) {
      // The last layer's lease comes after it: as after a failure.
      rig.scheduler->end_piece();
      piece_layer = -1;
    }
    if (rng.below(2) == 0) rig.scheduler->tend();
    if (rng.below(40) == 0) {
      i64 before = rig.reader.memory_bytes(), wanted = rng.below(rig.plan.arena_bytes() / 4);
      i64 given = rig.scheduler->give_up_memory(wanted);
      CHECK(rig.reader.memory_bytes() == before - given);
      CHECK((given >= wanted || rig.reader.memory_bytes() < least + 4 * 256 * kKiB));
      CHECK(rig.reader.in_flight() == 0);
    }
    i64 slots =
        rig.plan.classes[static_cast<size_t>(rig.plan.class_of_moe_layer[static_cast<size_t>(moe_layer)])]
            .slots;
    // Hints, right and wrong, in half of the lives.
    if (seed % 2 == 0) {
      std::vector<ExpertExpectation> expected;
      for (const ExpertRequest& r : random_experts(rng, o.model.experts, 1 + rng.below(4)))
        expected.push_back({r.expert, static_cast<f32>(rng.uniform())});
      rig.scheduler->hint(rig.layer(rng.below(o.model.layers)), expected);
    }
    i64 give_up_after = rng.below(6) == 0 ? rng.below(count + 1) : count;
    auto lease = rig.scheduler->acquire(rig.layer(moe_layer), requests);
    std::vector<ReadyExpert> held;
    i64 handed = 0;
    while (lease.pending() > 0 && handed < give_up_after) {
      std::vector<ReadyExpert> ready;
      if (!lease.wait(ready).ok()) {
        CHECK(failure_rate > 0);
        break;
      }
      REQUIRE((!ready.empty() || !held.empty()));  // it blocks when nothing can be computed
      handed += static_cast<i64>(ready.size());
      held.insert(held.end(), ready.begin(), ready.end());
      CHECK(static_cast<i64>(held.size()) <= slots);
      // Whatever is held stays right while other reads land around it.
      for (const ReadyExpert& r : held)
        CHECK(rig.right_bytes(rig.layer(moe_layer), requests[static_cast<size_t>(r.request)].expert, r));
      rig.clock.advance(rng.below(1000));
      for (i64 n = rng.below(static_cast<i64>(held.size()) + 1); n > 0; n--) {
        size_t which = static_cast<size_t>(rng.below(static_cast<i64>(held.size())));
        lease.release(held[which]);
        held.erase(held.begin() + static_cast<std::ptrdiff_t>(which));
      }
    }
  }
  const SchedulerStats& s = rig.scheduler->stats();
  CHECK(s.hits + s.misses == s.requests);
  std::string digest = fmt::format("{} {} {} {} {} {}", s.requests, s.hits, s.evictions, s.bytes_read,
                                   rig.reader.failures(), rig.clock.now_ns());
  rig.scheduler.reset();
  CHECK(rig.reader.in_flight() == 0);
  CHECK(rig.reader.memory_bytes() == 0);
  return digest;
}

}  // namespace

namespace {

// LRU that notes how many tokens it is told have come to a layer.
class TokenSpy final : public ResidencyPolicy {
 public:
  TokenSpy(const Plan& plan, const ExpertTable& table, std::vector<i64>& tokens)
      : lru_(plan, table.experts_per_layer(), table.top_k()), tokens_(tokens) {}
  void on_capacity(i64 slot_class, i64 slots) override { lru_.on_capacity(slot_class, slots); }
  void on_layer(i64 moe_layer, i64 tokens) override {
    tokens_.push_back(tokens);
    lru_.on_layer(moe_layer, tokens);
  }
  void on_use(ExpertKey key, i64 tokens, f32 weight) override { lru_.on_use(key, tokens, weight); }
  void on_expect(ExpertKey key, f32 probability) override { lru_.on_expect(key, probability); }
  void on_admit(ExpertKey key) override { lru_.on_admit(key); }
  void on_pin(ExpertKey key) override { lru_.on_pin(key); }
  void on_unpin(ExpertKey key) override { lru_.on_unpin(key); }
  void on_evict(ExpertKey key) override { lru_.on_evict(key); }
  std::optional<ExpertKey> choose_victim(i64 moe_layer) const override { return lru_.choose_victim(moe_layer); }
  std::optional<ExpertKey> choose_victim_for(ExpertKey key, f32 p) const override { return lru_.choose_victim_for(key, p); }
  f64 worth(ExpertKey key) const override { return lru_.worth(key); }

 private:
  LruCache lru_;
  std::vector<i64>& tokens_;
};

}  // namespace

TEST_CASE("the policy is told all tokens of a prompt's piece, and of rows of several sequences one for the next batch") {
  Rig rig({.model = {.layers = 1, .experts = 24, .top_k = 3, .sizes = 1}, .budget = kMiB});
  std::vector<i64> tokens;
  rig.scheduler.reset();
  rig.scheduler = std::make_unique<Scheduler>(rig.table, rig.plan, std::make_unique<TokenSpy>(rig.plan, rig.table, tokens), rig.reader,
                                              rig.clock, SlabOptions{.piece_bytes = 256 * kKiB, .background = false});
  std::vector<ExpertRequest> piece = {{ExpertId(0), 12}};  // 20 tokens of 3: no expert is wanted by all
  for (i32 e = 1; e < 9; e++) piece.push_back({ExpertId(e), 6});
  CHECK(rig.use_all(0, piece) > 0);
  CHECK(rig.use_all(0, {{ExpertId(1)}, {ExpertId(2)}, {ExpertId(3)}}) > 0);
  CHECK(rig.use_all(0, {{ExpertId(1), 2}, {ExpertId(2)}, {ExpertId(3)}, {ExpertId(4)}, {ExpertId(5)}}) > 0);  // two rows
  CHECK(tokens == std::vector<i64>{20, 1, 2});
}

TEST_CASE("the right bytes land in random lives, with every budget, and the same seed gives the same life") {
  for (u64 seed = 1; seed <= 40; seed++) {
    INFO("seed " << seed);
    CHECK(random_life(seed, 0) == random_life(seed, 0));
  }
}

TEST_CASE("random lives go on after reads that fail") {
  for (u64 seed = 1; seed <= 60; seed++) {
    INFO("seed " << seed);
    random_life(seed, 0.02);
  }
}

TEST_CASE("what was read once is a hit while there is room") {
  SmallModel model;
  Rig rig({.model = model, .budget = full_budget(small_table(model), 4096)});
  CHECK(rig.plan.all_resident);
  for (int round = 0; round < 3; round++)
    for (i64 l = 0; l < model.layers; l++) CHECK(rig.use_all(l, experts({7, 0, 3})) >= 1);
  const SchedulerStats& s = rig.scheduler->stats();
  CHECK(s.requests == 3 * 4 * 3);
  CHECK(s.misses == 4 * 3);
  CHECK(s.hits == 2 * 4 * 3);
  CHECK(s.evictions == 0);
}

TEST_CASE("a view says where experts are and how many passes ago they were used") {
  SmallModel model;
  Rig rig({.model = model,
           .budget = full_budget(small_table(model), 4096),
           .drive = {.capacity = 1000, .longest_ns = 1'000'000}});
  auto at = [&](i64 l, i64 e) { return static_cast<size_t>(l * rig.table.experts_per_layer() + e); };
  rig.use_all(0, experts({1, 2}));
  rig.scheduler->end_pass(1, 1000, true);
  rig.use_all(0, experts({2}));
  rig.scheduler->end_pass(1, 1000, true);
  auto requests = experts({3});
  auto lease = rig.scheduler->acquire(rig.layer(1), requests);
  ResidencyView view = rig.scheduler->view();
  CHECK(static_cast<i64>(view.layers.size()) == model.layers);
  CHECK(view.experts == rig.table.experts_per_layer());
  CHECK(view.tiers[at(0, 1)] == ExpertTier::ram);
  CHECK(view.tiers[at(0, 0)] == ExpertTier::disk);
  CHECK(view.tiers[at(1, 3)] == ExpertTier::arriving);
  CHECK(view.passes_since_use[at(0, 1)] == 1);
  CHECK(view.passes_since_use[at(0, 2)] == 0);
  CHECK(view.passes_since_use[at(1, 3)] == 0);
  CHECK(view.passes_since_use[at(0, 0)] == ResidencyView::kNeverUsed);
  CHECK(rig.scheduler->stats().hit_bytes == rig.table.expert_bytes(rig.layer(0)));
}

TEST_CASE("all misses are under way when acquire returns, hits are ready at once") {
  SmallModel model;
  Rig rig({.model = model,
           .budget = full_budget(small_table(model), 4096),
           .drive = {.capacity = 1000, .longest_ns = 1'000'000}});
  rig.use_all(0, experts({1, 2}));
  rig.reader.history.clear();
  i64 before = rig.clock.now_ns();
  auto requests = experts({5, 1, 9, 2});
  auto lease = rig.scheduler->acquire(rig.layer(0), requests);
  i64 bytes = 0;
  for (const ReadPiece& p : rig.reader.history) bytes += p.bytes;
  CHECK(bytes >= 2 * rig.table.expert_bytes(rig.layer(0)));
  CHECK(lease.pending() == 4);
  std::vector<ReadyExpert> ready;
  CHECK(lease.wait(ready).ok());
  CHECK(ready.size() == 2);
  CHECK(rig.clock.now_ns() == before);
  CHECK(lease.pending() == 2);
  // Something is held, so that there is something to compute: no blocking.
  CHECK(lease.wait(ready).ok());
  CHECK(ready.size() == 2);
  CHECK(rig.clock.now_ns() == before);
  for (const ReadyExpert& r : std::vector(ready)) lease.release(r);
  CHECK(lease.wait(ready).ok());
  CHECK(ready.size() > 2);
  CHECK(rig.clock.now_ns() > before);
  CHECK(rig.scheduler->stats().wait_ns > 0);
}

TEST_CASE("a lease larger than the budget goes through in waves") {
  SmallModel model{.layers = 2, .experts = 40, .top_k = 2, .sizes = 1};
  Rig rig({.model = model});
  CHECK(rig.plan.total_slots() == 2);
  Rng rng(1);
  for (i64 l : {0, 1, 0}) {
    i64 most = rig.use_all(l, random_experts(rng, 40, 40));
    CHECK(most >= 1);
    CHECK(most <= 2);
  }
}

TEST_CASE("a failed read names file, layer, expert and place, and the next acquire works") {
  SmallModel model;
  Rig rig({.model = model});
  LayerId layer = rig.layer(2);
  Extent down = rig.table.extent(layer, ExpertId(5), ExpertMatrix::down);
  rig.reader.fail_once(down.file, down.offset + down.bytes - 1);
  std::string message;
  CHECK(rig.use_all(2, experts({4, 5, 6}), &message) == -1);
  INFO(message);
  CHECK(message.find("cannot read expert 5 in layer 3") != std::string::npos);
  CHECK(message.find(rig.reader.file_name(down.file)) != std::string::npos);
  CHECK(message.find("Input/output error") != std::string::npos);
  i64 offset = std::stoll(message.substr(message.find("offset ") + 7));
  CHECK(offset > down.offset + down.bytes - 1 - 8192);
  CHECK(offset < down.offset + down.bytes);
  // Slots of failed and dropped reads have come back: the whole budget is usable, with the right bytes.
  CHECK(rig.use_all(2, experts({4, 5, 6})) >= 1);
  CHECK(rig.use_all(0, experts({4, 5, 6, 7, 8, 9})) >= 1);
}

TEST_CASE("an expert that does not match its checksum is refused, the others are not") {
  SmallModel model{.packed = true};
  ExpertTable right = small_table(model);
  std::vector<ExpertLayer> layers = right.layers();
  layers[2].checksums[5]++;
  Rig rig({.model = model});
  rig.make_scheduler(ExpertTable(layers, model.experts, model.top_k, right.file_bytes()));
  std::string message;
  CHECK(rig.use_all(2, experts({4, 5, 6}), &message) == -1);
  INFO(message);
  CHECK(message.find("layer 3, expert 5: the data does not match its checksum") != std::string::npos);
  Extent gate = rig.table.extent(rig.layer(2), ExpertId(5), ExpertMatrix::gate);
  CHECK(message.find(rig.reader.file_name(gate.file)) != std::string::npos);
  CHECK(message.find(std::to_string(gate.offset)) != std::string::npos);
  CHECK(rig.use_all(2, experts({4, 6, 7})) >= 1);
  CHECK(rig.use_all(2, experts({5})) == -1);  // read again, still wrong
  CHECK(rig.use_all(1, experts({4, 5, 6, 7, 8, 9})) >= 1);
}

TEST_CASE("a dropped lease cancels what has not begun") {
  SmallModel model{.layers = 1, .experts = 40, .top_k = 20, .sizes = 1};
  Rig rig({.model = model, .drive = {.capacity = 2, .longest_ns = 1000}});
  Rng rng(3);
  {
    auto requests = random_experts(rng, 40, 20);
    auto lease = rig.scheduler->acquire(rig.layer(0), requests);
  }
  CHECK(rig.use_all(0, random_experts(rng, 40, 20)) >= 1);
  // One expert of the first lease was being read, no more.
  CHECK(rig.scheduler->stats().bytes_read < 23 * (rig.plan.classes[0].slot_bytes));
}

TEST_CASE("the time with reads in flight is what the drive says") {
  SmallModel model;
  Rig rig({.model = model, .drive = {.capacity = 8, .longest_ns = 5000}});
  Rng rng(4);
  for (int i = 0; i < 50; i++) {
    rig.use_all(rng.below(4), random_experts(rng, 12, 3));
    rig.clock.advance(rng.below(20000));  // attention: the drive idles
  }
  i64 busy = rig.scheduler->stats().disk_busy_ns;
  CHECK(busy > 0);
  CHECK(busy < rig.clock.now_ns());
  CHECK(busy == rig.reader.busy_ns());
}

TEST_CASE("demand reads start before background ones") {
  SmallModel model{.layers = 2, .sizes = 1};
  Rig rig({.model = model,
           .budget = full_budget(small_table(model), 4096),
           .drive = {.capacity = 4, .longest_ns = 1000}});
  // A preload that is stopped right away leaves background reads under way.
  auto stop = [](i64, i64, void*) { return false; };
  CHECK(rig.scheduler->preload(stop, nullptr).ok());
  size_t before = rig.reader.history.size();
  CHECK(before > 0);
  CHECK(std::all_of(rig.reader.history.begin(), rig.reader.history.end(),
                    [](const ReadPiece& p) { return p.priority == ReadPriority::background; }));
  rig.use_all(1, experts({11}));
  bool background_seen = false;
  for (size_t i = before; i < rig.reader.history.size(); i++) {
    bool background = rig.reader.history[i].priority == ReadPriority::background;
    if (!background) CHECK(!background_seen);
    background_seen |= background;
  }
}

TEST_CASE("preload reads every expert once, reports progress, and leaves nothing to read") {
  SmallModel model;
  Rig rig({.model = model, .budget = full_budget(small_table(model), 4096)});
  struct Seen {
    i64 calls = 0, done = 0, total = 0;
    bool rising = true;
  } seen;
  auto progress = [](i64 done, i64 total, void* context) {
    Seen& s = *static_cast<Seen*>(context);
    s.calls++;
    s.rising &= done >= s.done;
    s.done = done;
    s.total = total;
    return true;
  };
  CHECK(rig.scheduler->preload(progress, &seen).ok());
  CHECK(seen.calls > 1);
  CHECK(seen.rising);
  CHECK(seen.done == rig.table.total_bytes());
  CHECK(seen.total == rig.table.total_bytes());
  i64 bytes = rig.scheduler->stats().bytes_read;
  Rng rng(1);
  for (i64 l = 0; l < 4; l++) rig.use_all(l, random_experts(rng, 12, 12));
  CHECK(rig.scheduler->stats().hits == 4 * 12);
  CHECK(rig.scheduler->stats().bytes_read == bytes);
}

TEST_CASE("warming reads every expert beside leases, which do not wait behind it") {
  SmallModel model;
  Rig rig({.model = model, .budget = full_budget(small_table(model), 4096), .drive = {.capacity = 4, .longest_ns = 1000}});
  Rng rng(3);
  i64 calls = 0, last = 0;
  for (Scheduler::Warmth warmth = rig.scheduler->warm(); warmth.done < warmth.total; warmth = rig.scheduler->warm()) {
    CHECK(warmth.total == 4 * 12);
    CHECK(warmth.done >= last);
    last = warmth.done;
    CHECK(rig.use_all(calls++ % 4, random_experts(rng, 12, 3)) > 0);
    REQUIRE(calls < 1000);
  }
  CHECK(calls > 1);  // not all at once
  for (i64 l = 0; l < 4; l++) rig.use_all(l, random_experts(rng, 12, 12));  // some may still be on their way
  Rig at_once({.model = model, .budget = full_budget(small_table(model), 4096)});
  CHECK(at_once.scheduler->preload(nullptr, nullptr).ok());
  CHECK(rig.scheduler->stats().bytes_read == at_once.scheduler->stats().bytes_read);  // each once
  SchedulerStats before = rig.scheduler->stats();
  for (i64 l = 0; l < 4; l++) rig.use_all(l, random_experts(rng, 12, 12));
  CHECK((rig.scheduler->stats() - before).hits == 4 * 12);
  CHECK(rig.scheduler->warm().done == 4 * 12);
}

TEST_CASE("where not all fit, warming gives every layer its share, which leaves for what is wanted") {
  SmallModel model;
  ExpertTable table = small_table(model);
  Rig rig({.model = model, .budget = full_budget(table, 4096) / 2});
  for (i64 calls = 0; rig.scheduler->warm().done < 4 * 12; calls++) {
    REQUIRE(calls < 1000);
    rig.use_all(calls % 4, experts({0}));
  }
  for (i64 l = 0; l < 4; l++) {
    const SlotClass& c = rig.plan.classes[static_cast<size_t>(rig.plan.class_of_moe_layer[static_cast<size_t>(l)])];
    i64 share = c.slots / static_cast<i64>(c.moe_layers.size());
    REQUIRE(share > 3);
    REQUIRE(share < 12);
    for (i64 e = 0; e < 12; e++)
      CHECK((rig.scheduler->tier(rig.layer(l), ExpertId(e)) == ExpertTier::disk) == (e >= share));
  }
  CHECK(rig.scheduler->stats().evictions == 0);
  for (i64 l = 0; l < 4; l++) CHECK(rig.use_all(l, experts({9, 10, 11})) > 0);
  CHECK(rig.scheduler->stats().evictions >= 4);
}

TEST_CASE("where not all fit, warming reads the most popular experts of each layer") {
  SmallModel model;
  ExpertTable table = small_table(model);
  Popularity known(4, 12);
  auto rank = [](i64 l, i64 e) { return (e * 5 + l) % 12; };  // 0: the most popular
  for (i64 l = 0; l < 4; l++) {
    std::vector<f32> uses;
    for (i64 e = 0; e < 12; e++) uses.push_back(static_cast<f32>(100 - 8 * rank(l, e)));
    known.set(l, 100, uses);
  }
  Rig rig({.model = model, .budget = full_budget(table, 4096) / 2, .known = &known});
  auto in_memory = [&](i64 l, i64 e) { return rig.scheduler->tier(rig.layer(l), ExpertId(e)) != ExpertTier::disk; };
  for (i64 calls = 0; rig.scheduler->warm().done < 4 * 12; calls++) {
    REQUIRE(calls < 1000);
    rig.clock.advance(100);
  }
  for (i64 l = 0; l < 4; l++) {
    i64 share = 0, worst = 0;
    for (i64 e = 0; e < 12; e++)
      if (in_memory(l, e)) share++, worst = std::max(worst, rank(l, e));
    CHECK(share > 3);
    CHECK(share < 12);
    CHECK(worst == share - 1);
  }
}

TEST_CASE("empty slots are filled while nothing else is read, and nothing is evicted for it") {
  SmallModel model{.sizes = 1};
  ExpertTable table = small_table(model);
  Rig rig({.model = model, .budget = full_budget(table, 4096) / 2, .drive = {.longest_ns = 1000}});
  i64 slots = rig.plan.total_slots();
  rig.scheduler->fill_empty_slots();
  rig.use_all(0, experts({9, 10, 11}));
  size_t seen = rig.reader.history.size();
  CHECK(std::all_of(rig.reader.history.begin(), rig.reader.history.end(),
                    [](const ReadPiece& p) { return p.priority == ReadPriority::demand; }));
  for (int calls = 0; calls < 500; calls++) {
    rig.scheduler->tend();
    rig.clock.advance(300);
  }
  CHECK(std::all_of(rig.reader.history.begin() + static_cast<std::ptrdiff_t>(seen), rig.reader.history.end(),
                    [](const ReadPiece& p) { return p.priority == ReadPriority::spare; }));
  i64 in_ram = 0;
  for (i64 l = 0; l < 4; l++) {
    for (i64 e = 0; e < 12; e++) in_ram += rig.scheduler->tier(rig.layer(l), ExpertId(e)) == ExpertTier::ram;
    CHECK(rig.scheduler->tier(rig.layer(l), ExpertId(0)) == ExpertTier::ram);  // each has its share
  }
  CHECK(in_ram == slots);
  const SchedulerStats& stats = rig.scheduler->stats();
  CHECK(stats.evictions == 0);
  CHECK(stats.predicted_bytes == 0);
  CHECK(stats.filled_bytes == (slots - 3) * rig.table.expert_bytes(rig.layer(0)));
  // What nobody has asked for leaves first.
  for (i64 l = 1; l < 4; l++) rig.use_all(l, experts({9, 10, 11}));
  for (i64 l = 0; l < 4; l++)
    for (i64 e = 9; e < 12; e++) CHECK(rig.scheduler->tier(rig.layer(l), ExpertId(e)) == ExpertTier::ram);
}

TEST_CASE("an expert that is wanted while it fills a slot is read once, and demand overtakes the others") {
  SmallModel model{.sizes = 1};
  Rig rig({.model = model, .budget = full_budget(small_table(model), 4096) / 2, .drive = {.capacity = 4, .longest_ns = 1000}});
  rig.scheduler->fill_empty_slots();
  rig.scheduler->tend();
  CHECK(rig.scheduler->tier(rig.layer(0), ExpertId(0)) == ExpertTier::arriving);
  size_t before = rig.reader.history.size();
  CHECK(rig.use_all(0, experts({0, 5})) > 0);
  CHECK(rig.scheduler->stats().misses == 2);
  REQUIRE(rig.reader.history.size() > before);
  CHECK(rig.reader.history[before].priority == ReadPriority::demand);
  i64 bytes = 0;
  for (const ReadPiece& p : rig.reader.history) bytes += p.bytes;
  CHECK(bytes == rig.scheduler->stats().bytes_read);
  std::set<std::pair<i64, i64>> places;
  for (const ReadPiece& p : rig.reader.history) CHECK(places.insert({p.file, p.offset}).second);
}

TEST_CASE("a failed read ends the filling and nothing else") {
  SmallModel model{.sizes = 1};
  Rig rig({.model = model, .budget = full_budget(small_table(model), 4096) / 2});
  rig.scheduler->fill_empty_slots();
  rig.reader.set_failure_rate(1.0);
  for (int calls = 0; calls < 20; calls++) {
    rig.clock.advance(1000);
    rig.scheduler->tend();
  }
  i64 bytes = rig.scheduler->stats().bytes_read;
  CHECK(bytes > 0);
  for (int calls = 0; calls < 20; calls++) rig.scheduler->tend();
  CHECK(rig.scheduler->stats().bytes_read == bytes);
  rig.reader.set_failure_rate(0);
  CHECK(rig.use_all(0, experts({0, 1, 2})) > 0);
}

TEST_CASE("the popular are filled in first") {
  SmallModel model{.sizes = 1};
  Popularity known(4, 12);
  for (i64 l = 0; l < 4; l++) known.add(l, 1, std::vector<i32>{7, 8, 11});
  Rig rig({.model = model, .budget = full_budget(small_table(model), 4096) / 2, .drive = {.longest_ns = 1000}, .known = &known});
  rig.scheduler->fill_empty_slots();
  for (int calls = 0; calls < 500; calls++) {
    rig.scheduler->tend();
    rig.clock.advance(300);
  }
  for (i64 l = 0; l < 4; l++) {
    for (i64 e : {7, 8, 11, 0}) CHECK(rig.scheduler->tier(rig.layer(l), ExpertId(e)) == ExpertTier::ram);
    CHECK(rig.scheduler->tier(rig.layer(l), ExpertId(10)) == ExpertTier::disk);
  }
}

TEST_CASE("warming leaves an expert that cannot be read to whom it matters") {
  SmallModel model;
  Rig rig({.model = model, .budget = full_budget(small_table(model), 4096)});
  rig.reader.set_failure_rate(1.0);
  for (i64 calls = 0; rig.scheduler->warm().done < 4 * 12; calls++) {
    REQUIRE(calls < 1000);
    CHECK(rig.use_all(0, experts({1})) == -1);  // time passes while it waits
  }
  rig.reader.set_failure_rate(0);
  CHECK(rig.use_all(0, experts({1, 2})) > 0);
}

TEST_CASE("preload fills what slots there are and reports a failed read") {
  SmallModel model;
  Rig rig({.model = model});
  rig.reader.set_failure_rate(1.0);
  CHECK(!rig.scheduler->preload(nullptr, nullptr).ok());
  rig.reader.set_failure_rate(0);
  CHECK(rig.scheduler->preload(nullptr, nullptr).ok());
  CHECK(rig.scheduler->stats().evictions == 0);
  CHECK(rig.use_all(0, experts({0, 1, 2})) == 3);
  CHECK(rig.scheduler->stats().misses == 0);
}

TEST_CASE("work starts while the arena grows in the background, and goes on when memory runs out") {
  for (bool refuse : {false, true}) {
    VirtualClock clock;
    ExpertTable table = small_table({});
    FakeReader reader({.file_bytes = table.file_bytes()}, clock);
    Plan plan = make_plan(table, {.ram_bytes = full_budget(table, 4096), .piece_bytes = 8192});
    std::atomic<int> pieces{0};
    SlabOptions options{.piece_bytes = 64 * kKiB};
    options.fault_in = [&](std::byte* data, i64 bytes) {
      return (!refuse || ++pieces < 9) && fault_in(data, bytes);
    };
    auto policy = std::make_unique<LruCache>(plan, table.experts_per_layer(), table.top_k());
    Scheduler scheduler(table, plan, std::move(policy), reader, clock, options);
    Rng rng(2);
    for (int round = 0; round < 6; round++) {
      for (const ExpertLayer& layer : table.layers()) {
        std::vector<ExpertRequest> requests = random_experts(rng, 12, round == 5 ? 12 : 3);
        auto lease = scheduler.acquire(layer.layer, requests);
        while (lease.pending() > 0) {
          std::vector<ReadyExpert> ready;
          REQUIRE(lease.wait(ready).ok());
          for (const ReadyExpert& r : ready) {
            Extent e =
                table.extent(layer.layer, requests[static_cast<size_t>(r.request)].expert, ExpertMatrix::up);
            CHECK(matches_pattern(r.up, static_cast<u64>(e.file), e.offset, e.bytes));
            lease.release(r);
          }
        }
      }
    }
    if (!refuse) {
      CHECK(scheduler.preload(nullptr, nullptr).ok());  // waits for the arena
      i64 misses = scheduler.stats().misses;
      std::vector<ExpertRequest> all = random_experts(rng, 12, 12);
      auto lease = scheduler.acquire(table.layers()[3].layer, all);
      CHECK(scheduler.stats().misses == misses);
    } else {
      CHECK(scheduler.stats().evictions > 0);
    }
  }
}

TEST_CASE("memory that is given up is the last of the arena, and what works goes on working, down to the least that does") {
  for (const char* policy : {"lru", "auto", "s3fifo"}) {
    CAPTURE(policy);
    Rng rng(1);
    Rig::Options o;
    o.policy = policy;
    o.budget = full_budget(small_table(o.model), 4096);
    Rig rig(o);
    REQUIRE(rig.scheduler->preload(nullptr, nullptr).ok());
    const i64 all = rig.reader.memory_bytes(), slots = rig.scheduler->ram_slots(), read = rig.scheduler->stats().bytes_read;
    CHECK(rig.scheduler->give_up_memory(0) == 0);
    CHECK(rig.scheduler->ram_bytes() == all);
    const i64 given = rig.scheduler->give_up_memory(300 * kKiB);
    CHECK(given >= 300 * kKiB);
    CHECK(given < 300 * kKiB + 256 * kKiB);
    CHECK(rig.reader.memory_bytes() == all - given);
    CHECK(rig.scheduler->ram_bytes() == all - given);
    CHECK(rig.scheduler->ram_slots() < slots);
    for (int round = 0; round < 3; round++)
      for (i64 l = 0; l < rig.table.moe_layers(); l++) rig.use_all(l, random_experts(rng, o.model.experts, o.model.top_k));
    CHECK(rig.scheduler->stats().hits > 0);
    CHECK(rig.scheduler->stats().bytes_read > read);
    CHECK(rig.scheduler->give_up_memory(kGiB) > 0);
    CHECK(rig.scheduler->give_up_memory(kGiB) == 0);
    CHECK(rig.reader.memory_bytes() < all / 4);
    for (i64 l = 0; l < rig.table.moe_layers(); l++) CHECK(rig.use_all(l, random_experts(rng, o.model.experts, o.model.experts)) > 0);
  }
}

TEST_CASE("a machine without memory for the smallest arena is an error") {
  VirtualClock clock;
  ExpertTable table = small_table({});
  FakeReader reader({.file_bytes = table.file_bytes()}, clock);
  Plan plan = make_plan(table, {.ram_bytes = full_budget(table, 4096), .piece_bytes = 8192});
  int pieces = 0;
  SlabOptions options{.piece_bytes = 64 * kKiB};
  options.fault_in = [&](std::byte* data, i64 bytes) { return ++pieces < 3 && fault_in(data, bytes); };
  auto policy = std::make_unique<LruCache>(plan, table.experts_per_layer(), table.top_k());
  CHECK_THROWS_WITH_AS(Scheduler(table, plan, std::move(policy), reader, clock, options),
                       doctest::Contains("no memory for 3 expert slots"), Error);
  CHECK(reader.memory_bytes() == 0);
}

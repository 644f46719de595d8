// The real scheduler with devices: fake drive, fake copier, virtual clock. What a device reads is compared with what the
// file has when it is handed out and again when its epoch ends.
#include "scheduler/device_tier.h"

#include <doctest/doctest.h>

#include <algorithm>
#include <memory>
#include <string>
#include <vector>

#include "kernels/base/error.h"
#include "kernels/base/rng.h"
#include "scheduler/planner.h"
#include "scheduler/policy/make_policy.h"
#include "scheduler/scheduler.h"
#include "scheduler/tiers/slab.h"
#include "tests/scheduler/fake_copier.h"
#include "tests/scheduler/pattern_file.h"
#include "tests/scheduler/small_model.h"
#include "tests/support/watchdog.h"

using namespace stoker;
using namespace stoker::test;

namespace {

struct Rig {
  struct Options {
    SmallModel model = {};
    i64 budget = 0;          // of RAM; 0: the smallest
    std::vector<i64> slots;  // of the largest experts, per device
    std::string policy = "auto";
    FakeReader::Options drive = {};
    FakeCopier::Options links = {};
  };
  explicit Rig(Options o) : table(small_table(o.model)), plan(plan_of(o, table)), reader(drive_of(o, table), clock),
                            copier(links_of(o, plan), clock), held(o.slots.size()), finished(o.slots.size(), -1) {
    scheduler = std::make_unique<Scheduler>(table, plan,
                                            make_policy(o.policy, plan, table.experts_per_layer(), table.top_k()), reader,
                                            clock, SlabOptions{.piece_bytes = 256 * kKiB, .background = false}, &copier);
  }
  static Plan plan_of(const Options& o, const ExpertTable& table) {
    PlanRequest request{.ram_bytes = o.budget > 0 ? o.budget : smallest_budget(table, 4096), .ring_depth = 8, .piece_bytes = 8192};
    i64 largest = 0;
    for (const ExpertLayer& layer : table.layers()) largest = std::max(largest, vram_layout(table, layer.layer).bytes);
    for (i64 slots : o.slots) request.devices.push_back({.vram_bytes = slots * largest, .gb_per_second = 100});
    return make_plan(table, request);
  }
  static FakeReader::Options drive_of(const Options& o, const ExpertTable& table) {
    FakeReader::Options drive = o.drive;
    drive.file_bytes = table.file_bytes();
    return drive;
  }
  static FakeCopier::Options links_of(const Options& o, const Plan& plan) {
    FakeCopier::Options links = o.links;
    for (size_t d = 0; d < plan.devices.size(); d++) links.arena_bytes.push_back(plan.device_arena_bytes(d));
    return links;
  }

  LayerId layer(i64 moe_layer) const { return table.layers()[static_cast<size_t>(moe_layer)].layer; }
  bool right(LayerId l, ExpertId expert, std::array<const std::byte*, 3> data) const {
    for (size_t m = 0; m < data.size(); m++) {
      Extent e = table.extent(l, expert, static_cast<ExpertMatrix>(m));
      if (!matches_pattern(data[m], static_cast<u64>(e.file), e.offset, e.bytes)) return false;
    }
    return true;
  }

  // What a device has been given to read.
  struct Held {
    i64 epoch;
    LayerId layer;
    ExpertId expert;
    std::array<i64, 3> at;
  };
  bool right_on_device(size_t device, const Held& h) const {
    const std::byte* memory = copier.memory(static_cast<i64>(device));
    return right(h.layer, h.expert, {memory + h.at[0], memory + h.at[1], memory + h.at[2]});
  }
  // The device ends its work up to `epoch`, all of which must still be as it was.
  void finish(size_t device, i64 epoch) {
    if (epoch <= finished[device]) return;
    finished[device] = epoch;
    std::erase_if(held[device], [&](const Held& h) {
      if (h.epoch > epoch) return false;
      if (!lost(device)) CHECK(right_on_device(device, h));
      return true;
    });
    scheduler->finish_epoch(static_cast<i64>(device), epoch);
  }
  bool lost(size_t device) const { return std::find(lost_devices.begin(), lost_devices.end(), device) != lost_devices.end(); }
  void lose(size_t device) {
    lost_devices.push_back(device);
    copier.lose(static_cast<i64>(device));
  }

  // One layer of a pass. False when a read has failed.
  bool use(i64 moe_layer, const std::vector<ExpertRequest>& requests) {
    Scheduler::Lease lease = scheduler->acquire(layer(moe_layer), requests);
    std::vector<int> seen(requests.size());
    for (const DeviceExpert& d : lease.on_devices()) {
      seen[static_cast<size_t>(d.request)]++;
      size_t device = static_cast<size_t>(d.device);
      Held h{scheduler->epoch(), layer(moe_layer), requests[static_cast<size_t>(d.request)].expert, d.at_device};
      if (!lost(device)) CHECK(right_on_device(device, h));
      held[device].push_back(h);
    }
    std::vector<ReadyExpert> ready;
    while (lease.pending() > 0) {
      ready.clear();
      if (!lease.wait(ready).ok()) return false;
      REQUIRE(!ready.empty());
      clock.advance(300);
      for (const ReadyExpert& r : ready) {
        seen[static_cast<size_t>(r.request)]++;
        CHECK(right(layer(moe_layer), requests[static_cast<size_t>(r.request)].expert, {r.gate, r.up, r.down}));
        lease.release(r);
      }
    }
    CHECK(std::all_of(seen.begin(), seen.end(), [](int n) { return n == 1; }));
    return true;
  }
  // All layers; experts with small numbers are wanted more.
  void pass(Rng& rng, i64 count, bool decode = true, i64 shift = 0) {
    for (i64 l = 0; l < table.moe_layers(); l++) use(l, skewed(rng, count, shift));
    scheduler->end_pass(1, 1000, decode);
  }
  // A layer of a piece, which devices have ended with it.
  void end_piece_layer(i64 moe_layer, i64 tokens) {
    for (size_t d = 0; d < held.size(); d++) finish(d, scheduler->epoch());
    scheduler->end_piece_layer(layer(moe_layer), tokens);
  }
  std::vector<ExpertRequest> skewed(Rng& rng, i64 count, i64 shift) const {
    i64 n = table.experts_per_layer();
    std::vector<ExpertRequest> requests;
    while (static_cast<i64>(requests.size()) < count) {
      f64 u = rng.uniform();
      ExpertId expert((static_cast<i64>(u * u * u * static_cast<f64>(n)) + shift) % n);
      bool fresh = std::none_of(requests.begin(), requests.end(), [&](const ExpertRequest& r) { return r.expert == expert; });
      if (fresh) requests.push_back({expert, 1, 1.f});
    }
    return requests;
  }
  // After end_pass: the devices have ended what the passes before have given them.
  void finish_all() {
    for (size_t d = 0; d < held.size(); d++) finish(d, scheduler->epoch() - 1);
  }

  VirtualClock clock;
  ExpertTable table;
  Plan plan;
  FakeReader reader;
  FakeCopier copier;
  std::vector<std::vector<Held>> held;  // [devices]
  std::vector<i64> finished;            // [devices] epoch
  std::vector<size_t> lost_devices;
  std::unique_ptr<Scheduler> scheduler;
};

struct Trouble {
  f64 failing_reads = 0, failing_copies = 0;
  bool losing = false;
};

// Passes over random models, budgets and devices, with late copies, devices that finish late, failing reads and copies,
// lost devices. Returns a digest of what happened.
std::string random_life(u64 seed, const Trouble& trouble) {
  Rng rng(seed);
  constexpr const char* kPolicies[] = {"auto", "lru", "ema", "s3fifo", "slru"};
  Rig::Options o;
  o.model = {.layers = 1 + rng.below(5), .experts = 6 + rng.below(20), .top_k = 1 + rng.below(4), .seed = seed};
  o.model.sizes = 1 + rng.below(3);
  o.model.packed = seed % 3 == 0;
  ExpertTable table = small_table(o.model);
  i64 least = smallest_budget(table, 4096), full = full_budget(table, 4096);
  o.budget = rng.below(4) == 0 ? least : least + rng.below(full - least + 1);
  for (i64 d = 1 + rng.below(3); d > 0; d--) o.slots.push_back(rng.below(40));
  o.policy = kPolicies[rng.below(5)];
  o.drive = {.seed = seed, .capacity = 1 + rng.below(20), .max_piece_bytes = 4096 << rng.below(3),
             .longest_ns = rng.below(3000), .failure_rate = trouble.failing_reads};
  o.links = {.seed = seed, .capacity = 1 + rng.below(10), .longest_ns = rng.below(30000), .failure_rate = trouble.failing_copies};
  Rig rig(o);
  REQUIRE(rig.plan.arena_bytes() <= o.budget);
  rig.scheduler->set_prefetch({rng.below(2) == 0 ? PrefetchMode::on : PrefetchMode::off});
  for (i64 pass = 0; pass < 40; pass++) {
    bool prompt = rng.below(10) == 0;
    i64 experts = table.experts_per_layer();
    for (i64 l = 0; l < table.moe_layers(); l++) {
      i64 next = (l + 1) % table.moe_layers();
      std::vector<ExpertExpectation> expected;
      for (const ExpertRequest& r : rig.skewed(rng, table.top_k(), pass / 10))
        expected.push_back({r.expert, static_cast<f32>(rng.uniform())});
      rig.scheduler->hint(rig.layer(next), expected);
      rig.use(l, rig.skewed(rng, prompt ? 1 + rng.below(experts) : std::min(o.model.top_k, experts), pass / 10));
      for (size_t d = 0; d < rig.held.size(); d++)  // at any time, any distance behind
        if (rng.below(3) == 0) rig.finish(d, std::max<i64>(rig.finished[d], rig.scheduler->epoch() - 1 - rng.below(2)));
      if (prompt && rng.below(4) > 0) rig.end_piece_layer(l, experts);
      if (rng.below(4) == 0) rig.scheduler->warm();
      bool lose = trouble.losing && rng.below(60) == 0;
      size_t device = static_cast<size_t>(rng.below(static_cast<i64>(o.slots.size())));
      if (!lose || rig.lost(device)) continue;
      rig.lose(device);
      rig.scheduler->lose_device(static_cast<i64>(device));
      CHECK(rig.scheduler->experts_on_device(static_cast<i64>(device)) == 0);
    }
    rig.scheduler->end_pass(prompt ? experts : 1, 1000, !prompt);
    for (size_t d = 0; d < o.slots.size(); d++)
      CHECK(rig.scheduler->experts_on_device(static_cast<i64>(d)) <= rig.plan.device_experts(d) + rig.plan.devices[d].exchange_slots[0]);
  }
  const SchedulerStats& s = rig.scheduler->stats();
  CHECK(s.hits + s.misses + s.device_hits == s.requests);
  std::string digest = fmt::format("{} {} {} {} {} {} {} {}", s.requests, s.hits, s.device_hits, s.evictions, s.bytes_read,
                                   s.promotions, s.failed_exchanges, rig.clock.now_ns());
  rig.finish_all();
  rig.scheduler.reset();
  CHECK(rig.reader.in_flight() == 0);
  CHECK(rig.copier.in_flight() == 0);
  CHECK(rig.reader.memory_bytes() == 0);
  CHECK(rig.copier.memory_pieces() == 0);
  return digest;
}

Rig::Options all_in_memory(i64 vram_slots) {
  Rig::Options o{.model = {.layers = 3, .experts = 24, .top_k = 3, .sizes = 1}, .slots = {vram_slots, vram_slots / 2}};
  ExpertTable table = small_table(o.model);
  i64 slot = full_budget(table, 4096) / 72;
  o.budget = (72 - vram_slots) * slot;  // vram_slots / 2 more than needed, less what exchanges keep
  return o;
}

}  // namespace

TEST_CASE("every expert is right where it is said to be, in random lives; the same seed gives the same life") {
  for (i64 seed = 1; seed <= lives(40); seed++) {
    INFO("seed " << seed);
    CHECK(random_life(static_cast<u64>(seed), {}) == random_life(static_cast<u64>(seed), {}));
  }
}

TEST_CASE("random lives go on after reads and copies that fail") {
  for (i64 seed = 1; seed <= lives(60); seed++) {
    INFO("seed " << seed);
    random_life(static_cast<u64>(seed), {.failing_reads = .01, .failing_copies = .1});
  }
}

TEST_CASE("random lives go on after devices are lost") {
  for (i64 seed = 1; seed <= lives(60); seed++) {
    INFO("seed " << seed);
    random_life(static_cast<u64>(seed), {.failing_copies = .02, .losing = true});
  }
}

TEST_CASE("hot experts come to be on devices, within their room") {
  Rig rig({.model = {.layers = 3, .experts = 24, .top_k = 3, .sizes = 1}, .budget = kMiB, .slots = {16, 8}});
  Rng rng(1);
  for (int i = 0; i < 100; i++) {
    rig.pass(rng, 3);
    rig.finish_all();
  }
  CHECK(rig.scheduler->experts_on_device(0) == rig.plan.device_experts(0));
  CHECK(rig.scheduler->experts_on_device(1) == rig.plan.device_experts(1));
  SchedulerStats before = rig.scheduler->stats();
  for (int i = 0; i < 100; i++) {
    rig.pass(rng, 3);
    rig.finish_all();
  }
  SchedulerStats phase = rig.scheduler->stats() - before;
  // 22 of 72 experts are there; of uses as skewed as these the hottest 22 have two thirds.
  CHECK(phase.device_hits > phase.requests / 2);
  ResidencyView view = rig.scheduler->view();
  CHECK(std::count(view.tiers.begin(), view.tiers.end(), ExpertTier::vram) ==
        rig.scheduler->experts_on_device(0) + rig.scheduler->experts_on_device(1));
}

TEST_CASE("what fits in RAM and devices together is read once, whatever is exchanged") {
  Rig rig(all_in_memory(24));
  REQUIRE(rig.plan.all_resident);
  CHECK(rig.scheduler->preload(nullptr, nullptr).ok());
  i64 bytes = rig.scheduler->stats().bytes_read;
  CHECK(rig.scheduler->experts_on_device(0) > 0);
  CHECK(rig.scheduler->experts_on_device(1) > 0);
  Rng rng(2);
  for (i64 i = 0; i < 300; i++) {
    rig.pass(rng, 3, i % 50 != 0, i / 50 * 5);
    if (i % 3 == 0) rig.finish_all();
  }
  const SchedulerStats& s = rig.scheduler->stats();
  CHECK(s.bytes_read == bytes);
  CHECK(s.misses == 0);
  CHECK(s.evictions == 0);
  CHECK(s.downloaded_bytes > 0);  // there were exchanges
}

TEST_CASE("warming brings into RAM and devices what preload does, each expert read once") {
  Rig rig(all_in_memory(24)), at_once(all_in_memory(24));
  CHECK(at_once.scheduler->preload(nullptr, nullptr).ok());
  Scheduler::Warmth warmth = rig.scheduler->warm();
  i64 calls = 0, last = 0;
  for (; warmth.done < warmth.total; warmth = rig.scheduler->warm()) {
    CHECK(warmth.total == 72);
    CHECK(warmth.done >= last);
    last = warmth.done;
    rig.clock.advance(1000);
    REQUIRE(++calls < 10'000);
  }
  CHECK(calls > 1);  // not all at once
  rig.clock.advance(1'000'000);
  rig.scheduler->end_pass(1, 1000, true);  // the last ones have arrived on devices
  CHECK(rig.scheduler->stats().bytes_read == at_once.scheduler->stats().bytes_read);
  for (i64 device : {0, 1})
    CHECK(rig.scheduler->experts_on_device(device) == at_once.scheduler->experts_on_device(device));
  ResidencyView view = rig.scheduler->view();
  CHECK(std::count(view.tiers.begin(), view.tiers.end(), ExpertTier::disk) == 0);
  Rng rng(2);
  for (i64 i = 0; i < 100; i++) {
    rig.pass(rng, 3, i % 50 != 0, i / 50 * 5);
    rig.finish_all();
  }
  CHECK(rig.scheduler->stats().misses == 0);
}

TEST_CASE("warming goes on beside passes that want experts, and ends") {
  Rig rig(all_in_memory(24));
  Rng rng(7);
  Scheduler::Warmth warmth = rig.scheduler->warm();
  for (i64 i = 0; warmth.done < warmth.total; i++, warmth = rig.scheduler->warm()) {
    for (i64 l = 0; l < rig.table.moe_layers(); l++) {
      rig.use(l, rig.skewed(rng, 3, 0));
      rig.scheduler->warm();  // inside a pass, as a prompt's breaks do
    }
    rig.scheduler->end_pass(1, 1000, true);
    rig.finish_all();
    REQUIRE(i < 1000);
  }
  SchedulerStats before = rig.scheduler->stats();
  for (i64 i = 0; i < 100; i++) {
    rig.pass(rng, 3);
    rig.finish_all();
  }
  SchedulerStats after = rig.scheduler->stats() - before;
  CHECK(after.misses * 20 < after.requests);  // few were evicted on the way
  CHECK(after.device_hits * 3 > after.requests);
}

TEST_CASE("a slot on a device is not written before the epoch that could read it has ended") {
  Rig rig(all_in_memory(24));
  CHECK(rig.scheduler->preload(nullptr, nullptr).ok());
  Rng rng(3);
  // Nothing is ever finished: exchanges come to a stop when the slots that are kept free have been used.
  for (i64 i = 0; i < 200; i++) rig.pass(rng, 3, true, i / 40 * 5);
  i64 stopped = rig.scheduler->stats().promotions;
  for (i64 i = 0; i < 50; i++) rig.pass(rng, 3, true, 20);
  CHECK(rig.scheduler->stats().promotions == stopped);
  rig.finish_all();
  for (i64 i = 0; i < 50; i++) rig.pass(rng, 3, true, 20);
  CHECK(rig.scheduler->stats().promotions > stopped);
  rig.finish_all();
}

TEST_CASE("an expert changes places only at the end of a pass") {
  Rig rig({.model = {.layers = 2, .experts = 12, .top_k = 3, .sizes = 1}, .budget = kMiB, .slots = {12}, .links = {.longest_ns = 1}});
  std::vector<ExpertRequest> requests = {{ExpertId(1)}, {ExpertId(2)}};
  rig.use(0, requests);
  rig.use(1, requests);
  rig.scheduler->end_pass(1, 1000, true);  // copies begin
  CHECK(rig.copier.in_flight() == 4);
  rig.clock.advance(1'000'000);
  rig.scheduler->tend();  // and land
  CHECK(rig.copier.in_flight() == 0);
  for (i64 l : {0, 1}) {
    Scheduler::Lease lease = rig.scheduler->acquire(rig.layer(l), requests);
    CHECK(lease.on_devices().empty());
    CHECK(lease.pending() == 2);
  }
  rig.scheduler->end_pass(1, 1000, true);
  Scheduler::Lease lease = rig.scheduler->acquire(rig.layer(0), requests);
  CHECK(lease.on_devices().size() == 2);
  CHECK(lease.pending() == 0);
}

TEST_CASE("when a prompt has ended devices have what its pieces wanted most, each layer its share") {
  Rig rig({.model = {.layers = 3, .experts = 24, .top_k = 3, .sizes = 1}, .budget = 4 * kMiB, .slots = {16}, .links = {.longest_ns = 1}});
  constexpr i64 kTokens = 100;
  // Each token wants 3 of 24: with the shift, expert e most, those after it less and less.
  auto wants = [](i32 most) {
    std::vector<ExpertRequest> requests;
    for (i32 e = 0; e < 24; e++) requests.push_back({ExpertId((e + most) % 24), std::max(1, 60 - 10 * e), 1.f});
    return requests;
  };
  auto piece = [&](i32 most) {
    for (i64 l = 0; l < 3; l++) {
      rig.use(l, wants(most));
      rig.end_piece_layer(l, kTokens);
      rig.clock.advance(100'000);
    }
    rig.finish_all();
    rig.scheduler->end_pass(kTokens, 1000, false);
  };
  auto on_device = [&](i64 l) {
    i64 n = 0;
    for (i32 e = 0; e < 24; e++) n += rig.scheduler->tier(rig.layer(l), ExpertId(e)) == ExpertTier::vram;
    return n;
  };
  piece(0);
  CHECK(rig.scheduler->experts_on_device(0) == rig.plan.device_experts(0));
  for (i64 l = 0; l < 3; l++) {
    CHECK(on_device(l) == 5);
    for (i32 e = 0; e < 5; e++) CHECK(rig.scheduler->tier(rig.layer(l), ExpertId(e)) == ExpertTier::vram);
  }
  // Another subject: a slot is kept free, so one expert can go at a time, when a layer has ended.
  i64 before = rig.scheduler->stats().promotions;
  for (int i = 0; i < 12; i++) piece(12);
  CHECK(rig.scheduler->stats().promotions - before >= 9);
  for (i64 l = 0; l < 3; l++)
    for (i32 e = 12; e < 15; e++) CHECK(rig.scheduler->tier(rig.layer(l), ExpertId(e)) == ExpertTier::vram);
}

TEST_CASE("a failed copy leaves both experts where they were, and is tried again") {
  Rig rig(all_in_memory(24));
  CHECK(rig.scheduler->preload(nullptr, nullptr).ok());
  i64 there = rig.scheduler->experts_on_device(0) + rig.scheduler->experts_on_device(1);
  rig.copier.set_failure_rate(1);
  Rng rng(4);
  for (i64 i = 0; i < 100; i++) {
    rig.pass(rng, 3);
    rig.finish_all();
  }
  SchedulerStats s = rig.scheduler->stats();
  CHECK(s.failed_exchanges > 0);
  CHECK(s.misses == 0);
  CHECK(s.downloaded_bytes == 0);
  CHECK(rig.scheduler->experts_on_device(0) + rig.scheduler->experts_on_device(1) == there);
  rig.copier.set_failure_rate(0);
  for (i64 i = 0; i < 100; i++) {
    rig.pass(rng, 3);
    rig.finish_all();
  }
  CHECK(rig.scheduler->stats().downloaded_bytes > 0);
  CHECK(rig.scheduler->stats().misses == 0);
}

TEST_CASE("a lost device's experts are read again, the other device goes on") {
  Rig rig(all_in_memory(24));
  CHECK(rig.scheduler->preload(nullptr, nullptr).ok());
  Rng rng(5);
  i64 gone = rig.scheduler->experts_on_device(0);
  rig.lose(0);  // the copier notices first
  for (i64 i = 0; i < 200; i++) {
    rig.pass(rng, 3, i % 20 != 0);
    rig.finish_all();
    if (i == 50) rig.scheduler->lose_device(0);
  }
  CHECK(gone > 0);
  CHECK(rig.scheduler->experts_on_device(0) == 0);
  CHECK(rig.scheduler->experts_on_device(1) > 0);
  CHECK(rig.scheduler->stats().misses > 0);
  CHECK(rig.scheduler->stats().device_hits > 0);
}

TEST_CASE("a plan that the devices do not have is an error") {
  VirtualClock clock;
  Rig::Options o{.slots = {8}};
  ExpertTable table = small_table(o.model);
  Plan plan = Rig::plan_of(o, table);
  for (bool fewer : {false, true}) {
    FakeCopier::Options links;
    if (!fewer) links.arena_bytes = {plan.device_arena_bytes(0) - 1};
    FakeCopier copier(links, clock);
    CHECK_THROWS_WITH_AS(DeviceTier(table, plan, copier), doctest::Contains(fewer ? "there are 0" : "bytes of memory for experts"),
                         Error);
  }
}

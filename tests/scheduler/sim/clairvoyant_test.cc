// Who knows the future: what is worth a place on a device, on sequences that can be followed by hand, and whom RAM gives up.
#include <doctest/doctest.h>

#include "scheduler/planner.h"
#include "scheduler/policy/make_policy.h"
#include "scheduler/sim/clairvoyant_cache.h"
#include "scheduler/sim/simulator.h"

namespace stoker {

namespace {

RoutingRecord record_of(const std::vector<i64>& experts, i64 layers, i64 top_k) {
  RoutingRecord record{.moe_layers = layers, .top_k = top_k, .routes = {}};
  for (i64 e : experts) record.routes.push_back({ExpertId(e)});
  return record;
}

ExpertKey key(i64 expert, i64 layer = 0) { return {layer, ExpertId(expert)}; }

Plan one_class(i64 slots, i64 layers) {
  Plan plan;
  plan.classes.push_back({.slot_bytes = 4096, .slots = slots, .moe_layers = {}});
  plan.class_of_moe_layer.assign(static_cast<size_t>(layers), 0);
  return plan;
}

// A machine on which exchanges and reads are worth a thought: a third of the experts fit, a tenth on the GPU.
SimTotals tokens_of(const RoutingRecord& record, bool knows) {
  SimShape shape{.dense_layers = 1, .moe_layers = 6, .experts = 64, .top_k = 4, .hidden = 2048, .expert_ffn = 1024};
  SimMachine machine;
  machine.dram_gb_per_second = 20;
  machine.ssd_gb_per_second = 4;
  machine.ssd_latency_us = 80;
  machine.kernel_gb_per_second.fill(100);
  machine.gpus = {{"", 4 * kGiB, 500, 10, 400}};
  SimResident resident{.attention_bytes = 18'000'000, .head_rows = 1000, .head_row_bytes = 4000, .hidden_bytes = 16'384,
                       .dense_layers = shape.dense_layers, .moe_layers = shape.moe_layers};
  ExpertTable table = sim_expert_table(shape);
  i64 all = full_budget(table, 4096);
  Plan plan = make_plan(table, {.ram_bytes = all / 3, .devices = {{all / 10, 10, 400}}, .cpu_gb_per_second = 20});
  Future future(record, shape.experts, plan.device_experts(0), 2);
  std::unique_ptr<ResidencyPolicy> policy;
  if (knows) policy = std::make_unique<ClairvoyantCache>(plan, shape.experts, future);
  if (!knows) policy = make_policy("auto", plan, shape.experts, shape.top_k);
  Simulator simulator(machine, table, plan, resident, place_resident(resident.homeless(), usable_vram(machine)), std::move(policy));
  if (knows) simulator.foresee(future);
  for (i64 token = 0; token < record.tokens(); token++) simulator.run_token(record, token);
  return simulator.totals();
}

}  // namespace

TEST_CASE("the next use is the first one that is not past") {
  RoutingRecord record = record_of({0, 1, 1, 0, 0, 0}, 2, 1);  // layer 0: 0, 1, 0; layer 1: 1, 0, 0
  Future future(record, 2, 1, 1);
  CHECK(future.next_use(key(0)) == 0);
  CHECK(future.next_use(key(0, 1)) == 3);
  future.pass(0, 0, 1);
  CHECK(future.next_use(key(0)) == 4);
  CHECK(future.next_use(key(1, 1)) == 1);
  future.pass(0, 1, 2);
  CHECK(future.next_use(key(0)) == Future::kNever);
}

TEST_CASE("a place that costs nothing is worth the uses to come, and going there again bounds it") {
  // Room for all, so no price. Expert 0 at tokens 0 .. 3, 1 at token 4.
  RoutingRecord record = record_of({0, 0, 0, 0, 1}, 1, 1);
  Future future(record, 2, 2, 2);
  CHECK(future.device_worth(key(0)) == doctest::Approx(3));  // token 1's, and it stays for 2 more
  CHECK(future.device_worth(key(1)) == doctest::Approx(1));
  future.pass(0, 0, 2);
  CHECK(future.device_worth(key(0)) == doctest::Approx(1));  // an exchange ends after token 2
  future.pass(0, 2, 2);
  CHECK(future.device_worth(key(0)) == 0);
}

TEST_CASE("one place has its price, which only who is used most pays") {
  // 16 tokens: expert 0 each time, with it 1 at every other, between them 2 .. 9 once each.
  std::vector<i64> experts;
  for (i64 token = 0; token < 16; token++) experts.insert(experts.end(), {0, token % 2 == 0 ? 1 : 2 + token / 2});
  RoutingRecord record = record_of(experts, 1, 2);
  Future future(record, 10, 1, 2);
  // Expert 1 goes there while its 8 uses earn 2 more than 15 tokens cost: so the price is 0.4.
  CHECK(future.device_worth(key(0)) == doctest::Approx(3 - .4));
  CHECK(future.device_worth(key(1)) == doctest::Approx(1.8 - .4));  // not the 2 that going there costs
  CHECK(future.device_worth(key(2)) == doctest::Approx(1 - .4));
  CHECK(future.device_worth(key(9)) == 0);
}

TEST_CASE("RAM gives up what is used last, unless that is used before what is to come") {
  RoutingRecord record = record_of({0, 1, 2, 0, 1, 3, 2, 0}, 1, 1);
  Future future(record, 4, 0, 1);
  ClairvoyantCache cache(one_class(3, 1), 4, future);
  for (i64 e : {0, 1, 2}) {
    future.pass(0, e, 1);
    cache.on_layer(0, 1);
    cache.on_admit(key(e));
    cache.on_unpin(key(e));
  }
  // To come: 0 1 3 2 0.
  CHECK(cache.choose_victim(0) == key(2));
  CHECK(cache.choose_victim_for(key(3), 1) == key(2));
  cache.on_pin(key(2));
  CHECK(cache.choose_victim(0) == key(1));
  CHECK(!cache.choose_victim_for(key(3), 1).has_value());  // 1 is used before 3
  cache.on_unpin(key(2));
  future.pass(0, 3, 1);
  cache.on_layer(0, 1);  // 0 is now used last
  CHECK(cache.choose_victim(0) == key(0));
  cache.on_evict(key(0));
  CHECK(cache.choose_victim(0) == key(2));
}

TEST_CASE("who knows the future is faster with the same scheduler and machine") {
  auto source = zipf_routing(6, 64, 0.8, 7);
  RoutingRecord record = record_routing(*source, 6, 4, 200);
  SimTotals knowing = tokens_of(record, true), guessing = tokens_of(record, false);
  CHECK(knowing.total_ns < 0.9 * static_cast<f64>(guessing.total_ns));
  CHECK(knowing.wait_ns < guessing.wait_ns);
  CHECK(knowing.stats.device_hits > guessing.stats.device_hits);
}

}  // namespace stoker

// The simulator against arithmetic: what it says of machines whose speed can be worked out by hand.
#include "scheduler/sim/simulator.h"

#include <doctest/doctest.h>

#include <algorithm>
#include <set>

#include "scheduler/planner.h"
#include "scheduler/policy/lru_cache.h"
#include "scheduler/sim/belady.h"
#include "scheduler/sim/bounds.h"

namespace stoker {

namespace {

constexpr f64 kInfinite = 1e9;

SimMachine machine_of(f64 dram, f64 ssd) {
  SimMachine m;
  m.name = "test";
  m.ram_bytes = 256 * kGiB;
  m.dram_gb_per_second = dram;
  m.ssd_gb_per_second = ssd;
  m.ssd_latency_us = ssd == kInfinite ? 0 : 80;
  m.kernel_gb_per_second.fill(kInfinite);
  return m;
}

SimShape v3_shape() {
  return {.dense_layers = 3, .moe_layers = 58, .experts = 256, .top_k = 8, .hidden = 7168, .expert_ffn = 2048,
          .wide = BlockType::IQ2_XXS, .down = BlockType::IQ2_XXS};
}

SimShape small_shape() {
  return {.dense_layers = 1, .moe_layers = 6, .experts = 64, .top_k = 4, .hidden = 2048, .expert_ffn = 1024};
}

SimResident resident_of(const SimShape& s) {
  return {.attention_bytes = 18'000'000, .dense_ffn_bytes = 12'000'000, .router_bytes = 2'000'000, .shared_bytes = 5'000'000,
          .head_rows = 10'000, .head_row_bytes = 4'000, .hidden_bytes = 57'344, .dense_layers = s.dense_layers,
          .moe_layers = s.moe_layers};
}

Homes homes_of(const SimMachine& machine, const SimResident& resident) {
  return place_resident(resident.homeless(), usable_vram(machine));
}

struct Run {
  SimTotals totals;
  std::vector<i64> belady;
  SimBound bound;  // with the bytes that were read
};

Run simulate(const SimMachine& machine, const SimShape& shape, const SimResident& resident, f64 resident_share,
             i64 tokens, u64 seed = 1, bool preload = false, i64 vram_each = 0) {
  ExpertTable table = sim_expert_table(shape);
  i64 full = full_budget(table, 4096);
  i64 ram = static_cast<i64>(resident_share * static_cast<f64>(full));
  PlanRequest request{.ram_bytes = std::max(ram, smallest_budget(table, 4096))};
  for (const SimGpu& gpu : machine.gpus)
    request.devices.push_back({vram_each, gpu.link_gb_per_second, gpu.expert_gb_per_second});
  Plan plan = make_plan(table, request);
  auto source = zipf_routing(shape.moe_layers, shape.experts, 0.5, seed);
  RoutingRecord record = record_routing(*source, shape.moe_layers, shape.top_k, tokens);
  const Homes homes = homes_of(machine, resident);
  Simulator simulator(machine, table, plan, resident, homes,
                      std::make_unique<LruCache>(plan, table.experts_per_layer(), table.top_k()));
  if (preload) simulator.preload();
  for (i64 t = 0; t < tokens; t++) simulator.run_token(record, t);
  const SimTotals& totals = simulator.totals();
  return {totals, belady_hits(record, shape.experts, plan),
          bound(machine, table, resident, homes,
                {.ssd_bytes = static_cast<f64>(totals.stats.bytes_read) / static_cast<f64>(tokens),
                 .device_bytes = static_cast<f64>(totals.device_bytes) / static_cast<f64>(tokens),
                 .copied_bytes = static_cast<f64>(totals.stats.uploaded_bytes + totals.stats.downloaded_bytes) /
                                 static_cast<f64>(tokens)})};
}

// All of it on one GPU, the shared experts beside the routed ones.
f64 resident_ns_on_gpu(const SimResident& r, f64 gpu, f64 link) {
  return static_cast<f64>(r.total_bytes() - r.moe_layers * r.shared_bytes) / gpu +
         static_cast<f64>(r.hidden_bytes / 2 + 4 * r.head_rows) / link;
}

f64 ms_per_token(const SimTotals& t) { return static_cast<f64>(t.total_ns) * 1e-6 / static_cast<f64>(t.tokens); }

}  // namespace

TEST_CASE("tables without a file have the layouts of GGUF files and packs") {
  SimShape shape = v3_shape();
  ExpertTable stacked = sim_expert_table(shape);
  CHECK(stacked.total_bytes() == 58 * 256 * 3 * i64{7168} * 2048 / 256 * 66);
  CHECK(stacked.moe_index(LayerId(2)) == -1);
  CHECK(stacked.moe_index(LayerId(60)) == 57);
  Extent gate = stacked.extent(LayerId(4), ExpertId(7), ExpertMatrix::gate);
  CHECK(stacked.extent(LayerId(4), ExpertId(8), ExpertMatrix::gate).offset == gate.offset + gate.bytes);
  Extent last = stacked.extent(LayerId(60), ExpertId(255), ExpertMatrix::down);
  CHECK(last.offset + last.bytes <= stacked.file_bytes()[0]);
  shape.packed = true;
  ExpertTable packed = sim_expert_table(shape);
  gate = packed.extent(LayerId(4), ExpertId(7), ExpertMatrix::gate);
  CHECK(gate.offset % 4096 == 0);
  CHECK(packed.extent(LayerId(4), ExpertId(7), ExpertMatrix::up).offset == gate.offset + gate.bytes);
  shape.expert_ffn = 1408;
  CHECK_THROWS_WITH_AS(sim_expert_table(shape), doctest::Contains("down matrices have 1408 weights"), Error);
}

TEST_CASE("V3 in RAM at full size takes the roofline's time") {
  SimShape shape = v3_shape();
  SimResident none{.dense_layers = 3, .moe_layers = 58};
  Run run = simulate(machine_of(64, 6.5), shape, none, 1.0, 20, 1, true);
  // 58 layers, 8 experts of 3 x 7168 x 2048 weights at 2.0625 bits: 5.27 GB at 64 GB/s.
  f64 expected = 58 * 8 * 3.0 * 7168 * 2048 * 2.0625 / 8 / 64e6;
  CHECK(ms_per_token(run.totals) == doctest::Approx(expected).epsilon(0.001));
  CHECK(run.totals.stats.misses == 0);
  CHECK(run.totals.stats.bytes_read == 0);
  CHECK(run.totals.wait_ns == 0);
  CHECK(run.bound.ms == doctest::Approx(expected).epsilon(0.001));
}

TEST_CASE("an infinitely fast drive takes the roofline's time at any budget") {
  SimShape shape = small_shape();
  SimMachine machine = machine_of(50, kInfinite);
  machine.layer_overhead_us = 10;
  f64 expert = 3.0 * 2048 * 1024 / 256 * 144;
  f64 expected = (6 * 4 * expert + 30e6 + 6 * 25e6 + 40e6) / 50e6 + 7 * 0.010;
  for (f64 share : {0.0, 0.5, 1.0}) {
    Run run = simulate(machine, shape, resident_of(shape), share, 50);
    CHECK(ms_per_token(run.totals) == doctest::Approx(expected).epsilon(0.02));
    CHECK(run.totals.stats.misses > 0);
  }
}

TEST_CASE("a slow drive takes its time, and what happens beside it is hidden") {
  SimShape shape = small_shape();
  SimResident none{.dense_layers = 1, .moe_layers = 6};
  Run run = simulate(machine_of(1000, 1), shape, none, 0.0, 50);
  const SimTotals& t = run.totals;
  f64 read_ms = static_cast<f64>(t.stats.bytes_read) * 1e-6 / 50;
  CHECK(ms_per_token(t) > read_ms);
  CHECK(ms_per_token(t) < 1.1 * read_ms);  // latency per layer, the last piece's arithmetic
  CHECK(t.stats.hits + t.stats.misses == 50 * 6 * 4);
  CHECK(t.stats.bytes_read >= t.stats.misses * 3 * 2048 * 1024 / 256 * 144);
  CHECK(t.wait_ns == t.stats.wait_ns);
  CHECK(t.total_ns == t.resident_ns + t.expert_ns + t.wait_ns + t.rest_ns);
}

TEST_CASE("no run beats its bound, and no policy Belady") {
  SimShape shape = small_shape();
  for (bool packed : {false, true}) {
    shape.packed = packed;
    for (f64 ssd : {0.5, 3.0, 20.0}) {
      for (f64 share : {0.0, 0.2, 0.6}) {
        CAPTURE(ssd);
        CAPTURE(share);
        Run run = simulate(machine_of(40, ssd), shape, resident_of(shape), share, 100);
        CHECK(ms_per_token(run.totals) >= 0.9999 * run.bound.ms);
        i64 most = 0;
        for (i64 hits : run.belady) most += hits;
        CHECK(run.totals.stats.hits <= most);
      }
    }
  }
}

TEST_CASE("cores that have waited for a read wake up before they compute") {
  SimShape shape = small_shape();
  shape.packed = true;
  SimResident none{.dense_layers = 1, .moe_layers = 6};
  SimMachine machine = machine_of(1000, 1);
  Run asleep = simulate(machine, shape, none, 0.0, 1);
  machine.wake_us = 50;
  Run waking = simulate(machine, shape, none, 0.0, 1);
  // The first token: 4 experts in each of 6 layers land one after the other, 3.5 ms apart.
  CHECK(asleep.totals.rest_ns == 0);
  CHECK(waking.totals.rest_ns == 24 * 50'000);
  CHECK(waking.totals.total_ns > asleep.totals.total_ns);
  Run resident = simulate(machine, shape, none, 1.0, 20, 1, true);
  CHECK(resident.totals.rest_ns == 0);
}

TEST_CASE("attention takes its multiplications on the cores, and its cache's bytes on a GPU") {
  SimShape shape = small_shape();
  SimResident resident = resident_of(shape);
  resident.kv_bytes = 7 * 4'000'000;
  resident.attention_flops = 100'000'000;
  SimMachine machine = machine_of(50, kInfinite);
  machine.attention_gflops = 100;
  Run run = simulate(machine, shape, resident, 1.0, 20, 1, true);
  f64 bytes = static_cast<f64>(resident.total_bytes() - resident.kv_bytes);
  f64 experts = 6 * 4 * 3.0 * 2048 * 1024 / 256 * 144;
  CHECK(static_cast<f64>(run.totals.resident_ns) == doctest::Approx(20 * (bytes / 50 + 7 * 1e6)).epsilon(0.001));
  CHECK(ms_per_token(run.totals) == doctest::Approx((bytes + experts) / 50e6 + 7).epsilon(0.001));
  CHECK(ms_per_token(run.totals) == doctest::Approx(run.bound.ms).epsilon(0.001));
  machine.gpus.push_back({"A", 8 * kGiB, 800, 10, 800});
  run = simulate(machine, shape, resident, 1.0, 20);
  CHECK(static_cast<f64>(run.totals.resident_ns) == doctest::Approx(20 * resident_ns_on_gpu(resident, 800, 10)).epsilon(0.001));
}

TEST_CASE("reads slow the cores down by what they take of the memory") {
  SimShape shape = small_shape();
  SimResident resident = resident_of(shape);
  auto computing = [&](f64 ssd) {
    const SimTotals t = simulate(machine_of(40, ssd), shape, resident, 0.0, 50).totals;
    return t.expert_ns + t.resident_ns;
  };
  CHECK(computing(8) > computing(kInfinite) * 1.02);
}

TEST_CASE("kernels slower than the memory hold the experts up, per format") {
  SimShape shape = small_shape();
  shape.down = BlockType::Q6_K;
  SimMachine machine = machine_of(50, kInfinite);
  machine.kernel_gb_per_second[static_cast<size_t>(BlockType::Q6_K)] = 10;
  SimResident none{.dense_layers = 1, .moe_layers = 6};
  Run run = simulate(machine, shape, none, 1.0, 20);
  f64 matrix = 2048.0 * 1024 / 256;
  CHECK(ms_per_token(run.totals) == doctest::Approx(6 * 4 * matrix * (2 * 144 / 50e6 + 210 / 10e6)).epsilon(0.02));
}

TEST_CASE("resident weights are the GPU's work as far as they fit there") {
  SimShape shape = small_shape();
  SimResident resident = resident_of(shape);
  SimMachine machine = machine_of(50, kInfinite);
  machine.gpus.push_back({"A", 8 * kGiB, 800, 10, 800});
  Run run = simulate(machine, shape, resident, 1.0, 20);
  // The shared experts are its work too, while the cores are busy.
  CHECK(static_cast<f64>(run.totals.resident_ns) == doctest::Approx(20 * resident_ns_on_gpu(resident, 800, 10)).epsilon(0.001));
  CHECK(run.totals.gpu_wait_ns == 0);
  // For attention and for the FFN of each of the 7 layers.
  CHECK(static_cast<f64>(run.totals.rest_ns) == doctest::Approx(20.0 * 14 * 57344 / 10).epsilon(0.001));
  machine.gpus[0].vram_bytes = kGiB;
  run = simulate(machine, shape, resident, 1.0, 20);
  CHECK(static_cast<f64>(run.totals.resident_ns) ==
        doctest::Approx(20.0 * static_cast<f64>(resident.total_bytes()) / 50).epsilon(0.001));

  // Beside the workspace of 2 GiB room for the head, the dense layer and a layer with experts, and then for one's shared experts
  // and router.
  machine.gpus[0].vram_bytes = 2 * kGiB + 103'000'000 + 3 * 4096;
  Homes homes = homes_of(machine, resident);
  CHECK(homes.head_rows == std::vector<i64>{10'000});
  CHECK(std::count_if(homes.layers.begin(), homes.layers.end(), [](const LayerHome& h) { return h.attention; }) == 2);
  CHECK(std::count_if(homes.layers.begin(), homes.layers.end(), [](const LayerHome& h) { return h.device == 0; }) == 3);
  CHECK(bytes_on_gpus(resident, homes).all() == 102'000'000);
  CHECK(bytes_in_ram(resident, homes) == resident.total_bytes() - 98'000'000 + bytes_on_gpus(resident, homes).cache);
  run = simulate(machine, shape, resident, 1.0, 20, 1, true);
  f64 on_gpu = 40e6 + 2 * 18e6 + 12e6 + 2 * 2e6, on_cores = 5 * 18e6 + 4 * 2e6 + 4 * 5e6;
  CHECK(static_cast<f64>(run.totals.resident_ns) ==
        doctest::Approx(20 * (on_gpu / 800 + on_cores / 50 + (57344.0 / 2 + 40000) / 10)).epsilon(0.001));
  CHECK(static_cast<f64>(run.totals.rest_ns) == doctest::Approx(20.0 * 5 * 57344 / 10).epsilon(0.001));
  CHECK(ms_per_token(run.totals) >= 0.9999 * run.bound.ms);
}

namespace {

// The memory of two GPUs takes a fifth of the experts each.
Run simulate_with_vram(SimMachine machine, f64 link, f64 ram_share, i64 tokens, f64 gpu_speed = 400) {
  SimShape shape = small_shape();
  for (i64 i = 0; i < 2; i++) machine.gpus.push_back({"A", 8 * kGiB, gpu_speed, link, gpu_speed});
  return simulate(machine, shape, resident_of(shape), ram_share, tokens, 1, false, full_budget(sim_expert_table(shape), 4096) / 5);
}

}  // namespace

TEST_CASE("with GPUs, infinitely fast drive and links take the roofline's time") {
  Run run = simulate_with_vram(machine_of(50, kInfinite), kInfinite, 0.3, 200);
  CHECK(run.totals.stats.device_hits > 0);
  CHECK(run.totals.device_bytes > run.totals.expert_bytes / 5);
  CHECK(run.totals.stats.misses > 0);
  // By arithmetic: what is not in VRAM goes through the memory, beside nothing.
  SimResident resident = resident_of(small_shape());
  f64 cpu_bytes = static_cast<f64>(run.totals.expert_bytes - run.totals.device_bytes) / 200;
  f64 half_a_head_ns = 20e6 / 400;  // each GPU has one
  f64 expected = cpu_bytes / 50e6 + (resident_ns_on_gpu(resident, 400, kInfinite) - half_a_head_ns) * 1e-6;
  CHECK(ms_per_token(run.totals) == doctest::Approx(expected).epsilon(0.02));
}

TEST_CASE("with GPUs no run beats its bound") {
  for (f64 ssd : {0.5, 3.0}) {
    for (f64 link : {1.0, 10.0}) {
      for (f64 gpu : {40.0, 400.0}) {
        CAPTURE(ssd);
        CAPTURE(link);
        CAPTURE(gpu);
        Run run = simulate_with_vram(machine_of(30, ssd), link, 0.3, 100, gpu);
        CHECK(ms_per_token(run.totals) >= 0.9999 * run.bound.ms);
        const SimTotals& t = run.totals;
        CHECK(t.total_ns == t.resident_ns + t.expert_ns + t.wait_ns + t.gpu_wait_ns + t.rest_ns);
        CHECK(t.stats.hits + t.stats.misses + t.stats.device_hits == t.stats.requests);
      }
    }
  }
}

TEST_CASE("a piece of a prompt reads what its tokens want once, and multiplies for each of them") {
  SimShape shape = small_shape();
  SimResident resident = resident_of(shape);
  SimMachine machine = machine_of(50, kInfinite);
  constexpr i64 kTokens = 40;
  auto source = zipf_routing(shape.moe_layers, shape.experts, 0.5, 1);
  RoutingRecord record = record_routing(*source, shape.moe_layers, shape.top_k, kTokens);
  i64 wanted = 0;  // experts, each layer's once
  for (i64 l = 0; l < shape.moe_layers; l++) {
    std::set<i32> experts;
    for (i64 t = 0; t < kTokens; t++)
      for (const RoutedExpert& route : record.layer(t, l)) experts.insert(route.expert.value);
    wanted += static_cast<i64>(experts.size());
  }
  ExpertTable table = sim_expert_table(shape);
  auto run = [&](f64 ram_share, bool preload) {
    Plan plan = make_plan(table, {.ram_bytes = static_cast<i64>(ram_share * static_cast<f64>(full_budget(table, 4096)))});
    Simulator simulator(machine, table, plan, resident, homes_of(machine, resident),
                        std::make_unique<LruCache>(plan, table.experts_per_layer(), table.top_k()));
    if (preload) simulator.preload();
    simulator.run_piece(record, 0, kTokens);
    return simulator.totals();
  };
  f64 expert = 3.0 * 2048 * 1024 / 256 * 144, head = 40e6;
  f64 layers = static_cast<f64>(resident.total_bytes()) - head;
  SimTotals t = run(1.0, true);
  CHECK(t.tokens == kTokens);
  CHECK(t.stats.requests == wanted);
  CHECK(static_cast<f64>(t.total_ns) == doctest::Approx((layers + head + static_cast<f64>(wanted) * expert) / 50).epsilon(0.001));
  // Cores that multiply slowly: each pair of token and expert, every token's resident weights, one token's head.
  machine.kernel_gb_per_second.fill(20);
  t = run(1.0, true);
  f64 slow = (layers * kTokens + head + kTokens * 6 * 4 * expert) / 20;
  CHECK(static_cast<f64>(t.total_ns) == doctest::Approx(slow).epsilon(0.001));
  // From a drive: each once, though not all fit.
  machine.ssd_gb_per_second = 1;
  t = run(0.3, false);
  CHECK(t.stats.misses == wanted);
  CHECK(t.stats.bytes_read >= wanted * static_cast<i64>(expert));
  CHECK(t.stats.bytes_read < wanted * static_cast<i64>(expert + 3 * 4096));
}

TEST_CASE("copies take their time on their link, and their bandwidth from the cores") {
  VirtualClock clock;
  SimCopier copier(clock, {{.gb_per_second = 10, .arena_bytes = 1000}, {.gb_per_second = 5, .arena_bytes = 1000}});
  auto copy = [](u64 tag, i32 device, CopyDirection direction) {
    Copy c{.tag = tag, .device = device, .direction = direction, .layer = {}, .expert = {}, .parts = {}};
    for (CopyPart& part : c.parts) part.bytes = 1'000'000;
    return c;
  };
  std::vector<Copy> copies = {copy(1, 0, CopyDirection::upload), copy(2, 0, CopyDirection::upload),
                              copy(3, 0, CopyDirection::download), copy(4, 1, CopyDirection::upload)};
  CHECK(copier.submit(copies) == 4);
  CHECK(copier.activity().gb_per_second == 25);
  std::vector<std::pair<u64, i64>> landed;
  std::vector<CopyDone> done(8);
  while (landed.size() < 4 && copier.wait(1'000'000'000))
    for (i64 n = copier.poll(done); n > 0; n--) landed.emplace_back(done[static_cast<size_t>(n - 1)].tag, clock.now_ns());
  std::sort(landed.begin(), landed.end());
  CHECK(landed == std::vector<std::pair<u64, i64>>{{1, 300'000}, {2, 600'000}, {3, 300'000}, {4, 600'000}});

  VirtualClock later;
  SimDisk disk(later, {1000}, {});
  SimCopier links(later, {{.gb_per_second = 10, .arena_bytes = 1000}});
  SimDram dram(later, disk, links, 50, 1);
  CHECK(links.submit(std::span(copies).subspan(1, 2)) == 2);  // 20 GB/s for 0.3 ms
  dram.read(50'000'000, {kInfinite});
  // 9 MB beside the copies, 41 MB alone.
  CHECK(later.now_ns() == doctest::Approx(300'000 + 41e6 / 50).epsilon(0.0001));
}

TEST_CASE("the seed decides everything") {
  SimShape shape = small_shape();
  auto total = [&](u64 seed) {
    return simulate(machine_of(40, 3), shape, resident_of(shape), 0.4, 60, seed).totals.total_ns;
  };
  i64 first = total(1);
  CHECK(total(1) == first);
  CHECK(total(2) != first);
}

}  // namespace stoker

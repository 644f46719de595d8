#include "runtime/lookahead.h"

#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <utility>

#include "kernels/base/rng.h"
#include "runtime/arch/deepseek2.h"
#include "runtime/engine.h"
#include "runtime/router.h"
#include "scheduler/planner.h"
#include "scheduler/policy/lru_cache.h"
#include "tests/support/model_run.h"
#include "tests/support/tiny_model.h"

namespace stoker {
namespace {

EngineOptions streaming(const std::string& path) {
  EngineOptions options = test::small_engine(path);
  options.ram_bytes = 2 * kMiB;
  options.prefetch.mode = PrefetchMode::on;
  return options;
}

}  // namespace

TEST_CASE("a layer's own gate on its own input names all that the router chooses") {
  test::TinyModel model(test::tiny_options(BlockType::Q8_0));
  EngineOptions options = test::small_engine(model.path());
  Engine engine(options);
  Hparams h = engine.hparams();
  Gguf gguf = Gguf::open(model.path());
  Weights weights(gguf, h, all_on_cpu(h.layers), {});
  ExpertTable table = ExpertTable::from_gguf(gguf, h.expert_shape());
  for (bool groups : {false, true}) {
    CAPTURE(groups);
    if (!groups) h.groups = h.groups_used = 1;
    std::unique_ptr<Reader> reader = open_reader({model.path()}, {});
    Plan plan = make_plan(table, {.ram_bytes = smallest_budget(table, 4096)});
    Scheduler scheduler(table, plan, std::make_unique<LruCache>(plan, h.experts, h.top_k), *reader, steady_clock());
    WorkerPool workers(WorkerPool::Options{.workers = 1});
    Stream stream(workers, best_isa_level());
    Lookahead lookahead(cpu_ops(), stream, h, weights, scheduler, {});
    GateRouter router(cpu_ops(), h, 1);
    Rng rng(1);
    std::vector<f32> x(static_cast<size_t>(h.hidden)), gate_weights(static_cast<size_t>(h.top_k));
    std::vector<i32> ids(static_cast<size_t>(h.top_k));
    for (int round = 0; round < 50; round++)
      for (i64 l = 0; l < h.layers; l++) {
        const LayerWeights& w = weights.layers()[static_cast<size_t>(l)];
        if (!w.is_moe()) continue;
        for (f32& value : x) value = static_cast<f32>(rng.uniform()) - 0.5f;
        router.route({stream, LayerId(l), w, x.data(), 1}, ids.data(), gate_weights.data());
        lookahead.score(stream, w.router, x.data(), 1);
        auto ranking = lookahead.rank(stream, w, 0, 2 * h.top_k);
        REQUIRE(static_cast<i64>(ranking.size()) >= h.top_k);
        for (size_t k = 0; k < ids.size(); k++) CHECK(ranking[k].expert.value == ids[k]);
      }
  }
}

TEST_CASE("8-bit copies of gates rank nearly like the gates, and the same whoever computes") {
  test::TinyModel model(test::tiny_options(BlockType::Q8_0));
  Gguf gguf = Gguf::open(model.path());
  Hparams h = read_deepseek2(gguf);
  Weights weights(gguf, h, all_on_cpu(h.layers), {});
  ExpertTable table = ExpertTable::from_gguf(gguf, h.expert_shape());
  std::unique_ptr<Reader> reader = open_reader({model.path()}, {});
  Plan plan = make_plan(table, {.ram_bytes = smallest_budget(table, 4096)});
  Scheduler scheduler(table, plan, std::make_unique<LruCache>(plan, h.experts, h.top_k), *reader, steady_clock());
  std::vector<std::pair<i32, f32>> rankings[2];
  i64 found = 0, wanted = 0;
  for (int workers_count : {1, 3}) {
    WorkerPool workers(WorkerPool::Options{.workers = workers_count});
    Stream stream(workers, best_isa_level());
    Lookahead lookahead(cpu_ops(), stream, h, weights, scheduler, {});
    GateCopies copies(cpu_ops(), stream, h, weights);
    CHECK(copies.bytes() >= GateCopies::bytes_needed(h));
    CHECK(lookahead.bytes() == copies.bytes());
    Rng rng(1);
    std::vector<f32> x(static_cast<size_t>(h.hidden));
    for (int round = 0; round < 100; round++)
      for (i64 l = h.dense_layers; l < h.layers; l++) {
        const LayerWeights& w = weights.layers()[static_cast<size_t>(l)];
        CHECK(copies.router(LayerId(l)).type == BlockType::Q8_0);
        for (f32& value : x) value = static_cast<f32>(rng.uniform()) - 0.5f;
        lookahead.score(stream, w.router, x.data(), 1);
        std::span<const RankedExpert> ranking = lookahead.rank(stream, w, 0, h.top_k);
        std::vector<RankedExpert> exact(ranking.begin(), ranking.end());
        lookahead.score(stream, copies.router(LayerId(l)), x.data(), 1);
        for (const RankedExpert& r : lookahead.rank(stream, w, 0, h.top_k)) {
          rankings[workers_count == 1 ? 0 : 1].emplace_back(r.expert.value, r.margin);
          found += std::any_of(exact.begin(), exact.end(), [&](const RankedExpert& e) { return e.expert == r.expert; });
          wanted++;
        }
      }
  }
  CHECK(rankings[0] == rankings[1]);
  CHECK(static_cast<f64>(found) > .97 * static_cast<f64>(wanted));
}

TEST_CASE("forecasts of a real pass are judged, at every distance asked for") {
  test::TinyModel model(test::tiny_options(BlockType::Q8_0));
  for (PredictorKind kind : kPredictorKinds) {
    CAPTURE(std::string(name(kind)));
    EngineOptions options = streaming(model.path());
    options.predictor = kind;
    options.lookahead = 2;
    Engine engine(options);
    REQUIRE(!engine.plan().all_resident);
    test::logits_of(engine, test::some_tokens(40, 512, 1), 1);
    if (kind == PredictorKind::none) {
      CHECK(engine.predictor() == nullptr);
      continue;
    }
    bool gate = kind == PredictorKind::gate || kind == PredictorKind::gate_shared;
    const ForecastScore& near = engine.predictor()->score(1);
    CHECK(near.slots > 0);
    CHECK(near.recall_wide() > 0);
    CHECK(near.recall_wide() <= 1);
    CHECK((engine.predictor()->score(2).slots > 0) == gate);
    CHECK(engine.scheduler_stats().predicted_bytes >= engine.scheduler_stats().useful_bytes);
  }
}

TEST_CASE("with everything in memory nothing is predicted") {
  test::TinyModel model(test::tiny_options(BlockType::Q8_0));
  Engine engine(test::small_engine(model.path()));
  CHECK(engine.predictor() == nullptr);
}

}  // namespace stoker

// A whole model with its experts on cards. gpu_main.cc skips this without one.
#include <doctest/doctest.h>

#include "kernels/device/cuda_device.h"
#include "runtime/engine.h"
#include "runtime/tokenizer/tokenizer.h"
#include "tests/support/model_run.h"
#include "tests/support/shared_data.h"

using namespace stoker;

namespace {

constexpr const char* kPrompt = "Once upon a time there was a little fire that nobody fed, and";
constexpr i64 kGenerated = 64;

EngineOptions on(std::vector<int> cards, std::vector<i64> vram_bytes, i64 ram_bytes) {
  EngineOptions options = test::small_engine(test::source_file("tests/models/ember-37m-q4_k_m.gguf"));
  options.context = 256;
  options.ram_bytes = ram_bytes;
  if (!cards.empty()) options.devices = {.kind = DeviceChoice::Kind::cuda, .cards = std::move(cards), .host = {}};
  options.vram_bytes = std::move(vram_bytes);
  return options;
}

std::vector<i32> text(Engine& engine) { return test::greedy(engine, engine.tokenizer().encode(kPrompt), kGenerated); }

}  // namespace

TEST_CASE("gpu: the bundled model says on one card, and on two logical ones that exchange experts, what it says on the CPU") {
  Engine cpu(on({}, {}, kGiB));
  const std::vector<i32> want = text(cpu);
  REQUIRE(want.size() > 8);

  Engine one(on({0}, {}, kGiB));
  CHECK(text(one) == want);
  CHECK(one.scheduler_stats().device_hits > 0);
  CHECK(one.footprint().devices[0].attention_layers == one.hparams().layers);

  Engine two(on({0, 0}, {4 * kMiB, 2 * kMiB}, 5 * kMiB));
  for (int i = 0; i < 3; i++) {
    two.sequence(SequenceId(0)).truncate(0);
    CHECK(text(two) == want);
  }
  const SchedulerStats& s = two.scheduler_stats();
  CHECK(s.device_hits > 0);
  CHECK(s.downloaded_bytes > 0);  // the CPU has computed from what came back
  CHECK(s.failed_exchanges == 0);
  CHECK(s.misses > 0);
}

TEST_CASE("gpu: two cards say what the CPU says") {
  if (cuda_presence().cards < 2) {
    MESSAGE("skipped: there is one card");
    return;
  }
  Engine cpu(on({}, {}, kGiB));
  const std::vector<i32> want = text(cpu);
  Engine two(on({0, 1}, {4 * kMiB, 2 * kMiB}, 5 * kMiB));
  for (int i = 0; i < 3; i++) {
    two.sequence(SequenceId(0)).truncate(0);
    CHECK(text(two) == want);
  }
  CHECK(two.scheduler_stats().device_hits > 0);
  CHECK(two.scheduler_stats().failed_exchanges == 0);
}

TEST_CASE("gpu: what a card cannot do is refused when the engine is made") {
  EngineOptions exact = on({0}, {}, kGiB);
  exact.exact = true;
  CHECK_THROWS_WITH_AS(Engine{exact}, doctest::Contains("no exact arithmetic"), Error);
  CHECK_THROWS_WITH_AS(Engine{on({4711}, {}, kGiB)}, doctest::Contains("there are only"), Error);
}

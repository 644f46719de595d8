// A small model with all that the engine does with CUDA cards, over a CUDA runtime of CPU memory and kernels on emulated
// cards: streams, copies, pinned memory, the packed order, every op, exchanges, a lost card. What a card alone can show is
// gpu_engine_test's.
#include <doctest/doctest.h>

#include "runtime/engine.h"
#include "tests/kernels/device/fake_cuda.h"
#include "tests/support/compare.h"
#include "tests/support/model_run.h"
#include "tests/support/tiny_model.h"

using namespace stoker;
namespace fake = stoker::test::fake_cuda;

namespace {

constexpr i64 kGenerated = 3;

EngineOptions on(const std::string& path, std::vector<int> cards, std::vector<i64> vram_bytes, i64 ram_bytes = kGiB) {
  EngineOptions options = test::small_engine(path);
  options.context = 64;
  options.chunk = 16;
  options.ram_bytes = ram_bytes;
  if (!cards.empty()) options.devices = {.kind = DeviceChoice::Kind::cuda, .cards = std::move(cards), .host = {}};
  options.vram_bytes = std::move(vram_bytes);
  return options;
}

// Logits of a prompt, long enough for the tensor-core products, and of what is generated behind it, up to the first failure.
std::vector<f32> answer(Engine& engine, Status& status, i64 prompt = 9) {
  const i64 vocab = engine.hparams().vocab;
  const std::vector<i32> tokens = test::some_tokens(prompt + kGenerated, vocab, 3);
  std::vector<f32> logits;
  status = {};
  engine.sequence(SequenceId(0)).truncate(0);
  for (i64 at = 0; at < prompt + kGenerated && status.ok();) {
    const i64 count = at == 0 ? prompt : 1;
    std::vector<BatchRow> rows;
    for (i64 i = at; i < at + count; i++)
      rows.push_back({SequenceId(0), static_cast<i32>(i), tokens[static_cast<size_t>(i)], true,
                      at == 0 ? RowRole::prompt : RowRole::generated});
    std::vector<f32> some(static_cast<size_t>(count * vocab));
    status = engine.forward(rows, some);
    if (status.ok()) logits.insert(logits.end(), some.begin(), some.end());
    at += count;
  }
  return logits;
}

std::vector<f32> whole_answer(Engine& engine, i64 prompt = 9) {
  Status status;
  std::vector<f32> logits = answer(engine, status, prompt);
  REQUIRE_MESSAGE(status.ok(), status.message());
  return logits;
}

std::vector<f32> on_cpu(const std::string& path, i64 prompt = 9) {
  Engine engine(on(path, {}, {}));
  return whole_answer(engine, prompt);
}

struct Runtime {
  Runtime() {
    fake::reset();
    fake::run_when_asked(true);
  }
  ~Runtime() { CHECK(fake::pinned_ranges() == 0); }
};

}  // namespace

TEST_CASE("emulated cards: in halves, a model says what it says on the CPU") {
  const test::TinyModel model(test::tiny_options(BlockType::F16));
  const std::vector<f32> want = on_cpu(model.path(), 2);
  Runtime runtime;
  Engine engine(on(model.path(), {0}, {16 * kMiB}));
  const std::vector<f32> got = whole_answer(engine, 2);
  CHECK(test::compare_logits(got, want, engine.hparams().vocab).worst_error < 2e-3);
  CHECK(engine.footprint().devices[0].attention_layers == engine.hparams().layers);
}

TEST_CASE("emulated cards: a generated token takes as many launches, copies and waits as ARCHITECTURE says") {
  const test::TinyModel model;
  Runtime runtime;
  Engine engine(on(model.path(), {0}, {8 * kMiB}));
  REQUIRE(engine.footprint().devices[0].attention_layers == engine.hparams().layers);
  std::vector<f32> logits(static_cast<size_t>(engine.hparams().vocab));
  auto pass = [&](i32 position) {
    const BatchRow row{SequenceId(0), position, 7, true, RowRole::generated};
    REQUIRE(engine.forward({&row, 1}, logits).ok());
  };
  pass(0);
  const i64 launches = fake::launches(), copies = fake::copies(), waits = fake::waits();
  pass(1);
  // A dense layer, two of experts, the head; k_b is in blocks here.
  CHECK(fake::launches() - launches == (13 + 1 + 1 + 4) + 2 * (13 + 3 + 1 + 3 + 3) + 2);
  CHECK(fake::copies() - copies == (1 + 2) + 2 * (1 + 1 + 1) + 2);
  // For the stream and the choice it watches a word instead.
  CHECK(fake::waits() - waits == 1 + 2 * 1 + 1);
}

TEST_CASE("emulated cards: which card computes, and who exchanges what meanwhile, does not show in a bit") {
  const test::TinyModel model;
  const std::vector<f32> cpu = on_cpu(model.path());
  std::vector<f32> first;
  auto check = [&](Engine& engine) {
    const std::vector<f32> got = whole_answer(engine);
    if (first.empty()) first = got;
    CHECK(test::difference(got, first, engine.hparams().vocab) == "");
  };
  {
    Runtime runtime;
    Engine engine(on(model.path(), {0}, {8 * kMiB}));
    check(engine);
    // Products in 8 bits may choose another expert where two are nearly as good, which is a position's error.
    CHECK(test::compare_logits(first, cpu, engine.hparams().vocab).median_error < 0.03);
    CHECK(engine.scheduler_stats().device_hits > 0);
  }
  {
    Runtime runtime;
    EngineOptions options = on(model.path(), {0, 1}, {8 * kMiB});
    options.split_heads = 11;  // of the generated rows' lengths the second
    Engine engine(options);
    for (int i = 0; i < 2; i++) check(engine);
    CHECK(engine.footprint().devices[0].shared_layers + engine.footprint().devices[1].shared_layers == engine.hparams().layers);
  }
  Runtime runtime;
  Engine engine(on(model.path(), {0, 1, 1}, {2 * kMiB, 2 * kMiB, kMiB}, kMiB));
  for (int i = 0; i < 2; i++) check(engine);
  const SchedulerStats& s = engine.scheduler_stats();
  CHECK(s.device_hits > 0);
  CHECK(s.downloaded_bytes > 0);
  CHECK(s.failed_exchanges == 0);
}

TEST_CASE("emulated cards: a lost card ends the pass with its name, and the other one goes on") {
  const test::TinyModel model;
  for (i64 split : {0, 1}) {  // whether each has heads of the other's layers
    CAPTURE(split);
    Runtime runtime;
    EngineOptions options = on(model.path(), {0, 1}, {8 * kMiB});
    options.split_heads = split;
    Engine engine(options);
    const std::vector<f32> want = whole_answer(engine);
    fake::lose(1, cudaErrorIllegalAddress);
    Status status;
    answer(engine, status);
    CHECK(status.message().find("cuda:1: ") == 0);
    const i64 before = engine.scheduler_stats().device_hits;
    CHECK(test::compare_logits(whole_answer(engine), want, engine.hparams().vocab).median_error < 0.03);
    CHECK(engine.scheduler_stats().device_hits > before);
  }
}

TEST_CASE("emulated cards: a build without kernels for the card is told when the engine is made") {
  const test::TinyModel model;
  Runtime runtime;
  fake::refuse_launches(cudaErrorNoKernelImageForDevice);
  CHECK_THROWS_WITH_AS(Engine{on(model.path(), {0}, {8 * kMiB})}, doctest::Contains("gpu_archs"), Error);
}

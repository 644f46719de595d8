// What is recorded is what was chosen, and what is replayed is what was recorded.
#include <doctest/doctest.h>
#include <sys/resource.h>

#include <algorithm>
#include <csignal>
#include <filesystem>
#include <numeric>

#include "kernels/base/log.h"
#include "runtime/recording_router.h"
#include "runtime/replay_router.h"
#include "scheduler/tiers/slice.h"
#include "scheduler/scheduler_stats.h"
#include "scheduler/trace/trace_reader.h"
#include "scheduler/trace/trace_stats.h"
#include "tests/support/model_run.h"
#include "tests/support/tiny_model.h"
#include "tests/scheduler/model_file/raw_gguf.h"
#include "tests/support/temp_folder.h"

namespace stoker {
namespace {

using test::TempFolder;
using test::TinyModel;
using test::error_of;

std::vector<TraceRecord> read(const std::string& path) {
  TraceReader reader(path);
  std::vector<TraceRecord> records;
  for (TraceRecord record; reader.next(record);) records.push_back(record);
  return records;
}

std::vector<f32> logits_with(const TinyModel& model, const std::string& routing, const std::string& trace, i64 ram, i64 chunk) {
  EngineOptions options = test::small_engine(model.path());
  options.routing = routing;
  options.trace_path = trace;
  if (ram > 0) options.ram_bytes = ram;
  Engine engine(options);
  std::vector<i32> tokens = test::some_tokens(24, engine.hparams().vocab, 3);
  return test::logits_of(engine, tokens, chunk);
}

i64 warnings = 0;

// Writes beyond `bytes` of a file fail while `action` runs.
template <class Action>
auto with_file_size_limit(i64 bytes, Action&& action) {
  auto before_signal = std::signal(SIGXFSZ, SIG_IGN);
  rlimit old{};
  getrlimit(RLIMIT_FSIZE, &old);
  rlimit small = old;
  small.rlim_cur = static_cast<rlim_t>(bytes);
  setrlimit(RLIMIT_FSIZE, &small);
  auto result = action();
  setrlimit(RLIMIT_FSIZE, &old);
  std::signal(SIGXFSZ, before_signal);
  return result;
}

}  // namespace

TEST_CASE("details tell where experts were, that reads were waited for, and what was guessed") {
  TinyModel model;
  std::string trace = model.folder().file("details.trace"), plain = model.folder().file("plain.trace");
  EngineOptions options = test::small_engine(model.path());
  options.ram_bytes = 2 * kMiB;
  options.predictor = PredictorKind::gate;
  options.prefetch.mode = PrefetchMode::on;
  std::vector<i32> tokens = test::some_tokens(40, 512, 3);
  std::vector<f32> logits[2];
  SchedulerStats stats;
  for (bool details : {false, true}) {
    options.trace_path = details ? trace : plain;
    options.trace_details = details;
    Engine engine(options);
    REQUIRE(!engine.plan().all_resident);
    logits[details] = test::logits_of(engine, tokens, 1);
    stats = engine.scheduler_stats();
  }
  CHECK(logits[0] == logits[1]);
  std::vector<TraceRecord> records = read(trace), without = read(plain);
  TraceReader reader(trace);
  const TraceHeader& h = reader.header();
  REQUIRE(records.size() == 40);
  REQUIRE(without.size() == 40);
  i64 in_ram = 0, on_the_way = 0, waited = 0, guessed = 0, right = 0;
  for (size_t i = 0; i < records.size(); i++) {
    CHECK(records[i].ids == without[i].ids);
    in_ram += std::count(records[i].served.begin(), records[i].served.end(), static_cast<u8>(ExpertTier::ram));
    on_the_way += std::count(records[i].served.begin(), records[i].served.end(), static_cast<u8>(ExpertTier::arriving));
    waited += std::count_if(records[i].stalls.begin(), records[i].stalls.end(), [](u16 stall) { return stall > 0; });
    for (size_t g = 0; g < records[i].guesses.size(); g++) {
      if (records[i].likelihoods[g] <= 0) continue;
      guessed++;
      auto used = records[i].ids.begin() + static_cast<i64>(g) / h.guesses * h.top_k;
      right += std::find(used, used + h.top_k, records[i].guesses[g]) != used + h.top_k;
    }
  }
  // What was on its way may land between the note and the lease.
  CHECK(in_ram <= stats.hits);
  CHECK(in_ram + on_the_way >= stats.hits);
  CHECK(waited > 0);
  CHECK(guessed > 0);
  CHECK(right > 0);
  TraceReader again(trace);
  TraceStats measured = measure_trace(again, h.top_k);
  CHECK(measured.tiers[1] == doctest::Approx(static_cast<f64>(in_ram) / static_cast<f64>(40 * h.slots())));
  CHECK(measured.mean.foreseen > 0);
}

TEST_CASE("recording changes no logit, and names rows as they were") {
  TinyModel model;
  std::string trace = model.folder().file("a.trace");
  std::vector<f32> plain = logits_with(model, "", "", 0, 5), recorded = logits_with(model, "", trace, 0, 5);
  CHECK(plain == recorded);
  std::vector<TraceRecord> records = read(trace);
  std::vector<i32> tokens = test::some_tokens(24, 512, 3);
  REQUIRE(records.size() == 24);
  for (size_t i = 0; i < records.size(); i++) {
    CHECK(records[i].sequence == 0);
    CHECK(records[i].position == static_cast<i64>(i));
    CHECK(records[i].token == tokens[i]);
    CHECK(records[i].phase == TracePhase::prompt);
    CHECK(std::count(records[i].ids.begin(), records[i].ids.end(), records[i].ids[0]) < static_cast<i64>(records[i].ids.size()));
  }
}

TEST_CASE("the same routing is recorded whatever the budget and the chunks") {
  TinyModel model;
  std::string a = model.folder().file("a"), b = model.folder().file("b");
  logits_with(model, "", a, 0, 8);
  logits_with(model, "", b, 0, 1);
  std::vector<TraceRecord> one = read(a), other = read(b);
  REQUIRE(one.size() == other.size());
  for (size_t i = 0; i < one.size(); i++) {
    CHECK(one[i].ids == other[i].ids);
    CHECK(other[i].phase == TracePhase::decode);
  }
}

TEST_CASE("a replayed trace is recorded again as it was, and wraps around") {
  TinyModel model;
  std::string a = model.folder().file("a"), b = model.folder().file("b");
  logits_with(model, "synthetic:default", a, 0, 5);
  std::vector<TraceRecord> first = read(a);
  REQUIRE(first.size() == 24);
  std::filesystem::resize_file(a, static_cast<u64>(kTraceHeaderBytes + 7 * TraceReader(a).header().record_bytes()));
  logits_with(model, a, b, 0, 5);
  std::vector<TraceRecord> again = read(b);
  REQUIRE(again.size() == 24);
  for (size_t i = 0; i < again.size(); i++) {
    CHECK(again[i].ids == first[i % 7].ids);
    CHECK(again[i].weights == first[i % 7].weights);
  }
}

TEST_CASE("that a device chooses shows neither in what is recorded nor where it is replayed") {
  TinyModel model;
  for (const std::string routing : {"", "synthetic:default"}) {
    std::string on_cpu = model.folder().file("cpu"), on_device = model.folder().file("device");
    std::vector<f32> want = logits_with(model, routing, on_cpu, 0, 5);
    for (i64 kib : {600, 100000}) {  // attention of some layers, of all
      EngineOptions options = test::small_engine(model.path());
      options.devices = {.kind = DeviceChoice::Kind::host, .cards = {}, .host = {{}}};
      options.vram_bytes = {kib * kKiB};
      options.routing = routing;
      options.trace_path = on_device;
      options.save_popularity = true;
      options.popularity_path = model.folder().file("popularity");
      Engine engine(options);
      DeviceFootprint device = engine.footprint().devices[0];
      CHECK(device.home_layers == engine.hparams().layers);
      CHECK((device.attention_layers == engine.hparams().layers) == (kib > 600));
      CHECK(test::logits_of(engine, test::some_tokens(24, engine.hparams().vocab, 3), 5) == want);
      std::vector<TraceRecord> expected = read(on_cpu), got = read(on_device);
      REQUIRE(got.size() == expected.size());
      for (size_t i = 0; i < got.size(); i++) {
        CHECK(got[i].ids == expected[i].ids);
        CHECK(got[i].weights == expected[i].weights);
      }
    }
  }
}

TEST_CASE("another model's trace is refused") {
  TinyModel model;
  TraceHeader h{.model_name = "wide", .layers = 1, .first_layer = 0, .experts = 300, .top_k = 1};
  std::string wide = model.folder().file("wide"), empty = model.folder().file("empty");
  Hparams hparams;
  {
    TraceWriter writer(wide, h);
    Engine engine(test::small_engine(model.path()));
    hparams = engine.hparams();
    TraceWriter nothing(empty, trace_header(hparams));
  }
  CHECK(error_of([&] { logits_with(model, wide, "", 0, 5); }).find("its tokens use 1 of 300 experts") != std::string::npos);
  CHECK(error_of([&] { logits_with(model, empty, "", 0, 5); }).find("no record") != std::string::npos);
  CHECK(error_of([&] { logits_with(model, "synthetic:none", "", 0, 5); }).find("no such routing profile") != std::string::npos);
  CHECK(error_of([&] { logits_with(model, "", "/nowhere/t", 0, 5); }).find("cannot write a trace") != std::string::npos);
}

// A chunk passes layer by layer, each with every expert it needs, in waves when they have no room together.
TEST_CASE("a prompt chunk reads an expert at most once, and only if one of its tokens needs it") {
  constexpr i64 kTokens = 36;
  TinyModel model;
  for (i64 chunk : {3, 12, 36}) {
    CAPTURE(chunk);
    std::string path = model.folder().file(fmt::format("chunks of {}", chunk));
    std::vector<i64> bytes_read;      // [chunks]
    std::vector<i64> bytes_of_needed;  // [moe layers * experts]: what reading one takes
    {
      EngineOptions options = test::small_engine(model.path());
      options.ram_bytes = kMiB;
      options.prefetch.mode = PrefetchMode::off;
      options.preload = false;  // filling reads what nobody needs yet
      options.trace_path = path;
      Engine engine(options);
      REQUIRE_FALSE(engine.plan().all_resident);
      ExpertTable table = ExpertTable::from_gguf(engine.gguf(), engine.hparams().expert_shape());
      for (const ExpertLayer& layer : table.layers())
        for (i64 e = 0; e < table.experts_per_layer(); e++) {
          ExpertReads reads = expert_reads(table, layer.layer, ExpertId(e), engine.plan().alignment);
          bytes_of_needed.push_back(0);
          for (i64 r = 0; r < reads.count; r++) bytes_of_needed.back() += reads.ranges[static_cast<size_t>(r)].bytes;
        }
      std::vector<i32> tokens = test::some_tokens(kTokens, engine.hparams().vocab, 3);
      for (i64 at = 0; at < kTokens; at += chunk) {
        std::vector<BatchRow> rows;
        for (i64 i = at; i < at + chunk; i++)
          rows.push_back({SequenceId(0), static_cast<i32>(i), tokens[static_cast<size_t>(i)], false, RowRole::prompt});
        i64 before = engine.scheduler_stats().bytes_read;
        REQUIRE(engine.forward(rows, {}).ok());
        bytes_read.push_back(engine.scheduler_stats().bytes_read - before);
      }
    }
    std::vector<TraceRecord> records = read(path);
    REQUIRE(static_cast<i64>(records.size()) == kTokens);
    TraceHeader shape = TraceReader(path).header();
    for (size_t c = 0; c < bytes_read.size(); c++) {
      std::vector<i64> needed(bytes_of_needed.size());
      for (size_t i = c * static_cast<size_t>(chunk); i < (c + 1) * static_cast<size_t>(chunk); i++)
        for (i64 slot = 0; slot < shape.slots(); slot++) {
          size_t expert = static_cast<size_t>(slot / shape.top_k * shape.experts) + records[i].ids[static_cast<size_t>(slot)];
          needed[expert] = bytes_of_needed[expert];
        }
      CHECK(bytes_read[c] > 0);
      CHECK(bytes_read[c] <= std::accumulate(needed.begin(), needed.end(), i64{0}));
    }
  }
}

// A file that may not grow further stands for a full disk.
TEST_CASE("a disk that fills up ends the trace, not the run") {
  TinyModel model;
  set_log_sink([](LogLevel level, std::string_view) { warnings += level == LogLevel::warning ? 1 : 0; });
  std::vector<f32> plain = logits_with(model, "", "", 0, 4);
  std::string trace = model.folder().file("t");
  i64 record_bytes = 0;
  {
    EngineOptions options = test::small_engine(model.path());
    Engine engine(options);
    record_bytes = trace_header(engine.hparams()).record_bytes();
  }
  i64 before = warnings;
  std::vector<f32> limited = with_file_size_limit(kTraceHeaderBytes + 6 * record_bytes + 3,
                                                  [&] { return logits_with(model, "", trace, 0, 4); });
  set_log_sink(nullptr);
  CHECK(limited == plain);
  CHECK(warnings == before + 1);
  CHECK(read(trace).size() == 6);
}

}  // namespace stoker

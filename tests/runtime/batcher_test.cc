#include "runtime/batcher.h"

#include <doctest/doctest.h>

#include <algorithm>
#include <atomic>
#include <future>
#include <thread>

#include "runtime/engine.h"
#include "runtime/session.h"
#include "runtime/slot_file.h"
#include "tests/support/model_run.h"
#include "tests/support/shared_data.h"
#include "tests/support/temp_folder.h"

namespace stoker {
namespace {

constexpr i64 kVocabTop = 4;

EngineOptions options(i64 sequences) {
  EngineOptions o = test::small_engine(test::source_file("tests/models/ember-37m-q4_k_m.gguf"));
  o.sequences = sequences;
  o.chunk = 32;
  return o;
}

Batcher::Load load(const EngineOptions& o) {
  return [o] { return std::make_unique<Engine>(o); };
}

// A generation with what came of it. Log probabilities say more than tokens: they are all bits of the logits.
struct Run {
  std::shared_ptr<Generation> generation = std::make_shared<Generation>();
  std::vector<i32> tokens;
  std::vector<f32> logprobs;
  std::promise<GenerationResult> done;
  std::promise<void> begun;
  i64 stop_after = -1;

  explicit Run(std::vector<i32> prompt, i64 count, f32 temperature = 0, u64 seed = 1) {
    generation->prompt = std::move(prompt);
    generation->max_tokens = count;
    generation->sampler.temperature = temperature;
    generation->sampler.seed = seed;
    generation->top_logprobs = kVocabTop;
    generation->on_token = [this](const GeneratedToken& t) {
      if (tokens.empty()) begun.set_value();
      tokens.push_back(t.token);
      logprobs.push_back(t.logprob);
      for (const TokenLogprob& top : t.top) logprobs.push_back(top.logprob);
      return static_cast<i64>(tokens.size()) != stop_after;
    };
    generation->on_done = [this](const GenerationResult& r) { done.set_value(r); };
  }
  bool submit(Batcher& batcher) { return batcher.submit({&generation, 1}); }
  GenerationResult wait() { return done.get_future().get(); }
  GenerationResult in(Batcher& batcher) {
    REQUIRE(submit(batcher));
    return wait();
  }
};

std::vector<i32> text(i64 count, u64 seed) { return test::some_tokens(count, 4000, seed); }

struct Wish {
  i64 prompt, count;
  f32 temperature;
};
constexpr Wish kWishes[] = {{5, 30, 0}, {100, 20, 0.8f}, {33, 25, 0}, {70, 12, 1.0f}, {9, 40, 0.8f}, {64, 8, 0}};

}  // namespace

TEST_CASE("generations beside each other have the bits they have alone") {
  Batcher together(load(options(4)), 8);
  std::vector<std::unique_ptr<Run>> runs;
  for (size_t i = 0; i < std::size(kWishes); i++) {
    runs.push_back(std::make_unique<Run>(text(kWishes[i].prompt, 10 + i), kWishes[i].count, kWishes[i].temperature, 7 + i));
    REQUIRE(runs.back()->submit(together));
  }
  for (auto& run : runs) run->wait();
  CHECK(together.status().decode_rows > together.status().decode_passes);  // they did share passes

  for (size_t i = 0; i < std::size(kWishes); i++) {
    Batcher one(load(options(1)), 0);
    Run alone(text(kWishes[i].prompt, 10 + i), kWishes[i].count, kWishes[i].temperature, 7 + i);
    alone.in(one);
    CHECK(alone.tokens == runs[i]->tokens);
    CHECK(alone.logprobs == runs[i]->logprobs);
  }
}

TEST_CASE("a generation is what a session generates") {
  std::vector<i32> prompt = text(50, 3), want;
  {
    Engine engine(options(1));
    Session session(engine, SequenceId(0));
    REQUIRE(session.prompt(prompt).ok());
    Sampler sampler({.temperature = 0.7f, .seed = 5}, engine.hparams().vocab);
    session.generate(20, sampler, [&](i32 token) {
      want.push_back(token);
      return true;
    });
  }
  Batcher batcher(load(options(2)), 0);
  Run run(prompt, 20, 0.7f, 5);
  GenerationResult result = run.in(batcher);
  CHECK(run.tokens == want);
  CHECK(result.prompt_tokens == 50);
  CHECK(result.generated_tokens == static_cast<i64>(want.size()));
}

TEST_CASE("a stream goes on inside one chunk of another's prompt") {
  EngineOptions o = options(2);
  o.chunk = 256;
  Batcher batcher(load(o), 0);
  Run stream(text(10, 1), -1, 2.0f), prompt(text(250, 2), 1);
  std::atomic<i64> tokens{0};
  auto on_token = stream.generation->on_token;
  stream.generation->on_token = [&](const GeneratedToken& t) {
    tokens++;
    return on_token(t);
  };
  i64 before = 0, after = 0;
  prompt.generation->on_token = [&](const GeneratedToken&) {
    after = tokens;
    return true;
  };
  REQUIRE(stream.submit(batcher));
  stream.begun.get_future().wait();
  before = tokens;
  prompt.in(batcher);
  stream.generation->cancel();
  REQUIRE(stream.wait().end == GenerationEnd::cancelled);
  CHECK(after - before >= 4);  // a chunk is many times a row's work; without room in it at most two tokens would come
}

TEST_CASE("a pass is given up at the next of its steps, and leaves the cache as it was") {
  for (bool streamed : {false, true}) {
    EngineOptions o = options(2);
    o.chunk = 64;
    if (streamed) o.ram_bytes = i64{2} << 20;
    Engine engine(o);
    std::vector<i32> prompt = text(64, 3);
    std::vector<BatchRow> rows;
    for (i32 i = 0; i < 64; i++)
      rows.push_back({.sequence = SequenceId(0), .position = i, .token = prompt[static_cast<size_t>(i)], .logits = i == 63, .role = RowRole::prompt});
    std::vector<f32> want(static_cast<size_t>(engine.hparams().vocab)), got(want.size());
    std::atomic<bool> interrupt{false};
    i64 steps = 0, last = -1;
    auto between = [&] { interrupt = ++steps == last; };
    REQUIRE(engine.forward(rows, want, &interrupt, between).ok());
    i64 all = steps;
    CHECK(all >= engine.hparams().layers * (streamed ? 6 : 8));
    for (i64 at : {i64{1}, all / 3, all / 2, all - 1}) {
      engine.sequence(SequenceId(0)).truncate(0);
      steps = 0;
      last = at;
      interrupt = false;
      CHECK_FALSE(engine.forward(rows, got, &interrupt, between).ok());
      CHECK(steps == at);
      CHECK(engine.sequence(SequenceId(0)).length() == 0);
    }
    last = -1;
    interrupt = false;
    REQUIRE(engine.forward(rows, got, &interrupt, between).ok());
    CHECK(got == want);
  }
}

TEST_CASE("clients that leave while a prompt is read are rid of their slots before another's next token") {
  EngineOptions o = options(3);
  o.chunk = 256;
  Batcher batcher(load(o), 0);
  Run witness(text(10, 1), -1, 2.0f), leaver(text(12, 2), -1, 2.0f), prompt(text(250, 3), 1);
  i64 tokens = 0, leaver_left = -1, prompt_left = -1, leaver_ended = -1, prompt_ended = -1;  // in tokens of the witness
  std::atomic<bool> begun{false};  // both streams
  auto on_token = witness.generation->on_token;
  witness.generation->on_token = [&](const GeneratedToken& t) {
    tokens++;
    BatcherStatus status = batcher.status();
    bool prompting = begun && std::any_of(status.slots.begin(), status.slots.end(), [](const auto& slot) { return slot.prompting; });
    if (prompting && leaver_left < 0) {
      leaver_left = tokens;
      leaver.generation->cancel();
    } else if (leaver_left >= 0 && prompt_left < 0) {
      prompt_left = tokens;
      prompt.generation->cancel();
    }
    return on_token(t);
  };
  leaver.generation->on_done = [&](const GenerationResult& r) {
    leaver_ended = tokens;
    leaver.done.set_value(r);
  };
  prompt.generation->on_done = [&](const GenerationResult& r) {
    prompt_ended = tokens;
    prompt.done.set_value(r);
  };
  REQUIRE(witness.submit(batcher));
  REQUIRE(leaver.submit(batcher));
  witness.begun.get_future().wait();
  leaver.begun.get_future().wait();
  begun = true;
  REQUIRE(prompt.submit(batcher));
  CHECK(prompt.wait().end == GenerationEnd::cancelled);
  CHECK(leaver.wait().end == GenerationEnd::cancelled);
  witness.generation->cancel();
  witness.wait();
  CHECK(leaver_ended == leaver_left);
  CHECK(prompt_ended == prompt_left);
  CHECK(batcher.status().prompt_rows == 10 + 12);  // of the others: it was in the middle of its only piece
}

TEST_CASE("a slot's cache is used again, in the slot that has most of the prompt") {
  Batcher batcher(load(options(2)), 0);
  std::vector<i32> a = text(64, 1), b = text(64, 2);
  Run first(a, 4), second(b, 4);
  GenerationResult in_a = first.in(batcher), in_b = second.in(batcher);
  CHECK(in_a.slot != in_b.slot);
  a.push_back(7);
  b.resize(40);
  Run longer(a, 4), shorter(b, 4);
  GenerationResult again_a = longer.in(batcher), again_b = shorter.in(batcher);
  CHECK(again_a.slot == in_a.slot);
  CHECK(again_a.cached_tokens == 64);
  CHECK(again_b.slot == in_b.slot);
  CHECK(again_b.cached_tokens == 39);
  Run fresh(a, 4);
  fresh.generation->reuse_prefix = false;
  CHECK(fresh.in(batcher).cached_tokens == 0);
}

TEST_CASE("cancelling frees the slot before the next token, also for one that waits") {
  Batcher batcher(load(options(1)), 1);
  Run endless(text(10, 1), -1), waiting(text(10, 2), 5), refused(text(10, 3), 5);
  REQUIRE(endless.submit(batcher));
  endless.begun.get_future().wait();
  REQUIRE(waiting.submit(batcher));
  CHECK_FALSE(refused.submit(batcher));  // one slot, one in the queue
  waiting.generation->cancel();
  CHECK(waiting.wait().end == GenerationEnd::cancelled);
  CHECK(waiting.tokens.empty());
  endless.generation->cancel();
  GenerationEnd end = endless.wait().end;
  CHECK((end == GenerationEnd::cancelled || end == GenerationEnd::context_full || end == GenerationEnd::end_of_text));
  Run next(text(10, 4), 5);
  CHECK(next.in(batcher).generated_tokens > 0);
}

TEST_CASE("one that wants a certain slot waits for it, and others pass") {
  Batcher batcher(load(options(2)), 4);
  Run endless(text(10, 1), -1, 2.0f);
  endless.generation->slot = 1;
  REQUIRE(endless.submit(batcher));
  endless.begun.get_future().wait();
  Run same(text(10, 2), 3), other(text(10, 3), 3), none(text(10, 4), 3);
  same.generation->slot = 1;
  std::atomic<bool> same_done{false};
  same.generation->on_done = [&](const GenerationResult& r) {
    same_done = true;
    same.done.set_value(r);
  };
  REQUIRE(same.submit(batcher));
  CHECK(other.in(batcher).slot == 0);
  CHECK_FALSE(same_done);
  endless.generation->cancel();
  CHECK(same.wait().slot == 1);
  CHECK(endless.wait().slot == 1);
  none.generation->slot = 2;
  CHECK_THROWS_AS(none.submit(batcher), Error);
}

TEST_CASE("answers come while experts are still read, with the same bits") {
  EngineOptions o = options(2);
  Run before(text(40, 5), 12);
  {
    Batcher batcher(load(o), 0);
    before.in(batcher);
    CHECK(batcher.status().warmth.total == 0);
  }
  o.warm = true;
  for (size_t devices : {0u, 2u}) {
    CAPTURE(devices);
    o.devices.host.resize(devices);
    o.devices.kind = devices > 0 ? DeviceChoice::Kind::host : DeviceChoice::Kind::cpu;
    if (devices > 0) o.vram_bytes = {6 * kMiB};
    Batcher batcher(load(o), 0);
    Run beside(text(40, 5), 12);
    beside.in(batcher);
    CHECK(beside.logprobs == before.logprobs);
    BatcherStatus status = batcher.status();
    for (int i = 0; i < 10'000 && status.warmth.done < status.warmth.total; i++) {
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
      status = batcher.status();
    }
    CHECK(status.warmth.total == batcher.status().footprint.expert_total);
    CHECK(status.warmth.done == status.warmth.total);
    Run after(text(20, 6), 2);  // what was on its way to devices is there at the end of a pass
    after.in(batcher);
    CHECK((batcher.status().experts_on_devices > 0) == (devices > 0));
  }
}

TEST_CASE("a server whose experts do not all fit fills its memory while nobody asks") {
  EngineOptions o = options(1);
  Run cold(text(40, 5), 12), warm(text(40, 5), 12);
  o.ram_bytes = 5 * kMiB;
  for (Run* run : {&cold, &warm}) {
    o.warm = run == &warm;
    Batcher batcher(load(o), 0);
    BatcherStatus status = batcher.status();
    for (int i = 0; i < 10'000 && status.warmth.done < status.warmth.total; i++) {
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
      status = batcher.status();
    }
    REQUIRE(batcher.status().footprint.expert_slots < batcher.status().footprint.expert_total);
    CHECK((status.experts.bytes_read > 0) == o.warm);
    CHECK(status.warmth.done == status.warmth.total);
    run->in(batcher);
  }
  CHECK(warm.logprobs == cold.logprobs);
}

TEST_CASE("pieces of a prompt are larger where each of them reads from disk") {
  EngineOptions o = options(1);
  o.chunk_in_memory = 8;
  CHECK(Engine(o).options().chunk == 8);
  o.ram_bytes = 5 * kMiB;
  CHECK(Engine(o).options().chunk == 32);
}

TEST_CASE("a slot that was saved and restored goes on with the bits of one that was not") {
  test::TempFolder folder;
  std::vector<i32> first = text(60, 5), longer = first;
  std::vector<std::vector<f32>> logprobs;
  for (bool restored : {false, true}) {
    Batcher batcher(load(options(2)), 0);
    Run before(first, 12);
    GenerationResult begun = before.in(batcher);
    longer = first;
    longer.insert(longer.end(), before.tokens.begin(), before.tokens.end());
    longer.push_back(7);
    i64 slot = begun.slot, layers = batcher.engine().hparams().layers;
    u64 model = slot_model_id(batcher.engine());
    if (restored) {
      std::string path = folder.file("a.slot");
      CHECK(batcher.with_slot(slot, [&](BatchSlot& s) {
        save_slot(path, model, layers, s.tokens(), s.cache());
        s.set_tokens({});
      }));
      Run other(text(200, 6), 3);
      other.in(batcher);
      i64 elsewhere = 1 - slot;
      CHECK(batcher.with_slot(elsewhere, [&](BatchSlot& s) {
        s.set_tokens(restore_slot(path, model, layers, batcher.engine().hparams().vocab, s.cache()).tokens);
      }));
    }
    Run after(longer, 10);
    GenerationResult result = after.in(batcher);
    CHECK(result.cached_tokens == 71);
    logprobs.push_back(after.logprobs);
  }
  CHECK(logprobs[0] == logprobs[1]);
}

TEST_CASE("a slot is lent when it is idle, to one after the other, and others go on") {
  Batcher batcher(load(options(2)), 2);
  std::atomic<int> inside{0}, most{0}, calls{0};
  std::vector<std::thread> threads;
  for (int i = 0; i < 4; i++) {
    threads.emplace_back([&, i] {
      for (int k = 0; k < 5; k++) {
        batcher.with_slot(0, [&](BatchSlot& slot) {
          most = std::max<int>(most, ++inside);
          CHECK_FALSE(slot.busy());
          slot.set_tokens(std::vector<i32>(static_cast<size_t>(i + 1), 3));
          inside--;
          calls++;
        });
      }
    });
  }
  for (u64 i = 0; i < 6; i++) {
    Run run(text(20, i), 6);
    CHECK(run.in(batcher).generated_tokens > 0);
  }
  for (std::thread& thread : threads) thread.join();
  CHECK(most == 1);
  CHECK(calls == 20);
  CHECK_THROWS_AS(batcher.with_slot(1, [](BatchSlot&) { fail("no disk"); }), Error);
  CHECK(batcher.with_slot(1, [](BatchSlot&) {}));  // it was given back
  Run last(text(20, 9), 3);
  CHECK(last.in(batcher).generated_tokens > 0);
}

TEST_CASE("who waits for a slot hears that the batcher stops") {
  Batcher batcher(load(options(1)), 0);
  Run endless(text(10, 1), -1);
  endless.submit(batcher);
  endless.begun.get_future().wait();
  std::thread waits([&] { batcher.with_slot(0, [](BatchSlot&) {}); });
  batcher.stop();
  waits.join();
  endless.wait();  // the batcher's thread tells it that it has ended
}

TEST_CASE("the ways to end") {
  Batcher batcher(load(options(1)), 0);
  Run stopped(text(10, 1), 20);
  stopped.stop_after = 3;
  CHECK(stopped.in(batcher).end == GenerationEnd::stopped);
  CHECK(stopped.tokens.size() == 3);
  Run none(text(10, 1), 0);
  GenerationResult result = none.in(batcher);
  CHECK(result.end == GenerationEnd::length);
  CHECK(result.generated_tokens == 0);
  Run full(text(256, 1), -1);  // the whole context
  CHECK(full.in(batcher).end == GenerationEnd::context_full);
  CHECK(full.tokens.size() == 1);
  Run thrower(text(10, 1), 20);
  thrower.generation->on_token = [](const GeneratedToken&) -> bool { throw std::runtime_error("no room"); };
  result = thrower.in(batcher);
  CHECK(result.end == GenerationEnd::failed);
  CHECK(result.status.message() == "no room");
  CHECK(batcher.status().failures == 1);
}

TEST_CASE("prompts that cannot be computed are refused, and a failing load is told") {
  Batcher batcher(load(options(1)), 0);
  Run empty({}, 1), long_one(text(257, 1), 1), unknown({1, 2, 1 << 20}, 1);
  CHECK_THROWS_AS(empty.submit(batcher), Error);
  CHECK_THROWS_AS(long_one.submit(batcher), Error);
  CHECK_THROWS_AS(unknown.submit(batcher), Error);
  CHECK_THROWS_AS(Batcher([]() -> std::unique_ptr<Engine> { fail("no such file"); }, 0), Error);
}

TEST_CASE("what still runs when the batcher goes is cancelled") {
  std::vector<std::unique_ptr<Run>> runs;
  {
    Batcher batcher(load(options(1)), 4);
    for (u64 i = 0; i < 4; i++) {
      runs.push_back(std::make_unique<Run>(text(200, i), -1));
      REQUIRE(runs.back()->submit(batcher));
    }
  }
  for (auto& run : runs) run->wait();
  CHECK(runs.back()->tokens.empty());
}

}  // namespace stoker

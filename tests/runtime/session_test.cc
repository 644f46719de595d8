#include "runtime/session.h"

#include <doctest/doctest.h>

#include <chrono>
#include <thread>

#include "tests/support/compare.h"
#include "tests/support/edited_model.h"
#include "tests/support/model_run.h"
#include "tests/support/tiny_model.h"

namespace stoker {
namespace {

const test::TinyModel& tiny() {
  static const test::TinyModel model;
  return model;
}

EngineOptions options(i64 context = 64, i64 chunk = 16) {
  EngineOptions o = test::small_engine(tiny().path());
  o.context = context;
  o.chunk = chunk;
  return o;
}

std::vector<i32> text(i64 count, u64 seed = 1) { return test::some_tokens(count, 512, seed); }

Sampler greedy_sampler() { return Sampler({.temperature = 0}, 512); }

std::vector<f32> copy(std::span<const f32> values) { return {values.begin(), values.end()}; }

// Prompts the session and returns its logits.
std::vector<f32> feed(Session& session, std::span<const i32> tokens) {
  Status status = session.prompt(tokens);
  REQUIRE_MESSAGE(status.ok(), status.message());
  return copy(session.logits());
}

struct Generated {
  GenerateResult result;
  std::vector<i32> tokens;
};
Generated generate(Session& session, i64 count, const std::atomic<bool>* interrupt = nullptr) {
  Sampler sampler = greedy_sampler();
  Generated g;
  g.result = session.generate(count, sampler, [&](i32 token) {
    g.tokens.push_back(token);
    return true;
  }, interrupt);
  return g;
}

}  // namespace

TEST_CASE("greedy text is the argmax after each token, and the cache holds all but the last") {
  Engine engine(options());
  std::vector<i32> all = text(10);
  Session session(engine, SequenceId(0));
  REQUIRE(session.prompt(all).ok());
  Generated got = generate(session, 6);
  CHECK(got.result.reason == StopReason::length);
  CHECK(got.result.tokens == 6);
  REQUIRE(got.tokens.size() == 6);
  for (i32 token : got.tokens) {
    // The prompt as one chunk and the answer token by token, as the session does it.
    std::vector<f32> logits;
    engine.sequence(SequenceId(0)).truncate(0);
    for (size_t i = 0; i < all.size(); i++) {
      if (i > 0 && i < 10) continue;
      std::vector<BatchRow> rows;
      for (size_t j = i; j < (i == 0 ? 10 : i + 1); j++)
        rows.push_back({SequenceId(0), static_cast<i32>(j), all[j], j + 1 == (i == 0 ? 10 : i + 1),
                        i == 0 ? RowRole::prompt : RowRole::generated});
      logits.assign(512, 0);
      REQUIRE(engine.forward(rows, logits).ok());
    }
    CHECK(argmax(logits) == token);
    all.push_back(token);
  }
  all.pop_back();
  CHECK(session.tokens() == all);
}

TEST_CASE("a prompt that does not fit is refused with the numbers and changes nothing") {
  Engine engine(options(32));
  Session session(engine, SequenceId(0));
  std::vector<f32> before = feed(session, text(20));
  Status status = session.prompt(text(13));
  CHECK(!status.ok());
  CHECK(status.message().find("13 tokens") != std::string::npos);
  CHECK(status.message().find("12 of the context's 32") != std::string::npos);
  CHECK(status.message().find("-c") != std::string::npos);
  CHECK(session.tokens().size() == 20);
  CHECK(test::first_difference(session.logits(), before) == -1);
  CHECK(session.prompt(text(12)).ok());
  CHECK(session.tokens().size() == 32);
}

TEST_CASE("ids outside the vocabulary are refused and change nothing") {
  Engine engine(options());
  Session session(engine, SequenceId(0));
  for (i32 bad : {-1, 512, 0x7fffffff}) {
    Status status = session.prompt(std::vector<i32>{1, bad});
    CHECK(!status.ok());
    CHECK(status.message().find(std::to_string(bad)) != std::string::npos);
    CHECK(session.tokens().empty());
  }
  CHECK(session.prompt(std::vector<i32>{0, 511}).ok());
}

TEST_CASE("the end of the context ends the answer and says so") {
  Engine engine(options(32));
  Session session(engine, SequenceId(0));
  feed(session, text(30));
  Generated got = generate(session, -1);
  CHECK(got.result.reason == StopReason::context_full);
  CHECK(got.result.status.ok());
  CHECK(got.result.tokens == 3);  // two that were computed, and the one that they led to
  CHECK(session.tokens().size() == 32);
  session.truncate(5);
  feed(session, text(4, 2));
  CHECK(generate(session, 4).result.reason == StopReason::length);
}

TEST_CASE("no more tokens are asked for than wanted") {
  Engine engine(options());
  Session session(engine, SequenceId(0));
  feed(session, text(5));
  Generated none = generate(session, 0);
  CHECK(none.result.reason == StopReason::length);
  CHECK(none.tokens.empty());
  CHECK(generate(session, 1).tokens.size() == 1);
  CHECK(session.tokens().size() == 5);
}

TEST_CASE("without a prompt there is nothing to continue") {
  Engine engine(options());
  Session session(engine, SequenceId(0));
  Generated got = generate(session, 3);
  CHECK(got.result.reason == StopReason::failed);
  CHECK(got.result.status.message().find("prompt") != std::string::npos);
  feed(session, text(5));
  session.truncate(2);
  CHECK(generate(session, 3).result.reason == StopReason::failed);
}

TEST_CASE("text after a truncated cache is the text of a fresh run, bit for bit when chunks are the same") {
  Engine engine(options());
  std::vector<i32> first = text(10), second = text(12, 2);
  std::vector<f32> fresh;
  {
    Session session(engine, SequenceId(0));
    feed(session, first);
    fresh = feed(session, second);
  }
  Session session(engine, SequenceId(0));
  feed(session, first);
  feed(session, text(31, 3));
  generate(session, 5);
  session.truncate(10);
  CHECK(session.tokens() == first);
  CHECK(test::difference(feed(session, second), fresh, 512) == "");

  session.truncate(1000);  // longer than it is: nothing happens
  CHECK(session.tokens().size() == 22);
  CHECK(test::first_difference(session.logits(), fresh) == -1);
}

TEST_CASE("truncating in the middle of a chunk gives the same text within rounding") {
  EngineOptions o = options();
  o.exact = true;
  Engine engine(o);
  std::vector<i32> tokens = text(30);
  std::vector<f32> fresh;
  std::vector<i32> fresh_text;
  {
    Session session(engine, SequenceId(0));
    fresh = feed(session, tokens);
    fresh_text = generate(session, 8).tokens;
  }
  Session session(engine, SequenceId(0));
  feed(session, tokens);
  feed(session, text(9, 2));
  session.truncate(13);
  std::vector<f32> again = feed(session, std::span(tokens).subspan(13));
  CHECK(test::compare_logits(again, fresh, 512).worst_error < 1e-4);
  CHECK(generate(session, 8).tokens == fresh_text);
}

TEST_CASE("a token that ends the text is not part of it") {
  Engine engine(options());
  std::vector<i32> prompt = text(10);
  std::vector<i32> continuation = test::greedy(engine, prompt, 4);
  REQUIRE(continuation.size() == 4);
  test::EditedModel model(tiny().path());
  model.set("tokenizer.ggml.eos_token_id", gguf_u32(static_cast<u32>(continuation[2])));
  EngineOptions o = options();
  o.model_path = model.write(tiny().folder().file("ends.gguf"));
  Engine ending(o);
  Session session(ending, SequenceId(0));
  feed(session, prompt);
  Generated got = generate(session, 4);
  CHECK(got.result.reason == StopReason::end_of_text);
  i64 first = std::find(continuation.begin(), continuation.end(), continuation[2]) - continuation.begin();
  CHECK(got.result.tokens == first);
  CHECK(got.tokens == std::vector<i32>(continuation.begin(), continuation.begin() + first));
}

TEST_CASE("whoever gets the tokens can stop") {
  Engine engine(options());
  Session session(engine, SequenceId(0));
  feed(session, text(10));
  Sampler sampler = greedy_sampler();
  i64 seen = 0;
  GenerateResult result = session.generate(-1, sampler, [&](i32) { return ++seen < 3; });
  CHECK(result.reason == StopReason::interrupted);
  CHECK(result.tokens == 3);
  CHECK(session.tokens().size() == 12);
}

TEST_CASE("an interrupted prompt keeps its finished chunks and can go on") {
  Engine engine(options());
  std::vector<i32> tokens = text(40);
  std::vector<f32> fresh;
  {
    Session session(engine, SequenceId(0));
    fresh = feed(session, tokens);
  }
  Session session(engine, SequenceId(0));
  std::atomic<bool> interrupt{true};
  CHECK(session.prompt(tokens, &interrupt).ok());
  CHECK(session.tokens().empty());
  CHECK(generate(session, 3, &interrupt).result.reason == StopReason::interrupted);

  interrupt = false;
  std::vector<i64> reported;
  Status status = session.prompt(tokens, &interrupt, [&](i64 done, i64 total) {
    CHECK(total == 40);
    reported.push_back(done);
    if (done >= 32) interrupt = true;
  });
  CHECK(status.ok());
  CHECK(reported == std::vector<i64>{16, 32});
  CHECK(session.tokens().size() == 32);
  CHECK(test::difference(feed(session, std::span(tokens).subspan(32)), fresh, 512) == "");
}

TEST_CASE("an interrupt in the middle of a pass leaves the session as before the pass") {
  Engine engine(options(256, 128));
  std::vector<i32> tokens = text(200);
  std::vector<f32> fresh;
  {
    Session session(engine, SequenceId(0));
    fresh = feed(session, tokens);
  }
  i64 cut = 0;
  for (int i = 0; i < 24; i++) {
    Session session(engine, SequenceId(0));
    std::atomic<bool> interrupt{false};
    std::thread user([&] {
      std::this_thread::sleep_for(std::chrono::milliseconds(i));
      interrupt = true;
    });
    CHECK(session.prompt(tokens, &interrupt).ok());
    user.join();
    size_t done = session.tokens().size();
    CHECK((done == 0 || done == 128 || done == 200));
    CHECK(engine.sequence(SequenceId(0)).length() == static_cast<i64>(done));
    cut += done < 200;
    if (done < 200) CHECK(test::difference(feed(session, std::span(tokens).subspan(done)), fresh, 512) == "");
  }
  CHECK(cut > 0);  // at least the first, which is interrupted at once
}

TEST_CASE("an interrupted answer ends between tokens and can go on") {
  Engine engine(options());
  Session session(engine, SequenceId(0));
  feed(session, text(10));
  std::atomic<bool> interrupt{false};
  Sampler sampler = greedy_sampler();
  std::vector<i32> tokens;
  GenerateResult result = session.generate(8, sampler, [&](i32 token) {
    tokens.push_back(token);
    interrupt = tokens.size() == 3;
    return true;
  }, &interrupt);
  CHECK(result.reason == StopReason::interrupted);
  CHECK(result.tokens == 3);
  CHECK(session.tokens().size() == 12);  // the third was shown but not computed
  interrupt = false;
  feed(session, std::span(tokens).last(1));
  for (i32 token : generate(session, 5, &interrupt).tokens) tokens.push_back(token);
  CHECK(tokens == test::greedy(engine, text(10), 8));
}

TEST_CASE("equal runs have equal hashes of their logits") {
  Engine engine(options());
  std::vector<u64> hashes;
  for (u64 seed : {1u, 1u, 2u}) {
    Session session(engine, SequenceId(0));
    u64 empty = session.logits_hash();
    feed(session, text(10, seed));
    generate(session, 4);
    CHECK(session.logits_hash() != empty);
    hashes.push_back(session.logits_hash());
  }
  CHECK(hashes[0] == hashes[1]);
  CHECK(hashes[0] != hashes[2]);
}

TEST_CASE("sessions of one engine do not disturb each other") {
  EngineOptions o = options();
  o.sequences = 2;
  Engine engine(o);
  std::vector<i32> alone = test::greedy(engine, text(10), 6);
  Session a(engine, SequenceId(0)), b(engine, SequenceId(1));
  feed(a, text(10));
  feed(b, text(25, 2));
  std::vector<i32> tokens;
  for (int i = 0; i < 6; i++) {
    std::vector<i32> one = generate(a, 1).tokens;
    REQUIRE(one.size() == 1);
    tokens.push_back(one[0]);
    feed(a, one);
    generate(b, 2);
  }
  CHECK(tokens == alone);
}

}  // namespace stoker

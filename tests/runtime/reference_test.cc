// The models of ../shared/models against what a float64 reference of the published maths computes for them.
#include <doctest/doctest.h>

#include <cmath>
#include <nlohmann/json.hpp>
#include <sstream>

#include "runtime/sampler.h"
#include "runtime/tokenizer/tokenizer.h"
#include "tests/support/compare.h"
#include "tests/support/model_run.h"
#include "tests/support/shared_data.h"

namespace stoker {
namespace {

using test::Agreement;

constexpr const char* kRandomModels[] = {"v3", "v3-mla", "k2", "v3-groups", "v2-lite", "v3-mixed"};
constexpr i64 kGreedyTokens = 16;

std::string model(const std::string& name) { return test::shared_file("models/" + name + ".gguf"); }
std::string expected(const std::string& name) { return test::shared_file("models/expected/" + name); }

EngineOptions options_for(const std::string& path, bool exact) {
  EngineOptions options = test::small_engine(path);
  options.exact = exact;
  options.threads = 2;
  return options;
}

std::vector<i32> prompt() { return test::read_ids(expected("tokens.txt")); }

Agreement agreement(Engine& engine, const std::string& name, bool generated) {
  std::vector<f32> want = test::read_floats(expected(name + ".logits.f32"));
  std::vector<f32> got =
      generated ? test::generated_logits_of(engine, prompt()) : test::logits_of(engine, prompt(), 64);
  return test::compare_logits(got, want, engine.hparams().vocab);
}

std::vector<i32> expected_greedy(const std::string& name) { return test::read_ids(expected(name + ".txt")); }

}  // namespace

TEST_CASE("exact arithmetic agrees with the reference, for prompts and token by token") {
  for (std::string name : kRandomModels) {
    CAPTURE(name);
    std::string path = model(name);
    if (path.empty()) return;
    Engine engine(options_for(path, true));
    for (bool generated : {false, true}) {
      CAPTURE(generated);
      Agreement got = agreement(engine, name, generated);
      CAPTURE(got.worst_error);
      CAPTURE(got.worst_position);
      CHECK(got.median_error < 2e-3);
      CHECK(got.top1 >= 0.95);
    }
    CHECK(test::greedy(engine, prompt(), kGreedyTokens) == expected_greedy(name + ".greedy"));
  }
}

TEST_CASE("8-bit activations do not touch models of floats") {
  for (std::string name : {"v3", "v3-mla", "k2", "v3-groups", "v2-lite"}) {
    CAPTURE(name);
    std::string path = model(name);
    if (path.empty()) return;
    Engine engine(options_for(path, false));
    for (bool generated : {false, true}) {
      CAPTURE(generated);
      Agreement got = agreement(engine, name, generated);
      CAPTURE(got.worst_error);
      CHECK(got.median_error < 5e-3);
      CHECK(got.top1 >= 0.95);
    }
  }
}

TEST_CASE("expert groups follow the file's keys, and can be switched off") {
  std::string path = model("v3-groups");
  if (path.empty()) return;
  for (bool exact : {true, false}) {
    CAPTURE(exact);
    EngineOptions options = options_for(path, exact);
    {
      Engine grouped(options);
      CHECK(test::greedy(grouped, prompt(), kGreedyTokens) == expected_greedy("v3-groups.greedy"));
    }
    options.expert_groups.mode = ExpertGroups::Mode::off;
    Engine plain(options);
    CHECK(test::greedy(plain, prompt(), kGreedyTokens) == expected_greedy("v3-groups.greedy-no-groups"));
  }
}

TEST_CASE("a split file gives the logits of the unsplit one, bit for bit") {
  std::string whole = model("v3-mixed"), first = model("v3-mixed-split-00001-of-00004");
  if (whole.empty() || first.empty()) return;
  for (bool exact : {false, true}) {
    CAPTURE(exact);
    std::vector<f32> one = test::logits_of(options_for(whole, exact), prompt());
    std::vector<f32> four = test::logits_of(options_for(first, exact), prompt());
    CHECK(test::difference(one, four, 512) == "");
  }
}

namespace {

// What a model thinks of the held-out text: mean negative log-likelihood of each next token, and the token that it
// likes best after each.
struct Judgement {
  f64 nll = 0;
  std::vector<i32> top1;
};

Judgement judge(Engine& engine, const std::vector<i32>& tokens, bool generated = false) {
  size_t vocab = static_cast<size_t>(engine.hparams().vocab);
  std::vector<f32> logits = generated ? test::generated_logits_of(engine, tokens)
                                      : test::logits_of(engine, tokens, engine.options().chunk);
  Judgement result;
  for (size_t i = 0; i < tokens.size(); i++) {
    std::span<const f32> row = std::span(logits).subspan(i * vocab, vocab);
    result.top1.push_back(argmax(row));
    if (i + 1 == tokens.size()) break;
    f64 best = row[static_cast<size_t>(result.top1.back())], sum = 0;
    for (f32 logit : row) sum += std::exp(logit - best);
    result.nll += best + std::log(sum) - row[static_cast<size_t>(tokens[i + 1])];
  }
  result.nll /= static_cast<f64>(tokens.size() - 1);
  return result;
}

f64 expected_nll(const std::string& file) {
  std::istringstream lines(test::read_text(expected("ember.nll.txt")));
  std::string name;
  f64 nll = 0;
  while (lines >> name >> nll)
    if (name == file) return nll;
  FAIL("no line for " << file);
  return 0;
}

EngineOptions ember_options(const std::string& path, bool exact) {
  EngineOptions options = options_for(path, exact);
  options.context = 1024;
  options.chunk = 512;
  return options;
}

}  // namespace

TEST_CASE("ember keeps the reference's perplexity with 8-bit activations") {
  for (std::string name : {"ember-37m-q4_k_m", "ember-37m-q2_k", "ember-37m-mtp-q8_0"}) {
    CAPTURE(name);
    std::string path = model(name);
    if (path.empty()) return;
    Engine engine(ember_options(path, false));
    CHECK(engine.hparams().layers == 5);
    CHECK(engine.hparams().mtp_layers == (name == "ember-37m-mtp-q8_0" ? 1 : 0));
    Judgement got = judge(engine, test::read_ids(expected("ember.tokens.txt")));
    f64 perplexity_ratio = std::exp(got.nll - expected_nll(name + ".gguf"));
    CHECK(perplexity_ratio > 0.995);
    CHECK(perplexity_ratio < 1.005);
    if (name == "ember-37m-q4_k_m")
      CHECK(test::share_equal(got.top1, test::read_ids(expected("ember.top1.txt"))) >= 0.97);
  }
}

// With 8-bit activations as well the cache's part cannot be told from theirs, which is up to half a percent.
TEST_CASE("ember keeps the reference's perplexity with an 8-bit cache, in both forms of attention") {
  std::string path = model("ember-37m-q4_k_m");
  if (path.empty()) return;
  for (bool exact : {false, true})
    for (bool generated : {false, true}) {
      CAPTURE(exact);
      CAPTURE(generated);
      EngineOptions options = ember_options(path, exact);
      options.cache_type = CacheType::Q8_0;
      Engine engine(options);
      CHECK(engine.cache_type() == CacheType::Q8_0);
      Judgement got = judge(engine, test::read_ids(expected("ember.tokens.txt")), generated);
      f64 perplexity_ratio = std::exp(got.nll - expected_nll("ember-37m-q4_k_m.gguf"));
      CAPTURE(perplexity_ratio);
      f64 limit = exact ? 0.005 : 0.01;
      CHECK(perplexity_ratio > 1 - limit);
      CHECK(perplexity_ratio < 1 + limit);
    }
}

TEST_CASE("ember in exact arithmetic has the reference's likelihood and choices") {
  std::string path = model("ember-37m-q4_k_m");
  if (path.empty()) return;
  Engine engine(ember_options(path, true));
  std::vector<i32> tokens = test::read_ids(expected("ember.tokens.txt"));
  Judgement got = judge(engine, tokens);
  CHECK(got.nll == doctest::Approx(expected_nll("ember-37m-q4_k_m.gguf")).epsilon(1e-5));
  CHECK(test::share_equal(got.top1, test::read_ids(expected("ember.top1.txt"))) >= 0.995);
}

TEST_CASE("ember in exact arithmetic continues prompts as the reference does") {
  std::string path = model("ember-37m-q4_k_m"), cases = expected("ember.greedy.json");
  if (path.empty() || cases.empty()) return;
  // In exact arithmetic; 8-bit activations are judged by likelihood and top-1 above, for greedy text follows near-ties.
  Engine exact(ember_options(path, true));
  for (const nlohmann::json& item : nlohmann::json::parse(test::read_text(cases))) {
    std::string text = item["prompt"];
    CAPTURE(text);
    std::vector<i32> prompt_ids = item["prompt_ids"], greedy_ids = item["greedy_ids"];
    CHECK(exact.tokenizer().encode(text) == prompt_ids);
    std::vector<i32> got = test::greedy(exact, prompt_ids, static_cast<i64>(greedy_ids.size()));
    CHECK(got == greedy_ids);
    CHECK(exact.tokenizer().decode(got) == item["text"].get<std::string>());
  }
}

}  // namespace stoker

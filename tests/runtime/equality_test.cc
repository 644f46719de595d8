// Where bytes are and who computes must not show in the answer. Class A: bit-equal logits over budgets, threads, I/O
// paths, neighbours in the batch and prompt chunks. Class B: equal greedy text over instruction levels, in exact
// arithmetic.
#include <doctest/doctest.h>

#include <fmt/ranges.h>

#include <cmath>
#include <set>
#include <utility>

#include "runtime/arch/deepseek2.h"
#include "runtime/tokenizer/tokenizer.h"
#include "scheduler/model_file/expert_table.h"
#include "scheduler/model_file/gguf.h"
#include "scheduler/model_file/pack_writer.h"
#include "scheduler/planner.h"
#include "scheduler/policy/make_policy.h"
#include "tests/support/compare.h"
#include "tests/support/model_run.h"
#include "tests/support/shared_data.h"
#include "tests/support/temp_folder.h"
#include "tests/support/tiny_model.h"

namespace stoker {
namespace {

// The bundled model: 5 layers, 32 experts, 4 of them per token.
std::string ember() { return test::source_file("tests/models/ember-37m-q4_k_m.gguf"); }

EngineOptions ember_options(bool exact = false) {
  EngineOptions options = test::small_engine(ember());
  options.exact = exact;
  return options;
}

ExpertTable expert_table(const std::string& path) {
  Gguf gguf = Gguf::open(path);
  return ExpertTable::from_gguf(gguf, read_deepseek2(gguf).expert_shape());
}

i64 smallest_ram(const std::string& path) { return smallest_budget(expert_table(path), 4096); }
i64 smallest_ram() { return smallest_ram(ember()); }

struct Run {
  i64 rows;
  RowRole role;
};

// A conversation: a prompt, an answer token by token, short and long follow-ups, a draft of several tokens. Rows of a
// prompt are attended to in another way than generated ones, so both are here, and both with a past.
constexpr RowRole kPrompt = RowRole::prompt, kGenerated = RowRole::generated;
constexpr Run kRuns[] = {{40, kPrompt}, {1, kGenerated}, {1, kGenerated}, {1, kGenerated}, {8, kGenerated},
                         {1, kPrompt},  {8, kPrompt},    {1, kGenerated}, {9, kPrompt},    {20, kPrompt}};

std::vector<f32> conversation(Engine& engine, SequenceId id = SequenceId(0), u64 seed = 1) {
  i64 vocab = engine.hparams().vocab, position = 0, row = 0;
  std::vector<i32> tokens = test::some_tokens(200, vocab, seed);
  std::vector<f32> logits;
  engine.sequence(id).truncate(0);
  for (const auto& [count, role] : kRuns) {
    std::vector<BatchRow> rows;
    for (i64 i = 0; i < count; i++, position++)
      rows.push_back({id, static_cast<i32>(position), tokens[static_cast<size_t>(position)], true, role});
    logits.resize(static_cast<size_t>((row + count) * vocab));
    Status status = engine.forward(rows, std::span(logits).subspan(static_cast<size_t>(row * vocab)));
    REQUIRE_MESSAGE(status.ok(), status.message());
    row += count;
  }
  return logits;
}

std::vector<f32> conversation(const EngineOptions& options) {
  Engine engine(options);
  return conversation(engine);
}

// What every variant is compared with: one thread, everything in memory. Computed once.
const std::vector<f32>& plain_answer(bool exact) {
  static const std::vector<f32> answers[] = {conversation(ember_options(false)), conversation(ember_options(true))};
  return answers[exact];
}

void check_same(const EngineOptions& options) {
  Engine engine(options);
  std::vector<f32> got = conversation(engine);
  CHECK(test::difference(got, plain_answer(options.exact), engine.hparams().vocab) == "");
}

}  // namespace

TEST_CASE("answers depend on the tokens (or nothing below would mean anything)") {
  Engine engine(ember_options());
  std::vector<f32> other = conversation(engine, SequenceId(0), 2);
  CHECK(test::first_difference(other, plain_answer(false)) >= 0);
  CHECK(test::first_difference(plain_answer(true), plain_answer(false)) >= 0);
}

TEST_CASE("the number of threads does not show") {
  for (bool exact : {false, true})
    for (int threads : {2, 3}) {
      CAPTURE(exact);
      CAPTURE(threads);
      EngineOptions options = ember_options(exact);
      options.threads = threads;
      check_same(options);
    }
}

TEST_CASE("threads and the budget do not show with an 8-bit cache") {
  EngineOptions options = ember_options();
  options.cache_type = CacheType::Q8_0;
  std::vector<f32> plain = conversation(options);
  CHECK(test::first_difference(plain, plain_answer(false)) >= 0);
  options.threads = 3;
  options.ram_bytes = smallest_ram();
  Engine engine(options);
  CHECK(test::difference(conversation(engine), plain, engine.hparams().vocab) == "");
}

TEST_CASE("the budget does not show, down to the smallest one") {
  i64 smallest = smallest_ram();
  for (bool exact : {false, true})
    for (i64 ram : {smallest, smallest + smallest / 3, 3 * smallest}) {
      CAPTURE(exact);
      CAPTURE(ram);
      EngineOptions options = ember_options(exact);
      options.ram_bytes = ram;
      options.threads = 2;
      Engine engine(options);
      REQUIRE(!engine.plan().all_resident);
      CHECK(engine.plan().arena_bytes() <= ram);
      std::vector<f32> got = conversation(engine);
      CHECK(test::difference(got, plain_answer(exact), engine.hparams().vocab) == "");
      CHECK(engine.scheduler_stats().evictions > 0);
      // Again, with whatever the first run left in memory.
      got = conversation(engine);
      CHECK(test::difference(got, plain_answer(exact), engine.hparams().vocab) == "");
    }
}

TEST_CASE("the residency policy does not show") {
  test::TempFolder folder;
  std::string popularity = folder.file("popularity");
  {
    EngineOptions options = ember_options();
    options.popularity_path = popularity;
    options.save_popularity = true;
    Engine engine(options);
    CHECK(test::difference(conversation(engine), plain_answer(false), engine.hparams().vocab) == "");
  }
  for (const PolicyRow& policy : policy_rows())
    for (i64 ram : {smallest_ram(), 3 * smallest_ram()}) {
      CAPTURE(std::string(policy.name));
      CAPTURE(ram);
      EngineOptions options = ember_options();
      options.policy = policy.name;
      if (policy.needs_popularity) options.popularity_path = popularity;
      options.ram_bytes = ram;
      options.threads = 2;
      Engine engine(options);
      CHECK(test::difference(conversation(engine), plain_answer(false), engine.hparams().vocab) == "");
      CHECK(engine.scheduler_stats().evictions > 0);
    }
}

namespace {

// The governor in each of its states. With windows of one token it measures, judges and tries again within a few.
struct GovernorRow {
  const char* name;
  GovernorOptions options;
};
const GovernorRow kGovernors[] = {
    {"off", {.mode = PrefetchMode::off}},
    {"on, whatever is likely", {.mode = PrefetchMode::on, .threshold = 0.05f}},
    {"on, as it learns", {.mode = PrefetchMode::on, .window_tokens = 1}},
    {"auto, always paying", {.window_tokens = 1, .least_gain = -1}},
    {"auto, never paying", {.window_tokens = 1, .least_gain = 1e9}},
};

// A prompt and then tokens one by one, as many as the governor needs to be in all states; notes which it was in.
std::vector<f32> short_answer(Engine& engine, std::set<std::pair<Governor::State, bool>>* seen = nullptr) {
  constexpr i64 kPromptRows = 6, kAnswerRows = 20;
  i64 vocab = engine.hparams().vocab;
  std::vector<i32> tokens = test::some_tokens(kPromptRows + kAnswerRows, vocab, 1);
  std::vector<f32> logits(tokens.size() * static_cast<size_t>(vocab));
  for (i64 at = 0; at < static_cast<i64>(tokens.size());) {
    i64 count = at == 0 ? kPromptRows : 1;
    std::vector<BatchRow> rows;
    for (i64 i = at; i < at + count; i++)
      rows.push_back({SequenceId(0), static_cast<i32>(i), tokens[static_cast<size_t>(i)], true, at == 0 ? kPrompt : kGenerated});
    if (seen != nullptr) seen->insert({engine.governor().state(), engine.governor().prefetching()});
    Status status = engine.forward(rows, std::span(logits).subspan(static_cast<size_t>(at * vocab), rows.size() * static_cast<size_t>(vocab)));
    REQUIRE_MESSAGE(status.ok(), status.message());
    at += count;
  }
  return logits;
}

}  // namespace

TEST_CASE("policy, predictor and governor do not show, whichever are put together") {
  test::TinyModel model;
  EngineOptions options = test::small_engine(model.path());
  options.popularity_path = model.folder().file("popularity");
  options.save_popularity = true;
  std::vector<f32> wanted;
  {
    Engine plain(options);
    wanted = short_answer(plain);
  }
  options.save_popularity = false;
  options.ram_bytes = 2 * smallest_ram(model.path());
  std::set<std::pair<Governor::State, bool>> seen;
  i64 runs = 0, read_ahead = 0;
  for (const PolicyRow& policy : policy_rows())
    for (PredictorKind kind : kPredictorKinds)
      for (const GovernorRow& governor : kGovernors) {
        CAPTURE(std::string(policy.name));
        CAPTURE(std::string(name(kind)));
        CAPTURE(std::string(governor.name));
        options.policy = policy.name;
        options.predictor = kind;
        options.prefetch = governor.options;
        options.lookahead = runs++ % 4;
        options.threads = 1 + static_cast<int>(runs % 2);
        Engine engine(options);
        REQUIRE(!engine.plan().all_resident);
        CHECK(test::difference(short_answer(engine, kind == PredictorKind::none ? nullptr : &seen), wanted, 512) == "");
        CHECK(engine.scheduler_stats().evictions > 0);
        CHECK((engine.predictor() == nullptr) == (kind == PredictorKind::none));
        if (governor.options.mode == PrefetchMode::off || kind == PredictorKind::none)
          CHECK(engine.scheduler_stats().predicted_bytes == 0);
        read_ahead += engine.scheduler_stats().predicted_bytes > 0;
      }
  using State = Governor::State;
  for (auto state : {std::pair{State::fixed_off, false}, {State::fixed_on, true}, {State::measuring, true},
                     {State::measuring, false}, {State::paying, true}, {State::not_paying, false}})
    CHECK(seen.contains(state));
  CHECK(read_ahead > runs / 4);  // or the test shows little
}

TEST_CASE("predictions and prefetch do not show in a longer conversation") {
  i64 smallest = smallest_ram();
  for (PredictorKind kind : kPredictorKinds)
    for (i64 ram : {smallest, 3 * smallest}) {
      CAPTURE(std::string(name(kind)));
      CAPTURE(ram);
      EngineOptions options = ember_options();
      options.predictor = kind;
      options.lookahead = ram == smallest ? 1 : 3;
      options.prefetch.mode = PrefetchMode::on;
      options.ram_bytes = ram;
      options.threads = 2;
      Engine engine(options);
      REQUIRE(!engine.plan().all_resident);
      CHECK(test::difference(conversation(engine), plain_answer(false), engine.hparams().vocab) == "");
      // The next layer's experts during the prompt, in slots beyond what a token needs.
      if (ram > smallest) CHECK((engine.scheduler_stats().ahead_bytes > 0) == (kind != PredictorKind::none));
    }
}

TEST_CASE("a budget below the smallest is refused with the number that would do") {
  EngineOptions options = ember_options();
  options.ram_bytes = smallest_ram() - 1;
  CHECK_THROWS_WITH_AS(Engine{options}, doctest::Contains(fmt::format("{}", div_up(smallest_ram(), kMiB)).c_str()), Error);
}

TEST_CASE("the I/O path and reading ahead do not show") {
  for (IoPath io : {IoPath::automatic, IoPath::uring, IoPath::pread})
    for (bool preload : {true, false})
      for (i64 ram : {kGiB, 2 * smallest_ram()}) {
        CAPTURE(static_cast<int>(io));
        CAPTURE(preload);
        CAPTURE(ram);
        EngineOptions options = ember_options();
        options.io = io;
        options.preload = preload;
        options.ram_bytes = ram;
        try {
          check_same(options);
        } catch (const Error& error) {
          // Containers may forbid io_uring; only an explicit wish for it is refused then.
          REQUIRE(io == IoPath::uring);
          MESSAGE("skipped: " << error.what());
          break;
        }
      }
}

namespace {

// The model packed, with experts in so many files.
std::string packed(const std::string& path, const test::TempFolder& folder, i64 files) {
  PackOptions options{.output = folder.file(fmt::format("pack-{}.gguf", files)),
                      .stripe_folders = std::vector<std::string>(static_cast<size_t>(files - 1), folder.file(""))};
  Gguf gguf = Gguf::open(path);
  return write_pack(gguf, expert_table(path), options).paths.front();
}

}  // namespace

TEST_CASE("a pack answers like its original, in one file or striped over several") {
  test::TempFolder folder;
  for (i64 files : {1, 2, 3}) {
    CAPTURE(files);
    EngineOptions options = ember_options();
    options.model_path = packed(ember(), folder, files);
    CHECK(static_cast<i64>(Gguf::open(options.model_path).files().size()) == files);
    for (i64 ram : {smallest_ram(options.model_path), 3 * smallest_ram(options.model_path), kGiB})
      for (IoPath io : {IoPath::automatic, IoPath::pread}) {
        CAPTURE(ram);
        options.ram_bytes = ram;
        options.io = io;
        options.exact = files == 2;
        check_same(options);
      }
  }
}

TEST_CASE("packs of split files, of fused tensors and of types that differ answer like their originals") {
  struct Case {
    const char* name;
    BlockType experts;
    std::optional<BlockType> down;
    bool fused;
    i64 split_bytes;
  };
  for (const Case& c : {Case{"split", BlockType::Q4_K, BlockType::Q6_K, false, 100'000},
                        Case{"fused", BlockType::Q8_0, {}, true, 0}, Case{"IQ1_S", BlockType::IQ1_S, {}, false, 0},
                        Case{"MXFP4", BlockType::MXFP4, BlockType::F16, true, 150'000}}) {
    CAPTURE(std::string(c.name));
    SynthOptions synth = test::tiny_options(c.experts);
    synth.down = c.down;
    synth.fused_gate_up = c.fused;
    synth.split_bytes = c.split_bytes;
    test::TinyModel model(synth);
    CHECK((c.split_bytes > 0) == (Gguf::open(model.path()).files().size() > 1));
    std::vector<i32> tokens = test::some_tokens(30, 512, 1);
    EngineOptions options = test::small_engine(model.path());
    std::vector<f32> wanted = test::logits_of(options, tokens);
    for (i64 files : {1, 3}) {
      CAPTURE(files);
      options.model_path = packed(model.path(), model.folder(), files);
      for (i64 ram : {smallest_ram(options.model_path), kGiB}) {
        options.ram_bytes = ram;
        CHECK(test::difference(test::logits_of(options, tokens), wanted, 512) == "");
      }
    }
  }
}

TEST_CASE("a pack of a model whose layers differ in types answers like its original") {
  std::string path = test::shared_file("models/v3-mixed.gguf");
  if (path.empty()) return;
  test::TempFolder folder;
  EngineOptions options = test::small_engine(path);
  i64 vocab = Engine(options).hparams().vocab;
  std::vector<i32> tokens = test::some_tokens(30, vocab, 1);
  std::vector<f32> wanted = test::logits_of(options, tokens);
  for (i64 files : {1, 2}) {
    options.model_path = packed(path, folder, files);
    options.ram_bytes = smallest_ram(options.model_path);
    CHECK(test::difference(test::logits_of(options, tokens), wanted, vocab) == "");
  }
}

namespace {

// One step of several sequences at once: so many tokens of each, in this order.
struct Share {
  int sequence;
  i64 tokens;
  RowRole role = kPrompt;
};
using Step = std::vector<Share>;

struct Answers {
  std::vector<f32> of[4];
};

// Every sequence has tokens of its own; sequences in `wanted` alone are computed.
Answers run_steps(Engine& engine, const std::vector<Step>& steps, std::vector<int> wanted) {
  i64 vocab = engine.hparams().vocab;
  Answers answers;
  i64 position[4] = {};
  for (int i = 0; i < 4; i++) engine.sequence(SequenceId(i)).truncate(0);
  for (const Step& step : steps) {
    std::vector<BatchRow> rows;
    for (const Share& share : step) {
      if (std::find(wanted.begin(), wanted.end(), share.sequence) == wanted.end()) continue;
      std::vector<i32> tokens = test::some_tokens(200, vocab, static_cast<u64>(share.sequence) + 1);
      for (i64 i = 0; i < share.tokens; i++) {
        i64 at = position[share.sequence]++;
        rows.push_back({SequenceId(share.sequence), static_cast<i32>(at), tokens[static_cast<size_t>(at)], true,
                        share.role});
      }
    }
    if (rows.empty()) continue;
    std::vector<f32> logits(rows.size() * static_cast<size_t>(vocab));
    Status status = engine.forward(rows, logits);
    REQUIRE_MESSAGE(status.ok(), status.message());
    for (size_t i = 0; i < rows.size(); i++) {
      auto row = logits.begin() + static_cast<i64>(i) * vocab;
      std::vector<f32>& to = answers.of[rows[i].sequence.value];
      to.insert(to.end(), row, row + vocab);
    }
  }
  return answers;
}

// Prompts, short ones too, beside generated tokens, in the middle of a batch and at its ends; sequences that go from
// one role to the other within a batch.
const std::vector<Step> kSteps = {
    {{1, 20}, {0, 16}, {2, 1}, {3, 9}},
    {{0, 1, kGenerated}, {1, 1, kGenerated}, {2, 1}, {3, 1, kGenerated}},
    {{2, 8, kGenerated}, {3, 1, kGenerated}, {0, 1}, {1, 30}},
    {{0, 7}, {0, 3, kGenerated}, {2, 1, kGenerated}},
    {{3, 1, kGenerated}, {1, 1, kGenerated}, {1, 2}, {0, 25}, {2, 3}},
    {{1, 1, kGenerated}, {0, 1, kGenerated}},
};

}  // namespace

TEST_CASE("a sequence gets the same logits alone and beside three others") {
  for (bool exact : {false, true}) {
    CAPTURE(exact);
    EngineOptions options = ember_options(exact);
    options.sequences = 4;
    options.threads = 2;
    options.ram_bytes = 2 * smallest_ram();
    Engine engine(options);
    Answers together = run_steps(engine, kSteps, {0, 1, 2, 3});
    for (int i = 0; i < 4; i++) {
      CAPTURE(i);
      Answers alone = run_steps(engine, kSteps, {i});
      CHECK(test::difference(together.of[i], alone.of[i], engine.hparams().vocab) == "");
    }
    Answers pair = run_steps(engine, kSteps, {0, 2});
    CHECK(test::difference(together.of[0], pair.of[0], engine.hparams().vocab) == "");
    CHECK(test::difference(together.of[2], pair.of[2], engine.hparams().vocab) == "");
  }
}

TEST_CASE("a prompt and what is generated after it get the same logits in one batch and in several") {
  EngineOptions options = ember_options();
  options.sequences = 4;
  Engine engine(options);
  Answers one = run_steps(engine, {{{0, 30}, {0, 3, kGenerated}, {0, 4}, {0, 5, kGenerated}}}, {0});
  Answers several = run_steps(engine, {{{0, 30}}, {{0, 3, kGenerated}}, {{0, 4}}, {{0, 1, kGenerated}},
                                       {{0, 4, kGenerated}}}, {0});
  CHECK(test::difference(one.of[0], several.of[0], engine.hparams().vocab) == "");
  // The roles do compute in two ways, or the tests of this file would see one of them only.
  Answers prompt = run_steps(engine, {{{0, 42}}}, {0});
  CHECK(test::first_difference(one.of[0], prompt.of[0]) >= 30 * engine.hparams().vocab);
}

TEST_CASE("none of it shows with any block format, in any layout") {
  for (const BlockTypeInfo& type : all_block_types()) {
    SynthOptions synth = test::tiny_options(type.type);
    synth.moe_layers = 1;
    synth.fused_gate_up = type.block_weights == 32;  // some with this layout, some with that
    synth.legacy_attention = type.block_weights == 1;
    test::TinyModel model(synth);
    for (bool exact : {false, true}) {
      CAPTURE(std::string(type.name));
      CAPTURE(exact);
      EngineOptions options = test::small_engine(model.path());
      options.exact = exact;
      options.sequences = 4;
      Engine plain(options);
      options.threads = 3;
      options.ram_bytes = smallest_ram(model.path());
      options.io = exact ? IoPath::automatic : IoPath::pread;
      Engine streaming(options);
      CHECK(!streaming.plan().all_resident);
      Answers together = run_steps(streaming, kSteps, {0, 1, 2, 3});
      for (int i : {0, 2}) {
        CAPTURE(i);
        Answers alone = run_steps(plain, kSteps, {i});
        CHECK(test::difference(together.of[i], alone.of[i], plain.hparams().vocab) == "");
        CHECK(std::isfinite(alone.of[i].back()));
      }
      std::vector<i32> tokens = test::some_tokens(40, 512, 7);
      std::vector<f32> whole = test::logits_of(plain, tokens, 64);
      for (i64 chunk : {1, 8, 9}) {
        CAPTURE(chunk);
        CHECK(test::difference(test::logits_of(plain, tokens, chunk), whole, 512) == "");
      }
    }
  }
}

TEST_CASE("rows whose logits nobody wants do not change those of the others") {
  Engine engine(ember_options());
  i64 vocab = engine.hparams().vocab;
  std::vector<i32> tokens = test::some_tokens(30, vocab, 1);
  std::vector<f32> all = test::logits_of(engine, tokens, 30), last(static_cast<size_t>(vocab));
  engine.sequence(SequenceId(0)).truncate(0);
  std::vector<BatchRow> rows;
  for (size_t i = 0; i < tokens.size(); i++)
    rows.push_back({SequenceId(0), static_cast<i32>(i), tokens[i], i + 1 == tokens.size()});
  REQUIRE(engine.forward(rows, last).ok());
  CHECK(test::difference(last, std::span(all).last(static_cast<size_t>(vocab)), vocab) == "");
}

namespace {

// Pieces of a text of 12 to 61 tokens, and one that goes over several of attention's blocks of positions.
std::vector<std::vector<i32>> some_prompts(const Engine& engine) {
  std::vector<i32> ids = engine.tokenizer().encode(test::read_text(test::source_file("bench/data/alice.txt")));
  std::vector<std::vector<i32>> prompts;
  for (i64 i = 0; i < 16; i++) {
    auto begin = ids.begin() + 70 * i;
    prompts.emplace_back(begin, begin + 12 + 7 * i % 50);
  }
  prompts.emplace_back(ids.begin() + 2000, ids.begin() + 2420);
  return prompts;
}

EngineOptions with_chunk(EngineOptions options, i64 chunk) {
  options.chunk = chunk;
  options.context = 512;
  options.threads = 2;
  return options;
}

// Of all prompts, one after the other.
std::vector<f32> prompt_logits(const EngineOptions& options) {
  Engine engine(options);
  std::vector<f32> all;
  for (const std::vector<i32>& prompt : some_prompts(engine)) {
    std::vector<f32> logits = test::logits_of(engine, prompt, options.chunk);
    all.insert(all.end(), logits.begin(), logits.end());
  }
  return all;
}

}  // namespace

TEST_CASE("prompt chunks of 1, 7, 8, 9 and 512 tokens lead to the same logits") {
  i64 vocab = Engine(ember_options()).hparams().vocab;
  std::vector<EngineOptions> variants = {ember_options(), ember_options(), ember_options(true), ember_options()};
  variants[1].cache_type = CacheType::Q8_0;
  variants[3].isa = std::min(IsaLevel::avx2, best_isa_level());
  for (size_t i = 0; i < variants.size(); i++) {
    CAPTURE(i);
    std::vector<f32> whole = prompt_logits(with_chunk(variants[i], 512));
    for (i64 chunk : {1, 7, 8, 9}) {
      CAPTURE(chunk);
      CHECK(test::difference(prompt_logits(with_chunk(variants[i], chunk)), whole, vocab) == "");
    }
  }
}

TEST_CASE("prompt chunks of 1, 7 and 512 tokens lead to the same text") {
  for (bool exact : {false, true}) {
    CAPTURE(exact);
    std::vector<std::string> texts;
    for (i64 chunk : {512, 7, 1}) {
      Engine engine(with_chunk(ember_options(exact), chunk));
      std::string text;
      for (const std::vector<i32>& prompt : some_prompts(engine))
        text += fmt::format("{}\n", fmt::join(test::greedy(engine, prompt, 24), " "));
      texts.push_back(text);
    }
    CHECK(texts[1] == texts[0]);
    CHECK(texts[2] == texts[0]);
  }
}

TEST_CASE("the instruction level does not change the text in exact arithmetic") {
  std::vector<std::string> texts;
  for (IsaLevel level : {IsaLevel::ref, best_isa_level()}) {
    EngineOptions options = ember_options(true);
    options.isa = level;
    options.threads = 2;
    Engine engine(options);
    CHECK(engine.isa() == level);
    texts.push_back(fmt::format("{}", fmt::join(test::greedy(engine, std::vector<i32>{0, 784, 469, 15, 1498}, 24), " ")));
  }
  CHECK(texts[0] == texts[1]);
}

}  // namespace stoker

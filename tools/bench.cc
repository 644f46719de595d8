// stoker bench: prompt and generation speed, in the columns that llama-bench users read. Teacher-forced on
// real text, because random tokens and a model's own greedy text repeat experts and make a cache look better
// than it is.
#include <algorithm>
#include <cmath>
#include <filesystem>

#include "runtime/tokenizer/tokenizer.h"
#include "scheduler/model_file/gguf.h"
#include "tools/bench_text.h"
#include "tools/commands.h"
#include "tools/engine_setup.h"
#include "tools/model_sizes.h"
#include "tools/report.h"
#include "tools/teacher.h"
#include "tools/terminal.h"
#include "tools/text_input.h"
#include "tools/timeline_report.h"

namespace stoker {

namespace {

// Generated tokens before the first that is measured: the expert cache should hold what this text needs.
constexpr i64 kWarmUpTokens = 16;

// What one row of the table says.
struct TestResult {
  std::string test;  // "pp512"
  i64 prompt_tokens = 0, generated_tokens = 0;
  f64 bytes_per_token = 0;  // of weights and cache that decoding must read; 0 for a prompt, which reuses them
  std::vector<Phase> repetitions;
  Phase all;  // their sum

  f64 mean() const {
    f64 sum = 0;
    for (const Phase& p : repetitions) sum += p.tokens_per_second();
    return sum / static_cast<f64>(repetitions.size());
  }
  f64 touched_gb_per_second() const { return bytes_per_token * mean() * 1e-9; }
  f64 standard_deviation() const {
    if (repetitions.size() < 2) return 0;
    f64 m = mean(), sum = 0;
    for (const Phase& p : repetitions) sum += (p.tokens_per_second() - m) * (p.tokens_per_second() - m);
    return std::sqrt(sum / static_cast<f64>(repetitions.size() - 1));
  }
};

// The text's tokens, read on and on from wherever the last test stopped.
class TokenTape {
 public:
  explicit TokenTape(std::vector<i32> tokens) : tokens_(std::move(tokens)) {}
  std::vector<i32> next(i64 count) {
    std::vector<i32> part;
    for (i64 i = 0; i < count; ++i) {
      part.push_back(tokens_[at_]);
      at_ = (at_ + 1) % tokens_.size();
    }
    return part;
  }

 private:
  std::vector<i32> tokens_;
  size_t at_ = 0;
};

class Bench {
 public:
  Bench(const Options& o, Engine& engine, std::vector<i32> tokens)
      : options_(o), engine_(engine), teacher_(engine), tape_(std::move(tokens)) {}

  TestResult prompt_test() {
    TestResult result;
    result.test = test_name("pp", options_.bench_prompt);
    result.prompt_tokens = options_.bench_prompt;
    measure(options_.bench_prompt, RowRole::prompt, result);
    return result;
  }
  TestResult generation_test() {
    TestResult result;
    result.test = test_name("tg", options_.bench_generate);
    result.generated_tokens = options_.bench_generate;
    TokenBytes bytes = engine_.token_bytes();
    f64 positions = static_cast<f64>(options_.bench_depth) + 0.5 * static_cast<f64>(options_.bench_generate + 1);
    result.bytes_per_token =
        static_cast<f64>(bytes.weights()) + static_cast<f64>(bytes.cache_per_position) * positions;
    measure(options_.bench_generate, RowRole::generated, result);
    return result;
  }
  u64 hash() const { return hash_; }

 private:
  // As llama-bench names them: "tg128", "tg128 @ d4096".
  std::string test_name(std::string_view kind, i64 tokens) const {
    std::string name = fmt::format("{}{}", kind, tokens);
    return options_.bench_depth > 0 ? fmt::format("{} @ d{}", name, options_.bench_depth) : name;
  }

  // The context that every repetition starts from. It is computed once and kept.
  void fill_depth() {
    if (engine_.sequence(SequenceId(0)).length() >= options_.bench_depth) return;
    teacher_.feed(tape_.next(options_.bench_depth), WantLogits::last,
                  [&](i64 first, std::span<const f32>) {
                    show_progress("context", first + 1, options_.bench_depth, ProgressUnit::tokens);
                  });
  }

  void measure(i64 tokens, RowRole role, TestResult& result) {
    fill_depth();
    i64 warm_up = role == RowRole::generated ? std::min(tokens, kWarmUpTokens) : tokens;
    feed(warm_up, role, result.test + " warm-up");
    for (i64 r = 0; r < options_.repetitions; ++r) {
      Phase p = feed(tokens, role, fmt::format("{} {}/{}", result.test, r + 1, options_.repetitions));
      result.repetitions.push_back(p);
      result.all += p;
    }
  }

  Phase feed(i64 count, RowRole role, const std::string& label) {
    std::vector<i32> tokens = tape_.next(count);
    teacher_.rewind(options_.bench_depth);
    PhaseMeter meter(engine_);
    auto on_logits = [&](i64 first, std::span<const f32> logits) {
      hash_ = hash_logits(logits, hash_);
      show_progress(label, first + 1, count, ProgressUnit::tokens);
    };
    if (role == RowRole::prompt)
      teacher_.feed(tokens, WantLogits::last, on_logits);
    else
      teacher_.feed_generated(tokens, on_logits);
    Phase phase = meter.stop(count);
    clear_progress();
    return phase;
  }

  const Options& options_;
  Engine& engine_;
  Teacher teacher_;
  TokenTape tape_;
  u64 hash_ = kHashStart;
};

// What all rows have in common.
struct BenchModel {
  std::string name;
  ModelSizes sizes;
  f64 memory_gb_per_second = 0;  // what the cores can read; 0: not measured
};

// Share of the memory's speed that weights and cache were read with.
f64 share_of_roof(const BenchModel& model, const TestResult& r) {
  return model.memory_gb_per_second > 0 ? r.touched_gb_per_second() / model.memory_gb_per_second : 0;
}

std::string percent_or_dash(f64 share) { return share > 0 ? fmt::format("{:.0f}%", share * 100) : "-"; }

std::string markdown(const BenchModel& model, const Engine& engine, const std::vector<TestResult>& results) {
  std::string text =
      "| model                          |       size |     params | backend    | threads |        ram |   "
      "       test |"
      "                  t/s | of memory roof |  hits | disk GB/s | disk busy |\n"
      "| ------------------------------ | ---------: | ---------: | ---------- | ------: | ---------: | "
      "-----------: |"
      " -------------------: | -------------: | ----: | --------: | --------: |\n";
  for (const TestResult& r : results) {
    text += fmt::format(
        "| {:<30} | {:>10} | {:>10} | {:<10} | {:>7} | {:>10} | {:>12} | {:>20} | {:>14} | {:>4.0f}% | {:>9.2f} | "
        "{:>8.0f}% |\n",
        model.name, human_bytes(model.sizes.file_bytes()), human_parameters(model.sizes.parameters),
        fmt::format("CPU {}", name(engine.isa())), engine.threads(),
        human_bytes(engine.footprint().expert_budget_bytes), r.test,
        fmt::format("{:.2f} ± {:.2f}", r.mean(), r.standard_deviation()),
        percent_or_dash(share_of_roof(model, r)), r.all.hit_rate() * 100, r.all.disk_gb_per_second(),
        r.all.disk_busy_share() * 100);
  }
  return text;
}

nlohmann::ordered_json row_json(const BenchModel& model, const Options& o, const Engine& engine,
                                const TestResult& r) {
  std::vector<f64> speeds;
  for (const Phase& p : r.repetitions) speeds.push_back(p.tokens_per_second());
  nlohmann::ordered_json json = {
      {"build_version", STOKER_VERSION},
      {"model_filename", o.model},
      {"model_type", model.name},
      {"model_size", model.sizes.file_bytes()},
      {"model_n_params", model.sizes.parameters},
      {"backends", fmt::format("CPU {}", name(engine.isa()))},
      {"n_batch", engine.options().chunk},
      {"n_threads", engine.threads()},
      {"n_prompt", r.prompt_tokens},
      {"n_gen", r.generated_tokens},
      {"n_depth", o.bench_depth},
      {"test", r.test},
      {"avg_ns", r.all.wall_ns / static_cast<i64>(r.repetitions.size())},
      {"avg_ts", r.mean()},
      {"stddev_ts", r.standard_deviation()},
      {"samples_ts", speeds},
  };
  if (!o.routing.empty()) json["routing"] = o.routing;
  if (r.bytes_per_token > 0) {
    json["bytes_per_token"] = static_cast<i64>(r.bytes_per_token);
    json["touched_gb_per_second"] = r.touched_gb_per_second();
    json["memory_gb_per_second"] = model.memory_gb_per_second;
    json["share_of_memory_roof"] = share_of_roof(model, r);
  }
  json.update(to_json(r.all));
  for (const char* twice : {"tokens_per_second"}) json.erase(twice);  // avg_ts is the mean of the samples
  return json;
}

std::string csv(const nlohmann::ordered_json& rows) {
  std::string text;
  for (size_t i = 0; i < rows.size(); ++i) {
    std::string header, line;
    for (const auto& [key, value] : rows[i].items()) {
      if (value.is_structured()) continue;
      header += fmt::format("{}{}", header.empty() ? "" : ",", key);
      line += fmt::format("{}{}", line.empty() ? "" : ",", value.dump());  // strings keep their quotes
    }
    if (i == 0) text += header + "\n";
    text += line + "\n";
  }
  return text;
}

// A vocabulary without a tokenizer's merges still takes text apart into its bytes; one that cannot do even
// that has no text to be measured on.
std::vector<i32> bench_tokens(const Options& o, const Gguf& gguf) {
  Tokenizer tokenizer = Tokenizer::from_gguf(gguf);
  std::string text = o.file.empty() ? std::string(bench_text()) : read_text_file(o.file);
  std::string where = o.file.empty() ? "built-in text" : o.file;
  require_utf8(text, where);
  std::vector<i32> tokens = tokenizer.encode(text, /*add_bos=*/false);
  if (tokens.empty()) fail("{}: no text to feed", where);
  return tokens;
}

void note_details(const BenchModel& model, const Engine& engine, const std::vector<TestResult>& results, u64 hash, bool perf) {
  EngineFootprint f = engine.footprint();
  for (const TestResult& r : results) {
    const Phase& p = r.all;
    if (r.bytes_per_token > 0)
      note("{:<{}}{} of weights and cache per token: {:.2f} GB/s of the {:.2f} GB/s that memory gives", r.test,
           results.back().test.size() + 3, human_bytes(static_cast<i64>(r.bytes_per_token)), r.touched_gb_per_second(),
           model.memory_gb_per_second);
    note(
        "{:<{}}{:.1f} ms per token: attention {:.1f}, experts {:.1f}, waiting for disk {:.1f}, rest {:.1f}; "
        "{} read, {:.2f} GB/s while "
        "busy; {}",
        r.test, results.back().test.size() + 3, p.seconds() * 1e3 / static_cast<f64>(p.tokens), p.ms_per_token(Stage::attention),
        p.ms_per_token(Stage::experts), p.ms_per_token(Stage::disk_wait), p.ms_per_token(Stage::rest),
        human_bytes(p.experts.bytes_read), p.disk_gb_per_second_busy(),
        describe(p.bottleneck()));
    if (perf && r.generated_tokens > 0) note_perf_table(engine, p, model.memory_gb_per_second);
    if (perf && r.generated_tokens == 0) note_lanes(p.lanes);
  }
  note("memory {} peak RSS; {} resident weights in RAM, {} KV cache, {} scratch, {} budget for {} of {} experts",
       human_bytes(peak_rss_bytes()), human_bytes(f.resident_bytes), human_bytes(f.kv_bytes),
       human_bytes(f.scratch_bytes), human_bytes(f.expert_budget_bytes), f.expert_slots, f.expert_total);
  Phase all;
  for (const TestResult& r : results) all += r.all;
  note_prediction(engine, all);
  note("reads  {}", engine.io_description());
  if (!engine.options().routing.empty()) note("routed by {}, not by the gate", engine.options().routing);
  note("logits hash {:016x}", hash);
}

}  // namespace

int bench_command(const Options& o) {
  std::vector<i32> tokens = bench_tokens(o, Gguf::open(o.model));
  EngineOptions settings = engine_options(o);
  settings.context = o.bench_depth + std::max(o.bench_prompt, o.bench_generate);
  f64 memory_speed = o.bench_generate > 0 ? measure_memory_roof(settings.threads) : 0;
  std::unique_ptr<Engine> engine = load_engine(settings);
  for (i32 token : tokens) {
    if (token >= engine->hparams().vocab)
      fail("{}: its tokenizer has ids that its output matrix lacks ({})", o.model, token);
  }
  BenchModel model{engine->hparams().name, model_sizes(engine->gguf(), engine->hparams()), memory_speed};

  Bench bench(o, *engine, std::move(tokens));
  std::vector<TestResult> results;
  if (o.bench_prompt > 0) results.push_back(bench.prompt_test());
  if (o.bench_generate > 0) results.push_back(bench.generation_test());

  plot_recall(*engine, o.plot_recall);
  if (!o.timeline_file.empty()) write_chrome_trace(*engine->timeline(), o.timeline_file);
  std::string format = o.json ? "json" : o.format;
  if (format == "md") {
    print(markdown(model, *engine, results) + "\nbuild: " STOKER_VERSION "\n");
    note_details(model, *engine, results, bench.hash(), o.perf);
    return 0;
  }
  nlohmann::ordered_json rows = nlohmann::ordered_json::array();
  for (const TestResult& r : results) {
    rows.push_back(row_json(model, o, *engine, r));
    rows.back().update(engine_json(*engine));
    rows.back().update(prediction_json(*engine));
    rows.back()["logits_hash"] = fmt::format("{:016x}", bench.hash());
  }
  print(format == "csv" ? csv(rows) : rows.dump(2) + "\n");
  return 0;
}

}  // namespace stoker

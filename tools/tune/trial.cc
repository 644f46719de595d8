#include "tools/tune/trial.h"

#include "kernels/base/clock.h"
#include "runtime/engine.h"
#include "tools/engine_setup.h"
#include "tools/teacher.h"
#include "tools/terminal.h"

namespace stoker {

namespace {

std::unique_ptr<Engine> load(const Options& options, const TrialText& text, const std::string& trace_path) {
  EngineOptions settings = engine_options(options);
  settings.context = static_cast<i64>(text.tokens.size()) + 1;
  settings.chunk = 1;
  settings.trace_path = trace_path;
  return load_engine(settings);
}

void feed(Engine& engine, std::span<const i32> tokens, i64 done, i64 all, const std::string& label) {
  Teacher(engine).feed_generated(tokens, [&](i64 first, std::span<const f32>) {
    show_progress(label, done + first + 1, all, ProgressUnit::tokens);
  });
}

}  // namespace

f64 trial_tokens_per_second(const Options& options, const TrialText& text, const std::string& label) {
  std::unique_ptr<Engine> engine = load(options, text, "");
  std::span<const i32> tokens(text.tokens);
  size_t warm_up = static_cast<size_t>(text.warm_up);
  i64 all = static_cast<i64>(tokens.size());
  feed(*engine, tokens.first(warm_up), 0, all, label);
  i64 begin = steady_clock().now_ns();
  feed(*engine, tokens.subspan(warm_up), text.warm_up, all, label);
  f64 seconds = static_cast<f64>(steady_clock().now_ns() - begin) * 1e-9;
  clear_progress();
  return static_cast<f64>(all - text.warm_up) / seconds;
}

Recording record_trial(const Options& options, const TrialText& text, const std::string& trace_path) {
  Options guessing = options;
  guessing.lookahead = Predictor::kMaxDistance;
  guessing.prefetch = "off";
  std::unique_ptr<Engine> engine = load(guessing, text, trace_path);
  feed(*engine, text.tokens, 0, static_cast<i64>(text.tokens.size()), "recording");
  clear_progress();
  Recording recording{.ram_bytes = engine->footprint().expert_budget_bytes, .all_resident = engine->plan().all_resident};
  if (const Predictor* predictor = engine->predictor())
    for (i64 d = 1; d <= Predictor::kMaxDistance; d++)
      recording.gate_recall[static_cast<size_t>(d - 1)] = predictor->score(d).recall_narrow();
  return recording;
}

}  // namespace stoker

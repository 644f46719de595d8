#include "tools/answer.h"

#include <exception>
#include <random>

#include "runtime/engine.h"
#include "runtime/tokenizer/tokenizer.h"
#include "runtime/tokenizer/utf8.h"
#include "tools/interrupt.h"
#include "tools/terminal.h"

namespace stoker {

namespace {

u64 chosen_seed(i64 asked) {
  if (asked >= 0) return static_cast<u64>(asked);
  return std::random_device()();
}

SamplerOptions sampler_options(const Options& o, u64 seed) {
  SamplerOptions s;
  s.temperature = static_cast<f32>(o.temperature);
  s.top_k = o.top_k;
  s.top_p = static_cast<f32>(o.top_p);
  s.min_p = static_cast<f32>(o.min_p);
  s.repeat_penalty = static_cast<f32>(o.repeat_penalty);
  s.repeat_window = o.repeat_last_n;
  s.presence_penalty = static_cast<f32>(o.presence_penalty);
  s.frequency_penalty = static_cast<f32>(o.frequency_penalty);
  s.seed = seed;
  return s;
}

}  // namespace

Answerer::Answerer(Engine& engine, const Tokenizer& tokenizer, const Options& options, bool stream)
    : engine_(engine),
      tokenizer_(tokenizer),
      options_(options),
      stream_(stream),
      seed_(chosen_seed(options.seed)),
      session_(engine, SequenceId(0)),
      sampler_(sampler_options(options, seed_), engine.hparams().vocab) {}

Answer Answerer::answer(std::span<const i32> prompt) {
  Answer answer;
  answer.report.seed = seed_;
  PhaseMeter prompt_meter(engine_);
  i64 before = static_cast<i64>(session_.tokens().size());
  Status status = session_.prompt(prompt, &interrupt_flag(), [](i64 done, i64 total) {
    show_progress("prompt", done, total, ProgressUnit::tokens);
  });
  clear_progress();
  answer.report.prompt = prompt_meter.stop(static_cast<i64>(session_.tokens().size()) - before);
  if (!status.ok()) {
    answer.result.reason = StopReason::failed;
    answer.result.status = status;
    return answer;
  }

  PhaseMeter decode_meter(engine_);
  Utf8Stream characters;
  // An exception must not pass through the pass that is running: it is kept and thrown afterwards.
  std::exception_ptr thrown;
  auto show = [&](const std::string& text) {
    answer.text += text;
    if (stream_ && !text.empty()) print(text);
  };
  auto on_token = [&](i32 token) {
    try {
      answer.tokens.push_back(token);
      show(characters.push(tokenizer_.bytes(token)));
      return true;
    } catch (...) {
      thrown = std::current_exception();
      return false;
    }
  };
  answer.result = session_.generate(options_.predict, sampler_, on_token, &interrupt_flag());
  answer.report.decode = decode_meter.stop(answer.result.tokens);
  answer.report.logits_hash = session_.logits_hash();
  if (thrown) std::rethrow_exception(thrown);
  show(characters.finish());
  return answer;
}

}  // namespace stoker

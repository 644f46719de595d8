// stoker run: answers a prompt, or holds a conversation. The answer goes to stdout, everything else to
// stderr.
#include <optional>

#include "runtime/engine.h"
#include "runtime/tokenizer/tokenizer.h"
#include "runtime/tokenizer/utf8.h"
#include "scheduler/model_file/gguf.h"
#include "tools/answer.h"
#include "tools/commands.h"
#include "tools/conversation.h"
#include "tools/engine_setup.h"
#include "tools/interrupt.h"
#include "tools/report.h"
#include "tools/terminal.h"
#include "tools/text_input.h"
#include "tools/timeline_report.h"

namespace stoker {

namespace {

std::string_view stop_name(StopReason reason) {
  switch (reason) {
    case StopReason::end_of_text:
      return "end_of_text";
    case StopReason::length:
      return "length";
    case StopReason::context_full:
      return "context_full";
    case StopReason::interrupted:
      return "interrupted";
    case StopReason::failed:
      return "failed";
  }
  return "";
}

nlohmann::ordered_json answer_json(const Options& o, const Engine& engine, const Answer& a) {
  return {
      {"model", o.model},
      {"text", a.text},
      {"stop", stop_name(a.result.reason)},
      {"seed", a.report.seed},
      {"logits_hash", fmt::format("{:016x}", a.report.logits_hash)},
      {"prompt", to_json(a.report.prompt)},
      {"decode", to_json(a.report.decode)},
      {"engine", engine_json(engine)},
      {"prediction", prediction_json(engine)},
  };
}

// What every answer of this process shares.
struct Run {
  const Options& options;
  Engine& engine;
  const Tokenizer& tokenizer;
  f64 memory_gb_per_second = 0;  // measured for --perf, else 0
};

// After the answer's text: the report, or the JSON object. Returns the exit code that this answer would give.
int finish_answer(const Run& run, const Answer& a) {
  const Options& o = run.options;
  const Engine& engine = run.engine;
  if (!o.json && !a.text.empty() && a.text.back() != '\n') print("\n");
  if (a.result.reason == StopReason::failed) {
    note("stoker: error: {}", a.result.status.message());
    return 1;
  }
  if (a.result.reason == StopReason::context_full) {
    note("stoker: the context of {} tokens is full; -c sets its size", o.context);
  }
  if (o.json) {
    print(answer_json(o, engine, a).dump() + "\n");
  } else {
    note_line("");
    note_run_report(engine, a.report);
    if (o.perf) note_perf_table(engine, a.report.decode, run.memory_gb_per_second);
  }
  return a.result.reason == StopReason::interrupted ? kInterruptedExit : 0;
}

// The user's next message; nullopt at the end of input or when the user leaves with Ctrl-C.
std::optional<std::string> next_message() {
  bool was_interrupted = false;
  while (true) {
    show_prompt("> ");
    bool interrupted = false;
    std::optional<std::string> line = read_line(interrupted);
    if (interrupted) {
      interrupt_flag() = false;
      note_line("");
      if (was_interrupted) return std::nullopt;
      was_interrupted = true;
      note_line("(Ctrl-C again or Ctrl-D to leave)");
      continue;
    }
    if (!line || !line->empty()) return line;
  }
}

int converse(const Run& run, Conversation& conversation, std::string first) {
  Answerer answerer(run.engine, run.tokenizer, run.options, /*stream=*/!run.options.json);
  std::optional<std::string> message = first.empty() ? next_message() : std::move(first);
  for (; message; message = next_message()) {
    if (std::optional<i64> bad = first_invalid_utf8(*message)) {
      note("stoker: error: the message is not valid UTF-8 at byte {}; it was not sent", *bad);
      continue;
    }
    std::vector<i32> tokens = conversation.user_says(*message);
    interrupt_flag() = false;
    Answer answer = answerer.answer(tokens_to_feed(answerer.session(), tokens));
    if (int code = finish_answer(run, answer); code == 1) return 1;
    conversation.answered(answer.text, answer.tokens);
    interrupt_flag() = false;
  }
  return 0;
}

int answer_once(const Run& run, const std::vector<i32>& prompt) {
  Answerer answerer(run.engine, run.tokenizer, run.options, /*stream=*/!run.options.json);
  return finish_answer(run, answerer.answer(prompt));
}

void require_room(const Options& o, size_t tokens) {
  i64 count = static_cast<i64>(tokens);
  if (count == 0) fail("the prompt is empty");
  if (count > o.context)
    fail("the prompt has {} tokens, more than the context of {}; use -c {} or more", count, o.context, count);
}

}  // namespace

int run_command(const Options& o) {
  std::string text = o.prompt;
  if (!o.file.empty()) text = read_text_file(o.file);
  require_utf8(text, o.file.empty() ? "-p" : o.file);
  require_utf8(o.system_prompt, "-sys");

  // The header alone says whether the prompt fits, so nobody waits minutes for weights to learn that it does
  // not.
  Gguf gguf = Gguf::open(o.model);
  Tokenizer tokenizer = Tokenizer::from_gguf(gguf);
  Conversation conversation(tokenizer, o);
  note_line(conversation.describe());
  std::vector<i32> prompt;
  if (!o.chat) {
    prompt = conversation.user_says(text);
    require_room(o, prompt.size());
  }

  f64 memory_speed = o.perf && !o.json ? measure_memory_roof(static_cast<int>(o.threads)) : 0;
  EngineOptions settings = engine_options(o);
  settings.save_popularity = true;
  std::unique_ptr<Engine> engine = load_engine(settings);
  Run run{o, *engine, tokenizer, memory_speed};
  int code = o.chat ? converse(run, conversation, text) : answer_once(run, prompt);
  plot_recall(*engine, o.plot_recall);
  if (!o.timeline_file.empty()) write_chrome_trace(*engine->timeline(), o.timeline_file);
  return code;
}

}  // namespace stoker

#include "tools/serve/completion.h"

#include <chrono>
#include <iterator>

#include "runtime/engine.h"
#include "runtime/grammar/grammar_filter.h"
#include "runtime/tokenizer/tokenizer.h"
#include "runtime/tokenizer/utf8.h"
#include "tools/serve/reasoning.h"
#include "tools/serve/stop_strings.h"

namespace stoker {

struct Completion::Events {
  std::mutex mutex;
  std::condition_variable arrived;
  std::deque<CompletionEvent> queue;

  void add(CompletionEvent event) {
    {
      std::lock_guard lock(mutex);
      queue.push_back(std::move(event));
    }
    arrived.notify_one();
  }
};

// From the tokens of one generation to its events, on the engine's threads.
class Completion::Choice {
 public:
  Choice(size_t index, const CompletionWish& wish, const Tokenizer& tokenizer, std::shared_ptr<Events> events)
      : index_(index),
        tokenizer_(tokenizer),
        events_(std::move(events)),
        stop_(wish.stop),
        reasoning_(wish.split_reasoning, wish.open_reasoning),
        calls_(wish.tools, fmt::format("{}{}-", wish.call_id_prefix, index)) {}

  // False: a stop string is complete.
  bool token(const GeneratedToken& token) {
    std::string bytes(tokenizer_.bytes(token.token));
    tokens_.push_back({bytes, token});
    CompletionEvent event;
    split(stop_.push(characters_.push(bytes)), event);
    if (!event.content.empty() || !event.reasoning.empty() || !event.calls.empty()) add(std::move(event));
    return !stop_.found();
  }

  void done(const GenerationResult& result) {
    std::string rest = stop_.push(characters_.finish());
    rest += stop_.finish();
    CompletionEvent event;
    split(rest, event);
    Reasoning::Parts last = reasoning_.finish();
    event.reasoning += last.reasoning;
    take(calls_.push(last.content), event);
    take(calls_.finish(), event);
    event.result = result;
    add(std::move(event));
  }

 private:
  void split(const std::string& text, CompletionEvent& event) {
    Reasoning::Parts parts = reasoning_.push(text);
    event.reasoning += parts.reasoning;
    take(calls_.push(parts.content), event);
  }
  static void take(ToolCalls::Parts parts, CompletionEvent& event) {
    event.content += parts.content;
    std::move(parts.calls.begin(), parts.calls.end(), std::back_inserter(event.calls));
  }
  void add(CompletionEvent event) {
    event.choice = index_;
    event.tokens = std::exchange(tokens_, {});
    event.stop_string = stop_.which();
    events_->add(std::move(event));
  }

  size_t index_;
  const Tokenizer& tokenizer_;
  std::shared_ptr<Events> events_;
  Utf8Stream characters_;
  StopStrings stop_;
  Reasoning reasoning_;
  ToolCalls calls_;
  std::vector<TokenText> tokens_;
};

Completion::Completion(Batcher& batcher, const CompletionWish& wish) : events_(std::make_shared<Events>()) {
  const Tokenizer& tokenizer = batcher.engine().tokenizer();
  for (const std::vector<i32>& prompt : wish.prompts) {
    for (i64 copy = 0; copy < wish.copies; copy++) {
      auto choice = std::make_shared<Choice>(generations_.size(), wish, tokenizer, events_);
      auto generation = std::make_shared<Generation>();
      generation->prompt = prompt;
      generation->max_tokens = wish.max_tokens;
      generation->sampler = wish.sampler;
      generation->sampler.seed += static_cast<u64>(copy);
      generation->reuse_prefix = wish.reuse_prefix;
      generation->slot = wish.slot;
      generation->top_logprobs = wish.top_logprobs;
      if (wish.rules) generation->filter = std::make_unique<GrammarFilter>(wish.rules, wish.vocabulary);
      generation->on_token = [choice](const GeneratedToken& token) { return choice->token(token); };
      generation->on_done = [choice](const GenerationResult& result) { choice->done(result); };
      generations_.push_back(std::move(generation));
    }
  }
  if (static_cast<i64>(generations_.size()) > batcher.capacity())
    throw ApiError(400, fmt::format("{} choices are more than this server takes at once, {}; ask for fewer (n, prompt), or "
                                    "start it with a larger --parallel or --queue",
                                    generations_.size(), batcher.capacity()), "n");
  bool taken = false;
  try {
    taken = batcher.submit(generations_);
  } catch (const Error& e) {
    throw ApiError(400, e.what());
  }
  if (!taken) throw ApiError(429, fmt::format("all {} slots are busy and the queue is full; try again later", batcher.slots()));
}

Completion::~Completion() {
  for (const auto& generation : generations_) generation->cancel();
}

std::optional<CompletionEvent> Completion::next(int milliseconds) {
  std::unique_lock lock(events_->mutex);
  events_->arrived.wait_for(lock, std::chrono::milliseconds(milliseconds), [&] { return !events_->queue.empty(); });
  if (events_->queue.empty()) return std::nullopt;
  CompletionEvent event = std::move(events_->queue.front());
  events_->queue.pop_front();
  if (event.result) ended_++;
  return event;
}

}  // namespace stoker

// Completion: the generations of one request as a stream of events: text of choice 0, 1, ..., and each one's end. The
// engine's threads make the events, the request's thread takes them.
#pragma once

#include <condition_variable>
#include <deque>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "runtime/batcher.h"
#include "runtime/grammar/token_trie.h"
#include "tools/serve/api_error.h"
#include "tools/serve/tool_calls.h"

namespace stoker {

class Tokenizer;
struct Grammar;

// What a request asks for.
struct CompletionWish {
  std::vector<std::vector<i32>> prompts;  // choices come in their order, `copies` of each
  i64 copies = 1;
  i64 max_tokens = -1;
  SamplerOptions sampler;  // copies get the seed, seed + 1, ...
  std::vector<std::string> stop;
  bool reuse_prefix = true;
  i64 slot = -1;  // see Generation
  i64 top_logprobs = -1;
  bool split_reasoning = false;  // text between <think> and </think> is told apart
  bool open_reasoning = false;   // the prompt ends in <think>
  const ToolMarkup* tools = nullptr;  // calls of functions are told apart; must outlive the completion
  std::string call_id_prefix;
  std::shared_ptr<const Grammar> rules;  // null: any text
  std::shared_ptr<const TokenTrie> vocabulary;  // for rules
};

struct TokenText {
  std::string bytes;
  GeneratedToken token;
};

struct CompletionEvent {
  size_t choice = 0;
  std::string reasoning, content;
  std::vector<ToolCallPiece> calls;
  std::vector<TokenText> tokens;          // that were generated since the last event of this choice
  std::optional<GenerationResult> result;  // of the choice's last event
  std::string stop_string;                // that ended it
};

class Completion {
 public:
  // Throws ApiError: 400 for a prompt that does not fit, 429 when too many wait.
  Completion(Batcher& batcher, const CompletionWish& wish);
  // Cancels what still runs.
  ~Completion();
  Completion(const Completion&) = delete;
  Completion& operator=(const Completion&) = delete;

  size_t choices() const { return generations_.size(); }
  // The next event; nullopt after `milliseconds` without one. After each choice's last there are no more.
  std::optional<CompletionEvent> next(int milliseconds);
  bool finished() const { return ended_ == choices(); }  // all last events were taken

 private:
  class Choice;
  struct Events;
  std::shared_ptr<Events> events_;  // callbacks hold it too: they may come after this is gone
  std::vector<std::shared_ptr<Generation>> generations_;
  size_t ended_ = 0;
};

}  // namespace stoker

// Service: what the endpoints share: the batcher, the model's name and chat format, and the command line's defaults.
#pragma once

#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "runtime/batcher.h"
#include "runtime/tokenizer/chat_template.h"
#include "scheduler/sim/sim_machine.h"
#include "tools/options.h"
#include "tools/serve/completion.h"
#include "tools/serve/request_body.h"
#include "tools/serve/tool_fields.h"

namespace stoker {

constexpr i64 kMostCopies = 128;  // n of a request

class Service {
 public:
  // `machine`: this one as it was measured, or none. Throws Error when the file has no tokenizer.
  Service(Batcher& batcher, const Options& options, std::optional<SimMachine> machine);

  Batcher& batcher() const { return batcher_; }
  const Engine& engine() const { return batcher_.engine(); }
  const Tokenizer& tokenizer() const;
  const Options& options() const { return options_; }
  const std::string& model() const { return model_; }  // --alias, or the file's name
  const std::optional<SimMachine>& machine() const { return machine_; }
  i64 started() const { return started_; }             // seconds since 1970

  // The fields that all generating endpoints have: sampling, limits, stop strings.
  CompletionWish wish(const RequestBody& body) const;
  // messages, tools -> prompt, whether the answer begins inside <think>, and the rules of what it may be.
  void add_chat_prompt(const RequestBody& body, CompletionWish& wish) const;
  std::string chat_prompt_text(const RequestBody& body) const;
  // A string, an array of ids, or an array of either; and the rules.
  void add_text_prompts(const RequestBody& body, CompletionWish& wish) const;

  u64 model_id() const;  // of slot files; read from the model once

  // "chatcmpl-..." with a number that is new each time.
  std::string new_id(std::string_view prefix) const;

 private:
  struct Chat {
    std::vector<ChatMessage> messages;
    ChatOptions options;
    ToolWish tools;
  };
  Chat read_chat(const RequestBody& body) const;
  void set_rules(std::shared_ptr<const Grammar> rules, CompletionWish& wish) const;

  Batcher& batcher_;
  const Options& options_;
  std::optional<SimMachine> machine_;
  std::string model_;
  ChatTemplate template_;
  i64 started_;
  mutable std::once_flag model_id_once_, vocabulary_once_;
  mutable u64 model_id_ = 0;
  mutable std::shared_ptr<const TokenTrie> vocabulary_;  // made for the first request that has rules
};

i64 unix_seconds();

}  // namespace stoker

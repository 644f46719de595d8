// AnswerForm: how one endpoint writes a completion down, whole or as a stream of objects.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "tools/serve/completion.h"
#include "tools/serve/service.h"

namespace stoker {

// A choice that has ended, or what there is of it.
struct ChoiceText {
  std::string reasoning, content, stop_string;
  std::vector<ToolCallPiece> calls;  // one piece each
  std::vector<TokenText> tokens;
  GenerationResult result;

  void add(const CompletionEvent& event);
};

class AnswerForm {
 public:
  virtual ~AnswerForm() = default;

  virtual Json whole(const std::vector<ChoiceText>& choices) const = 0;
  // The objects that an event of a stream becomes, written: what every token passes. `so_far` has the event's choice with the
  // event in it.
  virtual std::vector<std::string> pieces(const CompletionEvent& event, const ChoiceText& so_far) const = 0;
  virtual std::vector<Json> opening(size_t choices) const;                          // before all events
  virtual std::vector<Json> closing(const std::vector<ChoiceText>& choices) const;  // after all events
  virtual bool ends_with_done() const { return true; }                             // "data: [DONE]"
};

std::unique_ptr<AnswerForm> chat_form(const Service& service, const RequestBody& body);          // OpenAI's chat
std::unique_ptr<AnswerForm> text_form(const Service& service, const RequestBody& body);          // OpenAI's completions
std::unique_ptr<AnswerForm> native_form(const Service& service, const CompletionWish& wish);     // llama-server's

// What forms have in common.
std::string_view finish_reason(const GenerationResult& result);  // "stop", "length"
Json usage_json(const std::vector<ChoiceText>& choices, i64 copies);  // of each prompt, which counts once
Json timings_json(const GenerationResult& result);
Json byte_array(const std::string& bytes);  // of numbers
// The part of `bytes` that is text; what is cut in the middle of a character becomes U+FFFD.
std::string valid_text(const std::string& bytes);

}  // namespace stoker

// The fields of a request that are about functions: tools, tool_choice, parallel_tool_calls, and calls in messages.
#pragma once

#include <string>
#include <vector>

#include "runtime/tokenizer/chat_template.h"
#include "tools/serve/request_body.h"

namespace stoker {

struct ToolWish {
  enum class Choice { automatic, required };
  std::vector<ChatTool> tools;   // none: functions are not called; with tool_choice "none" too
  std::vector<Json> parameters;  // their schemas
  Choice choice = Choice::automatic;
  std::string only;  // "": any of them
  bool parallel = true;
};

ToolWish tools_of(const RequestBody& body);

// tool_calls of an assistant's message; `field` is the message.
std::vector<ToolCall> tool_calls_of(const RequestBody& message, const std::string& field);

}  // namespace stoker

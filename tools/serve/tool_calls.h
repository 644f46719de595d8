// ToolCalls: takes the calls of functions out of an answer's text, as it comes. What a model writes there that is no call is
// text again. One owner.
#pragma once

#include <string>
#include <vector>

#include "kernels/base/types.h"
#include "runtime/tokenizer/tool_markup.h"

namespace stoker {

// A call, or more of its arguments.
struct ToolCallPiece {
  i64 index = 0;          // of the call in the answer
  std::string id;         // with the first piece of a call, "" later; and so is the name
  std::string name;
  std::string arguments;
};

class ToolCalls {
 public:
  struct Parts {
    std::string content;
    std::vector<ToolCallPiece> calls;
  };
  // Null: all text is content. `id_prefix` is followed by a call's number.
  ToolCalls(const ToolMarkup* markup, std::string id_prefix) : markup_(markup), id_prefix_(std::move(id_prefix)) {}

  Parts push(const std::string& text);
  Parts finish();  // the end of the text: what was held back

 private:
  enum class State { content, between, name, arguments };
  bool advance(Parts& out, bool last);
  bool take_content(Parts& out, bool last);
  bool take_between(Parts& out, bool last);
  bool take_name(Parts& out, bool last);
  bool take_odd_call(Parts& out, size_t begin, size_t end);
  bool take_arguments(Parts& out, bool last);
  void begin_call(Parts& out, std::string name);

  const ToolMarkup* markup_;
  std::string id_prefix_;
  State state_ = State::content;
  i64 calls_ = 0;
  bool fenced_ = false;  // the call under way is written in V3's way
  std::string held_;
};

}  // namespace stoker

// ToolMarkup: how DeepSeek's models write calls of functions and read what came of them (the chat templates of DeepSeek-V3
// and V3.1):
//
//   V3     <｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>NAME\n```json\nARGUMENTS\n```<｜tool▁call▁end｜>
//          \n<｜tool▁call▁begin｜>...<｜tool▁call▁end｜><｜tool▁calls▁end｜>
//          <｜tool▁outputs▁begin｜><｜tool▁output▁begin｜>TEXT<｜tool▁output▁end｜>\n<｜tool▁output▁begin｜>...<｜tool▁outputs▁end｜>
//   V3.1   <｜tool▁calls▁begin｜><｜tool▁call▁begin｜>NAME<｜tool▁sep｜>ARGUMENTS<｜tool▁call▁end｜>...<｜tool▁calls▁end｜>
//          <｜tool▁output▁begin｜>TEXT<｜tool▁output▁end｜>...
#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace stoker {

struct ToolMarkup {
  std::string_view calls_begin = "<｜tool▁calls▁begin｜>", calls_end = "<｜tool▁calls▁end｜>";
  std::string_view call_begin = "<｜tool▁call▁begin｜>", call_end = "<｜tool▁call▁end｜>";
  std::string_view separator = "<｜tool▁sep｜>";
  std::string_view outputs_begin = "<｜tool▁outputs▁begin｜>", outputs_end = "<｜tool▁outputs▁end｜>";
  std::string_view output_begin = "<｜tool▁output▁begin｜>", output_end = "<｜tool▁output▁end｜>";
  // V3's way, with what stands around name and arguments; else V3.1's.
  bool fenced = true;
  std::string_view kind = "function", fence_begin = "\n```json\n", fence_end = "\n```";
};

// A function that the model may call.
struct ChatTool {
  std::string name, description;
  std::string parameters;  // JSON Schema as text
};

// A call that the model made.
struct ToolCall {
  std::string name;
  std::string arguments;  // JSON, as the model wrote it
};

}  // namespace stoker

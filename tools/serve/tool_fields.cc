#include "tools/serve/tool_fields.h"

#include <algorithm>

namespace stoker {

namespace {

// Names go into the prompt, and into a grammar as texts.
void check_name(const std::string& name, const std::string& field) {
  bool good = !name.empty() && name.size() <= 64 && std::all_of(name.begin(), name.end(), [](char c) {
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '_' || c == '-' || c == '.';
  });
  if (!good) bad_field(field, "a function's name is 1 to 64 letters, digits, _, - and .");
}

RequestBody object_at(const Json& value, const std::string& field) {
  if (!value.is_object()) bad_field(field, "must be an object, not {}", kind_of(value));
  return RequestBody::of(value);
}

std::string type_of(const RequestBody& body, const std::string& field) {
  std::string type = body.text("type", "function");
  if (type != "function") bad_field(field, "the type {} is not supported, only function", type);
  return type;
}

void read_choice(const Json& choice, ToolWish& wish) {
  if (choice == "none") {
    wish.tools.clear();
    wish.parameters.clear();
  } else if (choice == "required" || choice.is_object()) {
    wish.choice = ToolWish::Choice::required;
    if (wish.tools.empty()) bad_field("tool_choice", "there are no tools to choose from");
  } else if (choice != "auto") {
    bad_field("tool_choice", "must be none, auto, required, or an object that names a function");
  }
  if (!choice.is_object()) return;
  RequestBody named = RequestBody::of(choice);
  type_of(named, "tool_choice");
  wish.only = named.object("function").text("name", "");
  if (std::none_of(wish.tools.begin(), wish.tools.end(), [&](const ChatTool& t) { return t.name == wish.only; }))
    bad_field("tool_choice", "the function '{}' is not among tools", wish.only);
}

}  // namespace

ToolWish tools_of(const RequestBody& body) {
  ToolWish wish;
  const Json* tools = body.find("tools");
  if (tools != nullptr && !tools->is_array()) bad_field("tools", "must be an array, not {}", kind_of(*tools));
  for (size_t i = 0; tools != nullptr && i < tools->size(); i++) {
    std::string field = fmt::format("tools[{}]", i);
    RequestBody tool = object_at((*tools)[i], field);
    type_of(tool, field);
    if (tool.find("function") == nullptr) bad_field(field, "function is missing");
    RequestBody function = object_at(tool.need("function"), field + ".function");
    const Json* parameters = function.find("parameters");
    wish.parameters.push_back(parameters == nullptr ? Json{{"type", "object"}, {"properties", Json::object()}} : *parameters);
    object_at(wish.parameters.back(), field + ".function.parameters");
    wish.tools.push_back({function.need_text("name"), function.text("description", ""), to_text(wish.parameters.back())});
    check_name(wish.tools.back().name, field + ".function.name");
  }
  wish.parallel = body.boolean("parallel_tool_calls", true);
  if (const Json* choice = body.find("tool_choice")) read_choice(*choice, wish);
  return wish;
}

std::vector<ToolCall> tool_calls_of(const RequestBody& message, const std::string& field) {
  std::vector<ToolCall> calls;
  const Json* list = message.find("tool_calls");
  if (list == nullptr) return calls;
  if (!list->is_array()) bad_field(field, "tool_calls must be an array, not {}", kind_of(*list));
  for (const Json& item : *list) {
    RequestBody call = object_at(item, field);
    type_of(call, field);
    if (call.find("function") == nullptr) bad_field(field, "a call has no function");
    RequestBody function = object_at(call.need("function"), field);
    calls.push_back({function.need_text("name"), function.text("arguments", "{}")});
    check_name(calls.back().name, field);
  }
  return calls;
}

}  // namespace stoker

#include "runtime/tokenizer/chat_template.h"

#include <algorithm>

#include "kernels/base/error.h"
#include "kernels/base/log.h"

namespace stoker {
namespace {

constexpr std::string_view kBos = "<｜begin▁of▁sentence｜>";
constexpr std::string_view kEos = "<｜end▁of▁sentence｜>";
constexpr std::string_view kUser = "<｜User｜>";
constexpr std::string_view kAssistant = "<｜Assistant｜>";
constexpr std::string_view kThink = "<think>";
constexpr std::string_view kThinkEnd = "</think>";
constexpr std::string_view kKimiMiddle = "<|im_middle|>";
constexpr std::string_view kKimiEnd = "<|im_end|>";
constexpr std::string_view kKimiSystem = "<|im_system|>";
constexpr std::string_view kKimiUser = "<|im_user|>";
constexpr std::string_view kKimiAssistant = "<|im_assistant|>";
constexpr std::string_view kKimiDefaultSystem = "You are Kimi, an AI assistant created by Moonshot AI.";

struct FormatName {
  ChatFormat format;
  std::string_view name;
};
constexpr FormatName kNames[] = {
    {ChatFormat::Plain, "plain"},
    {ChatFormat::DeepseekV2, "deepseek-v2"},
    {ChatFormat::DeepseekV3, "deepseek-v3"},
    {ChatFormat::DeepseekR1, "deepseek-r1"},
    {ChatFormat::DeepseekV31, "deepseek-v3.1"},
    {ChatFormat::KimiK2, "kimi-k2"},
    {ChatFormat::KimiK2Thinking, "kimi-k2-thinking"},
};

bool contains(std::string_view text, std::string_view part) {
  return text.find(part) != std::string_view::npos;
}

// The part of a template that writes the generation prompt: from the last mention of its condition on.
std::string_view generation_part(std::string_view source) {
  const size_t at = source.rfind("add_generation_prompt");
  return at == std::string_view::npos ? std::string_view() : source.substr(at);
}

ChatFormat format_by_vocabulary(const TokenizerSpec& spec) {
  auto has = [&](std::string_view name) { return spec.find(name).has_value(); };
  if (has(kKimiUser) && has(kKimiMiddle))
    return has(kThink) ? ChatFormat::KimiK2Thinking : ChatFormat::KimiK2;
  // With <think> it may be V3-0324, R1 or V3.1. R1's way fits all: it differs from V3's only where an answer
  // thought.
  if (has(kUser) && has(kAssistant)) return has(kThink) ? ChatFormat::DeepseekR1 : ChatFormat::DeepseekV3;
  if (spec.pre == "deepseek-llm" && has(kBos)) return ChatFormat::DeepseekV2;
  return ChatFormat::Plain;
}

// The system message that a Kimi template writes when the conversation has none: text right after the markup,
// where otherwise the template's quote or expression would follow.
std::string kimi_default_system(std::string_view source) {
  const std::string markup = std::string(kKimiSystem) + "system" + std::string(kKimiMiddle);
  for (size_t at = source.find(markup); at != std::string_view::npos; at = source.find(markup, at + 1)) {
    const std::string_view rest = source.substr(at + markup.size());
    const size_t end = rest.find(kKimiEnd);
    if (end == 0 || end == std::string_view::npos || contains("'\"{<\\\n ", rest.substr(0, 1))) continue;
    return std::string(rest.substr(0, end));
  }
  return std::string(kKimiDefaultSystem);
}

}  // namespace

std::string_view chat_format_name(ChatFormat format) {
  for (const FormatName& row : kNames) {
    if (row.format == format) return row.name;
  }
  return "unknown";
}

ChatFormat chat_format_named(std::string_view name) {
  std::vector<std::string_view> names;
  for (const FormatName& row : kNames) {
    if (row.name == name) return row.format;
    names.push_back(row.name);
  }
  fail("unknown chat format '{}'; there are {}", name, fmt::join(names, ", "));
}

ChatFormat detect_chat_format(const TokenizerSpec& spec) {
  const std::string_view source = spec.chat_template;
  if (contains(source, kKimiMiddle)) {
    return contains(source, kThink) ? ChatFormat::KimiK2Thinking : ChatFormat::KimiK2;
  }
  if (contains(source, kUser) && contains(source, kAssistant)) {
    // V3.1 and V3.2 have a switch, a variable "thinking" or "enable_thinking"; R1 has not.
    if (contains(source, kThinkEnd)) {
      return contains(source, "thinking") ? ChatFormat::DeepseekV31 : ChatFormat::DeepseekR1;
    }
    return contains(generation_part(source), kThink) ? ChatFormat::DeepseekR1 : ChatFormat::DeepseekV3;
  }
  if (contains(source, "User: ") && contains(source, "Assistant:")) return ChatFormat::DeepseekV2;
  const ChatFormat format = format_by_vocabulary(spec);
  if (!source.empty()) {
    log_warning("{}: its chat template is none of the known ones; by its vocabulary it is taken for {}",
                spec.source, chat_format_name(format));
  }
  return format;
}

// What is being written: special tokens, and text in between. Neighbouring texts are tokenised as one, as the
// published tokenizers do with the whole page.
class ChatTemplate::Page {
 public:
  explicit Page(const Tokenizer& tokenizer) : t_(tokenizer) {}

  void token(i32 id) {
    flush();
    ids_.push_back(id);
  }
  // Markup that some vocabularies have as a token and others spell.
  void markup(std::string_view name) {
    const std::optional<i32> id = t_.find(name);
    if (id) return token(*id);
    text(name);
  }
  void text(std::string_view text) { pending_ += text; }
  void content(const ChatMessage& message) {
    if (message.ids.empty()) return text(message.content);
    flush();
    ids_.insert(ids_.end(), message.ids.begin(), message.ids.end());
  }
  std::vector<i32> finish() {
    flush();
    return std::move(ids_);
  }

 private:
  void flush() {
    t_.append(pending_, Added::none, ids_);
    pending_.clear();
  }

  const Tokenizer& t_;
  std::string pending_;
  std::vector<i32> ids_;
};

ChatTemplate::ChatTemplate(const Tokenizer& tokenizer)
    : ChatTemplate(tokenizer, detect_chat_format(tokenizer.spec())) {}

ChatTemplate::ChatTemplate(const Tokenizer& tokenizer, ChatFormat format)
    : tokenizer_(tokenizer), format_(format) {
  read_features();
  switch (format_) {
    case ChatFormat::Plain:
    case ChatFormat::DeepseekV2:
      break;
    case ChatFormat::DeepseekV3:
    case ChatFormat::DeepseekR1:
    case ChatFormat::DeepseekV31:
      for (const std::string_view token : {kUser, kAssistant}) need(token);
      break;
    case ChatFormat::KimiK2:
    case ChatFormat::KimiK2Thinking:
      for (const std::string_view token : {kKimiSystem, kKimiUser, kKimiAssistant, kKimiMiddle, kKimiEnd})
        need(token);
      break;
  }
}

void ChatTemplate::read_features() {
  const std::string_view source = tokenizer_.spec().chat_template;
  const std::string_view generation = generation_part(source);
  if (const size_t at = generation.find(kThink); at != std::string_view::npos) {
    open_think_ = true;
    const std::string_view after = generation.substr(at + kThink.size());
    open_think_line_ = after.starts_with("\n") || after.starts_with("\\n");
  }
  default_system_ = kimi_default_system(source);
}

i32 ChatTemplate::need(std::string_view token) const {
  const std::optional<i32> id = tokenizer_.find(token);
  if (id) return *id;
  fail("{}: the chat format {} needs the token '{}', which the vocabulary lacks; choose another format",
       tokenizer_.spec().source, chat_format_name(format_), token);
}

bool ChatTemplate::has_thinking_switch() const {
  return format_ == ChatFormat::DeepseekV31 || format_ == ChatFormat::KimiK2Thinking;
}

bool ChatTemplate::may_open_thinking() const {
  return format_ == ChatFormat::DeepseekR1 || format_ == ChatFormat::KimiK2Thinking;
}

const ToolMarkup* ChatTemplate::tool_markup() const {
  static const ToolMarkup v3, v31{.fenced = false};
  if (format_ == ChatFormat::KimiK2 || format_ == ChatFormat::KimiK2Thinking) return nullptr;
  return format_ == ChatFormat::DeepseekV31 ? &v31 : &v3;
}

bool ChatTemplate::keeps_prefix(bool thinking) const {
  if (format_ == ChatFormat::DeepseekR1) return false;
  return !has_thinking_switch() || !thinking;
}

std::vector<i32> ChatTemplate::render(std::span<const ChatMessage> messages,
                                      const ChatOptions& options) const {
  Page page(tokenizer_);
  make_page(page, messages, options);
  return page.finish();
}

std::string ChatTemplate::render_text(std::span<const ChatMessage> messages,
                                      const ChatOptions& options) const {
  return tokenizer_.decode(render(messages, options));
}

void ChatTemplate::make_page(Page& page, std::span<const ChatMessage> given,
                             const ChatOptions& options) const {
  std::vector<ChatMessage> messages(given.begin(), given.end());
  for (ChatMessage& message : messages) {
    while (!message.ids.empty() && tokenizer_.is_end(message.ids.back())) {
      message.ids.pop_back();
      if (message.ids.empty()) message.content.clear();  // it was generated, and it was nothing but the end
    }
  }
  const bool with_tools = !options.tools.empty() || std::any_of(given.begin(), given.end(), [](const ChatMessage& m) {
    return m.role == ChatRole::tool || !m.tool_calls.empty();
  });
  if (with_tools && tool_markup() == nullptr) fail("the chat format {} has no tools here", chat_format_name(format_));
  const TokenizerSpec& spec = tokenizer_.spec();
  const bool deepseek =
      format_ != ChatFormat::Plain && format_ != ChatFormat::KimiK2 && format_ != ChatFormat::KimiK2Thinking;
  if (deepseek && spec.bos < 0) {
    page.token(need(kBos));
  } else if (deepseek || spec.add_bos) {
    page.token(spec.bos);
  }
  switch (format_) {
    case ChatFormat::Plain:
      return write_plain(page, messages, options);
    case ChatFormat::DeepseekV2:
      return write_deepseek_v2(page, messages, options);
    case ChatFormat::DeepseekV3:
    case ChatFormat::DeepseekR1:
    case ChatFormat::DeepseekV31:
      return write_deepseek(page, messages, options);
    case ChatFormat::KimiK2:
    case ChatFormat::KimiK2Thinking:
      return write_kimi(page, messages, options);
  }
}

// The words are those of DeepSeek-V3.1's model card.
void ChatTemplate::write_tools(Page& page, const std::vector<ChatTool>& tools) const {
  const ToolMarkup& m = *tool_markup();
  page.text("## Tools\nYou have access to the following tools:\n");
  for (const ChatTool& tool : tools) {
    page.text("\n### " + tool.name + "\nDescription: " + tool.description + "\n\nParameters: " + tool.parameters + "\n");
  }
  page.text("\nIMPORTANT: ALWAYS adhere to this exact format for tool use:\n");
  page.markup(m.calls_begin);
  page.markup(m.call_begin);
  page.text(m.fenced ? m.kind : "tool_call_name");
  page.markup(m.separator);
  if (m.fenced) {
    page.text("tool_call_name");
    page.text(m.fence_begin);
  }
  page.text("tool_call_arguments");
  if (m.fenced) page.text(m.fence_end);
  page.markup(m.call_end);
  page.text("{additional_tool_calls}");
  page.markup(m.calls_end);
  page.text(
      "\n\nWhere:\n\n- `tool_call_name` must be an exact match to one of the available tools\n- `tool_call_arguments` must be "
      "valid JSON that strictly follows the tool's Parameters Schema\n");
  page.text(m.fenced ? "- For multiple tool calls, put each on a line of its own\n"
                     : "- For multiple tool calls, chain them directly without separators or spaces\n");
}

void ChatTemplate::write_answer(Page& page, const ChatMessage& message) const {
  page.content(message);
  if (message.tool_calls.empty()) return;
  const ToolMarkup& m = *tool_markup();
  page.markup(m.calls_begin);
  bool first = true;
  for (const ToolCall& call : message.tool_calls) {
    if (!first && m.fenced) page.text("\n");
    first = false;
    page.markup(m.call_begin);
    page.text(m.fenced ? m.kind : call.name);
    page.markup(m.separator);
    if (m.fenced) {
      page.text(call.name);
      page.text(m.fence_begin);
    }
    page.text(call.arguments);
    if (m.fenced) page.text(m.fence_end);
    page.markup(m.call_end);
  }
  page.markup(m.calls_end);
}

// Message `index`, what a call returned; V3 puts all that follow each other between marks. True: the model goes on here.
bool ChatTemplate::write_output(Page& page, std::span<const ChatMessage> messages, size_t index) const {
  const ToolMarkup& m = *tool_markup();
  auto is_tool = [&](size_t i) { return i < messages.size() && messages[i].role == ChatRole::tool; };
  const bool first = index == 0 || !is_tool(index - 1), last = !is_tool(index + 1);
  if (m.fenced) {
    if (first) {
      page.markup(m.outputs_begin);
    } else {
      page.text("\n");
    }
  }
  page.markup(m.output_begin);
  page.content(messages[index]);
  page.markup(m.output_end);
  if (m.fenced && last) page.markup(m.outputs_end);
  return last;
}

void ChatTemplate::write_plain(Page& page, std::span<const ChatMessage> messages, const ChatOptions& options) const {
  if (!options.tools.empty()) write_tools(page, options.tools);
  bool first = true;
  for (size_t i = 0; i < messages.size(); i++) {
    const ChatMessage& message = messages[i];
    if (!first && message.role != ChatRole::assistant) page.text("\n");
    first = false;
    if (message.role == ChatRole::tool) {
      write_output(page, messages, i);
    } else {
      write_answer(page, message);
    }
  }
}

void ChatTemplate::write_deepseek_v2(Page& page, std::span<const ChatMessage> messages,
                                     const ChatOptions& options) const {
  const i32 eos = tokenizer_.spec().eos >= 0 ? tokenizer_.spec().eos : need(kEos);
  if (!options.tools.empty()) {
    write_tools(page, options.tools);
    page.text("\n");
  }
  bool goes_on = false;  // after a tool's output
  for (size_t i = 0; i < messages.size(); i++) {
    const ChatMessage& message = messages[i];
    switch (message.role) {
      case ChatRole::system:
        page.content(message);
        page.text("\n\n");
        break;
      case ChatRole::user:
        page.text("User: ");
        page.content(message);
        page.text("\n\n");
        break;
      case ChatRole::assistant:
        if (!goes_on) page.text("Assistant:");
        if (!goes_on && message.ids.empty()) page.text(" ");  // generated tokens bring their own space
        write_answer(page, message);
        page.token(eos);
        break;
      case ChatRole::tool:
        break;
    }
    goes_on = message.role == ChatRole::tool && write_output(page, messages, i);
  }
  if (options.add_generation_prompt && !goes_on) page.text("Assistant:");
}

void ChatTemplate::write_deepseek(Page& page, std::span<const ChatMessage> messages,
                                  const ChatOptions& options) const {
  const bool switched = format_ == ChatFormat::DeepseekV31;
  const bool strips = switched || format_ == ChatFormat::DeepseekR1;
  const std::optional<i32> named_eos = tokenizer_.find(kEos);
  const i32 eos = named_eos ? *named_eos : tokenizer_.spec().eos;
  if (eos < 0) need(kEos);
  bool first = true;
  for (const ChatMessage& message : messages) {
    if (message.role != ChatRole::system) continue;
    if (!first) page.text("\n\n");
    page.content(message);
    first = false;
  }
  if (!options.tools.empty()) {
    if (!first) page.text("\n\n");
    write_tools(page, options.tools);
  }
  bool goes_on = false;  // after a tool's output
  for (size_t i = 0; i < messages.size(); i++) {
    const ChatMessage& message = messages[i];
    if (message.role == ChatRole::user) {
      page.token(need(kUser));
      page.content(message);
    } else if (message.role == ChatRole::assistant) {
      if (!goes_on) page.token(need(kAssistant));
      if (!goes_on && switched) page.markup(kThinkEnd);
      write_answer(page, strips ? without_thinking(message) : message);
      page.token(eos);
    }
    if (message.role != ChatRole::system) goes_on = message.role == ChatRole::tool && write_output(page, messages, i);
  }
  if (!options.add_generation_prompt || goes_on) return;
  page.token(need(kAssistant));
  if (switched) return page.markup(options.thinking ? kThink : kThinkEnd);
  if (format_ != ChatFormat::DeepseekR1 || !open_think_) return;
  page.markup(kThink);
  if (open_think_line_) page.text("\n");
}

void ChatTemplate::write_kimi(Page& page, std::span<const ChatMessage> messages,
                              const ChatOptions& options) const {
  const bool thinks = format_ == ChatFormat::KimiK2Thinking;
  auto begin = [&](std::string_view token, std::string_view role) {
    page.token(need(token));
    page.text(role);
    page.token(need(kKimiMiddle));
  };
  auto empty_thinking = [&] {
    page.markup(kThink);
    page.markup(kThinkEnd);
  };
  if (messages.empty() || messages[0].role != ChatRole::system) {
    begin(kKimiSystem, "system");
    page.text(default_system_);
    page.token(need(kKimiEnd));
  }
  for (const ChatMessage& message : messages) {
    switch (message.role) {
      case ChatRole::system:
        begin(kKimiSystem, "system");
        break;
      case ChatRole::user:
        begin(kKimiUser, "user");
        break;
      case ChatRole::assistant:
        begin(kKimiAssistant, "assistant");
        break;
      case ChatRole::tool:  // make_page() refuses it
        break;
    }
    const bool strip = thinks && message.role == ChatRole::assistant;
    if (strip) empty_thinking();
    page.content(strip ? without_thinking(message) : message);
    page.token(need(kKimiEnd));
  }
  if (!options.add_generation_prompt) return;
  begin(kKimiAssistant, "assistant");
  if (!thinks) return;
  if (!options.thinking) {
    empty_thinking();
  } else if (open_think_) {
    page.markup(kThink);
  }
}

// V3.1 cuts at the first </think>, the others at the last.
ChatMessage ChatTemplate::without_thinking(const ChatMessage& message) const {
  const bool first = format_ == ChatFormat::DeepseekV31;
  ChatMessage out = message;
  if (!message.ids.empty()) {
    if (const std::optional<i32> end = tokenizer_.find(kThinkEnd)) {
      auto at = std::find(out.ids.begin(), out.ids.end(), *end);
      if (!first && at != out.ids.end()) at = std::find(out.ids.rbegin(), out.ids.rend(), *end).base() - 1;
      if (at != out.ids.end()) out.ids.erase(out.ids.begin(), at + 1);
      if (out.ids.empty()) out.content.clear();
      return out;
    }
    out.content =
        tokenizer_.decode(message.ids);  // </think> is spelled, so it has to be looked for in the text
    if (!contains(out.content, kThinkEnd)) return out;
    out.ids.clear();
  }
  const size_t at = first ? out.content.find(kThinkEnd) : out.content.rfind(kThinkEnd);
  if (at != std::string::npos) out.content.erase(0, at + kThinkEnd.size());
  return out;
}

}  // namespace stoker

#include "tools/serve/service.h"

#include <atomic>
#include <chrono>
#include <filesystem>

#include "runtime/engine.h"
#include "runtime/slot_file.h"
#include "runtime/tokenizer/tokenizer.h"
#include "tools/serve/output_rules.h"
#include "tools/serve/sampling_fields.h"

namespace stoker {

namespace {

constexpr i64 kMany = i64{1} << 30;
constexpr i64 kMostStops = 16;

ChatRole role_named(const std::string& name, const std::string& field) {
  if (name == "system" || name == "developer") return ChatRole::system;
  if (name == "user") return ChatRole::user;
  if (name == "assistant") return ChatRole::assistant;
  if (name == "tool") return ChatRole::tool;
  bad_field(field, "the role {} is not supported; roles are system, user, assistant and tool", name);
}

// A string, or an array of {"type": "text", "text": ...}.
std::string content_text(const RequestBody& message, const std::string& field) {
  const Json* content = message.find("content");
  if (content == nullptr) bad_field(field, "content is missing");
  if (content->is_string()) return content->get<std::string>();
  if (!content->is_array()) bad_field(field, "content must be a string or an array of text parts");
  std::string text;
  for (const Json& item : *content) {
    if (!item.is_object()) bad_field(field, "a part of content must be an object");
    RequestBody part = RequestBody::of(item);
    std::string type = part.need_text("type");
    if (type != "text") bad_field(field, "content of the type {} is not supported, only text", type);
    text += part.need_text("text");
  }
  return text;
}

i64 max_tokens(const RequestBody& body, i64 otherwise) {
  for (const char* field : {"max_completion_tokens", "max_tokens", "n_predict"})
    if (body.find(field) != nullptr) return body.integer(field, -1, -1, kMany);
  return otherwise;
}

bool ends_with(const std::string& text, std::string_view end) {
  size_t size = text.find_last_not_of("\r\n") + 1;
  return size >= end.size() && text.compare(size - end.size(), end.size(), end) == 0;
}

}  // namespace

i64 unix_seconds() {
  return std::chrono::duration_cast<std::chrono::seconds>(std::chrono::system_clock::now().time_since_epoch()).count();
}

Service::Service(Batcher& batcher, const Options& options, std::optional<SimMachine> machine)
    : batcher_(batcher),
      options_(options),
      machine_(std::move(machine)),
      model_(options.alias.empty() ? std::filesystem::path(options.model).stem().string() : options.alias),
      template_(batcher.engine().tokenizer()),
      started_(unix_seconds()) {}

const Tokenizer& Service::tokenizer() const { return engine().tokenizer(); }

CompletionWish Service::wish(const RequestBody& body) const {
  const Options& o = options_;
  body.refuse_unsupported();
  CompletionWish w;
  w.max_tokens = max_tokens(body, o.predict);
  w.copies = body.integer("n", 1, 1, kMostCopies);
  w.reuse_prefix = body.boolean("cache_prompt", true);
  w.slot = body.integer("id_slot", -1, -1, batcher_.slots() - 1);
  w.stop = body.texts("stop");
  if (static_cast<i64>(w.stop.size()) > kMostStops) bad_field("stop", "at most {} strings", kMostStops);
  for (const std::string& word : w.stop)
    if (word.empty()) bad_field("stop", "a string is empty");
  w.sampler = sampling_of(body, o, tokenizer());
  return w;
}

Service::Chat Service::read_chat(const RequestBody& body) const {
  const Json& messages = body.need("messages");
  if (!messages.is_array() || messages.empty()) bad_field("messages", "must be an array of at least one message");
  Chat chat;
  for (size_t i = 0; i < messages.size(); i++) {
    std::string field = fmt::format("messages[{}]", i);
    if (!messages[i].is_object()) bad_field(field, "must be an object");
    RequestBody message = RequestBody::of(messages[i]);
    ChatMessage& next = chat.messages.emplace_back();
    next.role = role_named(message.need_text("role"), field);
    next.tool_calls = tool_calls_of(message, field);
    if (!next.tool_calls.empty() && next.role != ChatRole::assistant) bad_field(field, "only an assistant makes tool_calls");
    if (next.tool_calls.empty() || message.find("content") != nullptr) next.content = content_text(message, field);
  }
  chat.tools = tools_of(body);
  if (!chat.tools.tools.empty() && template_.tool_markup() == nullptr)
    bad_field("tools", "they are not supported in the chat format of this model ({})", chat_format_name(template_.format()));
  chat.options.tools = chat.tools.tools;
  RequestBody extra = body.object("chat_template_kwargs");
  bool thinking = extra.boolean("thinking", extra.boolean("enable_thinking", options_.thinking));
  if (thinking && !template_.has_thinking_switch())
    bad_field("chat_template_kwargs", "the chat format of this model ({}) has no choice of thinking",
              chat_format_name(template_.format()));
  chat.options.thinking = thinking;
  chat.options.add_generation_prompt = body.boolean("add_generation_prompt", true);
  return chat;
}

void Service::add_chat_prompt(const RequestBody& body, CompletionWish& wish) const {
  Chat chat = read_chat(body);
  std::string format = body.text("reasoning_format", "auto");
  if (format != "auto" && format != "none" && format != "deepseek")
    bad_field("reasoning_format", "{} is not one of auto, deepseek and none", format);
  wish.prompts.push_back(template_.render(chat.messages, chat.options));
  wish.split_reasoning = format != "none";
  wish.open_reasoning = ends_with(template_.render_text(chat.messages, chat.options), "<think>");
  if (!chat.tools.tools.empty()) wish.tools = template_.tool_markup();
  wish.call_id_prefix = new_id("call_");
  Thinking thinking = wish.open_reasoning            ? Thinking::open
                      : template_.may_open_thinking() ? Thinking::optional
                                                      : Thinking::none;
  set_rules(chat_rules(body, chat.tools, template_.tool_markup(), thinking), wish);
}

void Service::set_rules(std::shared_ptr<const Grammar> rules, CompletionWish& wish) const {
  if (rules == nullptr) return;
  std::call_once(vocabulary_once_, [this] { vocabulary_ = std::make_shared<TokenTrie>(tokenizer()); });
  wish.rules = std::move(rules);
  wish.vocabulary = vocabulary_;
}

std::string Service::chat_prompt_text(const RequestBody& body) const {
  Chat chat = read_chat(body);
  return template_.render_text(chat.messages, chat.options);
}

void Service::add_text_prompts(const RequestBody& body, CompletionWish& wish) const {
  set_rules(text_rules(body), wish);
  const Json& prompt = body.need("prompt");
  auto add = [&](const Json& one) {
    wish.prompts.push_back(one.is_string() ? tokenizer().encode(one.get_ref<const std::string&>())
                                           : token_ids(one, "prompt", engine().hparams().vocab));
    if (wish.prompts.back().empty()) bad_field("prompt", "is empty");
  };
  bool many = prompt.is_array() && !prompt.empty() && !prompt.front().is_number();
  if (!prompt.is_string() && !prompt.is_array()) bad_field("prompt", "must be a string or an array");
  if (!many) return add(prompt);
  for (const Json& one : prompt) add(one);
}

u64 Service::model_id() const {
  std::call_once(model_id_once_, [this] { model_id_ = slot_model_id(engine()); });
  return model_id_;
}

std::string Service::new_id(std::string_view prefix) const {
  static std::atomic<u64> last{0};
  return fmt::format("{}{:x}-{}", prefix, started_, ++last);
}

}  // namespace stoker

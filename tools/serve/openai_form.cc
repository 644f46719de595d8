// OpenAI's two forms: chat.completion and text_completion. They differ in what a choice looks like.
#include <algorithm>
#include <span>

#include "runtime/tokenizer/tokenizer.h"
#include "tools/serve/answer_form.h"

namespace stoker {

namespace {

class OpenAiForm : public AnswerForm {
 public:
  OpenAiForm(const Service& service, const RequestBody& body, std::string_view id_prefix, std::string object,
             std::string chunk_object)
      : service_(service),
        id_(service.new_id(id_prefix)),
        object_(std::move(object)),
        chunk_object_(std::move(chunk_object)),
        model_(body.text("model", service.model())),
        created_(unix_seconds()),
        copies_(body.integer("n", 1, 1, kMostCopies)),
        include_usage_(body.object("stream_options").boolean("include_usage", false)),
        chunk_(to_text(envelope(chunk_object_, Json::array()))) {}

  Json whole(const std::vector<ChoiceText>& choices) const override {
    Json list = Json::array();
    for (size_t i = 0; i < choices.size(); i++) list.push_back(choice(i, choices[i]));
    Json json = envelope(object_, std::move(list));
    json["usage"] = usage_json(choices, copies_);
    json["timings"] = timings_json(choices.front().result);
    return json;
  }

  std::vector<Json> closing(const std::vector<ChoiceText>& choices) const override {
    if (!include_usage_) return {};
    Json json = envelope(chunk_object_, Json::array());
    json["usage"] = usage_json(choices, copies_);
    return {json};
  }

 protected:
  virtual Json choice(size_t index, const ChoiceText& text) const = 0;
  Json envelope(const std::string& object, Json choices) const {
    return {{"id", id_},
            {"object", object},
            {"created", created_},
            {"model", model_},
            {"system_fingerprint", "stoker-" STOKER_VERSION},
            {"choices", std::move(choices)}};
  }
  Json chunk(Json choice) const { return envelope(chunk_object_, Json::array({std::move(choice)})); }

  // The same, written, of a choice that is: all but the choice is the same in every chunk.
  std::string chunk_text(const std::string& choice) const {
    constexpr std::string_view kEnd = "]}";  // `choices`, the last field
    return fmt::format("{}{}{}", std::string_view(chunk_).substr(0, chunk_.size() - kEnd.size()), choice, kEnd);
  }

  std::string text_of(i32 token) const { return valid_text(std::string(service_.tokenizer().bytes(token))); }

  const Service& service_;

 private:
  std::string id_, object_, chunk_object_, model_;
  i64 created_, copies_;
  bool include_usage_;
  std::string chunk_;  // without choices
};

class ChatForm : public OpenAiForm {
 public:
  ChatForm(const Service& service, const RequestBody& body)
      : OpenAiForm(service, body, "chatcmpl-", "chat.completion", "chat.completion.chunk"),
        logprobs_(body.boolean("logprobs", false)) {}

  std::vector<Json> opening(size_t choices) const override {
    std::vector<Json> all;
    for (size_t i = 0; i < choices; i++) all.push_back(chunk(piece(i, {{"role", "assistant"}, {"content", ""}}, nullptr)));
    return all;
  }

  std::vector<std::string> pieces(const CompletionEvent& event, const ChoiceText& so_far) const override {
    std::vector<std::string> all;
    Json logprobs = logprobs_json(event.tokens);
    Json delta = Json::object();
    if (!event.reasoning.empty()) delta["reasoning_content"] = event.reasoning;
    if (!event.content.empty()) delta["content"] = event.content;
    for (const ToolCallPiece& piece : event.calls) delta["tool_calls"].push_back(call_json(piece, true));
    if (!delta.empty() || !(logprobs.is_null() || event.tokens.empty()))
      all.push_back(chunk_text(fmt::format(R"({{"index":{},"delta":{},"logprobs":{},"finish_reason":null}})", event.choice,
                                           to_text(delta), to_text(logprobs))));
    if (event.result) {
      Json last = chunk(piece(event.choice, Json::object(), finish(so_far)));
      last["timings"] = timings_json(so_far.result);
      all.push_back(to_text(last));
    }
    return all;
  }

 protected:
  Json choice(size_t index, const ChoiceText& text) const override {
    Json message = {{"role", "assistant"}, {"content", text.content}};
    if (!text.reasoning.empty()) message["reasoning_content"] = text.reasoning;
    if (!text.calls.empty() && text.content.empty()) message["content"] = nullptr;
    for (const ToolCallPiece& call : text.calls) message["tool_calls"].push_back(call_json(call, false));
    return {{"index", index},
            {"message", std::move(message)},
            {"logprobs", logprobs_json(text.tokens)},
            {"finish_reason", finish(text)}};
  }

 private:
  static std::string_view finish(const ChoiceText& text) {
    std::string_view reason = finish_reason(text.result);
    return reason == "stop" && !text.calls.empty() ? "tool_calls" : reason;
  }

  static Json call_json(const ToolCallPiece& piece, bool streamed) {
    Json json = Json::object();
    if (streamed) json["index"] = piece.index;
    Json function = Json::object();
    if (!piece.id.empty()) {
      json["id"] = piece.id;
      json["type"] = "function";
      function["name"] = piece.name;
    }
    function["arguments"] = piece.arguments;
    json["function"] = std::move(function);
    return json;
  }

  static Json piece(size_t index, Json delta, Json finish) {
    return {{"index", index}, {"delta", std::move(delta)}, {"logprobs", nullptr}, {"finish_reason", std::move(finish)}};
  }

  Json logprobs_json(const std::vector<TokenText>& tokens) const {
    if (!logprobs_) return nullptr;
    Json list = Json::array();
    for (const TokenText& t : tokens) {
      Json top = Json::array();
      for (const TokenLogprob& other : t.token.top) {
        std::string bytes(service_.tokenizer().bytes(other.token));
        top.push_back({{"token", text_of(other.token)}, {"logprob", other.logprob}, {"bytes", byte_array(bytes)}});
      }
      list.push_back({{"token", text_of(t.token.token)},
                      {"logprob", t.token.logprob},
                      {"bytes", byte_array(t.bytes)},
                      {"top_logprobs", std::move(top)}});
    }
    return {{"content", std::move(list)}};
  }

  bool logprobs_;
};

class TextForm : public OpenAiForm {
 public:
  TextForm(const Service& service, const RequestBody& body)
      : OpenAiForm(service, body, "cmpl-", "text_completion", "text_completion"),
        logprobs_(body.find("logprobs") != nullptr) {}

  std::vector<std::string> pieces(const CompletionEvent& event, const ChoiceText& so_far) const override {
    std::span<const TokenText> before(so_far.tokens.data(), so_far.tokens.size() - event.tokens.size());
    if (!event.result)
      return {chunk_text(fmt::format(R"({{"index":{},"text":{},"logprobs":{},"finish_reason":null}})", event.choice,
                                     to_text(event.content), to_text(logprobs_json(before, event.tokens))))};
    Json json = chunk(one(event.choice, event.content, before, event.tokens, finish_reason(*event.result)));
    json["timings"] = timings_json(so_far.result);
    return {to_text(json)};
  }

 protected:
  Json choice(size_t index, const ChoiceText& text) const override {
    return one(index, text.content, {}, text.tokens, finish_reason(text.result));
  }

 private:
  using Tokens = std::span<const TokenText>;

  Json one(size_t index, const std::string& text, Tokens before, Tokens tokens, Json finish) const {
    return {{"index", index}, {"text", text}, {"logprobs", logprobs_json(before, tokens)}, {"finish_reason", std::move(finish)}};
  }

  static i64 characters(const std::string& bytes) {
    return std::count_if(bytes.begin(), bytes.end(), [](char c) { return (c & 0xc0) != 0x80; });
  }

  Json logprobs_json(Tokens before, Tokens tokens) const {
    if (!logprobs_) return nullptr;
    Json json = {{"tokens", Json::array()}, {"token_logprobs", Json::array()}, {"top_logprobs", Json::array()},
                 {"text_offset", Json::array()}};
    i64 offset = 0;
    for (const TokenText& t : before) offset += characters(t.bytes);
    for (const TokenText& t : tokens) {
      json["text_offset"].push_back(offset);
      offset += characters(t.bytes);
      json["tokens"].push_back(text_of(t.token.token));
      json["token_logprobs"].push_back(t.token.logprob);
      Json top = Json::object();
      for (const TokenLogprob& other : t.token.top) top[text_of(other.token)] = other.logprob;
      json["top_logprobs"].push_back(std::move(top));
    }
    return json;
  }

  bool logprobs_;
};

}  // namespace

std::unique_ptr<AnswerForm> chat_form(const Service& service, const RequestBody& body) {
  return std::make_unique<ChatForm>(service, body);
}

std::unique_ptr<AnswerForm> text_form(const Service& service, const RequestBody& body) {
  return std::make_unique<TextForm>(service, body);
}

}  // namespace stoker

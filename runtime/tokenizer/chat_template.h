// ChatTemplate: a conversation as the tokens that a chat model was trained to read.
//
// A file's tokenizer.chat_template is Jinja source. It is not interpreted: its recognisable features choose
// one of the formats below, which were written down from the published templates.
//
//   Plain           no markup: messages are parts of one text (see below). For models without a template.
//   DeepseekV2      <bos>{system}\n\nUser: {user}\n\nAssistant: {answer}<eos>User: ...            ends in
//   "Assistant:" DeepseekV3      <bos>{system}<｜User｜>{user}<｜Assistant｜>{answer}<eos> ends in
//   <｜Assistant｜> DeepseekR1      the same; answers of earlier turns lose all up to </think>; some files
//   end in <think>\n DeepseekV31     <bos>{system}<｜User｜>{user}<｜Assistant｜></think>{answer}<eos>   ends
//   in <｜Assistant｜> followed by
//                   <think> (thinking) or </think>; earlier answers lose all up to </think>. V3.2 is the same
//   KimiK2 <|im_system|>system<|im_middle|>{system}<|im_end|><|im_user|>user<|im_middle|>{user}<|im_end|>
//                   <|im_assistant|>assistant<|im_middle|>{answer}<|im_end|>, without line breaks; without a
//                   system message the model's default one is put in
//   KimiK2Thinking  the same with <think></think> before earlier answers, which lose their thinking
//
// System messages of V3, R1 and V3.1 are gathered at the front, with "\n\n" between.
// Plain: system and user messages are put one under the other with a line feed between; what the model wrote
// stands directly after what it continued. The model completes the text; it does not know that it is spoken
// to.
//
// Tools are described after the system messages, in the words of DeepSeek-V3.1's model card, and called and answered as
// tool_markup.h says; Plain and DeepseekV2 use V3's way. After a tool's output the model goes on without being asked.
//
// Content is text whatever it says: "<｜User｜>" typed by a user is not the token. BOS comes exactly once,
// where the format or the file asks for it.
#pragma once

#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "runtime/tokenizer/tokenizer.h"
#include "runtime/tokenizer/tool_markup.h"

namespace stoker {

enum class ChatFormat { Plain, DeepseekV2, DeepseekV3, DeepseekR1, DeepseekV31, KimiK2, KimiK2Thinking };

std::string_view chat_format_name(ChatFormat format);  // "plain", "deepseek-v2", ...
ChatFormat chat_format_named(std::string_view name);   // throws Error listing the names

// The format of the file's template; without one, or with one that is none of these, by which special tokens
// exist.
ChatFormat detect_chat_format(const TokenizerSpec& spec);

enum class ChatRole { system, user, assistant, tool };  // tool: what a call returned

struct ChatMessage {
  ChatRole role = ChatRole::user;
  std::string content;
  // An answer as it was generated: used instead of content, so that what the KV cache holds is met again
  // token for token (a text can be spelled in several token sequences). An end token at its end is left out.
  std::vector<i32> ids = {};
  std::vector<ToolCall> tool_calls = {};  // an answer's, after its content
};

struct ChatOptions {
  bool add_generation_prompt = true;  // end with what makes the model answer
  bool thinking = false;  // formats with a choice (V3.1, Kimi-K2-Thinking): think before answering
  std::vector<ChatTool> tools = {};
};

class ChatTemplate {
 public:
  // The tokenizer must outlive this. Throws Error when the vocabulary lacks a token that the format needs.
  explicit ChatTemplate(const Tokenizer& tokenizer);
  ChatTemplate(const Tokenizer& tokenizer, ChatFormat format);

  ChatFormat format() const { return format_; }

  std::vector<i32> render(std::span<const ChatMessage> messages, const ChatOptions& options = {}) const;
  // The same as text with the special tokens spelled out: for people to read, not for encode().
  std::string render_text(std::span<const ChatMessage> messages, const ChatOptions& options = {}) const;

  // Whether a conversation only grows: its tokens and the answer's are a prefix of the next turn's. Not so
  // where the next turn takes the thinking out of the answer: there the KV cache has to be cut back to the
  // common prefix.
  bool keeps_prefix(bool thinking) const;
  // Whether ChatOptions::thinking makes a difference.
  bool has_thinking_switch() const;
  // Whether answers may begin with <think> that the prompt did not write.
  bool may_open_thinking() const;
  // How functions are called; null: not in this format.
  const ToolMarkup* tool_markup() const;

 private:
  class Page;
  void make_page(Page& page, std::span<const ChatMessage> messages, const ChatOptions& options) const;
  void write_deepseek(Page& page, std::span<const ChatMessage> messages, const ChatOptions& options) const;
  void write_kimi(Page& page, std::span<const ChatMessage> messages, const ChatOptions& options) const;
  void write_deepseek_v2(Page& page, std::span<const ChatMessage> messages, const ChatOptions& options) const;
  void write_plain(Page& page, std::span<const ChatMessage> messages, const ChatOptions& options) const;
  void write_tools(Page& page, const std::vector<ChatTool>& tools) const;
  void write_answer(Page& page, const ChatMessage& message) const;
  bool write_output(Page& page, std::span<const ChatMessage> messages, size_t index) const;
  void read_features();
  i32 need(std::string_view token) const;
  ChatMessage without_thinking(const ChatMessage& message) const;

  const Tokenizer& tokenizer_;
  ChatFormat format_;
  bool open_think_ = false;       // the generation prompt of the file's template ends in <think>,
  bool open_think_line_ = false;  // and a line feed
  std::string default_system_;    // Kimi
};

}  // namespace stoker

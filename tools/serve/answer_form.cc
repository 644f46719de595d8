#include "tools/serve/answer_form.h"

#include "runtime/tokenizer/utf8.h"

namespace stoker {

void ChoiceText::add(const CompletionEvent& event) {
  reasoning += event.reasoning;
  content += event.content;
  for (const ToolCallPiece& piece : event.calls) {
    if (piece.index == static_cast<i64>(calls.size())) {
      calls.push_back(piece);
    } else {
      calls[static_cast<size_t>(piece.index)].arguments += piece.arguments;
    }
  }
  tokens.insert(tokens.end(), event.tokens.begin(), event.tokens.end());
  if (!event.result) return;
  result = *event.result;
  stop_string = event.stop_string;
}

std::vector<Json> AnswerForm::opening(size_t) const { return {}; }
std::vector<Json> AnswerForm::closing(const std::vector<ChoiceText>&) const { return {}; }

std::string_view finish_reason(const GenerationResult& result) {
  bool full = result.end == GenerationEnd::length || result.end == GenerationEnd::context_full;
  return full ? "length" : "stop";
}

Json usage_json(const std::vector<ChoiceText>& choices, i64 copies) {
  i64 prompt = 0, cached = 0, generated = 0;
  for (size_t i = 0; i < choices.size(); i++) {
    const GenerationResult& result = choices[i].result;
    generated += result.generated_tokens;
    if (static_cast<i64>(i) % copies != 0) continue;
    prompt += result.prompt_tokens;
    cached += result.cached_tokens;
  }
  return {{"prompt_tokens", prompt},
          {"completion_tokens", generated},
          {"total_tokens", prompt + generated},
          {"prompt_tokens_details", {{"cached_tokens", cached}}}};
}

static void add_speed(Json& json, const std::string& name, i64 tokens, f64 seconds) {
  f64 count = static_cast<f64>(tokens), ms = seconds * 1e3;
  json[name + "_n"] = tokens;
  json[name + "_ms"] = ms;
  json[name + "_per_token_ms"] = tokens > 0 ? ms / count : 0;
  json[name + "_per_second"] = seconds > 0 ? count / seconds : 0;
}

Json timings_json(const GenerationResult& r) {
  Json json = {{"cache_n", r.cached_tokens}};
  add_speed(json, "prompt", r.prompt_tokens - r.cached_tokens, r.prompt_seconds);
  add_speed(json, "predicted", r.generated_tokens, r.generate_seconds);
  i64 wanted = r.expert_hits + r.expert_misses;
  json["expert_hits"] = r.expert_hits;
  json["expert_misses"] = r.expert_misses;
  json["expert_hit_rate"] = wanted > 0 ? static_cast<f64>(r.expert_hits) / static_cast<f64>(wanted) : 0;
  return json;
}

Json byte_array(const std::string& bytes) {
  Json array = Json::array();
  for (char c : bytes) array.push_back(static_cast<unsigned char>(c));
  return array;
}

std::string valid_text(const std::string& bytes) {
  Utf8Stream characters;
  std::string text = characters.push(bytes);
  return text + characters.finish();
}

}  // namespace stoker

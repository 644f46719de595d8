// llama-server's own form, POST /completion. Its streams end with the object that says "stop": true.
#include "runtime/engine.h"
#include "runtime/tokenizer/tokenizer.h"
#include "tools/serve/answer_form.h"

namespace stoker {

namespace {

std::string_view stop_type(GenerationEnd end) {
  switch (end) {
    case GenerationEnd::end_of_text:
      return "eos";
    case GenerationEnd::stopped:
      return "word";
    case GenerationEnd::length:
    case GenerationEnd::context_full:
      return "limit";
    default:
      return "none";
  }
}

class NativeForm : public AnswerForm {
 public:
  NativeForm(const Service& service, const CompletionWish& wish) : service_(service), wish_(wish) {}

  Json whole(const std::vector<ChoiceText>& choices) const override {
    if (choices.size() == 1) return last(0, choices[0], choices[0].content, choices[0].tokens);
    Json all = Json::array();
    for (size_t i = 0; i < choices.size(); i++) all.push_back(last(i, choices[i], choices[i].content, choices[i].tokens));
    return all;
  }

  std::vector<std::string> pieces(const CompletionEvent& event, const ChoiceText& so_far) const override {
    if (event.result) return {to_text(last(event.choice, so_far, event.content, event.tokens))};
    Json piece = {{"index", event.choice}, {"content", event.content}, {"tokens", ids(event.tokens)}, {"stop", false}};
    if (wish_.top_logprobs >= 0) piece["completion_probabilities"] = probabilities(event.tokens);
    return {to_text(piece)};
  }

  bool ends_with_done() const override { return false; }

 private:
  static Json ids(const std::vector<TokenText>& tokens) {
    Json array = Json::array();
    for (const TokenText& t : tokens) array.push_back(t.token.token);
    return array;
  }

  Json one_probability(i32 token, f32 logprob) const {
    std::string bytes(service_.tokenizer().bytes(token));
    return {{"id", token}, {"token", valid_text(bytes)}, {"bytes", byte_array(bytes)}, {"logprob", logprob}};
  }
  Json probabilities(const std::vector<TokenText>& tokens) const {
    Json all = Json::array();
    for (const TokenText& t : tokens) {
      Json top = Json::array();
      for (const TokenLogprob& other : t.token.top) top.push_back(one_probability(other.token, other.logprob));
      all.push_back(one_probability(t.token.token, t.token.logprob));
      all.back()["top_logprobs"] = std::move(top);
    }
    return all;
  }

  Json last(size_t index, const ChoiceText& choice, const std::string& content, const std::vector<TokenText>& tokens) const {
    const GenerationResult& r = choice.result;
    const SamplerOptions& s = wish_.sampler;
    Json json = {{"index", index},
                 {"content", content},
                 {"tokens", ids(tokens)},
                 {"id_slot", r.slot},
                 {"stop", true},
                 {"model", service_.model()},
                 {"tokens_predicted", r.generated_tokens},
                 {"tokens_evaluated", r.prompt_tokens},
                 {"tokens_cached", r.cached_tokens},
                 {"generation_settings",
                  {{"n_ctx", service_.engine().options().context},
                   {"n_predict", wish_.max_tokens},
                   {"seed", s.seed},
                   {"temperature", s.temperature},
                   {"top_k", s.top_k},
                   {"top_p", s.top_p},
                   {"min_p", s.min_p},
                   {"repeat_penalty", s.repeat_penalty},
                   {"repeat_last_n", s.repeat_window},
                   {"presence_penalty", s.presence_penalty},
                   {"frequency_penalty", s.frequency_penalty},
                   {"stop", wish_.stop}}},
                 {"has_new_line", choice.content.find('\n') != std::string::npos},
                 {"truncated", r.end == GenerationEnd::context_full},
                 {"stop_type", stop_type(r.end)},
                 {"stopping_word", choice.stop_string},
                 {"timings", timings_json(r)}};
    if (wish_.top_logprobs >= 0) json["completion_probabilities"] = probabilities(tokens);
    return json;
  }

  const Service& service_;
  CompletionWish wish_;
};

}  // namespace

std::unique_ptr<AnswerForm> native_form(const Service& service, const CompletionWish& wish) {
  return std::make_unique<NativeForm>(service, wish);
}

}  // namespace stoker

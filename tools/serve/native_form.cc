// llama-server's own form, POST /completion. Its streams end with the object that says "stop": true.
#include "runtime/engine.h"
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

  std::vector<Json> pieces(const CompletionEvent& event, const ChoiceText& so_far) const override {
    if (event.result) return {last(event.choice, so_far, event.content, event.tokens)};
    return {{{"index", event.choice}, {"content", event.content}, {"tokens", ids(event.tokens)}, {"stop", false}}};
  }

  bool ends_with_done() const override { return false; }

 private:
  static Json ids(const std::vector<TokenText>& tokens) {
    Json array = Json::array();
    for (const TokenText& t : tokens) array.push_back(t.token.token);
    return array;
  }

  Json last(size_t index, const ChoiceText& choice, const std::string& content, const std::vector<TokenText>& tokens) const {
    const GenerationResult& r = choice.result;
    const SamplerOptions& s = wish_.sampler;
    return {{"index", index},
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
              {"stop", wish_.stop}}},
            {"truncated", r.end == GenerationEnd::context_full},
            {"stop_type", stop_type(r.end)},
            {"stopping_word", choice.stop_string},
            {"timings", timings_json(r)}};
  }

  const Service& service_;
  CompletionWish wish_;
};

}  // namespace

std::unique_ptr<AnswerForm> native_form(const Service& service, const CompletionWish& wish) {
  return std::make_unique<NativeForm>(service, wish);
}

}  // namespace stoker

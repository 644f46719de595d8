#include "tools/serve/facts.h"

#include "runtime/engine.h"
#include "runtime/tokenizer/tokenizer.h"
#include "tools/serve/answer_form.h"

namespace stoker {

Json models_json(const Service& service) {
  const Engine& engine = service.engine();
  const EngineFootprint footprint = service.batcher().status().footprint;
  Json model = {{"id", service.model()},
                {"object", "model"},
                {"created", service.started()},
                {"owned_by", "stoker"},
                {"meta",
                 {{"n_vocab", engine.hparams().vocab},
                  {"n_embd", engine.hparams().hidden},
                  {"n_ctx", engine.options().context},
                  {"experts", footprint.expert_total},
                  {"experts_in_memory", footprint.expert_slots}}}};
  return {{"object", "list"}, {"data", Json::array({std::move(model)})}};
}

Json props_json(const Service& service) {
  const Options& o = service.options();
  Json params = {{"n_predict", o.predict},
                 {"seed", o.seed},
                 {"temperature", o.temperature},
                 {"top_k", o.top_k},
                 {"top_p", o.top_p},
                 {"min_p", o.min_p},
                 {"repeat_penalty", o.repeat_penalty},
                 {"repeat_last_n", o.repeat_last_n},
                 {"presence_penalty", o.presence_penalty},
                 {"frequency_penalty", o.frequency_penalty}};
  const TokenizerSpec& spec = service.tokenizer().spec();
  auto text_of = [&](i32 token) { return token < 0 ? "" : valid_text(std::string(service.tokenizer().bytes(token))); };
  return {{"default_generation_settings", {{"n_ctx", service.engine().options().context}, {"params", std::move(params)}}},
          {"total_slots", service.batcher().slots()},
          {"model_path", o.model},
          {"model_alias", service.model()},
          {"endpoint_slots", true},
          {"endpoint_props", false},  // cannot be changed
          {"endpoint_metrics", true},
          {"modalities", {{"vision", false}, {"audio", false}}},
          {"chat_template", spec.chat_template},
          {"bos_token", text_of(spec.bos)},
          {"eos_token", text_of(spec.eos)},
          {"build_info", "stoker " STOKER_VERSION}};
}

Json slots_json(const Service& service) {
  BatcherStatus status = service.batcher().status();
  Json all = Json::array();
  for (size_t i = 0; i < status.slots.size(); i++) {
    const BatcherStatus::Slot& slot = status.slots[i];
    all.push_back({{"id", i},
                   {"n_ctx", service.engine().options().context},
                   {"is_processing", slot.busy},
                   {"is_prompt", slot.prompting},
                   {"n_past", slot.held},
                   {"n_prompt_tokens", slot.result.prompt_tokens},
                   {"n_decoded", slot.result.generated_tokens},
                   {"next_token", {{"has_next_token", slot.busy}, {"n_decoded", slot.result.generated_tokens}}}});
  }
  return all;
}

Json tokens_of(const Service& service, const RequestBody& body) {
  const Tokenizer& tokenizer = service.tokenizer();
  Added added = body.boolean("parse_special", true) ? Added::all : Added::none;
  std::vector<i32> ids = tokenizer.encode(body.need_text("content"), body.boolean("add_special", false), added);
  if (!body.boolean("with_pieces", false)) return {{"tokens", ids}};
  Json pieces = Json::array();
  for (i32 id : ids) pieces.push_back({{"id", id}, {"piece", valid_text(std::string(tokenizer.bytes(id)))}});
  return {{"tokens", std::move(pieces)}};
}

Json text_of(const Service& service, const RequestBody& body) {
  std::vector<i32> ids = token_ids(body.need("tokens"), "tokens", service.tokenizer().vocab_size());
  return {{"content", valid_text(service.tokenizer().decode(ids))}};
}

}  // namespace stoker

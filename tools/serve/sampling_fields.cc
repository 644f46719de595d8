#include "tools/serve/sampling_fields.h"

#include <charconv>
#include <limits>
#include <random>

namespace stoker {

namespace {

constexpr i64 kMany = i64{1} << 30;
constexpr f64 kLargestBias = 1e4;
constexpr f32 kNever = -std::numeric_limits<f32>::infinity();

using Biases = std::vector<std::pair<i32, f32>>;

u64 chosen_seed(i64 asked) { return asked >= 0 ? static_cast<u64>(asked) : std::random_device()(); }

// A number, or false: never.
f32 bias_value(const Json& value) {
  if (value.is_boolean() && !value.get<bool>()) return kNever;
  if (!value.is_number()) bad_field("logit_bias", "a bias must be a number or false, not {}", kind_of(value));
  f64 bias = value.get<f64>();
  if (!(bias >= -kLargestBias && bias <= kLargestBias)) bad_field("logit_bias", "{} must be from {} to {}", bias, -kLargestBias, kLargestBias);
  return static_cast<f32>(bias);
}

i32 checked_id(f64 id, const Tokenizer& tokenizer) {
  if (!(id >= 0 && id < static_cast<f64>(tokenizer.vocab_size())) || id != static_cast<f64>(static_cast<i64>(id)))
    bad_field("logit_bias", "{} is not one of the model's {} tokens", id, tokenizer.vocab_size());
  return static_cast<i32>(id);
}

// OpenAI's form: {"id": bias}.
void add_named(const Json& object, const Tokenizer& tokenizer, Biases& out) {
  for (const auto& [key, value] : object.items()) {
    i64 id = -1;
    auto [end, error] = std::from_chars(key.data(), key.data() + key.size(), id);
    if (error != std::errc() || end != key.data() + key.size())
      bad_field("logit_bias", "the key {} is not a token id", key);
    out.emplace_back(checked_id(static_cast<f64>(id), tokenizer), bias_value(value));
  }
}

// llama-server's form: [[id or text, bias or false]]; all tokens of a text.
void add_listed(const Json& array, const Tokenizer& tokenizer, Biases& out) {
  for (const Json& pair : array) {
    if (!pair.is_array() || pair.size() != 2) bad_field("logit_bias", "an entry must be [token, bias]");
    f32 bias = bias_value(pair[1]);
    if (pair[0].is_string()) {
      for (i32 id : tokenizer.encode(pair[0].get_ref<const std::string&>(), false)) out.emplace_back(id, bias);
    } else if (pair[0].is_number()) {
      out.emplace_back(checked_id(pair[0].get<f64>(), tokenizer), bias);
    } else {
      bad_field("logit_bias", "a token must be an id or a text, not {}", kind_of(pair[0]));
    }
  }
}

Biases biases_of(const RequestBody& body, const Tokenizer& tokenizer) {
  Biases out;
  if (const Json* bias = body.find("logit_bias")) {
    if (bias->is_object()) {
      add_named(*bias, tokenizer, out);
    } else if (bias->is_array()) {
      add_listed(*bias, tokenizer, out);
    } else {
      bad_field("logit_bias", "must be an object of token ids and numbers, not {}", kind_of(*bias));
    }
  }
  if (body.boolean("ignore_eos", false))
    for (i32 id = 0; id < tokenizer.vocab_size(); id++)
      if (tokenizer.is_end(id)) out.emplace_back(id, kNever);
  return out;
}

}  // namespace

SamplerOptions sampling_of(const RequestBody& body, const Options& o, const Tokenizer& tokenizer) {
  auto real = [&](const char* field, f64 otherwise, f64 min, f64 max) {
    return static_cast<f32>(body.number(field, otherwise, min, max));
  };
  SamplerOptions s;
  s.temperature = real("temperature", o.temperature, 0, 1000);
  s.top_k = std::max<i64>(0, body.integer("top_k", o.top_k, -1, kMany));
  s.top_p = real("top_p", o.top_p, 0, 1);
  s.min_p = real("min_p", o.min_p, 0, 1);
  s.repeat_penalty = real("repeat_penalty", o.repeat_penalty, 0.01, 100);
  s.presence_penalty = real("presence_penalty", o.presence_penalty, -100, 100);
  s.frequency_penalty = real("frequency_penalty", o.frequency_penalty, -100, 100);
  s.repeat_window = body.integer("repeat_last_n", o.repeat_last_n, -1, kMany);
  s.seed = chosen_seed(body.integer("seed", o.seed, -1, i64{9'000'000'000'000'000}));
  s.logit_bias = biases_of(body, tokenizer);
  return s;
}

}  // namespace stoker

#include "tools/serve/request_body.h"

#include <array>
#include <utility>

namespace stoker {

namespace {

// Absent, null, false, 0, "", [], {}: nothing is asked for.
bool is_off(const Json& value) {
  if (value.is_boolean()) return !value.get<bool>();
  if (value.is_number()) return value.get<f64>() == 0;
  if (value.is_string()) return value.get_ref<const std::string&>().empty();
  return value.empty();
}

constexpr std::array kUnsupported = {
    "functions",   "function_call",  "suffix",          "echo",           "mirostat", "audio",     "input_suffix",
    "input_extra", "dry_multiplier", "xtc_probability", "dynatemp_range", "lora",     "image_data",
    "post_sampling_probs", "response_fields"};

// The sampler's steps in its order, by llama-server's names and letters.
constexpr std::array kSteps = {std::pair("penalties", 'e'), std::pair("top_k", 'k'), std::pair("top_p", 'p'), std::pair("min_p", 'm'),
                               std::pair("temperature", 't')};

// Front ends write the order out that they know as the default. Other steps in it are off, or refused by their own fields.
bool is_own_order(const Json& samplers) {
  size_t next = 0;
  auto take = [&](auto is_step) {
    for (size_t i = 0; i < kSteps.size(); i++)
      if (is_step(kSteps[i])) return i == next++;
    return true;
  };
  bool good = samplers.is_array() || samplers.is_string();
  if (samplers.is_string())
    for (char c : samplers.get_ref<const std::string&>()) good = good && take([&](const auto& step) { return step.second == c; });
  if (samplers.is_array())
    for (const Json& name : samplers) good = good && take([&](const auto& step) { return name == step.first; });
  return good && next == kSteps.size();
}

constexpr int kDeepest = 500;  // what reads and writes nested values calls itself

bool too_deep(std::string_view text) {
  int depth = 0;
  bool quoted = false;
  for (size_t i = 0; i < text.size(); i++) {
    char c = text[i];
    if (quoted) {
      if (c == '\\') i++;
      if (c == '"') quoted = false;
    } else if (c == '"') {
      quoted = true;
    } else if (c == '[' || c == '{') {
      if (++depth > kDeepest) return true;
    } else if (c == ']' || c == '}') {
      depth--;
    }
  }
  return false;
}

}  // namespace

RequestBody::RequestBody(std::string_view text) {
  if (too_deep(text)) throw ApiError(400, fmt::format("the body is nested more than {} deep, or is not JSON", kDeepest));
  try {
    json_ = Json::parse(text);
  } catch (const Json::exception& e) {
    // The library's text quotes the input, which may be no UTF-8: to_text() replaces that.
    throw ApiError(400, std::string("the body is not JSON in UTF-8: ") + e.what());
  }
  if (!json_.is_object()) throw ApiError(400, "the body must be a JSON object");
}

RequestBody RequestBody::of(Json object) {
  RequestBody body;
  body.json_ = std::move(object);
  return body;
}

const Json* RequestBody::find(const std::string& field) const {
  auto found = json_.find(field);
  return found == json_.end() || found->is_null() ? nullptr : &*found;
}

const Json& RequestBody::need(const std::string& field) const {
  const Json* value = find(field);
  if (value == nullptr) bad_field(field, "is missing");
  return *value;
}

bool RequestBody::boolean(const std::string& field, bool otherwise) const {
  const Json* value = find(field);
  if (value == nullptr) return otherwise;
  if (!value->is_boolean()) bad_field(field, "must be true or false, not {}", kind_of(*value));
  return value->get<bool>();
}

f64 RequestBody::number(const std::string& field, f64 otherwise, f64 min, f64 max) const {
  const Json* value = find(field);
  if (value == nullptr) return otherwise;
  if (!value->is_number()) bad_field(field, "must be a number, not {}", kind_of(*value));
  f64 number = value->get<f64>();
  if (!(number >= min && number <= max)) bad_field(field, "{} must be from {} to {}", number, min, max);
  return number;
}

i64 RequestBody::integer(const std::string& field, i64 otherwise, i64 min, i64 max) const {
  const Json* value = find(field);
  if (value == nullptr) return otherwise;
  f64 number = this->number(field, 0, static_cast<f64>(min), static_cast<f64>(max));
  // Some clients write 1.0; what is left of the range check is exact in both types.
  if (number != static_cast<f64>(static_cast<i64>(number))) bad_field(field, "{} must be a whole number", number);
  return value->is_number_integer() ? value->get<i64>() : static_cast<i64>(number);
}

std::string RequestBody::text(const std::string& field, const std::string& otherwise) const {
  return find(field) == nullptr ? otherwise : need_text(field);
}

std::string RequestBody::need_text(const std::string& field) const {
  const Json& value = need(field);
  if (!value.is_string()) bad_field(field, "must be a string, not {}", kind_of(value));
  return value.get<std::string>();
}

std::vector<std::string> RequestBody::texts(const std::string& field) const {
  const Json* value = find(field);
  if (value == nullptr) return {};
  if (value->is_string()) return {value->get<std::string>()};
  if (!value->is_array()) bad_field(field, "must be a string or an array of strings, not {}", kind_of(*value));
  std::vector<std::string> all;
  for (const Json& item : *value) {
    if (!item.is_string()) bad_field(field, "must hold strings only, not {}", kind_of(item));
    all.push_back(item.get<std::string>());
  }
  return all;
}

RequestBody RequestBody::object(const std::string& field) const {
  const Json* value = find(field);
  if (value == nullptr) return of(Json::object());
  if (!value->is_object()) bad_field(field, "must be an object, not {}", kind_of(*value));
  return of(*value);
}

void RequestBody::refuse_unsupported() const {
  for (const char* field : kUnsupported) {
    const Json* value = find(field);
    if (value != nullptr && !is_off(*value)) bad_field(field, "is not supported by this server; leave it out");
  }
  constexpr i64 kMany = 1 << 20;
  auto must_be = [&](const char* field, f64 off) {
    if (number(field, off, -kMany, kMany) != off) bad_field(field, "is not supported by this server; leave it out");
  };
  must_be("best_of", 1);
  must_be("typical_p", 1);
  if (number("t_max_predict_ms", -1, -kMany, f64{kMany} * kMany) > 0)
    bad_field("t_max_predict_ms", "is not supported by this server; leave it out, and close the connection when it takes too long");
  if (const Json* samplers = find("samplers"); samplers != nullptr && !is_own_order(*samplers))
    bad_field("samplers", "the steps have one order here: penalties, top_k, top_p, min_p, temperature; leave it out");
  if (number("top_n_sigma", -1, -kMany, kMany) > 0) bad_field("top_n_sigma", "is not supported by this server; leave it out");
}

std::vector<i32> token_ids(const Json& array, const std::string& field, i64 vocab) {
  if (!array.is_array()) bad_field(field, "must be an array of token ids, not {}", kind_of(array));
  std::vector<i32> ids;
  for (const Json& item : array) {
    if (!item.is_number_integer()) bad_field(field, "token ids are whole numbers, not {}", kind_of(item));
    f64 id = item.get<f64>();
    if (id < 0 || id >= static_cast<f64>(vocab)) bad_field(field, "{} is not one of the model's {} tokens", id, vocab);
    ids.push_back(item.get<i32>());
  }
  return ids;
}

}  // namespace stoker

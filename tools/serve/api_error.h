// ApiError: a request that cannot be served, as OpenAI's clients expect to hear it. Thrown by whoever notices; the
// HTTP server makes the answer of it.
#pragma once

#include <fmt/format.h>

#include <nlohmann/json.hpp>
#include <string>
#include <utility>

#include "kernels/base/error.h"

namespace stoker {

using Json = nlohmann::ordered_json;

// For messages: "an array", "a string", "null".
std::string kind_of(const Json& value);

class ApiError : public Error {
 public:
  // `field`: the request's field at fault, or "".
  ApiError(int status, const std::string& message, std::string field = {})
      : Error(message), status_(status), field_(std::move(field)) {}

  int status() const { return status_; }
  Json json() const;  // {"error": {message, type, param, code}}

 private:
  int status_;
  std::string field_;
};

// 400, naming the field.
template <class... Args>
[[noreturn]] void bad_field(const std::string& field, fmt::format_string<Args...> text, Args&&... args) {
  throw ApiError(400, field + ": " + fmt::format(text, std::forward<Args>(args)...), field);
}

// One line of JSON. Strings are UTF-8 wherever they come from; should one not be, U+FFFD is better than no answer.
std::string to_text(const Json& json);

}  // namespace stoker

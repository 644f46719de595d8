#include "tools/serve/api_error.h"

namespace stoker {

namespace {

std::string_view type_of(int status) {
  switch (status) {
    case 401:
      return "authentication_error";
    case 404:
      return "not_found_error";
    case 429:
      return "rate_limit_error";
    case 501:
      return "not_supported_error";
    case 503:
      return "unavailable_error";
    default:
      return status >= 500 ? "server_error" : "invalid_request_error";
  }
}

}  // namespace

std::string kind_of(const Json& value) {
  if (value.is_null()) return "null";
  return std::string(value.is_array() || value.is_object() ? "an " : "a ") + value.type_name();
}

Json ApiError::json() const {
  Json error = {{"message", what()}, {"type", type_of(status_)}, {"param", nullptr}, {"code", status_}};
  if (!field_.empty()) error["param"] = field_;
  return {{"error", error}};
}

std::string to_text(const Json& json) { return json.dump(-1, ' ', false, Json::error_handler_t::replace); }

}  // namespace stoker

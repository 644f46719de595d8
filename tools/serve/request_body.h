// RequestBody: the JSON object of a request, read field by field. Every mistake is an ApiError that names the field.
// A field that is null counts as absent.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "kernels/base/types.h"
#include "tools/serve/api_error.h"

namespace stoker {

class RequestBody {
 public:
  explicit RequestBody(std::string_view text);  // throws for what is no JSON object in UTF-8
  static RequestBody of(Json object);  // that is an object

  const Json* find(const std::string& field) const;  // null: absent
  const Json& need(const std::string& field) const;

  bool boolean(const std::string& field, bool otherwise) const;
  i64 integer(const std::string& field, i64 otherwise, i64 min, i64 max) const;
  f64 number(const std::string& field, f64 otherwise, f64 min, f64 max) const;
  std::string text(const std::string& field, const std::string& otherwise) const;
  std::string need_text(const std::string& field) const;
  std::vector<std::string> texts(const std::string& field) const;  // a string, or an array of them
  RequestBody object(const std::string& field) const;              // empty when absent

  // Fields that would change the answer and that nothing here implements: refused unless they say "off".
  void refuse_unsupported() const;

 private:
  RequestBody() = default;
  Json json_;
};

// An array of token ids; throws naming `field`.
std::vector<i32> token_ids(const Json& array, const std::string& field, i64 vocab);

}  // namespace stoker

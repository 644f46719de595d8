// SchemaGrammar: JSON Schema (2020-12 and the older drafts' spelling of the same) as GBNF. Every text of the grammar is
// valid; not every valid text is in it:
//
//   * properties come in the order in which they are written down; others only where additionalProperties says so, or where
//     there is no list of properties
//   * a schema without a type takes the one that its keywords are about
//   * oneOf is read as anyOf; allOf and keywords beside $ref, anyOf and oneOf are joined where both can hold
//   * bounds of numbers that are not whole, \d \w \s of patterns, and formats are narrower (schema_numbers.h, schema_pattern.h)
//   * between tokens of JSON there may be a space or a line feed with an indent
//
// What cannot be kept (not, if, patternProperties, multipleOf, contains, uniqueItems
// of more than a few values, ...) is refused. One owner.
#pragma once

#include <map>
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <string_view>
#include <vector>

#include "kernels/base/types.h"

namespace stoker {

class SchemaGrammar {
 public:
  using Json = nlohmann::ordered_json;

  // The name of a rule for values of this schema. Throws Error that names the place: "$.properties.age: ...".
  std::string value_of(const Json& schema);
  std::string any_object();
  // Any text up to and with `mark`, whose first byte is not in it again.
  std::string until(std::string_view mark);

  void rule(const std::string& name, const std::string& expression);
  std::string text() const;  // all rules

 private:
  static constexpr int kDeepest = 100;

  std::string visit(const Json& schema, const std::string& path, int depth);
  std::string visit_type(const Json& schema, const std::string& type, const std::string& path, int depth);
  std::string reference(const Json& schema, const std::string& path, int depth);
  std::string alternatives(const Json& schema, const std::string& keyword, const std::string& path, int depth);
  std::string object(const Json& schema, const std::string& path, int depth);
  std::string array(const Json& schema, const std::string& path, int depth);
  std::string set_of(const Json& schema, i64 least, i64 most, const std::string& path);
  std::string string(const Json& schema, const std::string& path);
  std::string other_key(const std::vector<std::string>& taken);
  std::string basic(const std::string& name);
  std::string add(const std::string& expression);
  const Json& target(const std::string& reference, const std::string& path) const;
  Json joined(const Json& a, const Json& b, const std::string& path, int depth) const;
  Json resolved(const Json& schema, const std::string& path, int depth) const;

  const Json* root_ = nullptr;  // while value_of runs
  std::map<std::string, std::string> rules_;
  std::vector<std::string> order_;
  std::map<std::string, std::string> references_;  // of the schema that value_of works on -> rule
};

}  // namespace stoker

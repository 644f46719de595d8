#include "runtime/grammar/json_schema.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <nlohmann/json.hpp>
#include <optional>
#include <set>

#include "kernels/base/error.h"
#include "runtime/grammar/gbnf.h"
#include "runtime/grammar/schema_numbers.h"
#include "runtime/grammar/schema_pattern.h"
#include "runtime/grammar/sized_pattern.h"

namespace stoker {

namespace {

using Json = SchemaGrammar::Json;

struct Basic {
  std::string_view name, expression, needs;
};
constexpr std::array kBasics = {
    Basic{"ws", R"((" " | "\n" [ \t]{0,20})?)", ""},
    Basic{"char", R"([^"\\\x00-\x1f] | "\\" (["\\/bfnrt] | "u" ([0-9a-cA-CefEF] hex{3} | [dD] [0-7] hex{2})))", "hex"},
    Basic{"hex", "[0-9a-fA-F]", ""},
    Basic{"string", R"("\"" char* "\"")", "char"},
    Basic{"boolean", R"("true" | "false")", ""},
    Basic{"null", R"("null")", ""},
    Basic{"integer", R"("-"? ("0" | [1-9] [0-9]{0,14}))", ""},
    Basic{"number", R"(integer ("." [0-9]{1,15})? ([eE] [-+]? [0-9]{1,2})?)", "integer"},
    Basic{"pair", R"(string ":" ws value)", "string ws value"},
    Basic{"object", R"("{" ws (pair ("," ws pair)* ws)? "}")", "ws pair"},
    Basic{"array", R"("[" ws (value ("," ws value)* ws)? "]")", "ws value"},
    Basic{"value", "object | array | string | number | boolean | null", "object array string number boolean null"},
    Basic{"date", R"([0-9]{4} "-" ("0" [1-9] | "1" [0-2]) "-" ("0" [1-9] | "1" [0-9] | "2" [0-8]))", ""},
    Basic{"time", R"(("0" [0-9] | "1" [0-9] | "2" [0-3]) ":" [0-5] [0-9] ":" [0-5] [0-9] ("." [0-9]{1,6})? "Z")", ""},
    Basic{"date-time", R"(date "T" time)", "date time"},
    Basic{"label", R"([a-z0-9]{1,15} ("-" [a-z0-9]{1,15}){0,2})", ""},
    Basic{"hostname", R"(label ("." label){0,4})", "label"},
    Basic{"email", R"([a-z0-9]{1,15} ([._+-] [a-z0-9]{1,15}){0,2} "@" label ("." label){0,2} "." [a-z]{2,6})", "label"},
    Basic{"ipv4", R"(octet ("." octet){3})", "octet"},
    Basic{"octet", R"("25" [0-5] | "2" [0-4] [0-9] | "1" [0-9] [0-9] | [1-9] [0-9] | [0-9])", ""},
    Basic{"ipv6", R"(hex{1,4} (":" hex{1,4}){7})", "hex"},
    Basic{"uri", R"("http" "s"? "://" hostname ("/" [A-Za-z0-9._~-]{1,40}){0,8})", "hostname"},
    Basic{"duration", R"("P" (count "W" | count "D" ("T" count "H")? | "T" count [HMS]))", "count"},
    Basic{"count", "[1-9] [0-9]{0,3}", ""},
    Basic{"uuid", R"(hex{8} "-" hex{4} "-" hex{4} "-" hex{4} "-" hex{12})", "hex"},
};

constexpr std::array kRefused = {
    "not",           "if",           "then",          "else",          "patternProperties", "propertyNames",  "dependentRequired",
    "dependentSchemas", "dependencies", "unevaluatedItems", "unevaluatedProperties", "contains", "minContains", "maxContains",
    "multipleOf",    "minProperties", "maxProperties", "$dynamicRef",  "$recursiveRef"};
// They say nothing about what is valid.
constexpr std::array kAnnotations = {"title",   "description", "default",    "examples", "$comment", "$schema", "$id",
                                     "$anchor", "$defs",       "definitions", "deprecated", "readOnly", "writeOnly"};

bool is_annotation(const std::string& key) { return std::find(kAnnotations.begin(), kAnnotations.end(), key) != kAnnotations.end(); }

const Json* find(const Json& object, const char* key) {
  auto found = object.find(key);
  return found == object.end() ? nullptr : &*found;
}

bool is_type(const Json& value, const std::string& type) {
  if (type == "integer") return value.is_number_integer() || (value.is_number_float() && std::trunc(value.get<f64>()) == value.get<f64>());
  if (type == "number") return value.is_number();
  return type == value.type_name();
}

constexpr size_t kMostOfSet = 8;  // values; the rules are all their sets

bool is_set(const Json& schema) {
  const Json* unique = find(schema, "uniqueItems");
  return unique != nullptr && *unique != false;
}

std::string literal(const Json& value) { return gbnf_text(value.dump()); }

std::string one_of(const std::vector<std::string>& all) { return fmt::format("({})", fmt::join(all, " | ")); }

i64 count_of(const Json& schema, const char* key, i64 otherwise, const std::string& path) {
  const Json* value = find(schema, key);
  if (value == nullptr) return otherwise;
  f64 number = value->is_number() ? value->get<f64>() : -1;
  if (!(number >= 0 && number <= 100'000) || number != std::trunc(number)) fail("{}: {} must be a whole number up to 100000", path, key);
  return static_cast<i64>(number);
}

std::string repeats(i64 least, i64 most) { return most < 0 ? fmt::format("{{{},}}", least) : fmt::format("{{{},{}}}", least, most); }

std::optional<f64> number_at(const Json& schema, const char* key, const std::string& path) {
  const Json* value = find(schema, key);
  if (value == nullptr) return std::nullopt;
  if (!value->is_number()) fail("{}: {} must be a number", path, key);
  return value->get<f64>();
}

NumberBounds bounds_of(const Json& schema, const std::string& path) {
  NumberBounds b{.least = number_at(schema, "minimum", path), .most = number_at(schema, "maximum", path)};
  std::optional<f64> above = number_at(schema, "exclusiveMinimum", path), below = number_at(schema, "exclusiveMaximum", path);
  if (above && (!b.least || *above >= *b.least)) {
    b.least = above;
    b.above = true;
  }
  if (below && (!b.most || *below <= *b.most)) {
    b.most = below;
    b.below = true;
  }
  return b;
}

std::string integer_between(const NumberBounds& b) {
  auto whole = [](f64 value) {
    if (!(std::abs(value) < 1e15)) fail("bounds of more than 15 digits are not supported");
    return static_cast<i64>(value);
  };
  std::optional<i64> least, most;
  if (b.least) least = whole(b.above ? std::floor(*b.least) + 1 : std::ceil(*b.least));
  if (b.most) most = whole(b.below ? std::ceil(*b.most) - 1 : std::floor(*b.most));
  return integer_expression(least, most);
}

std::string number_of(const Json& schema, bool integer, const std::string& path) {
  NumberBounds bounds = bounds_of(schema, path);
  if (!bounds.least && !bounds.most) return "";
  try {
    return integer ? integer_between(bounds) : number_expression(bounds);
  } catch (const Error& e) {
    fail("{}: {}", path, e.what());
  }
}

std::vector<std::string> types_of(const Json& schema, const std::string& path) {
  const Json* type = find(schema, "type");
  auto has = [&](std::initializer_list<const char*> keys) {
    return std::any_of(keys.begin(), keys.end(), [&](const char* key) { return schema.contains(key); });
  };
  if (type == nullptr) {
    if (has({"properties", "required", "additionalProperties"})) return {"object"};
    if (has({"items", "prefixItems", "minItems", "maxItems"})) return {"array"};
    if (has({"pattern", "minLength", "maxLength", "format"})) return {"string"};
    if (has({"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"})) return {"number"};
    return {};
  }
  std::vector<std::string> all;
  for (const Json& one : type->is_array() ? *type : Json::array({*type})) {
    static const std::set<std::string> kTypes = {"object", "array", "string", "number", "integer", "boolean", "null"};
    if (!one.is_string() || !kTypes.contains(one.get<std::string>())) fail("{}: {} is no type", path, one.dump());
    all.push_back(one.get<std::string>());
  }
  if (all.empty()) fail("{}: type is empty", path);
  return all;
}

}  // namespace

void SchemaGrammar::rule(const std::string& name, const std::string& expression) {
  if (rules_.emplace(name, expression).second) order_.push_back(name);
}

std::string SchemaGrammar::add(const std::string& expression) {
  std::string name = fmt::format("r{}", rules_.size());
  rule(name, expression);
  return name;
}

std::string SchemaGrammar::basic(const std::string& name) {
  if (rules_.contains(name)) return name;
  for (const Basic& b : kBasics) {
    if (b.name != name) continue;
    rule(name, std::string(b.expression));
    for (size_t at = 0; at < b.needs.size();) {
      size_t end = std::min(b.needs.find(' ', at), b.needs.size());
      basic(std::string(b.needs.substr(at, end - at)));
      at = end + 1;
    }
  }
  return name;
}

std::string SchemaGrammar::text() const {
  std::string out;
  for (const std::string& name : order_) out += fmt::format("{} ::= {}\n", name, rules_.at(name));
  return out;
}

std::string SchemaGrammar::any_object() { return basic("object"); }

// State k has seen the first k bytes of `mark`; the first byte begins again from anywhere.
std::string SchemaGrammar::until(std::string_view mark) {
  std::string name = fmt::format("until{}-", rules_.size());
  auto escaped = [](char c) { return fmt::format("\\x{:02x}", static_cast<u8>(c)); };
  for (size_t k = 0; k < mark.size(); k++) {
    std::string next = k + 1 == mark.size() ? "" : fmt::format(" {}{}", name, k + 1);
    std::string here = fmt::format("\"{}\"{}", escaped(mark[k]), next);
    if (k > 0) {
      here += fmt::format(" | \"{0}\" {2}1 | [^{0}{1}] {2}0", escaped(mark[0]), escaped(mark[k]), name);
    } else {
      here += fmt::format(" | [^{}] {}0", escaped(mark[0]), name);
    }
    rule(fmt::format("{}{}", name, k), here);
  }
  return name + "0";
}

std::string SchemaGrammar::value_of(const Json& schema) {
  root_ = &schema;
  references_.clear();
  std::string name = visit(schema, "$", 0);
  root_ = nullptr;
  return name;
}

const Json& SchemaGrammar::target(const std::string& reference, const std::string& path) const {
  if (reference.empty() || reference[0] != '#') fail("{}: $ref {}: only references into the same schema, #/..., are supported", path, reference);
  try {
    return root_->at(Json::json_pointer(reference.substr(1)));
  } catch (const Json::exception&) {
    fail("{}: $ref {}: there is nothing at that place", path, reference);
  }
}

std::string SchemaGrammar::reference(const Json& schema, const std::string& path, int depth) {
  bool alone = std::all_of(schema.items().begin(), schema.items().end(),
                           [](const auto& item) { return item.key() == "$ref" || is_annotation(item.key()); });
  if (!alone) return visit(resolved(schema, path, depth), path, depth + 1);
  if (!schema["$ref"].is_string()) fail("{}: $ref must be a string", path);
  std::string name = schema["$ref"].get<std::string>();
  auto known = references_.find(name);
  if (known != references_.end()) return known->second;
  const Json& to = target(name, path);
  std::string rule_name = references_[name] = fmt::format("ref{}-{}", references_.size(), rules_.size());
  rule(rule_name, "");
  rules_[rule_name] = visit(to, name, depth + 1);
  return rule_name;
}

// `schema` with what its $ref and allOf say in its place.
Json SchemaGrammar::resolved(const Json& schema, const std::string& path, int depth) const {
  if (depth > kDeepest) fail("{}: the schema is nested or refers to itself more than {} deep", path, kDeepest);
  if (!schema.is_object()) return schema;
  Json own = schema;
  own.erase("$ref");
  own.erase("allOf");
  if (const Json* ref = find(schema, "$ref")) {
    if (!ref->is_string()) fail("{}: $ref must be a string", path);
    own = joined(own, resolved(target(ref->get<std::string>(), path), path, depth + 1), path, depth + 1);
  }
  if (const Json* all = find(schema, "allOf")) {
    if (!all->is_array()) fail("{}: allOf must be an array", path);
    for (const Json& one : *all) own = joined(own, resolved(one, path + ".allOf", depth + 1), path + ".allOf", depth + 1);
  }
  return own;
}

// Both hold.
Json SchemaGrammar::joined(const Json& a, const Json& b, const std::string& path, int depth) const {
  if (depth > kDeepest) fail("{}: the schema is nested or refers to itself more than {} deep", path, kDeepest);
  if (a.is_boolean() && a.get<bool>()) return b;
  if (b.is_boolean() && b.get<bool>()) return a;
  if (!a.is_object() || !b.is_object()) fail("{}: nothing is valid here", path);
  Json out = a;
  for (const auto& [key, value] : b.items()) {
    if (!out.contains(key) || is_annotation(key)) {
      out[key] = value;
    } else if (out[key] == value) {
      continue;
    } else if (key == "properties" && value.is_object() && out[key].is_object()) {
      for (const auto& [name, property] : value.items()) {
        out[key][name] = out[key].contains(name) ? joined(resolved(out[key][name], path, depth + 1), resolved(property, path, depth + 1),
                                                          path + "." + name, depth + 1)
                                                 : property;
      }
    } else if (key == "required" && value.is_array() && out[key].is_array()) {
      for (const Json& name : value)
        if (std::find(out[key].begin(), out[key].end(), name) == out[key].end()) out[key].push_back(name);
    } else if (value.is_number() && out[key].is_number() && (key.starts_with("min") || key == "exclusiveMinimum")) {
      out[key] = std::max(out[key].get<f64>(), value.get<f64>());
    } else if (value.is_number() && out[key].is_number() && (key.starts_with("max") || key == "exclusiveMaximum")) {
      out[key] = std::min(out[key].get<f64>(), value.get<f64>());
    } else {
      fail("{}: {} is said twice, and joining that is not supported", path, key);
    }
  }
  return out;
}

std::string SchemaGrammar::visit(const Json& schema, const std::string& path, int depth) {
  if (depth > kDeepest) fail("{}: the schema is nested or refers to itself more than {} deep", path, kDeepest);
  if (schema.is_boolean()) {
    if (!schema.get<bool>()) fail("{}: false, so nothing is valid", path);
    return basic("value");
  }
  if (!schema.is_object()) fail("{}: a schema must be an object, not a {}", path, schema.type_name());
  for (const char* keyword : kRefused)
    if (schema.contains(keyword)) fail("{}: {} is not supported; leave it out, and check the answer for it", path, keyword);
  if (schema.contains("$ref")) return reference(schema, path, depth);
  if (schema.contains("allOf")) return visit(resolved(schema, path, depth), path, depth + 1);
  for (const char* keyword : {"anyOf", "oneOf"})
    if (schema.contains(keyword)) return alternatives(schema, keyword, path, depth);

  std::vector<std::string> types = types_of(schema, path);
  if (schema.contains("const") || schema.contains("enum")) {
    const Json values = schema.contains("const") ? Json::array({schema["const"]}) : schema["enum"];
    if (!values.is_array()) fail("{}: enum must be an array", path);
    std::vector<std::string> all;
    for (const Json& value : values) {
      bool fits = !schema.contains("type") || std::any_of(types.begin(), types.end(), [&](const std::string& t) { return is_type(value, t); });
      if (fits) all.push_back(literal(value));
    }
    if (all.empty()) fail("{}: none of the values is of the type", path);
    return add(one_of(all));
  }
  if (types.empty()) return basic("value");
  if (types.size() == 1) return visit_type(schema, types[0], path, depth);
  std::vector<std::string> all;
  for (const std::string& type : types) all.push_back(visit_type(schema, type, path, depth));
  return add(one_of(all));
}

std::string SchemaGrammar::alternatives(const Json& schema, const std::string& keyword, const std::string& path, int depth) {
  const Json& list = schema[keyword];
  if (!list.is_array() || list.empty()) fail("{}: {} must be an array of schemas", path, keyword);
  Json rest = schema;
  rest.erase(keyword);
  bool alone = std::all_of(rest.items().begin(), rest.items().end(), [](const auto& item) { return is_annotation(item.key()); });
  std::vector<std::string> all;
  for (size_t i = 0; i < list.size(); i++) {
    std::string place = fmt::format("{}.{}[{}]", path, keyword, i);
    all.push_back(alone ? visit(list[i], place, depth + 1)
                        : visit(joined(rest, resolved(list[i], place, depth + 1), place, depth + 1), place, depth + 1));
  }
  return add(one_of(all));
}

std::string SchemaGrammar::visit_type(const Json& schema, const std::string& type, const std::string& path, int depth) {
  if (type == "object") return object(schema, path, depth);
  if (type == "array") return array(schema, path, depth);
  if (type == "string") return string(schema, path);
  if (type == "integer" || type == "number") {
    std::string bounded = number_of(schema, type == "integer", path);
    return bounded.empty() ? basic(type) : add(bounded);
  }
  return basic(type);
}

std::string SchemaGrammar::string(const Json& schema, const std::string& path) {
  bool sized = schema.contains("minLength") || schema.contains("maxLength");
  i64 least = count_of(schema, "minLength", 0, path), most = count_of(schema, "maxLength", -1, path);
  if (most >= 0 && most < least) fail("{}: maxLength is less than minLength", path);
  if (const Json* pattern = find(schema, "pattern")) {
    if (!pattern->is_string()) fail("{}: pattern must be a string", path);
    try {
      Pattern parsed = parse_pattern(pattern->get_ref<const std::string&>());
      if (!sized) return add(pattern_expression(parsed));
      return add(sized_pattern_expression(parsed, least, most, fmt::format("p{}", rules_.size()),
                                          [&](const std::string& name, const std::string& expression) { rule(name, expression); }));
    } catch (const Error& e) {
      fail("{}: {}", path, e.what());
    }
  }
  if (sized) return add(fmt::format(R"("\"" {}{} "\"")", basic("char"), repeats(least, most)));
  const Json* format = find(schema, "format");
  for (const char* known : {"date", "time", "date-time", "duration", "uuid", "email", "hostname", "ipv4", "ipv6", "uri"})
    if (format != nullptr && *format == known) return add(fmt::format(R"("\"" {} "\"")", basic(known)));
  return basic("string");
}

std::string SchemaGrammar::array(const Json& schema, const std::string& path, int depth) {
  i64 least = count_of(schema, "minItems", 0, path), most = count_of(schema, "maxItems", -1, path);
  if (most >= 0 && most < least) fail("{}: maxItems is less than minItems", path);
  const Json* items = find(schema, "items");
  const Json* first = find(schema, "prefixItems");
  if (items != nullptr && items->is_array()) fail("{}: items must be a schema; a list of them is called prefixItems", path);
  if (is_set(schema)) {
    if (first == nullptr && items != nullptr && items->is_object() && items->contains("enum")) return set_of(schema, least, most, path);
    if (most < 0 || most > 1)
      fail("{}: uniqueItems is only supported where items is an enum of at most {} values; leave it out, and check the answer for it", path,
           kMostOfSet);
  }
  std::string comma = "\",\" " + basic("ws") + " ";
  i64 fixed = 0;
  std::vector<std::string> firsts;
  if (first != nullptr) {
    if (!first->is_array()) fail("{}: prefixItems must be an array", path);
    for (const Json& one : *first) firsts.push_back(visit(one, fmt::format("{}.prefixItems[{}]", path, fixed++), depth + 1));
    // Items beyond the list only where something is said about them.
    bool more = items != nullptr && !(items->is_boolean() && !items->get<bool>());
    most = more ? most : most < 0 ? fixed : std::min(most, fixed);
    if (most >= 0 && most < least) fail("{}: prefixItems has fewer items than minItems", path);
    if (!more) items = nullptr;
  }
  bool only_firsts = first != nullptr && items == nullptr;
  if (items != nullptr && items->is_boolean() && !items->get<bool>()) most = 0;
  std::string item;
  if (!only_firsts && most != 0) item = items == nullptr ? basic("value") : visit(*items, path + ".items", depth + 1);

  // From the end: what may follow the items before.
  std::string rest;
  if (!only_firsts && (most < 0 || most > fixed))
    rest = fmt::format("({}{}){}", comma, item, repeats(std::max<i64>(0, least - std::max<i64>(fixed, 1)), most < 0 ? -1 : most - std::max<i64>(fixed, 1)));
  for (i64 i = fixed - 1; i > 0; i--) {
    if (most >= 0 && i >= most) continue;
    std::string here = fmt::format("{}{} {}", comma, firsts[static_cast<size_t>(i)], rest);
    rest = i < least ? here : fmt::format("({})?", here);
    rest = add(rest);
  }
  std::string ws = basic("ws");
  if (most == 0) return add(fmt::format(R"("[" {} "]")", ws));
  std::string begin = fixed > 0 ? firsts[0] : item;
  std::string all = fmt::format("{} {} {}", begin, rest, ws);
  return add(fmt::format(R"("[" {} {} "]")", ws, least > 0 ? all : "(" + all + ")?"));
}

// An array of different values of an enum: a rule for each set of those that are left.
std::string SchemaGrammar::set_of(const Json& schema, i64 least, i64 most, const std::string& path) {
  std::vector<Json> values;
  for (const Json& value : schema["items"]["enum"])
    if (std::find(values.begin(), values.end(), value) == values.end()) values.push_back(value);
  for (const auto& item : schema["items"].items())
    if (item.key() != "enum" && item.key() != "type" && !is_annotation(item.key()))
      fail("{}: uniqueItems beside {} in items is not supported; leave one of them out", path, item.key());
  std::vector<std::string> types = types_of(schema["items"], path + ".items");
  if (!types.empty())
    std::erase_if(values, [&](const Json& v) { return std::none_of(types.begin(), types.end(), [&](const std::string& t) { return is_type(v, t); }); });
  size_t count = values.size();
  if (count > kMostOfSet)
    fail("{}: uniqueItems over more than {} values is not supported; leave it out, and check the answer for it", path, kMostOfSet);
  if (least > static_cast<i64>(count)) fail("{}: there are fewer different values than minItems", path);
  std::string prefix = fmt::format("set{}", rules_.size()), ws = basic("ws");
  for (size_t used = 0; used < size_t{1} << count; used++) {  // bits of `values`
    i64 length = std::popcount(used);
    std::vector<std::string> all;
    if (length >= least) all.emplace_back("\"\"");
    for (size_t i = 0; i < count; i++)
      if ((used >> i & 1) == 0 && (most < 0 || length < most))
        all.push_back(fmt::format(R"({}{} {}-{})", length > 0 ? "\",\" " + ws + " " : "", literal(values[i]), prefix, used | size_t{1} << i));
    rule(fmt::format("{}-{}", prefix, used), one_of(all));
  }
  return add(fmt::format(R"("[" {0} {1}-0 {0} "]")", ws, prefix));
}

std::string SchemaGrammar::object(const Json& schema, const std::string& path, int depth) {
  Json properties = schema.contains("properties") ? schema["properties"] : Json::object();
  if (!properties.is_object()) fail("{}: properties must be an object", path);
  const Json* others = find(schema, "additionalProperties");
  bool open = others != nullptr ? !(others->is_boolean() && !others->get<bool>()) : !schema.contains("properties");
  std::set<std::string> required;
  const Json names = schema.contains("required") ? schema["required"] : Json::array();
  if (!names.is_array()) fail("{}: required must be an array", path);
  for (const Json& name : names) {
    if (!name.is_string()) fail("{}: required must hold strings", path);
    required.insert(name.get<std::string>());
    if (properties.contains(name.get<std::string>())) continue;
    if (others != nullptr && !open) fail("{}: {} is required, but no property", path, name.dump());
    properties[name.get<std::string>()] = others != nullptr ? *others : Json(true);
  }
  std::string ws = basic("ws"), colon = "\":\" " + ws + " ", comma = "\",\" " + ws + " ";
  std::vector<std::string> taken, pairs;
  for (const auto& [name, property] : properties.items()) {
    taken.push_back(name);
    if (property.is_boolean() && !property.get<bool>() && !required.contains(name)) {
      pairs.emplace_back();
      continue;
    }
    pairs.push_back(fmt::format("{} {}{}", literal(name), colon, visit(property, path + ".properties." + name, depth + 1)));
  }
  // `first` and `next`: what may stand from a property on, when none and when some came before it.
  std::string first, next;
  if (open) {
    std::string value = others == nullptr || others->is_boolean() ? basic("value") : visit(*others, path + ".additionalProperties", depth + 1);
    std::string pair = add(fmt::format("{} {}{}", taken.empty() ? basic("string") : other_key(taken), colon, value));
    next = add(fmt::format("({}{})*", comma, pair));
    first = add(fmt::format("({} {})?", pair, next));
  }
  for (size_t i = pairs.size(); i-- > 0;) {
    if (pairs[i].empty()) continue;
    bool needed = required.contains(taken[i]);
    std::string here = fmt::format("{} {}", pairs[i], next), after = fmt::format("{}{} {}", comma, pairs[i], next);
    std::string first_here = needed ? here : first.empty() ? fmt::format("({})?", here) : fmt::format("{} | {}", here, first);
    next = add(needed ? after : next.empty() ? fmt::format("({})?", after) : fmt::format("{} | {}", after, next));
    first = add(first_here);
  }
  return add(fmt::format(R"("{{" {} {} {} "}}")", ws, first, ws));
}

// A string that is none of these; spelled without escapes, so that it is none in disguise.
std::string SchemaGrammar::other_key(const std::vector<std::string>& taken) {
  // Rule of a beginning: it goes on along the names that begin so, or leaves them all.
  std::set<std::string> names(taken.begin(), taken.end()), beginnings;
  for (const std::string& name : names) {
    for (size_t end = 0; end <= name.size(); end++)
      if (end == name.size() || (static_cast<u8>(name[end]) & 0xc0) != 0x80) beginnings.insert(name.substr(0, end));
  }
  std::string plain = add(R"([^"\\\x00-\x1f])");
  std::map<std::string, std::string> rule_of;
  for (const std::string& beginning : beginnings) rule_of[beginning] = fmt::format("key{}-{}", rules_.size(), rule_of.size());
  for (const auto& [beginning, name] : rule_of) {
    std::vector<std::string> all;
    std::string follow;
    for (const auto& [longer, longer_name] : rule_of) {
      if (longer.size() <= beginning.size() || longer.compare(0, beginning.size(), beginning) != 0) continue;
      std::string step = longer.substr(beginning.size());
      bool one = std::count_if(step.begin(), step.end(), [](char c) { return (static_cast<u8>(c) & 0xc0) != 0x80; }) == 1;
      if (!one) continue;
      if (step != "\"" && step != "\\" && static_cast<u8>(step[0]) >= 0x20) all.push_back(gbnf_text(step) + " " + longer_name);
      follow += step == "-" || step == "^" || step == "[" || step == "]" || step == "\\" || step == "\"" ? "\\" + step
                : static_cast<u8>(step[0]) < 0x20                                                          ? std::string()
                                                                                                            : step;
    }
    all.push_back(fmt::format(R"([^"\\\x00-\x1f{}] {}*)", follow, plain));
    if (!names.contains(beginning)) all.emplace_back("\"\"");
    rule(name, one_of(all));
  }
  return add(fmt::format(R"("\"" {} "\"")", rule_of.at("")));
}

}  // namespace stoker

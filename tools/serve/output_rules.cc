#include "tools/serve/output_rules.h"

#include <optional>
#include <vector>

#include "runtime/grammar/gbnf.h"
#include "runtime/grammar/json_schema.h"

namespace stoker {

namespace {

constexpr int kMostCalls = 16;

struct SchemaField {
  const char* field = "";
  Json schema;  // null: any object
};

// The schema that an answer must have, by whichever field asks for one.
std::optional<SchemaField> wanted_schema(const RequestBody& body) {
  if (const Json* schema = body.find("json_schema")) return SchemaField{"json_schema", *schema};
  RequestBody format = body.object("response_format");
  std::string type = format.text("type", "text");
  if (type == "text") return std::nullopt;
  if (type == "json_object") {
    const Json* schema = format.find("schema");  // llama-server's
    return SchemaField{"response_format", schema == nullptr ? Json() : *schema};
  }
  if (type != "json_schema") bad_field("response_format", "the type {} is not one of text, json_object and json_schema", type);
  const Json* schema = format.find("json_schema") == nullptr ? format.find("schema") : nullptr;
  RequestBody named = format.object("json_schema");
  if (schema == nullptr) schema = named.find("schema");
  if (schema == nullptr) bad_field("response_format", "json_schema.schema is missing");
  return SchemaField{"response_format", *schema};
}

std::string schema_rule(SchemaGrammar& grammar, const Json& schema, const std::string& field) {
  if (schema.is_null()) return grammar.any_object();
  try {
    return grammar.value_of(schema);
  } catch (const Error& e) {
    bad_field(field, "{}", e.what());
  }
}

// How a function's call is written, arguments by its schema.
std::string calls_rule(SchemaGrammar& grammar, const ToolWish& wish, const ToolMarkup& m) {
  std::string any;
  for (size_t i = 0; i < wish.tools.size(); i++) {
    const std::string& name = wish.tools[i].name;
    if (!wish.only.empty() && name != wish.only) continue;
    std::string begin(m.call_begin), end(m.call_end);
    if (m.fenced) {
      begin += std::string(m.kind) + std::string(m.separator) + name + std::string(m.fence_begin);
      end = std::string(m.fence_end) + end;
    } else {
      begin += name + std::string(m.separator);
    }
    std::string arguments = schema_rule(grammar, wish.parameters[i], fmt::format("tools[{}].function.parameters", i));
    any += fmt::format("{}{} {} {}", any.empty() ? "" : " | ", gbnf_text(begin), arguments, gbnf_text(end));
  }
  grammar.rule("call", any);
  std::string more = wish.parallel ? fmt::format("({} call){{0,{}}}", m.fenced ? gbnf_text("\n") : "", kMostCalls - 1) : "";
  grammar.rule("calls", fmt::format("{} call {} {}", gbnf_text(m.calls_begin), more, gbnf_text(m.calls_end)));
  return "calls";
}

std::shared_ptr<const Grammar> compiled(const SchemaGrammar& grammar, const std::string& field) {
  try {
    return std::make_shared<Grammar>(parse_gbnf(grammar.text()));
  } catch (const Error& e) {
    bad_field(field, "{}", e.what());
  }
}

std::shared_ptr<const Grammar> given_grammar(const RequestBody& body) {
  std::string text = body.text("grammar", "");
  if (text.empty()) return nullptr;
  if (wanted_schema(body)) bad_field("grammar", "give a grammar or a schema, not both");
  try {
    return std::make_shared<Grammar>(parse_gbnf(text));
  } catch (const Error& e) {
    bad_field("grammar", "{}", e.what());
  }
}

}  // namespace

std::shared_ptr<const Grammar> text_rules(const RequestBody& body) {
  return chat_rules(body, {}, nullptr, Thinking::none);
}

std::shared_ptr<const Grammar> chat_rules(const RequestBody& body, const ToolWish& tools, const ToolMarkup* markup, Thinking thinking) {
  if (auto grammar = given_grammar(body)) {
    if (!tools.tools.empty()) bad_field("grammar", "tools have a grammar of their own: leave one of them out");
    return grammar;
  }
  std::optional<SchemaField> wanted = wanted_schema(body);
  bool required = tools.choice == ToolWish::Choice::required;
  if (!wanted && !required) return nullptr;
  SchemaGrammar grammar;
  std::string field = wanted ? wanted->field : "tools", answer;
  if (wanted && !required) answer = schema_rule(grammar, wanted->schema, field);
  if (!tools.tools.empty()) answer += (answer.empty() ? "" : " | ") + calls_rule(grammar, tools, *markup);
  grammar.rule("answer", answer);
  std::string lines = R"("\n"{0,2})";
  if (thinking == Thinking::open) {
    grammar.rule("root", fmt::format("{} {} answer", grammar.until("</think>"), lines));
  } else if (thinking == Thinking::optional) {
    grammar.rule("root", fmt::format(R"((("\n"? "<think>") {} {})? answer)", grammar.until("</think>"), lines));
  } else {
    grammar.rule("root", "answer");
  }
  return compiled(grammar, field);
}

}  // namespace stoker

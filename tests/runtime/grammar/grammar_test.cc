#include <doctest/doctest.h>

#include <limits>
#include <nlohmann/json.hpp>

#include "kernels/base/error.h"
#include "kernels/base/rng.h"
#include "runtime/grammar/gbnf.h"
#include "runtime/grammar/grammar_filter.h"
#include "runtime/grammar/json_schema.h"
#include "runtime/grammar/schema_numbers.h"
#include "runtime/grammar/schema_pattern.h"
#include "runtime/tokenizer/tokenizer.h"
#include "scheduler/model_file/gguf.h"
#include "tests/support/shared_data.h"

namespace stoker {
namespace {

using Json = nlohmann::ordered_json;

enum class Match { no, beginning, yes };

Match match(const Grammar& grammar, std::string_view text) {
  ByteAutomaton automaton(std::make_shared<Grammar>(grammar));
  ByteAutomaton::State state = automaton.start();
  for (char c : text) {
    state = automaton.step(state, static_cast<u8>(c));
    if (state == ByteAutomaton::kDead) return Match::no;
  }
  return automaton.may_end(state) ? Match::yes : Match::beginning;
}

bool takes(const std::string& gbnf, std::string_view text) { return match(parse_gbnf(gbnf), text) == Match::yes; }

std::string schema_gbnf(const Json& schema) {
  SchemaGrammar grammar;
  std::string value = grammar.value_of(schema);
  grammar.rule("root", value);
  return grammar.text();
}

bool valid(const char* schema, std::string_view text) { return takes(schema_gbnf(Json::parse(schema)), text); }

std::string problem(const std::string& gbnf) {
  try {
    parse_gbnf(gbnf);
  } catch (const Error& e) {
    return e.what();
  }
  return "";
}

std::string schema_problem(const char* schema) {
  try {
    parse_gbnf(schema_gbnf(Json::parse(schema)));
  } catch (const Error& e) {
    return e.what();
  }
  return "";
}

bool contains(const std::string& text, std::string_view part) { return text.find(part) != std::string::npos; }

const Tokenizer& ember_tokenizer() {
  static const Tokenizer tokenizer = Tokenizer::from_gguf(Gguf::open(test::source_file("tests/models/ember-37m-q4_k_m.gguf")));
  return tokenizer;
}

}  // namespace

TEST_CASE("GBNF: texts, classes, groups and repetitions") {
  CHECK(takes("root ::= \"a\" | \"bc\"", "bc"));
  CHECK_FALSE(takes("root ::= \"a\" | \"bc\"", "b"));
  CHECK(takes("root ::= [a-c]+ [^x]?", "abcé"));
  CHECK_FALSE(takes("root ::= [a-c]+ [^x]?", "abcx"));
  CHECK(takes("root ::= (\"ab\" | \"c\"){2,3}", "abcab"));
  CHECK_FALSE(takes("root ::= (\"ab\" | \"c\"){2,3}", "c"));
  CHECK_FALSE(takes("root ::= (\"ab\" | \"c\"){2,3}", "cccc"));
  CHECK(takes("root ::= \"x\"{3,}", "xxxxx"));
  CHECK(takes("root ::= \"ab\"*", "abab"));
  CHECK_FALSE(takes("root ::= \"ab\"*", "abb"));
  CHECK(takes("root ::= (\"a\"*)*", "aaa"));
  CHECK(takes("root ::= .\n", "\xf0\x9f\x94\xa5"));
  CHECK(takes("root ::= [\\x41-\\x43\\u00e9] \"\\\"\\n\"", "é\"\n"));
  CHECK(takes("root ::= [\\]\\-]", "-"));
}

TEST_CASE("GBNF: rules of their own, comments and lines") {
  const char* calc = R"#(root ::= sum # a sum
sum  ::= term (
    [-+] term  # more
  )*
term ::= [0-9]+ |
  "(" sum ")"
)#";
  CHECK(takes(calc, "1+(2-3)+(((4)))"));
  CHECK_FALSE(takes(calc, "1+(2-3"));
  CHECK(match(parse_gbnf(calc), "1+(2-3") == Match::beginning);
}

TEST_CASE("GBNF: what is wrong is told with its line") {
  CHECK(contains(problem("root ::= \"a"), "ends inside"));
  CHECK(contains(problem("root ::= x"), "x is used, but not written"));
  CHECK(contains(problem("a ::= \"x\""), "no rule root"));
  CHECK(contains(problem("root ::= \"a\"\nroot ::= \"b\""), "line 2"));
  CHECK(contains(problem("root ::= root \"a\" | \"b\""), "begins with itself"));
  CHECK(contains(problem("root ::= \"a\"? root \"a\" | \"b\""), "begins with itself"));
  CHECK(contains(problem("root ::= \"a\" root"), "ever be complete"));
  std::string large = "root ::= \"\"";
  for (int i = 0; i < 11; i++) large += " [a-z]{100000}";
  CHECK(contains(problem(large), "too large"));
  CHECK(contains(problem("root ::= \"a\"{3,2}"), "is less"));
  CHECK(contains(problem("root ::= [b-a]"), "ends before it begins"));
  CHECK(contains(problem("root ::= \"\\q\""), "no escape"));
  CHECK(contains(problem("root = 3"), "::= was expected"));
  CHECK(contains(problem(std::string(1000, '(')), "a rule's name"));
  CHECK(contains(problem("root ::= " + std::string(1000, '(')), "nested"));
}

TEST_CASE("an alternative that never ends is not entered") {
  Grammar grammar = parse_gbnf("root ::= \"a\" endless | \"ab\"\nendless ::= \"b\" endless");
  CHECK(match(grammar, "ab") == Match::yes);
  CHECK(match(grammar, "abb") == Match::no);
}

TEST_CASE("repetition without limit does not make states without limit") {
  ByteAutomaton automaton(std::make_shared<Grammar>(parse_gbnf("root ::= (\"x\" [a-z]* \",\")*")));
  ByteAutomaton::State state = automaton.start();
  for (int i = 0; i < 1000; i++)
    for (char c : std::string_view("xab,")) state = automaton.step(state, static_cast<u8>(c));
  CHECK(automaton.states() < 10);
}

TEST_CASE("states can be forgotten in the middle of a text") {
  ByteAutomaton automaton(std::make_shared<Grammar>(parse_gbnf("root ::= v\nv ::= \"[\" (v (\",\" v)*)? \"]\"")));
  ByteAutomaton::State state = automaton.start();
  std::string text = "[[],[[[]]],[";
  for (char c : text) state = automaton.step(state, static_cast<u8>(c));
  state = automaton.forget_others(state);
  CHECK(automaton.states() == 1);
  for (char c : std::string_view("]")) state = automaton.step(state, static_cast<u8>(c));
  CHECK_FALSE(automaton.may_end(state));
  state = automaton.step(state, ']');
  CHECK(automaton.must_end(state));
}

TEST_CASE("schemas: types, constants and alternatives") {
  CHECK(valid(R"({"type": "integer"})", "-12"));
  CHECK_FALSE(valid(R"({"type": "integer"})", "012"));
  CHECK(valid(R"({"type": "number"})", "-1.5e-3"));
  CHECK(valid(R"({"type": ["string", "null"]})", "null"));
  CHECK(valid(R"({"type": "string"})", R"("a\n\u00e9é")"));
  CHECK_FALSE(valid(R"({"type": "string"})", R"("\ud83d")"));
  CHECK_FALSE(valid(R"({"type": "string"})", "\"a\nb\""));
  CHECK(valid(R"({"enum": ["a", 1, null, {"x": [1]}]})", R"({"x":[1]})"));
  CHECK_FALSE(valid(R"({"enum": ["a", 1], "type": "string"})", "1"));
  CHECK(valid(R"({"const": "a\"b"})", R"("a\"b")"));
  CHECK(valid(R"({"anyOf": [{"type": "boolean"}, {"const": 3}]})", "3"));
  CHECK(valid("true", R"({"a": [1, {"b": null}]})"));
  CHECK(valid("{}", "\"x\""));
}

TEST_CASE("schemas: objects") {
  const char* schema = R"({"type": "object", "properties": {"a": {"type": "integer"}, "b": {"type": "boolean"}, "c": {"type": "null"}},
                           "required": ["b"]})";
  CHECK(valid(schema, R"({"a":1,"b":true,"c":null})"));
  CHECK(valid(schema, R"({ "b": true })"));
  CHECK(valid(schema, "{\n  \"a\": 1,\n  \"b\": true\n}"));
  CHECK_FALSE(valid(schema, R"({"a":1})"));
  CHECK_FALSE(valid(schema, R"({"b":true,})"));
  CHECK_FALSE(valid(schema, R"({"b":true,"d":1})"));
  CHECK(valid(R"({"type": "object", "properties": {"a": {}}})", "{}"));
  CHECK(valid(R"({"type": "object"})", R"({"any": {"thing": [1]}})"));
  const char* open = R"({"type": "object", "properties": {"ab": {"type": "integer"}, "a\"": {}}, "additionalProperties": {"type": "boolean"}})";
  CHECK(valid(open, R"({"ab":1,"abc":true,"a":false,"":true,"zé":true})"));
  CHECK_FALSE(valid(open, R"({"ab":true})"));
  CHECK_FALSE(valid(open, R"({"\u0061b":true})"));
  CHECK(valid(R"({"type": "object", "required": ["x"]})", R"({"x": 1})"));
  CHECK_FALSE(valid(R"({"type": "object", "required": ["x"]})", "{}"));
}

TEST_CASE("schemas: arrays") {
  const char* some = R"({"type": "array", "items": {"type": "integer"}, "minItems": 2, "maxItems": 3})";
  CHECK_FALSE(valid(some, "[1]"));
  CHECK(valid(some, "[1,2]"));
  CHECK(valid(some, "[1, 2, 3]"));
  CHECK_FALSE(valid(some, "[1,2,3,4]"));
  CHECK(valid(R"({"type": "array"})", "[]"));
  CHECK(valid(R"({"type": "array", "items": {"type": "null"}})", "[null,null,null,null]"));
  CHECK(valid(R"({"type": "array", "maxItems": 0})", "[]"));
  CHECK_FALSE(valid(R"({"type": "array", "maxItems": 0})", "[1]"));
  const char* tuple = R"({"prefixItems": [{"const": 1}, {"const": 2}], "items": {"const": 3}, "minItems": 1, "maxItems": 4})";
  CHECK(valid(tuple, "[1]"));
  CHECK(valid(tuple, "[1,2,3,3]"));
  CHECK_FALSE(valid(tuple, "[1,3]"));
  CHECK_FALSE(valid(tuple, "[]"));
  CHECK_FALSE(valid(tuple, "[1,2,3,3,3]"));
  CHECK(valid(R"({"prefixItems": [{"const": 1}], "items": false})", "[1]"));
  CHECK_FALSE(valid(R"({"prefixItems": [{"const": 1}], "items": false})", "[1,1]"));
}

TEST_CASE("schemas: references, also to themselves") {
  const char* tree = R"({"$ref": "#/$defs/node", "$defs": {"node": {"type": "object", "properties": {"v": {"type": "integer"},
      "next": {"anyOf": [{"$ref": "#/$defs/node"}, {"type": "null"}]}}, "required": ["v", "next"]}}})";
  CHECK(valid(tree, R"({"v":1,"next":{"v":2,"next":null}})"));
  CHECK_FALSE(valid(tree, R"({"v":1,"next":{"v":2}})"));
  CHECK(valid(R"({"type": "array", "items": {"$ref": "#"}})", "[[],[[]]]"));
  const char* both = R"({"allOf": [{"$ref": "#/$defs/a"}, {"properties": {"y": {"const": 2}}, "required": ["y"]}],
                         "$defs": {"a": {"type": "object", "properties": {"x": {"const": 1}}, "required": ["x"]}}})";
  CHECK(valid(both, R"({"x":1,"y":2})"));
  CHECK_FALSE(valid(both, R"({"x":1})"));
  CHECK_FALSE(valid(both, R"({"y":2})"));
}

TEST_CASE("schemas: lengths and patterns of strings") {
  const char* sized = R"({"type": "string", "minLength": 2, "maxLength": 3})";
  CHECK_FALSE(valid(sized, R"("é")"));
  CHECK(valid(sized, R"("é\n")"));
  CHECK_FALSE(valid(sized, R"("abcd")"));
  auto matches = [](const std::string& pattern, const std::string& text) {
    return valid(Json{{"pattern", pattern}}.dump().c_str(), Json(text).dump());
  };
  CHECK(matches("^a[bc]+$", "abcb"));
  CHECK_FALSE(matches("^a[bc]+$", "abcbd"));
  CHECK(matches("a", "xxaxx"));
  CHECK_FALSE(matches("a", "xx"));
  CHECK(matches("^\\d{3}-\\w?$", "123-x"));
  CHECK(matches("^(?:ab|c)*d$", "abcabd"));
  CHECK(matches("^\"\\\\$", "\"\\"));
  CHECK(matches("^[^a-z]$", "\n"));
  CHECK(matches("^[^\"]$", "é"));
  CHECK_FALSE(matches("^[^\"]$", "\""));
  CHECK(matches("^a$|^bc", "bcx"));
  CHECK_FALSE(matches("^a$|^bc", "ax"));
  for (const char* refused : {"(?=a)", "(?<!a)b", "\\bword", "(a)\\1", "\\p{L}", "a^b", "[b-a]", "(", "a{2,1}", "*", "[^\\W]"}) {
    CAPTURE(refused);
    CHECK_THROWS_AS(parse_pattern(refused), Error);
  }
}

TEST_CASE("schemas: patterns beside lengths, all short texts tried") {
  for (const char* pattern : {"^[ab]+$", "b", "^a(ba?){1,3}", "^(a|ab|b{2,4})*$", "^a?b?$|^bb", "a\\$", "^(a{2}){2,}$"}) {
    CAPTURE(pattern);
    for (i64 least : {0, 2, 4}) {
      for (i64 most : {-1, 2, 3, 5}) {
        if (most >= 0 && most < least) continue;
        Json plain = {{"type", "string"}, {"pattern", pattern}}, sized = plain;
        if (least > 0) sized["minLength"] = least;
        if (most >= 0) sized["maxLength"] = most;
        if (least == 0 && most < 0) sized["minLength"] = 0;
        SchemaGrammar wide, narrow;
        wide.rule("root", wide.value_of(plain));
        narrow.rule("root", narrow.value_of(sized));
        Grammar all = parse_gbnf(wide.text());
        std::optional<Grammar> some;
        try {
          some = parse_gbnf(narrow.text());
        } catch (const Error&) {  // no text at all
        }
        i64 wrong = 0;
        for (i64 length = 0; length <= 6; length++) {
          for (i64 bits = 0; bits < i64{1} << length; bits++) {
            std::string text;
            for (i64 i = 0; i < length; i++) text += (bits >> i & 1) != 0 ? 'b' : length == 6 && i == 5 ? '\\' : 'a';
            std::string json = Json(text).dump();
            bool want = match(all, json) == Match::yes && length >= least && (most < 0 || length <= most);
            if ((some && match(*some, json) == Match::yes) != want) wrong++;
          }
        }
        CAPTURE(least);
        CAPTURE(most);
        CHECK(wrong == 0);
      }
    }
  }
}

TEST_CASE("schemas: formats, and arrays of different values") {
  auto is = [](const char* format, const char* text) { return valid(Json{{"format", format}}.dump().c_str(), Json(text).dump()); };
  CHECK(is("email", "ada.l@mail.example.org"));
  CHECK_FALSE(is("email", "ada@localhost"));
  CHECK(is("ipv4", "192.168.0.255"));
  CHECK_FALSE(is("ipv4", "192.168.0.256"));
  CHECK_FALSE(is("ipv4", "01.2.3.4"));
  CHECK(is("ipv6", "2001:db8:0:0:0:0:0:1"));
  CHECK(is("hostname", "a-b.example"));
  CHECK_FALSE(is("hostname", "-a"));
  CHECK(is("uri", "https://example.org/a/b.html"));
  CHECK(is("duration", "P3DT4H"));
  CHECK_FALSE(is("duration", "P"));
  const char* set = R"({"type": "array", "items": {"enum": ["a", "b", 1, 1.0, "c"]}, "uniqueItems": true, "minItems": 1, "maxItems": 3})";
  for (const char* good : {R"(["a"])", R"(["c","a",1])", R"([1, "b"])"}) CHECK(valid(set, good));
  for (const char* bad : {"[]", R"(["a","a"])", R"(["a","b","c",1])", R"([1,1])", R"([2])"}) CHECK_FALSE(valid(set, bad));
  CHECK(valid(R"({"type": "array", "uniqueItems": true, "maxItems": 1})", "[3]"));
}

TEST_CASE("schemas: bounds of whole numbers, all of them tried") {
  Rng rng(11);
  for (int round = 0; round < 60; round++) {
    i64 size = round % 3 == 0 ? 30 : round % 3 == 1 ? 300 : 3000;
    i64 a = static_cast<i64>(rng.uniform() * 2 * static_cast<f64>(size)) - size, b = static_cast<i64>(rng.uniform() * 2 * static_cast<f64>(size)) - size;
    if (a > b) std::swap(a, b);
    Grammar grammar = parse_gbnf("root ::= " + integer_expression(a, b));
    i64 wrong = 0;
    for (i64 x = -size - 20; x <= size + 20; x++)
      if ((match(grammar, std::to_string(x)) == Match::yes) != (x >= a && x <= b)) wrong++;
    CAPTURE(a);
    CAPTURE(b);
    CHECK(wrong == 0);
  }
  CHECK(valid(R"({"type": "integer", "minimum": 5})", "123456"));
  CHECK_FALSE(valid(R"({"type": "integer", "minimum": 5})", "4"));
  CHECK_FALSE(valid(R"({"type": "integer", "exclusiveMaximum": 0})", "0"));
  CHECK(valid(R"({"type": "integer", "exclusiveMaximum": 0})", "-1"));
}

TEST_CASE("schemas: bounds of numbers") {
  const char* share = R"({"type": "number", "minimum": 0, "maximum": 1})";
  for (const char* good : {"0", "0.5", "1", "1.0"}) CHECK(valid(share, good));
  for (const char* bad : {"1.1", "-0.5", "2", "1.01"}) CHECK_FALSE(valid(share, bad));
  const char* open = R"({"type": "number", "exclusiveMinimum": 0, "exclusiveMaximum": 2})";
  for (const char* good : {"0.5", "1", "1.999"}) CHECK(valid(open, good));
  for (const char* bad : {"0", "0.0", "2", "2.0"}) CHECK_FALSE(valid(open, bad));
  const char* negative = R"({"type": "number", "minimum": -12.5, "maximum": -3})";
  for (const char* good : {"-12", "-3", "-3.5", "-11.9"}) CHECK(valid(negative, good));
  for (const char* bad : {"-13", "-2.9", "-0", "3", "-12.9"}) CHECK_FALSE(valid(negative, bad));
  CHECK(contains(schema_problem(R"({"type": "number", "minimum": 0.2, "maximum": 0.4})"), "no whole number"));
}

TEST_CASE("schemas: what is refused is told with its place") {
  CHECK(contains(schema_problem(R"({"properties": {"age": {"multipleOf": 2}}})"), "$.properties.age: multipleOf is not supported"));
  CHECK(contains(schema_problem(R"({"type": "thing"})"), "is no type"));
  CHECK(contains(schema_problem(R"({"not": {}})"), "not is not supported"));
  CHECK(contains(schema_problem(R"({"$ref": "http://x"})"), "only references into the same schema"));
  CHECK(contains(schema_problem(R"({"$ref": "#/none"})"), "nothing at that place"));
  CHECK(contains(schema_problem(R"({"$ref": "#"})"), "ever be complete"));
  CHECK(contains(schema_problem(R"({"$ref": "#", "type": "object"})"), "refers to itself"));
  CHECK(contains(schema_problem(R"({"properties": {"a": {"$ref": "#"}}, "required": ["a"]})"), "ever be complete"));
  CHECK(contains(schema_problem(R"({"type": "array", "items": {}, "uniqueItems": true})"), "uniqueItems"));
  CHECK(contains(schema_problem(R"({"pattern": "^abc$", "maxLength": 2})"), "ever be complete"));
  CHECK(contains(schema_problem(R"({"pattern": "(a|b)*a(a|b){14}$", "maxLength": 1000})"), "too large beside"));
  CHECK(contains(schema_problem(R"({"items": {"enum": [1, 2]}, "uniqueItems": true, "minItems": 3})"), "fewer different values"));
  CHECK(contains(schema_problem(R"({"minItems": 3, "maxItems": 2})"), "less than minItems"));
  CHECK(contains(schema_problem(R"({"type": "integer", "minimum": 3, "maximum": 2})"), "no whole number"));
  CHECK(contains(schema_problem(R"({"maxLength": -1})"), "whole number"));
  CHECK(contains(schema_problem("false"), "nothing is valid"));
  CHECK(contains(schema_problem("[]"), "must be an object"));
  std::string deep = "{}";
  for (int i = 0; i < 300; i++) deep = R"({"items": )" + deep + "}";
  CHECK(contains(schema_problem(deep.c_str()), "deep"));
}

TEST_CASE("text until a mark") {
  SchemaGrammar grammar;
  std::string thinking = grammar.until("</think>");
  grammar.rule("root", thinking + " \"x\"");
  Grammar built = parse_gbnf(grammar.text());
  CHECK(match(built, "a <</thi</think>x") == Match::yes);
  CHECK(match(built, "é</think></think>x") == Match::no);
  CHECK(match(built, "</think") == Match::beginning);
}

TEST_CASE("a mask allows exactly the tokens that are allowed one by one, and texts reach their end") {
  auto trie = std::make_shared<TokenTrie>(ember_tokenizer());
  const char* schemas[] = {
      R"({"type": "object", "properties": {"name": {"type": "string", "maxLength": 9}, "age": {"type": "integer"}}, "required": ["name", "age"]})",
      R"({"type": "array", "items": {"enum": ["red", "green", "é"]}, "maxItems": 4})", R"({"pattern": "^[a-f]{2,5}\\d$"})"};
  for (const char* schema : schemas) {
    GrammarFilter filter(std::make_shared<Grammar>(parse_gbnf(schema_gbnf(Json::parse(schema)))), trie);
    Rng rng(5);
    std::string text;
    for (int step = 0; step < 200 && !filter.finished(); step++) {
      std::vector<f32> logits(static_cast<size_t>(trie->vocab()) + 3, 1.0f);
      filter.mask(logits);
      std::vector<i32> allowed;
      i64 wrong = 0;
      for (i32 token = 0; token < static_cast<i32>(logits.size()); token++) {
        bool masked = logits[static_cast<size_t>(token)] != 1.0f;
        if (!masked) allowed.push_back(token);
        if (masked == filter.allows(token)) wrong++;
      }
      CHECK(wrong == 0);
      REQUIRE(!allowed.empty());
      i32 token = allowed[static_cast<size_t>(rng.uniform() * static_cast<f64>(allowed.size()))];
      REQUIRE(filter.accept(token));
      if (!trie->is_end(token)) text += trie->text(token);
    }
    CAPTURE(text);
    CHECK(filter.finished());
    CHECK(valid(schema, text));
  }
}

TEST_CASE("a token that is not allowed changes nothing") {
  auto trie = std::make_shared<TokenTrie>(ember_tokenizer());
  GrammarFilter filter(std::make_shared<Grammar>(parse_gbnf("root ::= \"yes\"")), trie);
  i32 no = ember_tokenizer().encode("no", false).front();
  CHECK_FALSE(filter.accept(no));
  CHECK_FALSE(filter.accept(static_cast<i32>(trie->vocab()) + 7));
  for (i32 token : ember_tokenizer().encode("yes", false)) CHECK(filter.accept(token));
  CHECK(filter.finished());
}

}  // namespace stoker

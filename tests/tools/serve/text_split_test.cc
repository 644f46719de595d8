// Stop strings and thinking, cut into pieces in every way.
#include <doctest/doctest.h>

#include <memory>
#include <utility>
#include <vector>

#include "runtime/grammar/byte_automaton.h"
#include "tools/serve/output_rules.h"
#include "tools/serve/reasoning.h"
#include "tools/serve/request_body.h"
#include "tools/serve/stop_strings.h"
#include "tools/serve/tool_calls.h"
#include "tools/serve/tool_fields.h"

namespace stoker {
namespace {

std::string until_stop(const std::string& text, size_t piece, std::vector<std::string> words) {
  StopStrings stop(std::move(words));
  std::string shown;
  for (size_t at = 0; at < text.size(); at += piece) shown += stop.push(text.substr(at, piece));
  return shown + stop.finish();
}

Reasoning::Parts split(const std::string& text, size_t piece, bool open) {
  Reasoning reasoning(true, open);
  Reasoning::Parts all;
  auto add = [&](const Reasoning::Parts& parts) {
    all.reasoning += parts.reasoning;
    all.content += parts.content;
  };
  for (size_t at = 0; at < text.size(); at += piece) add(reasoning.push(text.substr(at, piece)));
  add(reasoning.finish());
  return all;
}

}  // namespace

TEST_CASE("a stop string ends the text however it is cut") {
  for (size_t piece = 1; piece < 12; piece++) {
    CAPTURE(piece);
    CHECK(until_stop("one two three", piece, {"three", "two"}) == "one ");
    CHECK(until_stop("aaab", piece, {"aab"}) == "a");
    CHECK(until_stop("one tw", piece, {"two"}) == "one tw");  // what was held back comes at the end
    CHECK(until_stop("nothing here", piece, {}) == "nothing here");
  }
  StopStrings stop({"END"});
  CHECK(stop.push("abcE") == "abc");
  CHECK(stop.push("N") == "");
  CHECK(stop.push("x") == "ENx");
  CHECK_FALSE(stop.found());
  CHECK(stop.push("yEND more") == "y");
  CHECK(stop.which() == "END");
}

TEST_CASE("thinking is told apart however it is cut") {
  for (size_t piece = 1; piece < 30; piece++) {
    CAPTURE(piece);
    CHECK(split("<think>\nhm\n</think>\n\nYes < no", piece, false).reasoning == "hm\n");
    CHECK(split("<think>\nhm\n</think>\n\nYes < no", piece, false).content == "Yes < no");
    CHECK(split("hm</think>Yes", piece, true).reasoning == "hm");
    CHECK(split("hm</think>Yes", piece, true).content == "Yes");
    CHECK(split("never ends </thi", piece, true).reasoning == "never ends </thi");
    CHECK(split("a <think> later", piece, false).content == "a <think> later");
    CHECK(split("<thin", piece, false).content == "<thin");
  }
  Reasoning whole(false, true);
  CHECK(whole.push("<think>x</think>").content == "<think>x</think>");
}

namespace {

struct Calls {
  std::string content;
  std::vector<std::pair<std::string, std::string>> all;  // name, arguments
};

Calls calls_in(const std::string& text, size_t piece, const ToolMarkup& markup) {
  ToolCalls splitter(&markup, "id-");
  Calls out;
  auto take = [&](const ToolCalls::Parts& parts) {
    out.content += parts.content;
    for (const ToolCallPiece& p : parts.calls) {
      if (p.index == static_cast<i64>(out.all.size())) {
        CHECK(p.id == "id-" + std::to_string(p.index));
        out.all.emplace_back(p.name, "");
      } else {
        CHECK((p.id.empty() && p.name.empty()));
      }
      out.all[static_cast<size_t>(p.index)].second += p.arguments;
    }
  };
  for (size_t at = 0; at < text.size(); at += piece) take(splitter.push(text.substr(at, piece)));
  take(splitter.finish());
  return out;
}

bool follows(const std::shared_ptr<const Grammar>& grammar, std::string_view text) {
  ByteAutomaton automaton(grammar);
  ByteAutomaton::State state = automaton.start();
  for (char c : text)
    if ((state = automaton.step(state, static_cast<u8>(c))) == ByteAutomaton::kDead) return false;
  return automaton.may_end(state);
}

}  // namespace

TEST_CASE("calls of functions are told apart however they are cut, in both ways of writing them") {
  const std::string v3 = "Let me see. <｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>add\n```json\n{\"a\": \"\n``\"}\n```<｜tool▁call▁end｜>\n"
                         "<｜tool▁call▁begin｜>function<｜tool▁sep｜>b\n```json\n{}\n```<｜tool▁call▁end｜><｜tool▁calls▁end｜>";
  const std::string v31 = "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>add<｜tool▁sep｜>{\"a\": 1}<｜tool▁call▁end｜><｜tool▁calls▁end｜>";
  for (size_t piece = 1; piece < 200; piece += 3) {
    CAPTURE(piece);
    for (const ToolMarkup& markup : {ToolMarkup{}, ToolMarkup{.fenced = false}}) {
      Calls a = calls_in(v3, piece, markup), b = calls_in(v31, piece, markup);
      CHECK(a.content == "Let me see. ");
      REQUIRE(a.all.size() == 2);
      CHECK(a.all[0] == std::pair<std::string, std::string>("add", "{\"a\": \"\n``\"}"));
      CHECK(a.all[1] == std::pair<std::string, std::string>("b", "{}"));
      CHECK(b.content.empty());
      REQUIRE(b.all.size() == 1);
      CHECK(b.all[0].second == "{\"a\": 1}");
    }
    Calls cut = calls_in(v31.substr(0, v31.find("}")), piece, ToolMarkup{});
    REQUIRE(cut.all.size() == 1);
    CHECK(cut.all[0].second == "{\"a\": 1");
    CHECK(calls_in("a <｜tool▁calls", piece, ToolMarkup{}).content == "a <｜tool▁calls");
  }
}

TEST_CASE("calls that are not written as they should be are taken as far as they can be, and nothing is lost") {
  const std::string begin = "<｜tool▁calls▁begin｜>", call = "<｜tool▁call▁begin｜>", end = "<｜tool▁call▁end｜>", all = "<｜tool▁calls▁end｜>",
                    separator = "<｜tool▁sep｜>";
  using Call = std::pair<std::string, std::string>;
  struct Case {
    std::string text, content;
    std::vector<Call> calls;
  };
  const Case cases[] = {
      // No mark before the first call; blanks around a name.
      {"Hm. " + call + " add " + separator + "{}" + end, "Hm. ", {{"add", "{}"}}},
      // A fence is missing, another language, on the name's line; the next call is one of its own.
      {begin + call + "function" + separator + "add\n{\"a\": {}}" + end + call + "b" + separator + "{}" + end + all, "", {{"add", "{\"a\": {}}"}, {"b", "{}"}}},
      {begin + call + "function" + separator + "add\n```\n{\"a\": 1}\n```" + end + all, "", {{"add", "{\"a\": 1}"}}},
      {begin + call + "function" + separator + "add```json {\"a\": 1}```" + end + all, "", {{"add", "{\"a\": 1}"}}},
      // No separator.
      {begin + call + "add {\"a\": 1}" + end + all, "", {{"add", "{\"a\": 1}"}}},
      // The end comes too soon.
      {begin + call + "function" + separator + "add\n{\"a\": 1", "", {{"add", "{\"a\": 1"}}},
      {begin + call + "add", "add", {}},
      {"a" + begin, "a", {}},
      // No call at all.
      {begin + call + "I would rather not." + end + all + " So.", "I would rather not. So.", {}},
      {begin + "\nnothing to call\n" + all, "\nnothing to call\n", {}},
      {begin + call + "{}" + end + all, "{}", {}},
      {begin + "\n" + all, "", {}},
      // Marks where none belong.
      {"a " + end + " b " + all + separator, "a " + end + " b " + all + separator, {}},
  };
  for (const Case& c : cases)
    for (size_t piece : {1, 2, 3, 7, 1000}) {
      CAPTURE(c.text);
      CAPTURE(piece);
      Calls got = calls_in(c.text, piece, ToolMarkup{});
      CHECK(got.content == c.content);
      CHECK(got.all == c.calls);
    }
}

TEST_CASE("what must have a form may be thought about first, where the model thinks") {
  RequestBody body(R"({"response_format": {"type": "json_schema", "json_schema": {"schema": {"const": 1}}}})");
  CHECK(follows(chat_rules(body, {}, nullptr, Thinking::none), "1"));
  CHECK_FALSE(follows(chat_rules(body, {}, nullptr, Thinking::none), "hm</think>1"));
  CHECK(follows(chat_rules(body, {}, nullptr, Thinking::open), "hm < 2</think>\n\n1"));
  CHECK_FALSE(follows(chat_rules(body, {}, nullptr, Thinking::open), "1"));
  CHECK(follows(chat_rules(body, {}, nullptr, Thinking::optional), "<think>hm</think>1"));
  CHECK(follows(chat_rules(body, {}, nullptr, Thinking::optional), "1"));
  CHECK(chat_rules(RequestBody("{}"), {}, nullptr, Thinking::open) == nullptr);
}

TEST_CASE("a required call is written in the model's way") {
  RequestBody body(R"({"tools": [{"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {"x": {"const": 1}},
                       "required": ["x"]}}}], "tool_choice": "required"})");
  ToolWish wish = tools_of(body);
  ToolMarkup v3, v31{.fenced = false};
  const std::string old_way = "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>f\n```json\n{\"x\":1}\n```<｜tool▁call▁end｜><｜tool▁calls▁end｜>";
  const std::string new_way = "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>f<｜tool▁sep｜>{\"x\":1}<｜tool▁call▁end｜><｜tool▁calls▁end｜>";
  CHECK(follows(chat_rules(body, wish, &v3, Thinking::none), old_way));
  CHECK(follows(chat_rules(body, wish, &v31, Thinking::none), new_way));
  CHECK_FALSE(follows(chat_rules(body, wish, &v31, Thinking::none), old_way));
  CHECK(follows(chat_rules(body, wish, &v31, Thinking::open), "which one?</think>\n" + new_way));
}

TEST_CASE("a field is read as its type or refused by name") {
  RequestBody body(R"({"a": 3, "b": 2.5, "c": null, "d": "x", "e": 2.0})");
  CHECK(body.integer("a", 0, 0, 10) == 3);
  CHECK(body.integer("c", 7, 0, 10) == 7);
  CHECK(body.integer("e", 0, 0, 10) == 2);
  CHECK_THROWS_WITH_AS(body.integer("b", 0, 0, 10), "b: 2.5 must be a whole number", ApiError);
  CHECK_THROWS_WITH_AS(body.integer("a", 0, 4, 10), "a: 3 must be from 4 to 10", ApiError);
  CHECK_THROWS_WITH_AS(body.number("d", 0, 0, 10), "d: must be a number, not a string", ApiError);
  CHECK_THROWS_WITH_AS(body.need("f"), "f: is missing", ApiError);
  CHECK_THROWS_AS(RequestBody("[1]"), ApiError);
  CHECK_THROWS_AS(RequestBody("{\"a\": \"\xff\"}"), ApiError);
}

}  // namespace stoker

// Stop strings and thinking, cut into pieces in every way.
#include <doctest/doctest.h>

#include "tools/serve/reasoning.h"
#include "tools/serve/request_body.h"
#include "tools/serve/stop_strings.h"

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

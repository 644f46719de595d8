#!/usr/bin/env python3
"""`stoker serve`: answers that must have a form: JSON, JSON of a schema, a grammar, calls of functions.
usage: serve_rules_test.py STOKER SOURCE_ROOT [unittest arguments]
"""

import json
import os
import random
import re
import sys
import threading
import unittest

import json_schema_cases
import serve_test
from serve_test import Server, user

SCHEMAS = 200
CHAT = "/v1/chat/completions"
WEATHER = {"type": "function", "function": {"name": "get_weather", "description": "What the weather is in a city", "parameters": {
    "type": "object", "properties": {"city": {"type": "string", "maxLength": 8}, "days": {"type": "integer", "minimum": 1, "maximum": 9}},
    "required": ["city", "days"]}}}
CLOCK = {"type": "function", "function": {"name": "clock", "parameters": {"type": "object", "properties": {}}}}


class Rules(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.server = Server("--parallel", 4, "--queue", 8, "-c", 2048)

    @classmethod
    def tearDownClass(cls):
        assert cls.server.close() == 0

    def chat(self, prompt="The sky", **body):
        body = {"messages": user(prompt), "max_tokens": 1500, "temperature": 1, "seed": 1, **body}
        return self.server.post(CHAT, **body)["choices"][0]

    def refused(self, part, field, **body):
        status, answer = self.server.ask("POST", CHAT, {"messages": user("x"), **body})
        self.assertEqual((status, answer["error"]["param"]), (400, field), answer)
        self.assertIn(part, answer["error"]["message"])


class Json(Rules):
    def test_random_schemas(self):
        rng = random.Random(20240611)
        schemas = [json_schema_cases.random_schema(rng) for _ in range(SCHEMAS)]
        wrong, lock, numbers = [], threading.Lock(), iter(range(SCHEMAS))

        def work():
            while True:
                with lock:
                    i = next(numbers, None)
                if i is None:
                    return
                form = {"type": "json_schema", "json_schema": {"name": "x", "strict": True, "schema": schemas[i]}}
                try:
                    choice = self.chat("Number %d is" % i, seed=i, response_format=form)
                    text = choice["message"]["content"]
                    found = json_schema_cases.problems(json.loads(text), schemas[i], schemas[i])
                    if choice["finish_reason"] != "stop":
                        found.append("it ended by " + choice["finish_reason"])
                except Exception as e:
                    text, found = "", [repr(e)]
                if found:
                    with lock:
                        wrong.append((i, json.dumps(schemas[i]), text, found))

        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        self.assertEqual(wrong, [])

    def test_any_object(self):
        for body in ({"response_format": {"type": "json_object"}}, {"json_schema": {"type": "object"}}):
            events, _ = self.server.stream(CHAT, messages=user("x"), max_tokens=60, temperature=0.7, seed=3, **body)
            text = "".join(e["choices"][0]["delta"].get("content", "") for e in events)
            self.assertEqual(text[0], "{")
            if events[-1]["choices"][0]["finish_reason"] == "stop":
                self.assertIsInstance(json.loads(text), dict)

    def test_the_schema_of_completions_and_greedy_answers(self):
        schema = {"type": "object", "properties": {"ok": {"type": "boolean"}}, "required": ["ok"]}
        body = {"max_tokens": 50, "temperature": 0, "json_schema": schema}
        whole = self.server.post("/v1/completions", prompt="The sky", **body)["choices"][0]
        self.assertIn("ok", json.loads(whole["text"]))
        self.assertEqual(whole["finish_reason"], "stop")
        self.assertEqual(self.server.post("/completion", prompt="The sky", **body)["content"], whole["text"])
        events, _ = self.server.stream("/v1/completions", prompt="The sky", **body)
        self.assertEqual("".join(e["choices"][0]["text"] for e in events), whole["text"])

    def test_a_grammar(self):
        grammar = 'root ::= ("ab" | [0-9]){3,5} "é"'
        for seed in range(5):
            self.assertRegex(self.chat(grammar=grammar, seed=seed)["message"]["content"], "^(ab|[0-9]){3,5}é$")

    def test_rules_beside_free_text(self):
        free = {"messages": user("The sky"), "max_tokens": 40, "temperature": 0, "cache_prompt": False}
        alone = self.server.post(CHAT, **free)["choices"][0]["message"]["content"]
        results = []
        threads = [threading.Thread(target=lambda: results.append(self.chat(grammar="root ::= [a-z]{60}", temperature=0)))]
        threads += [threading.Thread(target=lambda: results.append(self.server.post(CHAT, **free)["choices"][0])) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        texts = [r["message"]["content"] for r in results]
        self.assertEqual(texts.count(alone), 2)
        self.assertEqual(sum(re.fullmatch("[a-z]{60}", t) is not None for t in texts), 1)

    def test_refusals(self):
        schema = lambda s: {"type": "json_schema", "json_schema": {"schema": s}}
        self.refused("$.properties.a: multipleOf is not supported", "response_format",
                     response_format=schema({"properties": {"a": {"multipleOf": 3}}}))
        self.refused("schema is missing", "response_format", response_format={"type": "json_schema"})
        self.refused("is not one of text", "response_format", response_format={"type": "xml"})
        self.refused("ever be complete", "response_format", response_format=schema({"$ref": "#"}))
        self.refused("line 1", "grammar", grammar="root ::= (")
        self.refused("not both", "grammar", grammar='root ::= "a"', json_schema={})
        self.refused("object", "json_schema", json_schema=3)
        self.refused("too large", "json_schema", json_schema={"type": "array", "minItems": 90000, "items": {"type": "string", "minLength": 99999,
                     "maxLength": 99999}, "prefixItems": [{"type": "string", "minLength": 90000 + i} for i in range(20)]})

    def test_a_grammar_of_which_no_token_is_left(self):
        ids = self.server.post("/tokenize", content="0123456789")["tokens"]
        bias = [[i, False] for i in range(10000) if i in ids] + [["%d" % d, False] for d in range(10)]
        status, answer = self.server.ask("POST", "/completion", {"prompt": "x", "grammar": 'root ::= "7"', "logit_bias": bias})
        self.assertEqual(status, 500)
        self.assertIn("no token that the grammar allows", answer["error"]["message"])


class Tools(Rules):
    def calls(self, choice):
        self.assertEqual(choice["finish_reason"], "tool_calls")
        self.assertIsNone(choice["message"]["content"])
        return choice["message"]["tool_calls"]

    def test_required_and_named(self):
        for seed in range(4):
            for call in self.calls(self.chat(tools=[WEATHER, CLOCK], tool_choice="required", seed=seed)):
                self.assertEqual(call["type"], "function")
                arguments = json.loads(call["function"]["arguments"])
                if call["function"]["name"] == "get_weather":
                    self.assertEqual(json_schema_cases.problems(arguments, WEATHER["function"]["parameters"], None), [])
                else:
                    self.assertEqual((call["function"]["name"], arguments), ("clock", {}))
            choice = {"type": "function", "function": {"name": "clock"}}
            calls = self.calls(self.chat(tools=[WEATHER, CLOCK], tool_choice=choice, parallel_tool_calls=False, seed=seed))
            self.assertEqual([c["function"]["name"] for c in calls], ["clock"])

    def test_streamed_calls_are_those_of_the_whole_answer(self):
        body = {"messages": user("x"), "tools": [WEATHER], "tool_choice": "required", "temperature": 0.8, "seed": 2, "max_tokens": 1500}
        whole = self.calls(self.server.post(CHAT, **body)["choices"][0])
        events, done = self.server.stream(CHAT, **body)
        self.assertTrue(done)
        merged = []
        for event in events:
            for piece in event["choices"][0]["delta"].get("tool_calls", []):
                if piece["index"] == len(merged):
                    merged.append({"name": piece["function"]["name"], "arguments": ""})
                    self.assertTrue(piece["id"])
                merged[piece["index"]]["arguments"] += piece["function"]["arguments"]
        self.assertEqual(merged, [c["function"] for c in whole])
        self.assertEqual(events[-1]["choices"][0]["finish_reason"], "tool_calls")
        self.assertEqual(len({c["id"] for c in whole}), len(whole))

    def test_auto_leaves_the_choice_and_none_hides_tools(self):
        with_tools = self.server.post("/apply-template", messages=user("x"), tools=[WEATHER])["prompt"]
        self.assertIn("### get_weather\nDescription: What the weather is in a city", with_tools)
        self.assertIn("<｜tool▁calls▁begin｜>", with_tools)
        none = self.server.post("/apply-template", messages=user("x"), tools=[WEATHER], tool_choice="none")["prompt"]
        self.assertEqual(none, self.server.post("/apply-template", messages=user("x"))["prompt"])
        self.assertEqual(self.chat(tools=[WEATHER], max_tokens=5)["finish_reason"], "length")

    def test_calls_and_their_results_in_the_history(self):
        messages = [*user("x"), {"role": "assistant", "content": None, "tool_calls": [
            {"id": "call_1", "type": "function", "function": {"name": "clock", "arguments": "{}"}}]},
            {"role": "tool", "tool_call_id": "call_1", "content": "12:30"}]
        prompt = self.server.post("/apply-template", messages=messages, tools=[CLOCK])["prompt"]
        self.assertIn("<｜tool▁call▁begin｜>function<｜tool▁sep｜>clock\n```json\n{}\n```<｜tool▁call▁end｜><｜tool▁calls▁end｜>", prompt)
        self.assertTrue(prompt.endswith("<｜tool▁output▁begin｜>12:30<｜tool▁output▁end｜><｜tool▁outputs▁end｜>"), prompt)
        self.assertTrue(self.server.post(CHAT, messages=messages, tools=[CLOCK], max_tokens=3)["choices"])

    def test_a_schema_or_a_call(self):
        form = {"type": "json_schema", "json_schema": {"schema": {"const": "said"}}}
        seen = set()
        for seed in range(12):
            choice = self.chat(tools=[CLOCK], parallel_tool_calls=False, response_format=form, temperature=3, top_k=0, top_p=1, min_p=0, seed=seed)
            seen.add(choice["finish_reason"])
            if choice["finish_reason"] == "stop":
                self.assertEqual(choice["message"]["content"], '"said"')
        self.assertEqual(seen, {"stop", "tool_calls"})

    def test_refusals(self):
        self.refused("tools[0]", "tools[0]", tools=[{"type": "retrieval"}])
        self.refused("is missing", "name", tools=[{"type": "function", "function": {}}])
        self.refused("1 to 64 letters", "tools[0].function.name", tools=[{"type": "function", "function": {"name": "a b"}}])
        self.refused("must be an array", "tools", tools={})
        self.refused("no tools to choose from", "tool_choice", tool_choice="required")
        self.refused("not among tools", "tool_choice", tools=[CLOCK], tool_choice={"type": "function", "function": {"name": "x"}})
        self.refused("must be none, auto", "tool_choice", tools=[CLOCK], tool_choice="maybe")
        bad = {"type": "function", "function": {"name": "f", "parameters": {"not": {}}}}
        self.refused("not is not supported", "tools[0].function.parameters", tools=[bad], tool_choice="required")
        self.refused("leave one of them out", "grammar", tools=[CLOCK], grammar='root ::= "a"')
        self.refused("only an assistant", "messages[0]", messages=[{"role": "user", "content": "x", "tool_calls": [
            {"function": {"name": "f", "arguments": "{}"}}]}])


if __name__ == "__main__":
    serve_test.STOKER = os.path.abspath(sys.argv[1])
    serve_test.MODEL = os.path.join(sys.argv[2], "tests", "models", "ember-37m-q4_k_m.gguf")
    unittest.main(argv=[sys.argv[0]] + sys.argv[3:], verbosity=2)

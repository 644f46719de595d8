#!/usr/bin/env python3
"""`stoker serve` from outside: every endpoint, streams, stop strings, requests side by side, clients that leave, every kind
of bad request.  usage: serve_test.py STOKER SOURCE_ROOT [unittest arguments]
"""

import base64
import http.client
import json
import os
import re
import resource
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import unittest

STOKER = ""
MODEL = ""
MACHINE = ""
ROOT = ""
TIME_LIMIT = 300  # of one answer: sanitizer builds are slow
GREEDY = {"temperature": 0, "cache_prompt": False}


class Server:
    """A running server; its stderr is read until it says where it listens."""

    def __init__(self, *arguments, env=None):
        command = [STOKER, "serve", "-m", MODEL, "--port", "0", "-t", "1", "-c", "512", *map(str, arguments)]
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL, env=env)
        self.lines = []
        for line in self.process.stderr:
            self.lines.append(line.decode())
            if "http://" in self.lines[-1]:
                self.port = int(self.lines[-1].split("http://127.0.0.1:")[1].split(",")[0])
                self.reader = threading.Thread(target=lambda: self.lines.extend(line.decode() for line in self.process.stderr))
                self.reader.start()  # a full pipe would stop the server
                return
        raise AssertionError("the server did not start: " + "".join(self.lines))

    def connect(self):
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=TIME_LIMIT)

    def ask(self, method, path, body=None, headers=None):
        """Status and body; dicts are sent as JSON, JSON answers are parsed."""
        connection = self.connect()
        data = json.dumps(body) if isinstance(body, (dict, list)) else body
        connection.request(method, path, data, {"Content-Type": "application/json", **(headers or {})})
        response = connection.getresponse()
        text = response.read()
        connection.close()
        if response.getheader("Content-Type", "").startswith("application/json"):
            return response.status, json.loads(text)
        return response.status, text.decode()

    def post(self, path, **body):
        status, answer = self.ask("POST", path, body)
        assert status == 200, (status, answer)
        return answer

    def stream(self, path, **body):
        """The objects of a stream, and whether it ended with [DONE]."""
        connection = self.connect()
        connection.request("POST", path, json.dumps({**body, "stream": True}), {"Content-Type": "application/json"})
        response = connection.getresponse()
        text = response.read().decode()
        connection.close()
        assert response.status == 200, text
        assert response.getheader("Content-Type") == "text/event-stream"
        events = [event[6:] for event in text.split("\n\n") if event]
        done = events[-1] == "[DONE]"
        return [json.loads(event) for event in (events[:-1] if done else events)], done

    def close(self):
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        code = self.process.wait(TIME_LIMIT)
        self.reader.join()
        self.process.stderr.close()
        return code


def user(text):
    return [{"role": "user", "content": text}]


class Serving(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.server = Server("--parallel", 4, "--queue", 4, "--machine", MACHINE)

    @classmethod
    def tearDownClass(cls):
        assert cls.server.close() == 0

    def post(self, path, **body):
        return self.server.post(path, **body)

    def text(self, prompt, **body):
        return self.post("/v1/completions", prompt=prompt, **{"max_tokens": 24, **GREEDY, **body})["choices"][0]["text"]

    def refused(self, status, path, body, part, field=None):
        got, answer = self.server.ask("POST", path, body)
        self.assertEqual(got, status, answer)
        self.assertIn(part, answer["error"]["message"])
        self.assertEqual(answer["error"]["code"], status)
        if field:
            self.assertEqual(answer["error"]["param"], field)

    def idle(self):
        """Waits until no slot is busy; returns the slots."""
        limit = time.time() + TIME_LIMIT
        while True:
            slots = self.server.ask("GET", "/slots")[1]
            if not any(slot["is_processing"] for slot in slots):
                return slots
            self.assertLess(time.time(), limit)
            time.sleep(0.02)


class Facts(Serving):
    def test_health_models_props_slots(self):
        limit = time.time() + TIME_LIMIT  # experts are read beside the first answers
        while (health := self.server.ask("GET", "/health")) != (200, {"status": "ok"}):
            self.assertEqual((health[0], health[1]["status"], health[1]["progress"]["stage"]), (200, "ok", "experts"))
            self.assertLess(health[1]["progress"]["done"], health[1]["progress"]["total"])
            self.assertLess(time.time(), limit)
        models = self.server.ask("GET", "/v1/models")[1]
        self.assertEqual(models["data"][0]["id"], "ember-37m-q4_k_m")
        self.assertEqual(self.server.ask("GET", "/v1/models/ember-37m-q4_k_m"), (200, models["data"][0]))
        self.assertEqual(self.server.ask("GET", "/v1/models/other")[0], 404)
        props = self.server.ask("GET", "/props")[1]
        self.assertEqual((props["total_slots"], props["default_generation_settings"]["n_ctx"]), (4, 512))
        self.assertEqual(props["default_generation_settings"]["params"]["top_k"], 40)
        slots = self.server.ask("GET", "/slots")[1]
        self.assertEqual(([slot["id"] for slot in slots], slots[0]["next_token"]), ([0, 1, 2, 3], {"has_next_token": False, "n_decoded": 0}))

    def test_tokens_and_back(self):
        ids = self.post("/tokenize", content="The borrow checker é")["tokens"]
        self.assertEqual(self.post("/detokenize", tokens=ids)["content"], "The borrow checker é")
        pieces = self.post("/tokenize", content="The borrow", with_pieces=True)["tokens"]
        self.assertEqual("".join(p["piece"] for p in pieces), "The borrow")

    def test_the_dashboard_asks_for_what_there_is(self):
        with open(os.path.join(ROOT, "tools/grafana-dashboard.json")) as file:
            dashboard = json.load(file)
        asked = {metric for panel in dashboard["panels"] for target in panel.get("targets", [])
                 for metric in re.findall(r"\b(?:stoker:|llamacpp:|process_)[a-z_]+", target["expr"])}
        self.assertGreater(len(asked), 20)
        self.text("The sky", max_tokens=3)  # answers by status need one
        exported = {re.split(r"[ {]", line)[0] for line in self.server.ask("GET", "/metrics")[1].splitlines() if line[0] != "#"}
        self.assertEqual(asked - exported, set())
        labels = set(re.findall(r'(tier="\w+")', json.dumps(dashboard).replace("\\", "")))
        self.assertEqual({label for label in labels if label not in self.server.ask("GET", "/metrics")[1]}, set())

    def test_page(self):
        for path, part in (("/", "<title>stoker</title>"), ("/style.css", ":root"), ("/chat.js", "use strict"), ("/machine.js", "use strict"),
                           ("/favicon.svg", "<svg")):
            status, text = self.server.ask("GET", path)
            self.assertEqual(status, 200)
            self.assertIn(part, text)

    def test_live_shows_where_experts_are_and_what_was_used(self):
        self.text("The sky", max_tokens=5)
        before = self.server.ask("GET", "/live")[1]
        self.assertEqual((before["map"]["layers"], before["map"]["experts"]), ([1, 2, 3, 4], 32))
        cells = base64.b64decode(before["map"]["bytes"])
        self.assertEqual({byte >> 6 for byte in cells}, {1})  # all in RAM
        used_last = [row for row in range(4) if 63 in {byte & 63 for byte in cells[32 * row:32 * row + 32]}]
        self.assertEqual(used_last, [0, 1, 2, 3])  # the last pass used some of each layer
        self.text("The sea", max_tokens=5)
        after = self.server.ask("GET", "/live")[1]
        self.assertEqual(after["generated_tokens"] - before["generated_tokens"], 4)  # the first comes of the prompt
        self.assertGreater(after["experts"]["hits"], before["experts"]["hits"])
        self.assertGreater(after["seconds"], before["seconds"])

    def test_limits_of_the_machine(self):
        self.assertEqual(self.server.ask("GET", "/live")[1]["limits"], {"disk": 6.5e9, "dram": 64e9, "link": 52e9})
        self.assertIn('stoker:limit_bytes_per_second{resource="dram"} 6', self.server.ask("GET", "/metrics")[1])

    def test_limits_are_what_tune_has_kept_of_this_machine(self):
        with tempfile.TemporaryDirectory() as folder:
            environment = dict(os.environ, XDG_CONFIG_HOME=folder)

            def limits(*arguments):
                server = Server("-c", 64, *arguments, env=environment)
                try:
                    self.assertEqual("limit_bytes_per_second" in server.ask("GET", "/metrics")[1], server.ask("GET", "/live")[1]["limits"] != none)
                    return server.ask("GET", "/live")[1]["limits"], "".join(server.lines)
                finally:
                    server.close()

            none = {"disk": None, "dram": None, "link": None}
            self.assertEqual(limits()[0], none)
            self.assertEqual(limits("--device", "host:2,link=2GB/s,vram=1MiB")[0], {**none, "link": 8e9})

            # As tune writes it, which takes most of a minute: the speeds of a machine, with the name of this one.
            with open(os.path.join(ROOT, "tools/machines/cpu-only-24GB.toml")) as file:
                text = file.read()
            os.mkdir(os.path.join(folder, "stoker"))

            def keep(kept):
                with open(os.path.join(folder, "stoker/machine.toml"), "w") as file:
                    file.write(kept)

            keep(text)
            got, lines = limits()
            self.assertEqual(got, none)
            this_one = re.search("speeds of another machine, .*; this one is (.*); `stoker", lines).group(1)
            good = re.sub('name = ".*"', lambda _: 'name = "%s"' % this_one, text, count=1)
            keep(good)
            kept = limits()[0]
            self.assertGreater(kept["disk"], 1e6)
            self.assertGreater(kept["dram"], kept["disk"])
            self.assertEqual(limits("--machine", "none")[0], none)
            keep(good[:len(good) // 2])
            got, lines = limits()
            self.assertEqual(got, none)
            self.assertIn("warning", lines)

    def test_request_ids(self):
        for asked, heard in (("my-id.7", "my-id.7"), ("no spaces", None), ("x" * 200, None), (None, None)):
            connection = self.server.connect()
            connection.request("GET", "/health", headers={"X-Request-Id": asked} if asked else {})
            got = connection.getresponse().getheader("X-Request-Id")
            connection.close()
            self.assertEqual(got, heard or got)
            self.assertNotEqual(got, "")
            self.assertEqual(got == asked, heard is not None)

    def test_template(self):
        self.assertIn("hello there", self.post("/apply-template", messages=user("hello there"))["prompt"])

    def test_metrics_count(self):
        self.text("The sky", max_tokens=5)
        status, text = self.server.ask("GET", "/metrics")
        values = dict(line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
        self.assertEqual(status, 200)
        for name in ("prompt_tokens_total", "tokens_predicted_total", "n_decode_total"):
            self.assertGreater(float(values["llamacpp:" + name]), 0, name)
        self.assertGreater(float(values['stoker:expert_hits_total{tier="ram"}']), 0)
        self.assertIn('stoker:expert_bytes_total{tier="disk"}', values)
        gaps = float(values["stoker:inter_token_seconds_count"])
        self.assertGreater(gaps, 0)
        self.assertEqual(float(values['stoker:inter_token_seconds_bucket{le="+Inf"}']), gaps)


class Answers(Serving):
    def test_completion_is_what_run_says(self):
        run = subprocess.run([STOKER, "run", "-m", MODEL, "-p", "The borrow checker", "--raw", "--temp", "0", "-n", "24", "-b", "128",
                              "-t", "1", "--json"], capture_output=True, timeout=TIME_LIMIT, check=True)
        self.assertEqual(self.text("The borrow checker"), json.loads(run.stdout)["text"])

    def test_chat_whole_and_streamed_are_equal(self):
        body = {"messages": user("The borrow checker"), "max_tokens": 24, **GREEDY}
        whole = self.post("/v1/chat/completions", **body)
        self.assertEqual(whole["object"], "chat.completion")
        usage = whole["usage"]
        self.assertEqual(usage["total_tokens"], usage["prompt_tokens"] + usage["completion_tokens"])
        self.assertIn("predicted_per_second", whole["timings"])
        self.assertEqual(whole["timings"]["expert_hit_rate"], 1)
        events, done = self.server.stream("/v1/chat/completions", stream_options={"include_usage": True}, **body)
        self.assertTrue(done)
        self.assertEqual(events[0]["choices"][0]["delta"]["role"], "assistant")
        text = "".join(e["choices"][0]["delta"].get("content", "") for e in events if e["choices"])
        self.assertEqual(text, whole["choices"][0]["message"]["content"])
        reasons = [e["choices"][0]["finish_reason"] for e in events if e["choices"]]
        self.assertEqual([r for r in reasons if r], [whole["choices"][0]["finish_reason"]])
        self.assertEqual(events[-1]["usage"], usage)

    def test_native_completion_whole_and_streamed_are_equal(self):
        body = {"prompt": "The borrow checker", "n_predict": 24, **GREEDY}
        whole = self.post("/completion", **body)
        self.assertTrue(whole["stop"])
        events, done = self.server.stream("/completion", **body)
        self.assertFalse(done)
        self.assertEqual("".join(e["content"] for e in events), whole["content"])
        self.assertEqual([e["stop"] for e in events].count(True), 1)
        self.assertEqual(whole["stop_type"], "limit")
        self.assertEqual(sum((e["tokens"] for e in events), []), whole["tokens"])

    def test_text_streams(self):
        events, done = self.server.stream("/v1/completions", prompt="The borrow checker", max_tokens=24, **GREEDY)
        self.assertTrue(done)
        self.assertEqual("".join(e["choices"][0]["text"] for e in events), self.text("The borrow checker"))

    def test_ids_and_several_prompts_and_copies(self):
        ids = self.post("/tokenize", content="The borrow checker", add_special=True)["tokens"]
        self.assertEqual(self.text(ids), self.text("The borrow checker"))
        answer = self.post("/v1/completions", prompt=["The sky", "The sea"], n=2, max_tokens=8, seed=3, temperature=1)
        self.assertEqual([c["index"] for c in answer["choices"]], [0, 1, 2, 3])

    def test_seed_repeats(self):
        first, again = (self.text("The sky", temperature=1.5, seed=9) for _ in range(2))
        self.assertEqual(first, again)
        self.assertNotEqual(first, self.text("The sky", temperature=1.5, seed=10))

    def test_what_front_ends_send_though_it_is_the_default(self):
        plain = self.post("/completion", prompt="The sky", n_predict=4, seed=3)
        steps = ["penalties", "dry", "top_n_sigma", "top_k", "typ_p", "top_p", "min_p", "xtc", "temperature"]
        for samplers in (steps, "edkypmxt"):
            sent = self.post("/completions", prompt="The sky", n_predict=4, seed=3, samplers=samplers, mirostat=0, dry_multiplier=0,
                             typical_p=1, xtc_probability=0, t_max_predict_ms=-1, post_sampling_probs=False, cache_prompt=True)
            self.assertEqual(sent["content"], plain["content"])

    def test_limits(self):
        answer = self.post("/v1/chat/completions", messages=user("The sky"), max_completion_tokens=3, **GREEDY)
        self.assertEqual((answer["usage"]["completion_tokens"], answer["choices"][0]["finish_reason"]), (3, "length"))
        self.assertEqual(self.text("The sky", max_tokens=0), "")

    def test_stop_strings_end_the_text_wherever_tokens_end(self):
        whole = self.text("The borrow checker")
        for begin, size in ((3, 1), (5, 4), (7, 9), (11, 2)):
            word = whole[begin:begin + size]
            want = whole[:whole.index(word)]
            for path, get in (("/v1/completions", lambda e: e["choices"][0]["text"]), ("/completion", lambda e: e["content"])):
                body = {"prompt": "The borrow checker", "max_tokens": 24, "stop": ["never that", word], **GREEDY}
                self.assertEqual(get(self.post(path, **body)), want)
                events, _ = self.server.stream(path, **body)
                self.assertEqual("".join(map(get, events)), want)
        last = self.post("/completion", prompt="The borrow checker", max_tokens=24, stop=whole[5:9], **GREEDY)
        self.assertEqual((last["stop_type"], last["stopping_word"]), ("word", whole[5:9]))

    def test_what_only_begins_like_a_stop_string_is_said_at_the_end(self):
        body = {"prompt": "The borrow checker", "n_predict": 24, **GREEDY}
        whole = self.text("The borrow checker")
        for stop in (whole[-1] + "\u0001", whole[-5:] + "\u0001"):
            self.assertEqual(self.post("/completion", stop=[stop], **body)["content"], whole)
            events, _ = self.server.stream("/completion", stop=[stop], **body)
            self.assertEqual("".join(e["content"] for e in events), whole)

    def test_a_stop_string_over_three_tokens(self):
        body = {"prompt": "The borrow checker", "n_predict": 24, **GREEDY}
        whole = self.post("/completion", **body)
        pieces = [self.post("/detokenize", tokens=[t])["content"] for t in whole["tokens"]]
        word = pieces[8][-1] + pieces[9] + pieces[10][0]
        want = whole["content"][:whole["content"].index(word)]
        self.assertEqual(self.post("/completion", stop=[word], **body)["content"], want)
        events, _ = self.server.stream("/completion", stop=[word], **body)
        self.assertEqual("".join(e["content"] for e in events), want)

    def test_logprobs(self):
        body = {"messages": user("The sky"), "max_tokens": 4, "logprobs": True, "top_logprobs": 3, **GREEDY}
        choice = self.post("/v1/chat/completions", **body)["choices"][0]
        tokens = choice["logprobs"]["content"]
        self.assertEqual(len(tokens), 4)
        for token in tokens:
            self.assertEqual(token["top_logprobs"][0]["token"], token["token"])  # greedy takes the likeliest
            self.assertLessEqual(token["logprob"], 0)
            self.assertEqual(len(token["top_logprobs"]), 3)

    def test_logprobs_of_completions_and_of_llama_server(self):
        choice = self.post("/v1/completions", prompt="The sky", max_tokens=5, logprobs=2, **GREEDY)["choices"][0]
        logprobs = choice["logprobs"]
        self.assertEqual("".join(logprobs["tokens"]), choice["text"])
        self.assertEqual(logprobs["text_offset"], [len("".join(logprobs["tokens"][:i])) for i in range(5)])
        events, _ = self.server.stream("/v1/completions", prompt="The sky", max_tokens=5, logprobs=2, **GREEDY)
        for key in ("tokens", "token_logprobs", "text_offset", "top_logprobs"):
            self.assertEqual(sum((e["choices"][0]["logprobs"][key] for e in events), []), logprobs[key])
        native = self.post("/completion", prompt="The sky", n_predict=5, n_probs=2, **GREEDY)["completion_probabilities"]
        self.assertEqual([p["logprob"] for p in native], logprobs["token_logprobs"])
        self.assertEqual([len(p["top_logprobs"]) for p in native], [2] * 5)
        self.assertEqual(bytes(native[0]["bytes"]).decode(), native[0]["token"])

    def test_bias_and_penalties(self):
        plain = self.post("/completion", prompt="The sky", n_predict=12, **GREEDY)["tokens"]
        for bias in ({str(plain[0]): -100}, [[plain[0], False]]):
            biased = self.post("/completion", prompt="The sky", n_predict=12, logit_bias=bias, **GREEDY)["tokens"]
            self.assertNotIn(plain[0], biased)
        chosen = self.post("/completion", prompt="The sky", n_predict=6, logit_bias={"77": 1000}, **GREEDY)["tokens"]
        self.assertEqual(chosen, [77] * 6)
        for name in ("presence_penalty", "frequency_penalty"):
            body = {"prompt": "The sky", "n_predict": 6, "logit_bias": {"77": 50}, name: 90, **GREEDY}
            self.assertEqual(self.post("/completion", **body)["tokens"].count(77), 1, name)
        long = self.post("/completion", prompt="The sky", n_predict=300, ignore_eos=True, temperature=1, seed=4)
        self.assertEqual(long["tokens_predicted"], 300)

    def test_choices_have_seeds_of_their_own(self):
        answer = self.post("/v1/chat/completions", messages=user("The sky"), n=3, max_tokens=16, seed=5, temperature=1.3)
        self.assertEqual(len({c["message"]["content"] for c in answer["choices"]}), 3)
        one = self.post("/v1/chat/completions", messages=user("The sky"), max_tokens=1)["usage"]["prompt_tokens"]
        self.assertEqual(answer["usage"]["prompt_tokens"], one)  # a prompt counts once

    def test_a_longer_prompt_goes_on_where_the_cache_ends(self):
        start = "The borrow checker is a part of the compiler that looks at every reference in a program, and it says"
        self.post("/v1/completions", prompt=start, max_tokens=4, temperature=0)
        usage = self.post("/v1/completions", prompt=start + " more", max_tokens=4, temperature=0)["usage"]
        self.assertGreater(usage["prompt_tokens_details"]["cached_tokens"], 8)


class SideBySide(Serving):
    PROMPTS = ["The borrow checker", "Once upon a time there was", "A list of numbers: 1, 2, 3,", "In the year 1999 the"]

    def test_four_requests_say_what_each_says_alone(self):
        alone = [self.text(p, max_tokens=60, temperature=0.9, seed=i) for i, p in enumerate(self.PROMPTS)]
        together = [None] * 4

        def ask(i):
            together[i] = self.text(self.PROMPTS[i], max_tokens=60, temperature=0.9, seed=i)

        threads = [threading.Thread(target=ask, args=(i,)) for i in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        self.assertEqual(together, alone)

    def leave(self, stream):
        connection = socket.create_connection(("127.0.0.1", self.server.port))
        body = json.dumps({"prompt": "The sky", "temperature": 1, "seed": 1, "max_tokens": -1, "n": 4, "stream": stream,
                           "ignore_eos": True}).encode()
        connection.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
        limit = time.time() + TIME_LIMIT
        while not any(s["is_processing"] for s in self.server.ask("GET", "/slots")[1]) and time.time() < limit:
            time.sleep(0.005)
        connection.close()

    def test_a_client_that_leaves_frees_its_slots(self):
        for stream in (True, False):
            self.leave(stream)
            left = max(slot["n_decoded"] for slot in self.server.ask("GET", "/slots")[1])
            end = max(slot["n_decoded"] for slot in self.idle())
            self.assertLess(end - left, 100)  # one token and what it takes to notice; nobody's answer ends at 510
            self.assertTrue(self.text("The sky", max_tokens=3))
        self.assertIn('stoker:http_responses_total{status="499"} 1', self.server.ask("GET", "/metrics")[1])


class Refusals(Serving):
    def test_a_slot_of_ones_choice(self):
        for slot in (2, 0, 2):
            self.assertEqual(self.post("/completion", prompt="The sky", n_predict=2, id_slot=slot)["id_slot"], slot)
        for wrong, part in ((4, "3"), (-2, "-1"), ("x", "number"), (1.5, "whole")):
            self.refused(400, "/completion", {"prompt": "x", "id_slot": wrong}, part, "id_slot")

    def test_bad_bodies(self):
        chat = "/v1/chat/completions"
        self.refused(400, chat, "{", "not JSON")
        self.refused(400, chat, "", "not JSON")
        self.refused(400, chat, b'{"messages": "\xff\xfe"}', "not JSON in UTF-8")
        self.refused(400, chat, [1], "must be a JSON object")
        self.refused(400, chat, "[" * 100000, "not JSON")

    def test_bad_fields(self):
        chat, messages = "/v1/chat/completions", user("hi")
        for body, part, field in (
                ({}, "is missing", "messages"),
                ({"messages": []}, "at least one", "messages"),
                ({"messages": [3]}, "must be an object", "messages[0]"),
                ({"messages": [{"role": "king", "content": "x"}]}, "king", "messages[0]"),
                ({"messages": [{"role": "user", "content": 3}]}, "content", "messages[0]"),
                ({"messages": messages, "temperature": "hot"}, "must be a number", "temperature"),
                ({"messages": messages, "top_p": 2}, "from 0 to 1", "top_p"),
                ({"messages": messages, "max_tokens": 1.5}, "whole number", "max_tokens"),
                ({"messages": messages, "max_tokens": 1e300}, "must be from", "max_tokens"),
                ({"messages": messages, "stream": 1}, "true or false", "stream"),
                ({"messages": messages, "stop": [""]}, "empty", "stop"),
                ({"messages": messages, "n": 0}, "must be from", "n"),
                ({"messages": messages, "n": 100}, "more than this server takes", "n"),
                ({"messages": messages, "functions": [{"name": "f"}]}, "not supported", "functions"),
                ({"messages": messages, "typical_p": 0.5}, "not supported", "typical_p"),
                ({"messages": messages, "post_sampling_probs": True}, "not supported", "post_sampling_probs"),
                ({"messages": messages, "t_max_predict_ms": 5}, "not supported", "t_max_predict_ms"),
                ({"messages": messages, "samplers": ["top_k", "temperature"]}, "one order", "samplers"),
                ({"messages": messages, "samplers": "ktpme"}, "one order", "samplers"),
                ({"messages": messages, "samplers": 3}, "one order", "samplers"),
                ({"messages": messages, "logit_bias": {"one": 2}}, "not a token id", "logit_bias"),
                ({"messages": messages, "logit_bias": {"-1": 2}}, "is not one of", "logit_bias"),
                ({"messages": messages, "logit_bias": {"1": "much"}}, "must be a number", "logit_bias"),
                ({"messages": messages, "logit_bias": [[1]]}, "[token, bias]", "logit_bias"),
                ({"messages": messages, "presence_penalty": "x"}, "must be a number", "presence_penalty")):
            self.refused(400, chat, body, part, field)
        self.refused(400, "/v1/completions", {"prompt": [1, -2]}, "-2", "prompt")
        self.refused(400, "/v1/completions", {"prompt": []}, "empty", "prompt")
        self.refused(400, "/v1/completions", {"prompt": [5] * 600}, "more than the context of 512")
        self.refused(400, "/detokenize", {"tokens": [1 << 40]}, "is not one of", "tokens")
        self.refused(400, "/tokenize", {"content": 3}, "must be a string, not a number", "content")
        self.refused(400, "/tokenize", {"content": []}, "must be a string, not an array", "content")

    def test_methods(self):
        for method, path, allowed in (("GET", "/v1/chat/completions", "POST"), ("DELETE", "/props", "GET, HEAD"), ("POST", "/health", "GET, HEAD")):
            connection = self.server.connect()
            connection.request(method, path)
            response = connection.getresponse()
            self.assertEqual((response.status, response.getheader("Allow")), (405, allowed))
            self.assertEqual(json.loads(response.read())["error"]["code"], 405)
            connection.close()

    def test_paths_and_sizes(self):
        self.assertEqual(self.server.ask("GET", "/nothing")[0], 404)
        self.refused(404, "/v1/nothing", {}, "no such endpoint")
        for path in ("/v1/embeddings", "/infill", "/v1/messages", "/v1/responses", "/v1/rerank"):
            self.refused(501, path, {"input": "x"}, path + " is not supported")
        connection = self.server.connect()
        connection.putrequest("POST", "/tokenize")
        connection.putheader("Content-Length", str(1 << 30))
        connection.endheaders()
        connection.sock.shutdown(socket.SHUT_WR)  # else the server waits for the body
        self.assertEqual(connection.getresponse().status, 413)
        connection.close()

    def test_a_model_by_any_name(self):
        self.assertEqual(self.post("/v1/completions", model="gpt-4", prompt="x", max_tokens=1)["model"], "gpt-4")


class Loading(unittest.TestCase):
    def test_the_port_answers_while_the_model_loads(self):
        command = [STOKER, "serve", "-m", MODEL, "--port", "0", "-t", "1", "-c", "512"]
        process = subprocess.Popen(command, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL)
        self.addCleanup(process.stderr.close)
        self.addCleanup(process.wait)
        self.addCleanup(process.terminate)
        line = process.stderr.readline().decode()
        port = int(line.split("port ")[1].split(";")[0])
        states = []
        while not states or states[-1][0] != 200:
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=TIME_LIMIT)
            connection.request("GET", "/health")
            response = connection.getresponse()
            states.append((response.status, json.loads(response.read())))
            connection.close()
        for status, body in states[:-1]:
            self.assertEqual((status, body["error"]["message"]), (503, "Loading model"))
            self.assertIn("share", body["progress"])

    def test_a_bad_file_ends_it(self):
        run = subprocess.run([STOKER, "serve", "-m", __file__, "--port", "0"], capture_output=True, timeout=TIME_LIMIT)
        self.assertEqual(run.returncode, 1)
        self.assertIn(b"stoker: error: ", run.stderr)


class Options(unittest.TestCase):
    def start(self, *arguments):
        server = Server(*arguments)
        self.addCleanup(server.close)
        return server

    def test_the_key_is_asked_for(self):
        server = self.start("--api-key", "secret", "--alias", "mine")
        body = {"content": "x"}
        self.assertEqual(server.ask("GET", "/health")[0], 200)
        for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": "Bearer "}, {"Authorization": "Bearer secrets"}):
            status, answer = server.ask("POST", "/tokenize", body, headers)
            self.assertEqual((status, answer["error"]["type"]), (401, "authentication_error"))
        self.assertEqual(server.ask("POST", "/tokenize", body, {"Authorization": "Bearer secret"})[0], 200)
        self.assertEqual(server.ask("GET", "/v1/models", None, {"X-Api-Key": "secret"})[1]["data"][0]["id"], "mine")

    def test_keys_of_a_file(self):
        with tempfile.NamedTemporaryFile("w", suffix=".keys") as file:
            file.write("  anna's\n\nben's\n")
            file.flush()
            server = self.start("--api-key-file", file.name, "-c", 64)
            for key, status in (("anna's", 200), ("ben's", 200), ("", 401), ("\n", 401), ("carl's", 401)):
                self.assertEqual(server.ask("GET", "/props", None, {"Authorization": "Bearer " + key.strip()})[0], status)
            file.truncate(0)
            run = subprocess.run([STOKER, "serve", "-m", MODEL, "--port", "0", "--api-key-file", file.name], capture_output=True, timeout=TIME_LIMIT)
            self.assertEqual(run.returncode, 1)
            self.assertIn(b"there is no key in it", run.stderr)

    def test_pages_of_other_origins_ask_where_they_are_let(self):
        def headers(server, method, path, origin):
            connection = server.connect()
            connection.request(method, path, headers={"Origin": origin, "Access-Control-Request-Headers": "authorization,x-stainless-os"})
            response = connection.getresponse()
            response.read()
            connection.close()
            return response.status, response.getheader("Access-Control-Allow-Origin"), response.getheader("Access-Control-Allow-Headers")

        mine, other = "https://chat.example.org", "https://evil.example.org"
        server = self.start("-c", 64, "--cors", "http://localhost:3000, " + mine, "--api-key", "secret")
        self.assertEqual(headers(server, "OPTIONS", "/v1/chat/completions", mine), (204, mine, "authorization,x-stainless-os"))
        self.assertEqual(headers(server, "GET", "/props", mine), (401, mine, None))  # the page may read why not
        self.assertEqual(headers(server, "OPTIONS", "/v1/chat/completions", other)[1:], (None, None))
        self.assertEqual(headers(server, "GET", "/health", other)[1:], (None, None))
        self.assertEqual(headers(self.start("-c", 64, "--cors", "*"), "GET", "/health", other)[1], "*")
        self.assertEqual(headers(self.start("-c", 64), "OPTIONS", "/v1/chat/completions", mine)[1:], (None, None))
        run = subprocess.run([STOKER, "serve", "-m", MODEL, "--port", "0", "--cors", "chat.example.org"], capture_output=True, timeout=TIME_LIMIT)
        self.assertEqual(run.returncode, 1)
        self.assertIn(b"an origin is written like", run.stderr)

    def test_more_than_the_queue_holds_is_refused(self):
        server = self.start("--parallel", 1, "--queue", 0)
        for seed in range(8):  # an answer that happens to be short ends before the second request comes
            connection = server.connect()
            body = {"prompt": "The sky", "max_tokens": 400, "temperature": 1.2, "seed": seed, "stream": True}
            connection.request("POST", "/v1/completions", json.dumps(body))
            response = connection.getresponse()  # the first token is there: the slot is taken
            status, answer = server.ask("POST", "/v1/completions", {"prompt": "x", "max_tokens": 1})
            self.assertTrue(response.read().decode().endswith("data: [DONE]\n\n"))
            connection.close()
            if status == 429:
                break
        self.assertEqual((status, answer["error"]["type"]), (429, "rate_limit_error"))
        self.assertEqual(server.ask("POST", "/v1/completions", {"prompt": "x", "max_tokens": 1})[0], 200)

    def test_without_memory_requests_fail_and_the_next_ones_are_served(self):
        server = self.start()
        with open("/proc/%d/status" % server.process.pid) as file:
            size = int(re.search(r"VmSize:\s*(\d+)", file.read()).group(1)) << 10
        if size > 1 << 40:
            self.skipTest("a sanitizer has all of the address space")
        before = resource.prlimit(server.process.pid, resource.RLIMIT_AS)
        resource.prlimit(server.process.pid, resource.RLIMIT_AS, (size, before[1]))
        results = []

        def ask():
            try:
                results.append(server.ask("POST", "/completion", {"prompt": "The sky " * 50, "n_predict": 5, "n_probs": 10})[0])
            except (OSError, http.client.HTTPException):
                results.append("closed")

        threads = [threading.Thread(target=ask) for _ in range(16)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        self.assertTrue(set(results) & {500, 503, "closed"}, results)
        if server.process.poll() is None:
            resource.prlimit(server.process.pid, resource.RLIMIT_AS, before)
            self.assertEqual(server.ask("POST", "/completion", {"prompt": "The sky", "n_predict": 3})[0], 200)
            self.assertEqual(server.close(), 0)
        else:  # it was the engine that got none
            self.assertEqual(server.close(), 1)
            self.assertIn("out of memory", "".join(server.lines))

    def test_a_port_in_use_is_told(self):
        server = self.start()
        second = subprocess.run([STOKER, "serve", "-m", MODEL, "--port", str(server.port)], capture_output=True, timeout=TIME_LIMIT)
        self.assertEqual(second.returncode, 1)
        self.assertIn(b"the port is in use", second.stderr)

    def test_json_lines(self):
        server = self.start("--log-format", "json")
        server.ask("POST", "/tokenize", {"content": "x"}, {"X-Request-Id": "abc"})
        server.ask("POST", "/tokenize", "{", {"X-Request-Id": "def"})
        server.process.send_signal(signal.SIGTERM)
        lines = [json.loads(line) for line in server.lines + server.process.stderr.read().decode().splitlines()]
        answered = [(line["request_id"], line["path"], line["status"]) for line in lines if "request_id" in line]
        self.assertEqual(answered, [("abc", "/tokenize", 200), ("def", "/tokenize", 400)])
        self.assertTrue(all(line["time"].endswith("Z") for line in lines))
        self.assertIn("finishing what runs", lines[-1]["message"])

    def test_a_drain_has_an_end(self):
        server = Server("--drain-timeout", 1)
        connection = server.connect()
        connection.request("POST", "/v1/completions", json.dumps({"prompt": [5], "max_tokens": -1, "n": 4, "temperature": 5, "top_k": 0,
                                                                  "min_p": 0, "top_p": 1, "stream": True}))
        response = connection.getresponse()
        begin = time.time()
        server.process.send_signal(signal.SIGTERM)
        response.read()
        connection.close()
        server.process.wait(TIME_LIMIT)
        self.assertLess(time.time() - begin, 30)
        self.assertEqual(server.close(), 0)

    def test_sigterm_finishes_what_runs(self):
        server = Server("--parallel", 2)
        connection = server.connect()
        connection.request("POST", "/v1/completions", json.dumps({"prompt": "The sky", "max_tokens": 400, "ignore_eos": True,
                                                                    "stream": True}))
        response = connection.getresponse()  # the first token is there
        server.process.send_signal(signal.SIGTERM)
        answer = response.read().decode()
        self.assertTrue(answer.endswith("data: [DONE]\n\n"))
        self.assertIn('"finish_reason":"length"', answer)  # and not cancelled
        connection.close()
        server.process.wait(TIME_LIMIT)  # by itself: a second signal would end it with 130
        self.assertEqual(server.close(), 0)


if __name__ == "__main__":
    STOKER = os.path.abspath(sys.argv[1])
    ROOT = sys.argv[2]
    MODEL = os.path.join(ROOT, "tests", "models", "ember-37m-q4_k_m.gguf")
    MACHINE = os.path.join(ROOT, "tools/machines/1x3090-64GB.toml")
    unittest.main(argv=[sys.argv[0]] + sys.argv[3:], verbosity=2)

#!/usr/bin/env python3
"""Measuring, tuning and charts.  usage: tune_cli_test.py STOKER SOURCE_ROOT [unittest arguments]
"""

import json
import os
import sys
import xml.dom.minidom

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from cli_support import Folder, MODEL, PROMPT, answer, budgets, expect, main  # noqa: E402


def read(path):
    with open(path, "rb") as file:
        return file.read()


class Measure(Folder):
    def test_the_machine_file_that_measuring_writes_can_be_simulated(self):
        path = self.path("here.toml")
        text = expect(self, 0, "tune", "--measure", "-m", MODEL, "-o", path).stdout.decode()
        self.assertIn("GB/s", text)
        self.assertEqual(sorted(os.listdir(self.folder)), ["here.toml"])
        report = json.loads(expect(self, 0, "simulate", "-m", MODEL, "--machine", path, "--tokens", "20", "--json").stdout)
        self.assertGreater(report["warm"]["tokens_per_second"], 0)

    def test_measuring_needs_no_model_and_leaves_nothing_but_its_file(self):
        path = self.path("here.toml")
        expect(self, 0, "tune", "--measure", "-o", path)
        self.assertEqual(sorted(os.listdir(self.folder)), ["here.toml"])

    def test_mistakes_are_named(self):
        self.assertIn("ends in .toml", self.error("tune", "--measure", "-o", self.path("x")))
        self.assertIn("no file to write", self.error("tune", "--measure"))
        self.assertIn("no/such", self.error("tune", "--measure", "-o", "/no/such/x.toml"))


class Popularity(Folder):
    def test_a_run_leaves_popularity_for_the_next_and_the_answer_is_the_same(self):
        smallest, _ = budgets(self)
        path = self.path("p")
        plain = answer(self, "-p", PROMPT, "-n", "6")
        for policy in ("auto", "static"):
            first = None if not os.path.exists(path) else read(path)
            run = answer(self, "-p", PROMPT, "-n", "6", "--popularity", path, "--ram", "%dB" % smallest,
                         "--policy", policy if first else "lru")
            self.assertEqual(run["logits_hash"], plain["logits_hash"])
            self.assertNotEqual(read(path), first)
        report = json.loads(expect(self, 0, "simulate", "-m", MODEL, "--machine", "cpu-only-24GB", "--ram", "%dB" % smallest,
                                   "--tokens", "8", "--popularity", path, "--policy", "static", "--json").stdout)
        self.assertEqual(report["policy"], "static")

    def test_what_cannot_be_used_is_warned_about_and_kept(self):
        for name, data in (("a", b"GGUF, a model"), ("b", b"STKPOPUL"), ("c", b"STKPOPUL" + bytes(100))):
            path = self.file(name, data)
            result = expect(self, 0, "run", "-m", MODEL, "-p", PROMPT, "-n", "2", "--temp", "0", "--popularity", path)
            self.assertIn(b"it is not used", result.stderr)
            self.assertEqual(read(path), data)

    def test_a_trace_becomes_popularity(self):
        trace, path = self.path("t.trace"), self.path("t.popularity")
        expect(self, 0, "trace", "synth", "-o", trace, "--tokens", "20", "--prompts", "1")
        self.assertIn("20 tokens", expect(self, 0, "trace", "convert", trace, "-o", path).stdout.decode())
        report = json.loads(expect(self, 0, "simulate", "--tokens", "8", "--popularity", path, "--json").stdout)
        self.assertEqual(report["policy"], "auto")
        self.assertIn("the model has", self.error("simulate", "--shape", "deepseek-v2-lite", "--experts", "Q8_0", "--popularity",
                                                 path))

    def test_static_needs_it(self):
        self.assertIn("--popularity FILE", self.error("run", "-m", MODEL, "-p", PROMPT, "--policy", "static"))


class Charts(Folder):
    def chart(self, name):
        with open(self.path(name)) as file:
            return [text.firstChild.data for text in
                    xml.dom.minidom.parse(file).getElementsByTagName("text") if text.firstChild]

    def test_a_trace_is_drawn_with_every_policy_and_the_best_cache(self):
        trace = self.path("t.trace")
        expect(self, 0, "trace", "synth", "-o", trace, "--tokens", "12", "--prompts", "1")
        expect(self, 0, "trace", "stats", trace, "--plot", self.path("hits.svg"), "--plot-residency", self.path("who.svg"))
        texts = self.chart("hits.svg")
        for part in ("Belady", "auto", "lru", "lfu", "hit rate, %", "experts that have a slot, %"):
            self.assertIn(part, texts)
        texts = self.chart("who.svg")
        for part in ("expert", "layer", "100 %"):
            self.assertIn(part, texts)

    def test_a_sweep_of_budgets_gets_faster_and_is_drawn(self):
        options = ("simulate", "--shape", "deepseek-v2-lite", "--experts", "Q8_0", "--tokens", "80", "--sweep-ram", "1G..12G")
        rows = json.loads(expect(self, 0, *options, "--json", "--plot", self.path("ram.svg")).stdout)
        self.assertEqual(len(rows), 9)
        self.assertLess(rows[0]["warm"]["tokens_per_second"], rows[-1]["warm"]["tokens_per_second"])
        self.assertIn("RAM for experts, GiB", self.chart("ram.svg"))
        self.assertIn("tokens/s", expect(self, 0, *options).stdout.decode())

    def test_mistakes_are_named(self):
        self.assertIn("must be two sizes", self.error("simulate", "--sweep-ram", "9G..1G"))
        self.assertIn("--sweep-ram", self.error("simulate", "--plot", "x.svg"))
        self.assertIn(".svg", self.error("simulate", "--sweep-ram", "1G..2G", "--plot", "x.png"))
        self.assertIn("stats", self.error("trace", "synth", "-o", self.path("x"), "--plot", "x.svg"))


if __name__ == "__main__":
    main()

#!/usr/bin/env python3
"""Measuring, tuning and charts.  usage: tune_cli_test.py STOKER SOURCE_ROOT [unittest arguments]
"""

import json
import os
import re
import signal
import subprocess
import sys
import time
import xml.dom.minidom

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from cli_support import Folder, MODEL, PROMPT, STOKER, TIME_LIMIT, answer, budgets, expect, main  # noqa: E402


def read(path):
    with open(path, "rb") as file:
        return file.read()


class Measure(Folder):
    def test_the_machine_file_that_measuring_writes_can_be_simulated(self):
        path = self.path("here.toml")
        text = expect(self, 0, "tune", "--measure", "-m", MODEL, "-o", path).stdout.decode()
        self.assertIn("GB/s", text)
        self.assertEqual(sorted(os.listdir(self.folder)), ["here.toml"])
        written = dict(re.findall(r"^(\w+) = ([\d.e+]+)$", read(path).decode(), re.MULTILINE))
        self.assertGreater(float(written["layer_overhead_us"]), 0)
        self.assertLess(float(written["layer_overhead_us"]), 10000)
        self.assertGreater(float(written["attention_gflops"]), 1)
        self.assertLess(float(written["wake_us"]), 10000)
        report = json.loads(expect(self, 0, "simulate", "-m", MODEL, "--machine", path, "--tokens", "20", "--json").stdout)
        self.assertGreater(report["warm"]["tokens_per_second"], 0)

    def test_measuring_needs_neither_a_model_nor_a_file_to_write_and_leaves_one_where_serve_looks(self):
        report = expect(self, 0, "tune", "--measure", env=dict(os.environ, XDG_CONFIG_HOME=self.folder)).stdout
        self.assertIn(b"stoker/machine.toml: written", report)
        self.assertEqual(os.listdir(self.folder), ["stoker"])
        self.assertEqual(os.listdir(self.path("stoker")), ["machine.toml"])

    def test_mistakes_are_named(self):
        self.assertIn("ends in .toml", self.error("tune", "--measure", "-o", self.path("x")))
        nowhere = {name: value for name, value in os.environ.items() if name not in ("HOME", "XDG_CONFIG_HOME")}
        self.assertIn("no place for what is measured", self.error("tune", "--measure", env=nowhere))
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


class Tuning(Folder):
    """With a budget that makes the model stream, and a configuration folder of its own."""

    tuned = None  # the profile's text, once a test has tuned: it takes most of a minute

    def setUp(self):
        super().setUp()
        self.environment = dict(os.environ, XDG_CONFIG_HOME=self.folder)
        smallest, _ = budgets(self)
        self.ram = "%dB" % (2 * smallest)

    def tuned_profile(self):
        if Tuning.tuned is None:
            path = self.path("own.toml")
            expect(self, 0, *self.tune_arguments(), "-o", path, env=self.environment)
            Tuning.tuned = read(path).decode()
        return Tuning.tuned

    def tune_arguments(self):
        return ("tune", "-m", MODEL, "--ram", self.ram, "--tokens", "40", "--search-seconds", "0")

    def profile(self):
        folder = self.path("stoker")
        names = [name for name in os.listdir(folder) if re.fullmatch(r"[0-9a-f]{16}\.toml", name)] if os.path.isdir(folder) else []
        self.assertLessEqual(len(names), 1)
        return os.path.join(folder, names[0]) if names else None

    def run_says(self, *arguments):
        result = expect(self, 0, "run", "-m", MODEL, "-p", PROMPT, "-n", "3", "--temp", "0", "--ram", self.ram, "--json",
                        *arguments, env=self.environment)
        return result.stderr.decode(), json.loads(result.stdout)["logits_hash"]

    def test_tuning_writes_a_profile_that_runs_use_and_that_a_kill_does_not_take(self):
        text, plain = self.run_says()
        self.assertNotIn("profile", text)
        report = expect(self, 0, *self.tune_arguments(), env=self.environment).stdout.decode()
        for part in ("1 of 4", "2 of 4", "3 of 4", "4 of 4", "written; run, bench and serve use it"):
            self.assertIn(part, report)
        self.assertRegex(report, "gained|defaults are best")
        self.assertIn("32 of 40 tokens each", report)
        self.assertIn("by 16 tokens and 1 %", report)
        Tuning.tuned = read(self.profile()).decode()
        self.assertRegex(Tuning.tuned, '(?m)^prefetch-window = "(16|64)"$')
        self.assertRegex(Tuning.tuned, '(?m)^prefetch-gain = "[013]"$')

        text, tuned = self.run_says()
        self.assertIn("profile " + self.profile(), text)
        self.assertEqual(tuned, plain)
        text, _ = self.run_says("--profile", "none")
        self.assertNotIn("profile", text)

        # A fast machine may be through before the kill: then the profile is a newer one, as whole as the first.
        for seconds in (0.2, 2, 5, 8):
            process = subprocess.Popen([STOKER, *self.tune_arguments()], env=self.environment, stdout=subprocess.DEVNULL,
                                       stderr=subprocess.DEVNULL)
            time.sleep(seconds)
            process.kill()
            process.wait()
            text, _ = self.run_says()
            self.assertIn("profile " + self.profile(), text)
            self.assertNotIn("warning", text)
        before = read(self.profile())
        process = subprocess.Popen([STOKER, *self.tune_arguments()], env=self.environment, stdout=subprocess.DEVNULL,
                                   stderr=subprocess.DEVNULL)
        time.sleep(1)
        process.send_signal(signal.SIGINT)
        self.assertEqual(process.wait(timeout=TIME_LIMIT), 130)
        self.assertEqual(read(self.profile()), before)

    def write_profile(self, text, name=None):
        path = self.path(name or "p.toml")
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "w") as file:
            file.write(text)
        return path

    def test_what_the_command_line_says_wins_over_a_profile(self):
        text = self.tuned_profile()
        lru = self.write_profile(re.sub('policy = .*', 'policy = "lru"', text))
        bench = ("bench", "-m", MODEL, "--ram", self.ram, "-p", "0", "-n", "4", "-r", "1", "--json", "--profile", lru)
        result = expect(self, 0, *bench, env=self.environment)
        self.assertIn(b"policy lru", result.stderr)
        wrong = self.write_profile(re.sub('predictor = .*', 'predictor = "none"', text))
        rows = json.loads(expect(self, 0, *bench[:-1], wrong, env=self.environment).stdout)
        self.assertEqual(rows[0]["predictor"], "none")
        rows = json.loads(expect(self, 0, *bench[:-1], wrong, "--predictor", "count", env=self.environment).stdout)
        self.assertEqual(rows[0]["predictor"], "count")

        # Damaged and foreign ones: an error when asked for, a warning when found.
        fingerprint = re.search('fingerprint = "(.*)"', text).group(1)
        for change, says in ((("policy = ", "polcy = "), "polcy is no key of a profile"),
                             (("[settings]", "[settings"), "not TOML"),
                             (("policy = ", "policy = 1 #"), "policy must be a text"),
                             (("format = 1", "format = 2"), "a profile of format 2"),
                             (("lookahead = \"", "lookahead = \"9"), "must be from 0 to 3"),
                             ((fingerprint, "0" * 16), "the profile of another model"),
                             (("machine = \"", "machine = \"no "), "the profile of another machine")):
            self.assertIn(change[0], text)
            bad = text.replace(*change)
            error = self.error("run", "-m", MODEL, "-p", "a", "-n", "1", "--profile", self.write_profile(bad),
                               env=self.environment)
            self.assertIn(says, error)
            self.write_profile(bad, "stoker/%s.toml" % fingerprint)
            said, _ = self.run_says()
            self.assertIn("warning", said)
            self.assertIn(says, said)
        for length in range(0, len(text), 97):
            self.write_profile(text[:length], "stoker/%s.toml" % fingerprint)
            said, _ = self.run_says()
            self.assertIn("warning", said)

    def test_mistakes_are_named(self):
        self.assertIn("no model", self.error("tune"))
        self.assertIn("too few", self.error("tune", "-m", MODEL, "--prompts", self.file("t", b"a few words")))
        self.assertIn("cannot read this profile", self.error("run", "-m", MODEL, "-p", "a", "--profile", self.path("none")))

    def test_with_all_experts_in_memory_there_is_nothing_to_tune(self):
        result = expect(self, 0, "tune", "-m", MODEL, "--tokens", "40", "--ram", "1G", env=self.environment)
        self.assertIn(b"nothing to tune", result.stdout)
        self.assertIsNone(self.profile())
        self.assertEqual(os.listdir(self.path("stoker")), ["machine.toml"])  # its speeds are the server's limits all the same


class KilledRecording(Folder):
    def test_a_trace_has_all_but_the_last_second_of_a_run_that_is_killed(self):
        path = self.path("t.trace")
        smallest, _ = budgets(self)
        run = ("run", "-m", MODEL, "-p", PROMPT, "--raw", "--temp", "0", "--ram", "%dB" % smallest)
        process = subprocess.Popen([STOKER, *run, "-n", "3000", "--trace", path], stdout=subprocess.PIPE,
                                   stderr=subprocess.DEVNULL)
        shown = b""
        while len(shown) < 60:
            piece = os.read(process.stdout.fileno(), 4096)
            self.assertTrue(piece)
            shown += piece
        time.sleep(1)
        process.kill()
        process.wait()
        process.stdout.close()
        info = json.loads(expect(self, 0, "trace", "info", path, "--json").stdout)
        expect(self, 0, "trace", "stats", path)
        facts = answer(self, "-p", PROMPT, "--raw", "-n", "1")
        generated = info["tokens"] - facts["prompt"]["tokens"]
        self.assertGreater(generated, 0)
        text = answer(self, "-p", PROMPT, "--raw", "-n", str(generated + 1))["text"].encode()
        self.assertTrue(text.startswith(shown[:50]), (text, shown))


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
        options = ("simulate", "--shape", "deepseek-v2-lite", "--experts", "Q8_0", "--tokens", "80", "--sweep-ram", "1G..12G",
                   "--machine", "cpu-only-24GB")
        rows = json.loads(expect(self, 0, *options, "--json", "--plot", self.path("ram.svg")).stdout)
        self.assertEqual(len(rows), 9)
        self.assertLess(rows[0]["warm"]["tokens_per_second"], rows[-1]["warm"]["tokens_per_second"])
        self.assertIn("RAM for experts, GiB", self.chart("ram.svg"))
        self.assertIn("tokens/s", expect(self, 0, *options).stdout.decode())

    def test_recall_is_drawn_by_layer(self):
        simulated = ("simulate", "--shape", "deepseek-v2-lite", "--experts", "Q8_0", "--tokens", "40", "--ram", "2G",
                     "--machine", "cpu-only-24GB", "--plot-recall", self.path("recall.svg"))
        expect(self, 0, *simulated, "--lookahead", "2")
        texts = self.chart("recall.svg")
        for part in ("1 ahead, @6", "1 ahead, @12", "2 ahead, @6", "layer", "recall, %"):
            self.assertIn(part, texts)
        expect(self, 0, "bench", "-m", MODEL, "-p", "0", "-n", "8", "-r", "1", "--ram", "2M", "--predictor", "count",
               "--plot-recall", self.path("real.svg"))
        self.assertIn("1 ahead, @4", self.chart("real.svg"))
        self.assertIn("in memory", self.error("bench", "-m", MODEL, "-p", "0", "-n", "1", "-r", "1", "--plot-recall",
                                              self.path("none.svg")))

    def test_mistakes_are_named(self):
        self.assertIn("--predictor none", self.error("simulate", "--plot-recall", "x.svg", "--predictor", "none"))
        self.assertIn("must be two sizes", self.error("simulate", "--sweep-ram", "9G..1G"))
        self.assertIn("--sweep-ram", self.error("simulate", "--plot", "x.svg"))
        self.assertIn(".svg", self.error("simulate", "--sweep-ram", "1G..2G", "--plot", "x.png"))
        self.assertIn("stats", self.error("trace", "synth", "-o", self.path("x"), "--plot", "x.svg"))


if __name__ == "__main__":
    main()

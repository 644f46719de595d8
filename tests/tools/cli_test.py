#!/usr/bin/env python3
"""The binary from outside: what it prints where, its exit codes, every kind of bad input, and answers that must not
depend on where experts are.  usage: cli_test.py STOKER SOURCE_ROOT [unittest arguments]
"""

import json
import os
import resource
import select
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import time
import unittest

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import gguf_edit  # noqa: E402

STOKER = ""
MODEL = ""
PROMPT = "The borrow checker"
TIME_LIMIT = 300  # of one call: sanitizer builds are slow


def stoker(*arguments, stdin=b"", **options):
    return subprocess.run([STOKER, *map(str, arguments)], input=stdin, capture_output=True, timeout=TIME_LIMIT, **options)


def expect(test, code, *arguments, **options):
    result = stoker(*arguments, **options)
    test.assertEqual(result.returncode, code, "%s\n%s" % (" ".join(map(str, arguments)), result.stderr.decode("utf-8", "replace")))
    return result


def answer(test, *arguments, model=None, **options):
    """The JSON object of one run."""
    result = expect(test, 0, "run", "-m", model or MODEL, "--temp", "0", "--json", *arguments, **options)
    return json.loads(result.stdout)


def budgets(test, model=None):
    facts = json.loads(expect(test, 0, "inspect", "--json", model or MODEL).stdout)
    return facts["smallest_expert_budget_bytes"], facts["full_expert_budget_bytes"]


class Folder(unittest.TestCase):
    def setUp(self):
        self.folder = tempfile.mkdtemp(prefix="stoker-cli-")
        os.chmod(self.folder, 0o755)
        self.addCleanup(shutil.rmtree, self.folder)

    def path(self, name):
        return os.path.join(self.folder, name)

    def file(self, name, data):
        with open(self.path(name), "wb") as out:
            out.write(data)
        return self.path(name)

    def error(self, *arguments, **options):
        """The one error line of a call that must fail."""
        result = expect(self, 1, *arguments, **options)
        text = result.stderr.decode("utf-8", "replace")
        self.assertEqual(result.stdout, b"", text)
        errors = [line for line in text.split("\n") if line.startswith("stoker: error: ")]
        self.assertEqual(len(errors), 1, text)
        return errors[0]


COMMANDS = ("run", "inspect", "tokenize", "eval", "bench", "synth", "pack", "simulate", "plan", "trace",
            "serve")


class Help(unittest.TestCase):
    def test_help_goes_to_stdout_and_lists_every_command(self):
        for arguments in ([], ["--help"], ["-h"], ["help"]):
            text = expect(self, 0, *arguments).stdout.decode()
            for command in COMMANDS:
                self.assertIn(command, text)

    def test_each_command_has_help_that_names_its_options(self):
        for command in COMMANDS:
            first = expect(self, 0, command, "--help").stdout
            self.assertEqual(first, expect(self, 0, "help", command).stdout)
            self.assertIn(b"--verbose", first)

    def test_version(self):
        self.assertRegex(expect(self, 0, "--version").stdout.decode(), r"^stoker \d+\.\d+\.\d+\n$")

    def test_mistakes_are_all_told_and_exit_with_1(self):
        result = expect(self, 1, "run", "-m", "x", "-ngl", "99", "--promt", "hi", "--temp", "hot")
        lines = result.stderr.decode().strip().split("\n")
        self.assertEqual(len(lines), 3, lines)
        self.assertTrue(all(line.startswith("stoker: error: ") for line in lines))
        self.assertIn("--ram SIZE", lines[0])
        self.assertIn("did you mean --prompt?", lines[1])


class BadFiles(Folder):
    def run_error(self, path):
        run = self.error("run", "-m", path, "-p", PROMPT, "-n", "1")
        self.assertIn(os.path.basename(path).split("-0000")[0], run)
        return run

    def test_no_such_file(self):
        self.assertIn("no such file", self.run_error(self.path("absent.gguf")))

    def test_empty_file(self):
        self.run_error(self.file("empty.gguf", b""))

    def test_not_a_gguf(self):
        self.assertIn("GGUF", self.run_error(self.file("page.gguf", b"<!DOCTYPE html>" * 100)))

    def test_a_folder(self):
        self.run_error(self.folder)

    def test_other_architecture(self):
        path = self.file("other.gguf", gguf_edit.damaged(MODEL, gguf_edit.other_architecture))
        self.assertIn("mamba", self.run_error(path))

    def test_missing_tensor(self):
        path = self.file("missing.gguf", gguf_edit.damaged(MODEL, gguf_edit.rename_tensor("output_norm.weight")))
        self.assertIn("output_norm.weight", self.run_error(path))

    def test_missing_expert_tensor(self):
        path = self.file("missing.gguf", gguf_edit.damaged(MODEL, gguf_edit.rename_tensor("blk.2.ffn_up_exps.weight")))
        self.assertIn("blk.2.ffn_up_exps.weight", self.run_error(path))

    def test_unknown_block_type(self):
        path = self.file("type.gguf", gguf_edit.damaged(MODEL, gguf_edit.set_type("blk.2.ffn_up_exps.weight", 99)))
        message = self.run_error(path)
        self.assertIn("99", message)
        self.assertIn("blk.2.ffn_up_exps.weight", message)

    def test_truncated_in_the_middle_of_an_expert_is_found_at_load(self):
        path = self.file("cut.gguf", gguf_edit.damaged(MODEL, gguf_edit.cut_inside("blk.3.ffn_up_exps.weight", 100000)))
        self.assertIn("truncated", self.run_error(path))
        self.error("inspect", path)


class BadInput(Folder):
    def test_budget_too_small_names_one_that_works(self):
        smallest, _ = budgets(self)
        message = self.error("run", "-m", MODEL, "-p", PROMPT, "-n", "2", "--ram", "1K")
        self.assertIn("--ram", message)
        answer(self, "-p", PROMPT, "-n", "2", "--ram", "%dB" % smallest)

    def test_prompt_longer_than_the_context_names_both(self):
        message = self.error("run", "-m", MODEL, "-p", "word " * 200, "-c", "64")
        self.assertIn("64", message)
        self.assertRegex(message, r"the prompt has \d+ tokens")

    def test_invalid_utf8_names_the_byte(self):
        message = self.error("run", "-m", MODEL, "-f", "-", stdin=b"Rust \xff\xfe")
        self.assertIn("offset 5", message)
        result = stoker("run", "-m", MODEL, "-p", b"ab\xc3(".decode("utf-8", "surrogateescape"))
        self.assertEqual(result.returncode, 1)
        self.assertIn(b"offset 2", result.stderr)

    def test_token_id_out_of_range(self):
        ids = self.file("ids.txt", b"0 1 2 4096")
        self.assertIn("4096", self.error("eval", "-m", MODEL, "--tokens", ids))
        self.assertIn("4096", self.error("tokenize", "-m", MODEL, "--decode", "-p", "4096"))

    def test_prompt_file_that_is_not_there(self):
        self.assertIn("absent.txt", self.error("run", "-m", MODEL, "-f", self.path("absent.txt")))

    def test_empty_prompt_file(self):
        self.error("eval", "-m", MODEL, "--no-bos", "-f", self.file("empty.txt", b""))

    def test_a_file_that_cannot_be_written(self):
        ids = self.file("ids.txt", b"0 1 2")
        self.assertIn("logits.f32", self.error("eval", "-m", MODEL, "--tokens", ids, "--logits", self.path("no/logits.f32")))
        if os.path.exists("/dev/full"):
            self.assertIn("/dev/full", self.error("eval", "-m", MODEL, "--tokens", ids, "--logits", "/dev/full"))


class Answers(Folder):
    def test_text_goes_to_stdout_and_the_report_to_stderr(self):
        result = expect(self, 0, "run", "-m", MODEL, "-p", PROMPT, "-n", "16", "--temp", "0")
        report = result.stderr.decode()
        for part in ("prompt: ", "decode: ", "tokens/s", "waiting for disk", "in memory", "bottleneck", "hash", "budget"):
            self.assertIn(part, report)
        text = result.stdout.decode()
        self.assertEqual(text.rstrip("\n"), answer(self, "-p", PROMPT, "-n", "16")["text"].rstrip("\n"))
        self.assertNotIn("tokens/s", text)

    def test_prompt_from_a_file_and_from_stdin(self):
        wanted = answer(self, "-p", PROMPT, "-n", "8")["text"]
        self.assertEqual(answer(self, "-f", self.file("p.txt", PROMPT.encode()), "-n", "8")["text"], wanted)
        self.assertEqual(answer(self, "-f", "-", "-n", "8", stdin=PROMPT.encode())["text"], wanted)

    def test_where_experts_are_does_not_change_a_bit(self):
        smallest, full = budgets(self)
        everything = ("-p", PROMPT, "-n", "24")
        wanted = answer(self, *everything, "--ram", "%dB" % full, "-t", "1")
        self.assertEqual(wanted["engine"]["expert_slots"], wanted["engine"]["experts"])
        small = "%dB" % smallest
        for options in (
            ("--ram", small),
            ("--ram", small, "-t", "2"),
            ("--ram", small, "--io", "pread"),
            ("--ram", "%dB" % full, "--no-preload"),
            ("--ram", "%dB" % (smallest * 3), "-t", "2"),
            *(("--ram", small, "--policy", name) for name in
              ("auto", "ema", "lru", "lfu", "slru", "s3fifo", "least-stale", "mrs")),
        ):
            got = answer(self, *everything, *options)
            self.assertEqual(got["logits_hash"], wanted["logits_hash"], options)
            self.assertEqual(got["text"], wanted["text"], options)
        streamed = answer(self, *everything, "--ram", small)
        self.assertGreater(streamed["decode"]["disk_read_bytes"], 0)
        self.assertLess(streamed["engine"]["expert_slots"], streamed["engine"]["experts"])

    def test_an_unknown_policy_is_answered_with_the_names(self):
        for command in ("run", "bench"):
            text = expect(self, 1, command, "-m", MODEL, "--policy", "belady").stderr.decode()
            self.assertIn("--policy belady: must be one of auto|ema|lru|lfu|slru|s3fifo|least-stale|mrs", text)

    def test_predictions_are_reported_and_change_no_bit(self):
        smallest, _ = budgets(self)
        common = ("-p", PROMPT, "-n", "24", "--ram", "%dB" % (smallest * 3))
        wanted = answer(self, *common, "--predictor", "none")
        self.assertEqual(wanted["prediction"]["predictor"], "none")
        self.assertEqual(wanted["decode"]["prefetch_bytes"], 0)
        for predictor in ("previous", "count", "gate", "gate+shared"):
            for prefetch in ("on", "off", "auto"):
                got = answer(self, *common, "--predictor", predictor, "--prefetch", prefetch, "--lookahead", "2")
                self.assertEqual(got["logits_hash"], wanted["logits_hash"], (predictor, prefetch))
                self.assertEqual(got["prediction"]["predictor"], predictor)
                near = got["prediction"]["forecasts"][0]
                self.assertEqual(near["distance"], 1)
                self.assertLessEqual(near["recall"], near["recall_wide"])
                if prefetch == "off":
                    self.assertEqual(got["decode"]["prefetch_bytes"], 0)
                    self.assertEqual(got["prediction"]["prefetch"], "off")
                elif predictor.startswith("gate"):
                    self.assertGreater(near["recall_wide"], 0.5)
        text = expect(self, 0, "run", "-m", MODEL, "--prefetch", "on", *common).stderr.decode()
        self.assertIn("predict: gate+shared", text)
        self.assertIn("prefetch on", text)
        problem = expect(self, 1, "run", "-m", MODEL, *common, "--predictor", "oracle").stderr.decode()
        self.assertIn("gate+shared", problem)

    def test_greedy_text_is_the_same_for_every_chunk(self):
        with open(os.path.join(os.path.dirname(MODEL), "README.md"), encoding="utf-8") as file:
            prompt = file.read()
        for options in (("-p", prompt), ("-p", prompt, "--exact"), ("-p", PROMPT, "--raw", "-ctk", "q8_0")):
            answers = [answer(self, *options, "-n", "16", "-b", chunk) for chunk in (1, 7, 512)]
            self.assertEqual(len({got["text"] for got in answers}), 1, answers)
            self.assertEqual(len({got["logits_hash"] for got in answers}), 1, answers)
        text = self.file("text.txt", prompt.encode()[:600])
        evaluate = ("eval", "-m", MODEL, "-f", text, "--json", "-b")
        hashes = {json.loads(expect(self, 0, *evaluate, chunk).stdout)["logits_hash"] for chunk in (1, 7, 512)}
        self.assertEqual(len(hashes), 1)

    def test_seed_decides_the_sampled_text(self):
        def sampled(seed):
            out = expect(self, 0, "run", "-m", MODEL, "-p", PROMPT, "-n", "24", "--temp", "1", "-s", seed).stdout
            return out

        self.assertEqual(sampled(1), sampled(1))
        self.assertGreater(len({sampled(seed) for seed in range(1, 5)}), 1)

    def test_the_context_ends_an_answer_in_order(self):
        got = answer(self, "-p", PROMPT, "-c", "16", "-n", "-1")
        self.assertEqual(got["stop"], "context_full")

    def test_perf_table(self):
        report = expect(self, 0, "run", "-m", MODEL, "-p", PROMPT, "-n", "4", "--perf").stderr.decode()
        self.assertIn("GB/s", report)
        self.assertIn("attention", report)

    def test_as_an_ordinary_user_with_8_mib_of_locked_memory(self):
        def be_ordinary():
            resource.setrlimit(resource.RLIMIT_MEMLOCK, (8 << 20, 8 << 20))
            if os.getuid() == 0:
                os.setgroups([])
                os.setgid(65534)
                os.setuid(65534)

        reachable = stoker("--version", preexec_fn=be_ordinary, cwd="/") if os.access(STOKER, os.X_OK) else None
        if reachable is None or reachable.returncode != 0:
            self.skipTest("the build folder is not open to other users")
        smallest, full = budgets(self)
        self.assertGreater(full, 8 << 20)
        wanted = answer(self, "-p", PROMPT, "-n", "8")
        got = answer(self, "-p", PROMPT, "-n", "8", "--ram", "%dB" % (full // 2 + smallest), preexec_fn=be_ordinary)
        self.assertEqual(got["logits_hash"], wanted["logits_hash"])


class Stopping(Folder):
    def start(self, *arguments, stdin=subprocess.DEVNULL):
        process = subprocess.Popen([STOKER, *map(str, arguments)], stdin=stdin, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        self.addCleanup(process.stderr.close)
        self.addCleanup(process.stdout.close)
        self.addCleanup(lambda: process.poll() is None and process.kill())
        return process

    def read_some(self, process):
        ready, _, _ = select.select([process.stdout], [], [], TIME_LIMIT)
        self.assertTrue(ready, "no output")
        return os.read(process.stdout.fileno(), 4096)

    def read_until_report(self, process):
        """stderr up to the end of an answer's report."""
        text = b""
        while b"logits:" not in text or not text.endswith(b"\n"):
            ready, _, _ = select.select([process.stderr], [], [], TIME_LIMIT)
            self.assertTrue(ready, text)
            piece = os.read(process.stderr.fileno(), 65536)
            self.assertTrue(piece, text)
            text += piece
        return text

    def finish(self, process):
        code = process.wait(timeout=TIME_LIMIT)
        return code, process.stderr.read().decode("utf-8", "replace")

    def test_closed_stdout_ends_the_program_quietly(self):
        process = self.start("run", "-m", MODEL, "-p", PROMPT, "-n", "3000", "--temp", "1", "-s", "1")
        self.read_some(process)
        process.stdout.close()
        code, errors = self.finish(process)
        self.assertIn(code, (0, 1))
        self.assertNotIn("error", errors)

    def test_stdout_closed_from_the_start(self):
        process = self.start("--help")
        process.stdout.close()
        code, errors = self.finish(process)
        self.assertIn(code, (0, 1))
        self.assertEqual(errors, "")

    def test_ctrl_c_ends_the_answer_with_its_report_and_130(self):
        process = self.start("run", "-m", MODEL, "-p", PROMPT, "-n", "4000", "--temp", "1", "-s", "1")
        self.read_some(process)
        process.send_signal(signal.SIGINT)
        process.stdout.read()
        code, errors = self.finish(process)
        self.assertEqual(code, 130, errors)
        self.assertIn("decode: ", errors)

    def test_ctrl_c_in_a_conversation_ends_the_answer_only(self):
        process = self.start("run", "-m", MODEL, "--chat", "-n", "4000", "--temp", "1", "-s", "1", stdin=subprocess.PIPE)
        self.addCleanup(process.stdin.close)
        process.stdin.write(b"The first message\n")
        process.stdin.flush()
        self.read_some(process)
        process.send_signal(signal.SIGINT)
        self.read_until_report(process)
        self.assertIsNone(process.poll())
        process.stdin.write(b"The second message\n")
        process.stdin.flush()
        self.read_some(process)
        process.send_signal(signal.SIGINT)
        self.read_until_report(process)
        process.stdin.close()
        code, errors = self.finish(process)
        self.assertEqual(code, 0, errors)

    def test_a_conversation_keeps_its_tokens(self):
        messages = b"The borrow checker\nand then the compiler\n"
        options = ("--temp", "0", "-n", "8", "--json")
        lines = expect(self, 0, "run", "-m", MODEL, "--chat", *options, stdin=messages).stdout.decode().strip().split("\n")
        first, second = map(json.loads, lines)
        alone = answer(self, "-p", "and then the compiler", "-n", "8")
        self.assertEqual(first["decode"]["tokens"], 8)
        # The second turn computes its own message and the last token of the first answer, nothing twice.
        self.assertLessEqual(second["prompt"]["tokens"], alone["prompt"]["tokens"] + 1)
        self.assertNotEqual(second["logits_hash"], alone["logits_hash"])

    def test_a_read_error_in_the_middle_of_a_run_ends_it_with_a_message(self):
        smallest, _ = budgets(self)
        model = self.path("copy.gguf")
        shutil.copyfile(MODEL, model)
        with open(model, "rb") as file:
            header = gguf_edit.Header(file.read())
        experts = [t["offset"] for name, t in header.tensors.items() if "_exps" in name]
        process = self.start(
            "run", "-m", model, "--chat", "-n", "8", "--temp", "0", "--ram", "%dB" % smallest, stdin=subprocess.PIPE
        )
        self.addCleanup(process.stdin.close)
        process.stdin.write(b"The first message\n")
        process.stdin.flush()
        self.read_until_report(process)
        os.truncate(model, header.data_start + min(experts))
        process.stdin.write(b"Quite another message with many other words\n")
        process.stdin.flush()
        code, errors = self.finish(process)
        self.assertEqual(code, 1, errors)
        self.assertIn("stoker: error: ", errors)
        self.assertIn("copy.gguf", errors)


class OtherCommands(Folder):
    def test_tokenize_and_back(self):
        text = "Ownership, 12345 — naïve façade 🦀\n"
        ids = expect(self, 0, "tokenize", "-m", MODEL, "--no-bos", "--stdin", stdin=text.encode()).stdout.decode()
        self.assertEqual(ids.count("\n"), 1)
        self.assertGreater(len(ids.split()), 5)
        back = expect(self, 0, "tokenize", "-m", MODEL, "--decode", "--stdin", stdin=ids.encode()).stdout
        self.assertEqual(back.decode(), text)

    def test_tokenize_puts_bos_first_unless_told_otherwise(self):
        plain = expect(self, 0, "tokenize", "-m", MODEL, "-p", "hello", "--no-bos").stdout.split()
        whole = expect(self, 0, "tokenize", "-m", MODEL, "-p", "hello").stdout.split()
        self.assertEqual(whole, [b"0"] + plain)

    def test_inspect_shows_the_shape_and_what_fits(self):
        text = expect(self, 0, "inspect", MODEL).stdout.decode()
        for part in ("deepseek2", "4 of 32", "resident", "shared", "routed", "one expert", "this machine"):
            self.assertIn(part, text)
        facts = json.loads(expect(self, 0, "inspect", "-m", MODEL, "--json", "--ram", "4M").stdout)
        self.assertEqual(facts["experts_per_layer"], 32)
        self.assertEqual(facts["expert_budget_bytes"], 4 << 20)
        self.assertTrue(0 < facts["experts_that_fit"] < facts["experts"])
        total = facts["resident_bytes"] + facts["shared_bytes"] + facts["routed_bytes"] + facts["mtp_bytes"]
        self.assertEqual(total, facts["tensor_bytes"])

    def test_eval_writes_logits_that_agree_with_its_numbers(self):
        ids = expect(self, 0, "tokenize", "-m", MODEL, "-p", "The borrow checker compares scopes to see").stdout
        tokens = self.file("tokens.txt", ids)
        logits, top1 = self.path("logits.f32"), self.path("top1.txt")
        out = expect(self, 0, "eval", "-m", MODEL, "--tokens", tokens, "--logits", logits, "--top1", top1, "--json").stdout
        facts = json.loads(out)
        numbers = [int(word) for word in ids.split()]
        self.assertEqual(facts["tokens"], len(numbers))
        self.assertEqual(facts["predictions"], len(numbers) - 1)
        with open(logits, "rb") as file:
            data = file.read()
        self.assertEqual(len(data), len(numbers) * 4096 * 4)
        with open(top1) as file:
            best = [int(word) for word in file.read().split()]
        for row, wanted in enumerate(best):
            values = struct.unpack_from("<4096f", data, row * 4096 * 4)
            self.assertEqual(values.index(max(values)), wanted)

    def test_eval_of_text_and_of_its_tokens_agree(self):
        text = self.file("text.txt", b"In Rust, ownership is a set of rules.")
        ids = self.file("ids.txt", expect(self, 0, "tokenize", "-m", MODEL, "-f", text).stdout)
        a = json.loads(expect(self, 0, "eval", "-m", MODEL, "-f", text, "--json").stdout)
        b = json.loads(expect(self, 0, "eval", "-m", MODEL, "--tokens", ids, "--json").stdout)
        self.assertEqual(a["logits_hash"], b["logits_hash"])
        self.assertEqual(a["mean_nll_nats_per_token"], b["mean_nll_nats_per_token"])

    def test_bench_prints_its_table_in_three_forms(self):
        options = ("bench", "-m", MODEL, "-p", "16", "-n", "4", "-r", "2")
        table = expect(self, 0, *options).stdout.decode()
        for part in ("| model ", "| t/s |", "pp16", "tg4", "±", "build: "):
            self.assertIn(part.replace("| t/s |", "t/s |"), table)
        rows = json.loads(expect(self, 0, *options, "-o", "json").stdout)
        self.assertEqual([row["test"] for row in rows], ["pp16", "tg4"])
        self.assertEqual(len(rows[0]["samples_ts"]), 2)
        self.assertNotIn("bytes_per_token", rows[0])
        self.assertGreater(rows[1]["bytes_per_token"], 5 << 20)
        self.assertLess(rows[1]["bytes_per_token"], rows[1]["model_size"])
        self.assertGreater(rows[1]["memory_gb_per_second"], 0.5)
        self.assertAlmostEqual(
            rows[1]["share_of_memory_roof"],
            rows[1]["bytes_per_token"] * rows[1]["avg_ts"] * 1e-9 / rows[1]["memory_gb_per_second"],
        )
        lines = expect(self, 0, *options, "-o", "csv").stdout.decode().strip().split("\n")
        self.assertEqual(len(lines), 3)
        self.assertEqual(lines[0].split(",")[0], "build_version")

    def test_bench_starts_from_a_given_depth(self):
        options = ("bench", "-m", MODEL, "-p", "8", "-n", "4", "-r", "2", "-d", "20", "--json")
        rows = json.loads(expect(self, 0, *options).stdout)
        self.assertEqual([row["test"] for row in rows], ["pp8 @ d20", "tg4 @ d20"])
        self.assertEqual([row["n_depth"] for row in rows], [20, 20])

    def test_bench_computes_the_same_streamed_and_in_memory(self):
        smallest, full = budgets(self)
        hashes = set()
        for ram in (smallest, full):
            rows = json.loads(
                expect(self, 0, "bench", "-m", MODEL, "-p", "16", "-n", "4", "-r", "1", "--json", "--ram", "%dB" % ram).stdout
            )
            hashes.add(rows[0]["logits_hash"])
        self.assertEqual(len(hashes), 1)


class Synthetic(Folder):
    def synth(self, name, *arguments):
        expect(self, 0, "synth", "--shape", "tiny", "-o", self.path(name), *arguments)
        return sorted(os.path.join(self.folder, f) for f in os.listdir(self.folder))

    def test_a_tiny_model_answers(self):
        (model,) = self.synth("tiny.gguf")
        got = answer(self, "-p", "hello", "-n", "4", model=model)
        self.assertLessEqual(got["decode"]["tokens"], 4)
        self.assertEqual(self.synth("again.gguf", "--seed", "2") and 2, len(os.listdir(self.folder)))

    def test_the_same_seed_writes_the_same_file(self):
        self.synth("a.gguf", "--seed", "7")
        self.synth("b.gguf", "--seed", "7")
        self.synth("c.gguf", "--seed", "8")
        a, b, c = (open(self.path(name), "rb") for name in ("a.gguf", "b.gguf", "c.gguf"))
        with a, b, c:
            first, second, third = a.read(), b.read(), c.read()
        self.assertEqual(first, second)
        self.assertNotEqual(first, third)

    def test_shards_are_found_and_missing_ones_named(self):
        (whole,) = self.synth("whole.gguf", "--seed", "3")
        size = os.path.getsize(whole)
        self.synth("split.gguf", "--seed", "3", "--split-size", "%dB" % (size // 3))
        shards = sorted(f for f in os.listdir(self.folder) if f.startswith("split-"))
        self.assertGreater(len(shards), 1)
        same = [answer(self, "-p", "hello", "-n", "4", model=m)["logits_hash"] for m in (whole, self.path(shards[0]))]
        self.assertEqual(same[0], same[1])
        self.error("run", "-m", self.path(shards[1]), "-p", "hello")  # not the first
        os.remove(self.path(shards[-1]))
        self.assertIn(shards[-1], self.error("run", "-m", self.path(shards[0]), "-p", "hello"))

    def test_sparse_models_take_no_room_and_run(self):
        (model,) = self.synth("sparse.gguf", "--sparse")
        answer(self, "-p", "hello", "-n", "2", model=model)


class RoutingTraces(Folder):
    def trace(self, *arguments):
        return expect(self, 0, "trace", *arguments).stdout.decode()

    def test_run_records_what_the_router_chose(self):
        path = self.path("run.trace")
        plain = answer(self, "-p", PROMPT, "-n", "6")
        traced = answer(self, "-p", PROMPT, "-n", "6", "--trace", path)
        self.assertEqual(plain["text"], traced["text"])
        info = json.loads(self.trace("info", path, "--json"))
        facts = json.loads(expect(self, 0, "inspect", "--json", MODEL).stdout)
        self.assertEqual(info["moe_layers"], facts["layers"] - facts["dense_layers"])
        self.assertEqual(info["experts"], facts["experts_per_layer"])
        self.assertEqual(info["experts_per_token"], facts["experts_per_token"])
        self.assertGreaterEqual(info["tokens"], 6)
        self.assertEqual(info["cut_bytes"], 0)
        stats = json.loads(self.trace("stats", path, "--json"))
        self.assertEqual(stats["tokens"], info["tokens"])
        self.assertEqual(len(stats["layers"]), info["moe_layers"])
        self.assertIn(info["model"], self.trace("stats", path))

    def test_a_replayed_trace_is_recorded_again_bit_for_bit(self):
        options = ("bench", "-m", MODEL, "-p", "8", "-n", "4", "-r", "1", "--json")
        a, b = self.path("a.trace"), self.path("b.trace")
        expect(self, 0, *options, "--trace", a)
        expect(self, 0, *options, "--routing", a, "--trace", b)
        texts = []
        for name in (a, b):
            self.trace("convert", name, "-o", name + ".csv")
            with open(name + ".csv") as file:
                texts.append(file.read())
        self.assertGreater(texts[0].count("\n"), 20)
        self.assertEqual(texts[0], texts[1])
        self.trace("convert", a + ".csv", "-o", self.path("c.trace"))
        self.trace("convert", a, "-o", self.path("a.jsonl"))
        with open(self.path("a.jsonl")) as file:
            lines = [json.loads(line) for line in file]
        self.assertEqual(len(lines), json.loads(self.trace("info", a, "--json"))["tokens"])

    def test_replay_computes_the_same_streamed_and_in_memory(self):
        smallest, full = budgets(self)
        hashes = set()
        for ram in (smallest, full):
            rows = json.loads(expect(self, 0, "bench", "-m", MODEL, "-p", "16", "-n", "4", "-r", "1", "--json", "--routing",
                                     "synthetic:pessimistic", "--ram", "%dB" % ram).stdout)
            hashes.add(rows[0]["logits_hash"])
            self.assertEqual(rows[0]["routing"], "synthetic:pessimistic")
        self.assertEqual(len(hashes), 1)

    def test_synthetic_traces_come_from_their_seed(self):
        bytes_of = {}
        for name, seed in (("a", 1), ("b", 1), ("c", 2)):
            self.trace("synth", "-o", self.path(name), "--tokens", "20", "--prompts", "2", "--seed", seed)
            with open(self.path(name), "rb") as file:
                bytes_of[name] = file.read()
        self.assertEqual(bytes_of["a"], bytes_of["b"])
        self.assertNotEqual(bytes_of["a"], bytes_of["c"])
        self.assertEqual(len(bytes_of["a"]), 128 + 20 * 1408)
        cut = self.file("cut", bytes_of["a"][:-1])
        self.assertEqual(json.loads(self.trace("info", cut, "--json"))["tokens"], 19)

    def test_mistakes_are_named(self):
        trace = self.path("v3.trace")
        self.trace("synth", "-o", trace, "--tokens", "2", "--prompts", "1")
        self.assertIn("of 256 experts", self.error("bench", "-m", MODEL, "-p", "0", "-n", "1", "--routing", trace))
        self.assertIn("not a routing trace", self.error("trace", "info", MODEL))
        self.assertIn("is no trace", self.error("trace", "synth", "-o", self.file("x", b"something"), "--tokens", "9"))
        self.assertIn("is no trace", self.error("run", "-m", MODEL, "-p", "x", "--trace", self.path("x")))
        self.assertIn("No space left", self.error("trace", "synth", "-o", "/dev/full", "--tokens", "9"))
        self.assertIn("info, stats, convert or synth", self.error("trace"))
        self.assertIn("no file to read", self.error("trace", "stats"))
        self.assertIn("give -o FILE", self.error("trace", "convert", trace))
        self.assertIn("one of them must be text", self.error("trace", "convert", trace, "-o", self.path("y")))
        self.assertIn("more than --tokens", self.error("trace", "synth", "-o", self.path("z"), "--tokens", "2"))


class Packs(Folder):
    def pack(self, *arguments, model=None, name="pack.gguf", **options):
        out = expect(self, 0, "pack", "-m", model or MODEL, "-o", self.path(name), "--json", *arguments, **options).stdout
        return json.loads(out)

    def folders(self, *names):
        for name in names:
            os.mkdir(self.path(name))
        return ",".join(self.path(name) for name in names)

    def expert_at(self, path, layer):
        """Where the first expert of this layer in this file begins."""
        with open(path, "rb") as file:
            header = gguf_edit.Header(file.read())
        (tensor,) = [t for name, t in header.tensors.items() if name.startswith("blk.%d.experts.packed." % layer)]
        return header.data_start + tensor["offset"]

    def flip(self, path, at):
        with open(path, "r+b") as file:
            file.seek(at)
            byte = file.read(1)[0]
            file.seek(at)
            file.write(bytes([byte ^ 0x40]))

    def test_every_command_reads_packs_like_the_original(self):
        whole = self.pack()
        striped = self.pack("--stripe", self.folders("one", "two"), name="striped.gguf")
        self.assertEqual(len(whole["files"]), 1)
        self.assertEqual([os.path.exists(path) for path in striped["files"]], [True] * 3)
        smallest, full = budgets(self)
        facts = json.loads(expect(self, 0, "inspect", "--json", MODEL).stdout)
        text = self.file("text.txt", b"In Rust, ownership is a set of rules.")
        wanted = answer(self, "-p", PROMPT, "-n", "16", "--ram", "%dB" % full)
        judged = json.loads(expect(self, 0, "eval", "-m", MODEL, "-f", text, "--json").stdout)
        for model in (whole["files"][0], striped["files"][0]):
            for options in (("--ram", "%dB" % smallest), ("--ram", "64M"), ("--ram", "%dB" % smallest, "--io", "pread")):
                got = answer(self, "-p", PROMPT, "-n", "16", *options, model=model)
                self.assertEqual(got["logits_hash"], wanted["logits_hash"])
                self.assertEqual(got["text"], wanted["text"])
            again = json.loads(expect(self, 0, "eval", "-m", model, "-f", text, "--json").stdout)
            self.assertEqual(again["logits_hash"], judged["logits_hash"])
            shape = json.loads(expect(self, 0, "inspect", "--json", model).stdout)
            self.assertTrue(shape["packed"])
            for key in ("parameters", "tensor_bytes", "routed_bytes_by_type", "expert_layers", "experts"):
                self.assertEqual(shape[key], facts[key], key)
            self.assertIn(b"tg2", expect(self, 0, "bench", "-m", model, "-p", "0", "-n", "2", "-r", "1").stdout)
            ids = expect(self, 0, "tokenize", "-m", model, "-p", PROMPT).stdout
            self.assertEqual(ids, expect(self, 0, "tokenize", "-m", MODEL, "-p", PROMPT).stdout)
            checked = json.loads(expect(self, 0, "pack", "--verify", model, "--json").stdout)
            self.assertEqual((checked["experts"], checked["damaged"]), (128, []))

    def test_a_flipped_byte_is_told_by_layer_and_expert(self):
        files = self.pack("--stripe", self.folders("one"))["files"]
        self.flip(files[1], self.expert_at(files[1], 3) + 1000)
        # Layer 3 is the third of the MoE layers: its expert 0 is in the main file, its expert 1 in the stripe.
        place = "layer 3, expert 1: the data does not match its checksum (%s" % files[1]
        self.assertIn(place, self.error("run", "-m", files[0], "-p", PROMPT, "-n", "2"))
        result = expect(self, 1, "pack", "--verify", files[0])
        self.assertIn(place, result.stderr.decode())
        self.assertIn("1 damaged place", result.stderr.decode())
        self.assertEqual(result.stdout, b"")
        # Streamed, it is met when a token wants it.
        smallest, _ = budgets(self)
        with open(os.path.join(os.path.dirname(MODEL), "../../bench/data/alice.txt"), "rb") as file:
            text = self.file("text.txt", file.read(4000))
        message = self.error("eval", "-m", files[0], "-f", text, "--ram", "%dB" % smallest)
        self.assertIn(place, message)

    def test_a_flipped_byte_of_another_tensor_is_found_by_verify(self):
        (path,) = self.pack()["files"]
        with open(path, "rb") as file:
            header = gguf_edit.Header(file.read())
        self.flip(path, header.data_start + header.tensors["output.weight"]["offset"] + 12345)
        self.assertIn(b"tensor 'output.weight'", expect(self, 1, "pack", "--verify", path).stderr)

    def test_stripes_may_move_and_mix_ups_are_refused(self):
        files = self.pack("--stripe", self.folders("one", "two"))["files"]
        os.rename(files[1], self.path(os.path.basename(files[1])))
        answer(self, "-p", PROMPT, "-n", "1", model=files[0])
        shutil.copyfile(files[2], self.path("kept"))
        again = self.pack("--stripe", ",".join(self.path(f) for f in ("one", "two")), "--force")["files"]
        answer(self, "-p", PROMPT, "-n", "1", model=again[0])
        shutil.copyfile(self.path("kept"), again[2])
        self.assertIn("another packing", self.error("run", "-m", again[0], "-p", PROMPT, "-n", "1"))
        os.remove(again[2])
        self.assertIn(again[2], self.error("run", "-m", again[0], "-p", PROMPT, "-n", "1"))
        self.assertIn("give its main file: pack.gguf", self.error("run", "-m", again[1], "-p", PROMPT))

    def test_mistakes_are_told(self):
        (path,) = self.pack()["files"]
        for arguments, part in (
            (("-m", path, "-o", self.path("twice.gguf")), "packed model already"),
            (("-m", MODEL, "-o", path), "--force"),
            (("-m", MODEL, "-o", MODEL, "--force"), "overwrite the model itself"),
            (("-m", self.path("absent.gguf"), "-o", self.path("x.gguf")), "no such file"),
            (("-m", MODEL, "-o", self.path("no/x.gguf")), "no/x.gguf"),
            (("-m", MODEL, "-o", self.path("x.gguf"), "--stripe", self.path("no")), "no such folder"),
            (("-m", MODEL, "-o", self.path("x.gguf"), "--stripe", "a,,b"), "a folder's name is empty"),
            (("-m", MODEL), "-o FILE"),
            (("-o", self.path("x.gguf")), "-m FILE"),
            (("--verify", path, "--force"), "leave out"),
            (("--verify", MODEL), "not a packed model"),
        ):
            self.assertIn(part, self.error("pack", *arguments))
        self.assertEqual(os.listdir(self.folder), ["pack.gguf"])
        self.pack("--force")
        self.assertEqual(os.listdir(self.folder), ["pack.gguf"])

    def start(self, *arguments):
        process = subprocess.Popen([STOKER, "pack", *arguments], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        self.addCleanup(process.stderr.close)
        self.addCleanup(lambda: process.poll() is None and process.kill())
        return process

    def stop_while_writing(self, process, number):
        """Sends the signal once some data is on its way; False when the process was faster."""
        end = time.monotonic() + TIME_LIMIT
        while time.monotonic() < end and process.poll() is None:
            for folder, _, names in os.walk(self.folder):
                for name in names:
                    if name.endswith(".partial"):
                        process.send_signal(number)
                        process.wait(timeout=TIME_LIMIT)
                        return True
        return False

    def test_killed_in_the_middle_it_leaves_no_model(self):
        for stripes in ([], ["--stripe", self.folders("one")]):
            killed = 0
            for attempt in range(40):
                process = self.start("-m", MODEL, "-o", self.path("killed.gguf"), "--force", *stripes)
                killed += self.stop_while_writing(process, signal.SIGKILL) and process.returncode == -signal.SIGKILL
                left = [os.path.join(folder, f) for folder, _, names in os.walk(self.folder) for f in names]
                if self.path("killed.gguf") in left:  # it was faster
                    answer(self, "-p", PROMPT, "-n", "1", model=self.path("killed.gguf"))
                    os.remove(self.path("killed.gguf"))
                    continue
                for path in left:
                    self.error("run", "-m", path, "-p", PROMPT, "-n", "1")
                if killed == 3:
                    break
            self.assertGreater(killed, 0)
            # What was left is not in the way of the next packing.
            self.pack("--force", *stripes, name="killed.gguf")
            answer(self, "-p", PROMPT, "-n", "1", model=self.path("killed.gguf"))
            os.remove(self.path("killed.gguf"))

    def test_ctrl_c_leaves_nothing(self):
        process = self.start("-m", MODEL, "-o", self.path("stopped.gguf"))
        if self.stop_while_writing(process, signal.SIGINT) and process.returncode == 130:
            self.assertEqual(os.listdir(self.folder), [])
        else:  # it was at its last step
            self.assertEqual(os.listdir(self.folder), ["stopped.gguf"])

    def test_a_full_disk_ends_it_with_a_message_and_nothing_is_left(self):
        def small_files():
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (5 << 20, 5 << 20))

        for stripes in ([], ["--stripe", self.folders("one")]):
            message = self.error("pack", "-m", MODEL, "-o", self.path("p.gguf"), *stripes, preexec_fn=small_files)
            self.assertIn("p.", message)
            self.assertIn("larger file", message)
            self.assertEqual([n for n in os.listdir(self.folder) if n != "one"], [])
            if stripes:
                self.assertEqual(os.listdir(self.path("one")), [])


class Simulate(Folder):
    SMALL = ("--moe-layers", "4", "--dense-layers", "1", "--experts", "IQ2_XXS", "--attn", "Q4_K")

    def simulate(self, *arguments):
        return json.loads(expect(self, 0, "simulate", "--json", *arguments).stdout)

    def machine_file(self, text):
        return self.file("box.toml", text.encode())

    def test_the_whole_v3_on_every_built_in_machine(self):
        for machine in ("tower-2x3090-4x32GB", "tower-2x3090-2x64GB-gen5", "1x3090-64GB", "cpu-only-24GB"):
            facts = self.simulate("--machine", machine, "--experts", "IQ1_S", "--attn", "IQ4_XS", "--tokens", "80",
                                  "--no-preload")
            self.assertEqual(facts["experts"], 58 * 256)
            self.assertEqual((facts["cold"]["tokens"], facts["warm"]["tokens"]), (64, 16))
            for phase in (facts["cold"], facts["warm"]):
                bounds = phase["bounds"]
                self.assertGreater(phase["tokens_per_second"], 0)
                self.assertLessEqual(phase["tokens_per_second"], bounds["roofline"]["tokens_per_second"] * 1.0001)
                self.assertLessEqual(bounds["belady"]["tokens_per_second"],
                                     bounds["infinite_bandwidth"]["tokens_per_second"] * 1.0001)
                self.assertLessEqual(phase["hit_rate"], phase["belady_hit_rate"])

    def test_text_says_what_it_is(self):
        text = expect(self, 0, "simulate", *self.SMALL, "--ram", "2G", "--tokens", "100").stdout.decode()
        for part in ("simulated: 2x RTX 3090", "cold", "warm", "roofline", "Belady", "infinite bandwidth", "VRAM are left out"):
            self.assertIn(part, text)

    def test_the_same_seed_gives_the_same_figures_and_more_memory_more_speed(self):
        def figures(*arguments):
            facts = self.simulate(*self.SMALL, "--tokens", "200", *arguments)
            del facts["real_seconds"]
            return facts

        first = figures("--ram", "2G")
        self.assertEqual(first, figures("--ram", "2G"))
        self.assertNotEqual(first, figures("--ram", "2G", "--seed", "2"))
        self.assertGreater(figures("--ram", "6G")["warm"]["tokens_per_second"], first["warm"]["tokens_per_second"])
        self.assertLess(figures("--ram", "2G", "--routing", "uniform")["warm"]["hit_rate"], first["warm"]["hit_rate"])
        whole = figures("--ram", "20G")
        self.assertNotIn("cold", whole)
        self.assertEqual(whole["warm"]["hit_rate"], 1)

    def test_a_machine_of_ones_own(self):
        text = """name = "box"
ram_gib = 32
[dram]
gb_per_second = 40
[ssd]
gb_per_second = 2
latency_us = 100
[kernels]
default = 100
"""
        facts = self.simulate(*self.SMALL, "--machine", self.machine_file(text), "--tokens", "10")
        self.assertEqual((facts["machine"], facts["resident_in"]), ("box", "ram"))
        for wrong, part in (("latency_us", "ssd.latency_us is missing"), ("[dram]", "dram is missing")):
            path = self.machine_file(text.replace(wrong, wrong.replace("a", "x")))
            self.assertIn(part, self.error("simulate", *self.SMALL, "--machine", path))

    def test_a_model_file_has_the_figures_of_its_header(self):
        known = json.loads(expect(self, 0, "inspect", "--json", MODEL).stdout)
        facts = self.simulate("-m", MODEL, "--tokens", "70", "--no-preload", "--ram",
                              "%dK" % (known["full_expert_budget_bytes"] // 2048))
        self.assertEqual(facts["experts"], known["experts"])
        self.assertEqual(facts["expert_bytes_total"], known["routed_bytes"])
        self.assertTrue(0 < facts["warm"]["hit_rate"] < 1)
        self.assertIn("leave out --experts", self.error("simulate", "-m", MODEL, "--experts", "Q4_K"))
        # A pack has checksums, which a drive without data cannot be asked for.
        expect(self, 0, "pack", "-m", MODEL, "-o", self.path("pack.gguf"))
        packed = self.simulate("-m", self.path("pack.gguf"), "--tokens", "70", "--no-preload")
        self.assertEqual(packed["expert_bytes_total"], facts["expert_bytes_total"])

    def test_a_plan_says_what_goes_where_and_what_to_expect(self):
        plan = json.loads(expect(self, 0, "plan", "--json", "--experts", "IQ2_XXS", "--tokens", "100").stdout)
        simulated = self.simulate("--experts", "IQ2_XXS", "--tokens", "100")
        self.assertEqual(plan["simulated_tokens_per_second"], simulated["warm"]["tokens_per_second"])
        self.assertEqual(plan["resident_bytes"] + plan["kv_bytes"], simulated["resident_bytes"])
        self.assertEqual((plan["resident_in"], plan["experts_in_ram"]), ("vram", simulated["slots"]))
        self.assertEqual(plan["kv_bytes"], 4096 * 61 * 576 * 2)
        text = expect(self, 0, "plan", "--experts", "IQ2_XXS", "--tokens", "100").stdout.decode()
        for part in ("GPU memory", "KV cache, -c 4096", "disk", "held up by SSD", "simulated"):
            self.assertIn(part, text)
        text = expect(self, 0, "plan", "-m", MODEL, "--machine", "cpu-only-24GB").stdout.decode()
        self.assertNotIn("all experts  ", text)
        self.assertIn("RAM, of 24.0 GiB", text)
        self.assertIn("with all experts in RAM", text)

    def test_mistakes_are_told(self):
        for arguments, part in (
            (("--machine", "towr"), "built in are tower-2x3090-4x32GB"),
            (("--machine", self.path("absent.toml")), "cannot read this machine file"),
            (("--policy", "best"), "known is lru"),
            (("--routing", "zipf:x"), "zipf:0.5"),
            (("--routing", "random"), "must be uniform or zipf:S"),
            (("--experts", "Q9"), "no such block format"),
            (("--moe-layers", "0"), "no experts"),
            (("--ram", "1T"), "more than the machine's"),
            (("--ram", "1M"), "too little"),
            (("--shape", "deepseek-v2-lite", "--experts", "IQ2_XXS"), "choose another format"),
            (("--machine", "cpu-only-24GB", "--attn", "F16"), "leave nothing"),
        ):
            self.assertIn(part, self.error("simulate", *arguments))


if __name__ == "__main__":
    STOKER, root = os.path.abspath(sys.argv[1]), os.path.abspath(sys.argv[2])
    MODEL = os.path.join(root, "tests/models/ember-37m-q4_k_m.gguf")
    unittest.main(argv=[sys.argv[0]] + sys.argv[3:], verbosity=2)

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
import unittest

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import gguf_edit  # noqa: E402
from cli_support import Folder, MODEL, PROMPT, STOKER, TIME_LIMIT, answer, budgets, expect, stoker, main  # noqa: E402

COMMANDS = ("run", "inspect", "tokenize", "eval", "bench", "synth", "pack", "simulate", "plan", "trace",
            "tune", "serve")


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


if __name__ == "__main__":
    main()

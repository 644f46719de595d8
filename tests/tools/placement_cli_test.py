#!/usr/bin/env python3
"""The commands about where experts lie and which are used: pack, trace, simulate, plan.
usage: placement_cli_test.py STOKER SOURCE_ROOT [unittest arguments]
"""

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import gguf_edit  # noqa: E402
from cli_support import Folder, MODEL, PROMPT, STOKER, TIME_LIMIT, answer, budgets, expect, main  # noqa: E402


class Devices(Folder):
    def listed(self, *arguments):
        return json.loads(expect(self, 0, "devices", "--json", *arguments).stdout)

    def test_the_machine_is_listed_with_what_auto_would_take(self):
        machine = self.listed()
        self.assertGreater(machine["cpu"]["memory_gb_per_second"], 0.1)
        self.assertGreaterEqual(machine["cpu"]["cores"], 1)
        if not machine["devices"]:
            self.assertEqual((machine["auto"], machine["auto_because"]), ("cpu", machine["no_cuda"]))
            self.assertIn(machine["no_cuda"], self.error("devices", "--device", "cuda:0"))
            self.assertIn(machine["no_cuda"], self.error("run", "-m", MODEL, "-p", "x", "--device", "cuda:0,0"))
        self.assertIn(b"--device auto takes", expect(self, 0, "devices").stdout)

    def test_host_devices_have_the_speeds_that_they_were_given(self):
        devices = self.listed("--device", "host:2,vram=64MiB,link=1GB/s,compute=4GB/s")["devices"]
        self.assertEqual([d["id"] for d in devices], ["host:0", "host:1"])
        self.assertEqual(devices[0]["peers"], ["host:1"])
        self.assertEqual(devices[0]["free_bytes"], 64 << 20)
        for speed, limit in (("to_device", 1), ("to_host", 1), ("memory", 4)):
            measured = devices[0][speed + "_gb_per_second"]
            self.assertTrue(0.3 * limit < measured < 1.05 * limit, (speed, measured))

    def test_a_device_that_is_lost_is_listed_as_such(self):
        devices = self.listed("--device", "host:1,vram=16MiB,lose-at=2")["devices"]
        self.assertIn("the device is lost", devices[0]["not_measured"])

    def test_run_says_the_same_with_devices_and_reports_them(self):
        plain = answer(self, "-p", PROMPT, "-n", "6")
        run = answer(self, "-p", PROMPT, "-n", "6", "--device", "host:2,vram=32MiB", "--vram", "4M,2M", "--ram", "12M")
        packed = answer(self, "-p", PROMPT, "-n", "6", "--device", "host:2,vram=32MiB,layout=packed,unpinned=refused",
                        "--vram", "4M,2M", "--ram", "12M")
        for other in run, packed:
            self.assertEqual(other["logits_hash"], plain["logits_hash"])
            self.assertGreater(other["decode"]["expert_device_hits"], 0)
        self.assertEqual(plain["engine"]["devices"], [])
        self.assertEqual([d["id"] for d in run["engine"]["devices"]], ["host:0", "host:1"])
        self.assertLessEqual(run["engine"]["devices"][1]["expert_bytes"], 2 << 20)
        self.assertIn("there is no device", self.error("run", "-m", MODEL, "-p", "x", "--vram", "1G", "--device", "cpu"))

    def test_a_timeline_has_a_lane_for_cores_disk_and_each_device_and_its_link(self):
        path = self.path("timeline.json")
        run = answer(self, "-p", PROMPT, "-n", "6", "--device", "host:2,vram=32MiB", "--vram", "4M,2M", "--ram", "6M",
                     "-c", "128", "--timeline", path)
        lanes = ["CPU", "SSD"] + [d + way for d in ("host:0", "host:1") for way in ("", " up", " down")]
        self.assertEqual(sorted(run["decode"]["lanes"]), sorted(lanes))
        for lane, use in run["decode"]["lanes"].items():
            self.assertGreaterEqual(use["idle_share"], 0, lane)
            self.assertLess(use["idle_share"], 1, lane)
        with open(path) as chart:
            events = json.load(chart)["traceEvents"]
        names = {e["tid"]: e["args"]["name"] for e in events if e["name"] == "thread_name"}
        self.assertEqual(sorted(names.values()), sorted(lanes))
        spans = [e for e in events if e["ph"] == "X"]
        self.assertEqual({names[e["tid"]] for e in spans}, set(lanes))
        self.assertTrue(all(e["ts"] >= 0 and e["dur"] > 0 for e in spans))
        self.assertEqual({e["name"] for e in spans if names[e["tid"]] == "CPU"} - {"device_wait", "disk_wait"},
                         {"attention", "experts", "rest"})
        self.assertEqual({e["name"] for e in spans if names[e["tid"]] in ("host:0", "host:1")} - {"preparing"},
                         {"attention", "router", "hand-over", "FFN", "experts", "output head"})
        bench = expect(self, 0, "bench", "-m", MODEL, "-p", "8", "-n", "4", "-r", "1", "--perf", "--device", "host:1,vram=32MiB")
        self.assertIn(b"lane host:0 up", bench.stderr)
        self.assertNotIn("lanes", answer(self, "-p", PROMPT, "-n", "1")["decode"])

    def test_a_device_that_is_lost_while_it_answers_is_an_error(self):
        result = expect(self, 1, "run", "-m", MODEL, "-p", PROMPT, "-n", "200", "--temp", "0", "--ram", "12M",
                        "--device", "host:1,vram=32MiB,lose-at=2000")
        self.assertIn(b"stoker: error: host:0: the device is lost", result.stderr)

    def test_bad_devices_are_refused(self):
        self.assertIn("host:N", self.error("devices", "--device", "tpu"))
        self.assertIn("must be a speed", self.error("devices", "--device", "host:1,link=fast"))


class RoutingTraces(Folder):
    def trace(self, *arguments):
        return expect(self, 0, "trace", *arguments).stdout.decode()

    def test_gates_foresee_a_replayed_routing_as_well_as_a_real_one(self):
        for asked in ("gate", "gate+shared", "previous"):
            facts = json.loads(expect(self, 0, "bench", "-m", MODEL, "--routing", "synthetic:default", "--ram", "12M", "-p",
                                      "0", "-n", "96", "-r", "1", "--predictor", asked, "--prefetch", "on", "--lookahead",
                                      "2", "--json").stdout)[0]
            self.assertEqual(facts["predictor"], asked)
            # A dense layer looks ahead before its FFN too, which counts as a layer more.
            distances = [forecast["distance"] for forecast in facts["forecasts"]]
            self.assertEqual(distances, [1, 2, 3] if asked.startswith("gate") else [1])
            recall = facts["forecasts"][0]["recall"]
            if asked.startswith("gate"):
                self.assertTrue(0.55 < recall < 0.95, recall)
                self.assertLess(facts["forecasts"][1]["recall"], recall)
            else:
                self.assertLess(recall, 0.6)

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
    SMALL = ("--moe-layers", "4", "--dense-layers", "1", "--experts", "IQ2_XXS", "--attn", "Q4_K", "--vram", "0")

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
        for part in ("simulated: 2x RTX 3090", "cold", "warm", "roofline", "Belady", "infinite bandwidth"):
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

    def test_predictions_are_as_good_as_measured_and_prefetch_uses_an_idle_drive(self):
        figures = {prefetch: self.simulate(*self.SMALL, "--ram", "4G", "--tokens", "300", "--prefetch", prefetch)
                   for prefetch in ("off", "on")}
        off, on = figures["off"]["warm"], figures["on"]["warm"]
        forecast = figures["on"]["forecasts"][0]
        self.assertTrue(0.6 < forecast["recall"] < 0.8, forecast)
        self.assertGreater(forecast["recall_wide"], forecast["recall"])
        self.assertGreater(forecast["gate_mass_recall"], forecast["recall"])
        self.assertTrue(0 < forecast["brier"] < 0.25)
        self.assertEqual(off["prefetch_bytes"], 0)
        self.assertGreater(on["prefetch_bytes"], 0)
        self.assertGreater(on["disk_busy_share"], off["disk_busy_share"])
        self.assertGreater(on["tokens_per_second"], off["tokens_per_second"])
        self.assertGreater(figures["on"]["foreseen_tokens_per_second"], on["tokens_per_second"])
        self.assertGreater(figures["on"]["clairvoyant"]["tokens_per_second"], figures["on"]["foreseen_tokens_per_second"])
        self.assertLess(figures["on"]["clairvoyant"]["disk_wait_ms"], on["disk_wait_ms"])
        self.assertLessEqual(on["hit_rate"], on["belady_hit_rate"])

    def test_a_recorded_trace_is_simulated_as_the_routing_that_it_was(self):
        path = self.path("v3.trace")
        expect(self, 0, "trace", "synth", "-o", path, "--tokens", "512", "--prompts", "1")
        whole = ("--experts", "IQ2_XXS", "--attn", "IQ4_XS", "--tokens", "128", "--predictor", "none")
        recorded = self.simulate(*whole, "--routing", path)
        self.assertEqual(recorded["routing"], path)
        self.assertEqual(recorded["warm"], self.simulate(*whole, "--routing", "synthetic:default")["warm"])
        self.assertIn("of 256 experts", self.error("simulate", "--shape", "tiny", "--routing", path))

    def test_a_prompt_comes_before_the_tokens_and_is_read_in_pieces(self):
        small = self.SMALL + ("--ram", "6G", "--tokens", "80", "--no-preload")
        without = self.simulate(*small)
        self.assertNotIn("prompt", without)
        one, four = (self.simulate(*small, "--prompt", "240", "-b", b) for b in ("240", "60"))
        for facts in (one, four):
            self.assertEqual([facts[phase]["tokens"] for phase in ("prompt", "cold", "warm")], [240, 64, 16])
            self.assertGreater(facts["cold"]["hit_rate"], without["cold"]["hit_rate"])
            self.assertLessEqual(facts["cold"]["hit_rate"], facts["cold"]["belady_hit_rate"])
        # 40 of a layer's 256 experts have no slot: each piece reads them again.
        self.assertGreater(four["prompt"]["bytes_read"], one["prompt"]["bytes_read"])
        # GPUs get experts while a piece passes, not when it has.
        tower = self.simulate("--experts", "IQ1_S", "--attn", "Q5_K", "--tokens", "65", "--prompt", "64")
        self.assertGreater(tower["prompt"]["uploaded_bytes"], 0)
        path = self.path("v3.trace")
        expect(self, 0, "trace", "synth", "-o", path, "--tokens", "128", "--prompts", "1")
        self.assertIn("has 128 tokens, none to generate", self.error("simulate", *small, "--routing", path, "--prompt", "128"))

    def test_gpus_hold_hot_experts_and_make_it_faster(self):
        whole = ("--experts", "IQ2_XXS", "--attn", "IQ4_XS", "--tokens", "100")
        without, some, full = (self.simulate(*whole, "--vram", v) for v in ("0", "8G,2G", "14G"))
        self.assertNotIn("gpus", without)
        self.assertEqual([g["vram_bytes"] for g in some["gpus"]], [8 << 30, 2 << 30])
        for facts in (some, full):
            for gpu in facts["gpus"]:
                self.assertTrue(0 < gpu["experts"] <= gpu["slots"], gpu)
        hits = [facts["warm"]["vram_hit_rate"] for facts in (without, some, full)]
        self.assertTrue(hits[0] == 0 < hits[1] < hits[2], hits)
        speeds = [facts["warm"]["tokens_per_second"] for facts in (without, some, full)]
        self.assertTrue(speeds[0] < speeds[1] < speeds[2], speeds)
        self.assertIn("% in VRAM", expect(self, 0, "simulate", *whole).stdout.decode())
        self.assertIn("must be sizes", self.error("simulate", "--vram", "8"))
        self.assertIn("3 sizes for 2 GPUs", self.error("simulate", "--vram", "8G,8G,8G"))
        self.assertIn("left beside", self.error("simulate", "--vram", "23G"))
        self.assertIn("for 0 GPUs", self.error("simulate", "--vram", "8G", "--machine", "cpu-only-24GB"))

    def test_gpus_share_the_heads_of_a_layer_where_contexts_are_long_and_it_is_known_what_heads_cost(self):
        gpu = "[[gpu]]\nname = 'card'\nvram_gib = 24\ngb_per_second = 796\nlink_gb_per_second = 13\n"
        machine = "name = 'box'\nram_gib = 128\nlayer_overhead_us = 41\n[dram]\ngb_per_second = 64\n[ssd]\ngb_per_second = 6.5\n" \
                  "latency_us = 80\n[kernels]\ndefault = 100\n"
        def speed(tflops, context, split):
            path = self.machine_file(machine + 2 * (gpu + tflops))
            return self.simulate("--machine", path, "--experts", "IQ1_S", "--attn", "IQ4_XS", "--tokens", "70", "-c", context,
                                 "--split-heads", split)["warm"]["tokens_per_second"]
        known = "attention_tflops = 35\n"
        self.assertGreater(speed(known, "65536", "65536"), 1.1 * speed(known, "65536", "0"))
        self.assertLess(speed(known, "4096", "4096"), speed(known, "4096", "0"))
        self.assertEqual(speed(known, "4096", "4097"), speed(known, "4096", "0"))
        self.assertEqual(speed("", "32768", "1"), speed("", "32768", "0"))
        self.assertGreater(speed("", "32768", "0"), speed(known, "32768", "0"))

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
        self.assertEqual((facts["machine"], facts["resident_bytes_in_vram"]), ("box", 0))
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
        self.assertEqual(plan["experts_in_ram"], simulated["slots"])
        self.assertEqual(plan["resident_bytes_in_vram"], simulated["resident_bytes"])
        # Of what GPUs have, RAM has the KV cache and routers alone.
        routers = 58 * 256 * 7168 * 4
        self.assertEqual(plan["resident_bytes_in_ram"], routers + plan["kv_bytes"])
        self.assertEqual(simulated["resident_bytes_in_ram"], plan["resident_bytes_in_ram"])
        self.assertEqual(sum(g["resident_bytes"] + g["kv_bytes"] for g in plan["gpus"]), plan["resident_bytes_in_vram"])
        self.assertEqual([sum(g[what] for g in plan["gpus"]) for what in ("attention_layers", "home_layers", "head_rows")],
                         [61, 61, 129280])
        self.assertEqual(plan["kv_bytes"], 4096 * 61 * 576 * 2)
        text = expect(self, 0, "plan", "--experts", "IQ2_XXS", "--tokens", "100").stdout.decode()
        for part in ("weights of every token", "RAM, but for 15.9 GiB that GPUs have", "KV cache, -c 4096", "disk", "held up by", "memory of GPU 0 (RTX 3090)", "memory of GPU 1", "simulated"):
            self.assertIn(part, text)
        # A long context on one card: some layers have room there, some FFNs, and the head has.
        some = json.loads(expect(self, 0, "plan", "--json", "--machine", "1x3090-64GB", "-c", "163840", "--tokens", "70").stdout)["gpus"][0]
        self.assertEqual(some["head_rows"], 129280)
        self.assertTrue(0 < some["attention_layers"] < some["home_layers"] <= 61, some)
        text = expect(self, 0, "plan", "-m", MODEL, "--machine", "cpu-only-24GB").stdout.decode()
        self.assertNotIn("all experts  ", text)
        self.assertIn("RAM, of 24.0 GiB", text)
        self.assertIn("with all experts in RAM", text)

    def test_mistakes_are_told(self):
        for arguments, part in (
            (("--machine", "towr"), "built in are tower-2x3090-4x32GB"),
            (("--machine", self.path("absent.toml")), "cannot read this machine file"),
            (("--policy", "best"), "must be one of auto|ema|lru"),
            (("--routing", "zipf:x"), "zipf:0.5"),
            (("--routing", "random"), "must be uniform, zipf:S, synthetic:PROFILE or a trace's file"),
            (("--routing", "synthetic:best"), "no such routing profile"),
            (("--routing", MODEL), "not a routing trace"),
            (("--predictor", "oracle"), "must be one of none|previous"),
            (("--experts", "Q9"), "no such block format"),
            (("--moe-layers", "0"), "no experts"),
            (("--ram", "1T"), "more than the machine's"),
            (("--ram", "1M"), "too little"),
            (("--shape", "deepseek-v2-lite", "--experts", "IQ2_XXS"), "choose another format"),
            (("--machine", "cpu-only-24GB", "--attn", "F16"), "leave nothing"),
        ):
            self.assertIn(part, self.error("simulate", *arguments))


if __name__ == "__main__":
    main()

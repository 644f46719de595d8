#!/usr/bin/env python3
"""`stoker serve` and the disk: slots that are saved and restored, also when the server is killed in between, experts that
cannot be read, and a device that is lost.  usage: serve_slots_test.py STOKER SOURCE_ROOT [unittest arguments]
"""

import http.client
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import threading
import time
import unittest

import gguf_edit
import serve_test
from serve_test import GREEDY, Server

PROMPT = "The borrow checker is a part of the compiler that looks at every reference in a program, and it says"


class Slots(unittest.TestCase):
    def setUp(self):
        self.folder = tempfile.mkdtemp(prefix="stoker-slots-")
        self.addCleanup(shutil.rmtree, self.folder)

    def start(self, *arguments):
        server = Server("--parallel", 2, "--slot-save-path", self.folder, *arguments)
        self.addCleanup(server.close)
        return server

    def act(self, server, slot, action, name=None):
        return server.ask("POST", "/slots/%s?action=%s" % (slot, action), {"filename": name} if name else None)

    def said(self, server, prompt, **body):
        body = {"prompt": prompt, "n_predict": 12, "temperature": 0, "cache_prompt": True, **body}
        answer = server.post("/completion", **body)
        return answer["content"], answer["tokens_cached"], answer["id_slot"]

    def test_save_erase_restore_and_go_on(self):
        server = self.start()
        text, _, slot = self.said(server, PROMPT)
        longer = PROMPT + text + " Therefore"
        want, cached, same = self.said(server, longer, n_probs=3)
        self.assertGreater(cached, 20)
        self.act(server, slot, "erase")
        slot = self.said(server, PROMPT)[2]  # the state of before, made again
        status, saved = self.act(server, slot, "save", "a.bin")
        self.assertEqual((status, saved["id_slot"], saved["filename"]), (200, slot, "a.bin"))
        self.assertEqual(saved["n_written"], os.path.getsize(os.path.join(self.folder, "a.bin")))
        self.assertEqual(self.act(server, slot, "erase"), (200, {"id_slot": slot, "n_erased": saved["n_saved"]}))
        self.assertEqual(server.ask("GET", "/slots")[1][slot]["n_past"], 0)
        status, restored = self.act(server, 1 - slot, "restore", "a.bin")
        self.assertEqual((status, restored["n_restored"], restored["n_read"]), (200, saved["n_saved"], saved["n_written"]))
        self.assertEqual(self.said(server, longer, n_probs=3), (want, cached, 1 - slot))
        # Another server takes it too.
        other = self.start()
        self.assertEqual(self.act(other, 0, "restore", "a.bin")[0], 200)
        self.assertEqual(self.said(other, longer)[:2], (want, cached))

    def test_refusals(self):
        server = self.start()
        self.said(server, PROMPT)

        def refused(status, part, slot, action, name=None):
            got, answer = self.act(server, slot, action, name)
            self.assertEqual(got, status, answer)
            self.assertIn(part, answer["error"]["message"])

        refused(400, "slots 0 to 1", 7, "save", "a")
        refused(400, "not one of save", 0, "eat", "a")
        for name in ("../a", "/etc/passwd", ".hidden", "a/b", "a\nb", "x" * 300):
            refused(400, "must be the name of a file", 0, "save", name)
        refused(400, "cannot open", 0, "restore", "none")
        with open(os.path.join(self.folder, "odd"), "wb") as file:
            file.write(os.urandom(5000))
        refused(400, "no saved slot", 0, "restore", "odd")
        self.assertEqual(server.ask("GET", "/slots/0")[0], 405)
        self.assertEqual(server.ask("POST", "/slots/x?action=save")[0], 405)
        for slot in (0, 1):
            self.act(server, slot, "save", "good%d" % slot)
        path = os.path.join(self.folder, "good0")
        with open(path, "rb") as file:
            data = file.read()
        for damaged in (data[:-100], data[:-100] + b"x" + data[-99:], data[:200] + bytes([data[200] ^ 1]) + data[201:]):
            with open(path, "wb") as file:
                file.write(damaged)
            refused(400, "damaged", 0, "restore", "good0")
        plain = Server()
        self.addCleanup(plain.close)
        self.assertEqual(self.act(plain, 0, "save", "a")[0], 501)
        self.assertEqual(self.act(plain, 0, "erase")[0], 200)

    def test_a_folder_that_cannot_be_written_is_the_servers_trouble(self):
        server = self.start()
        os.mkdir(os.path.join(self.folder, "a.partial"))
        status, answer = self.act(server, 0, "save", "a")
        self.assertEqual(status, 500)
        self.assertIn("cannot create", answer["error"]["message"])
        self.assertTrue(self.said(server, PROMPT)[0])

    def test_a_slot_is_saved_after_its_answer(self):
        server = self.start()
        results = []
        body = {"prompt": "The sky", "n_predict": 250, "temperature": 1, "seed": 3, "ignore_eos": True, "stream": True}
        connection = server.connect()
        connection.request("POST", "/completion", json.dumps(body))
        response = connection.getresponse()  # the first token is there
        busy = []
        while not busy:
            busy = [s["id"] for s in server.ask("GET", "/slots")[1] if s["is_processing"] or s["n_decoded"] > 0]
        thread = threading.Thread(target=lambda: results.append(self.act(server, busy[0], "save", "late")))
        thread.start()
        events = response.read().decode()
        thread.join()
        connection.close()
        self.assertEqual(json.loads(events.split("\n\n")[-2][6:])["tokens_predicted"], 250)
        self.assertEqual(results[0][0], 200)
        self.assertGreater(results[0][1]["n_saved"], 249)


class Killed(unittest.TestCase):
    """A model whose slots are 10 MB, so that a kill meets every part of a save."""

    MOMENTS = 5

    def test_what_has_the_name_is_the_old_state_or_the_new_one(self):
        folder = tempfile.mkdtemp(prefix="stoker-slots-")
        self.addCleanup(shutil.rmtree, folder)
        start = lambda: serve(self, small_synth(folder, 8), "--slot-save-path", folder, "--parallel", 1, "-c", 3000)
        path = lambda name: os.path.join(folder, name)

        def act(server, action, name=None):
            return server.ask("POST", "/slots/0?action=%s" % action, {"filename": name} if name else None)

        server = start()
        rng = random.Random(8)
        ids = [rng.randrange(10, 400) for _ in range(2600)]
        states = {}
        for name, count in (("old", 2000), ("new", 2600)):
            server.post("/completion", prompt=ids[:count], n_predict=1, temperature=0)
            begin = time.time()
            status, saved = act(server, "save", name)
            took = time.time() - begin
            self.assertEqual(status, 200)
            answer = server.post("/completion", prompt=ids[:count] + [7, 8], n_predict=6, temperature=0, n_probs=2)
            states[saved["n_saved"]] = (count, answer["completion_probabilities"])
        self.assertGreater(os.path.getsize(path("new")), 10 << 20)
        self.assertEqual(len(states), 2)
        for moment in range(self.MOMENTS):
            shutil.copy(path("old"), path("target"))
            victim = start()
            self.assertEqual(act(victim, "restore", "new")[0], 200)

            def save():
                try:
                    act(victim, "save", "target")
                except (OSError, http.client.HTTPException):
                    pass  # it was killed before it answered

            thread = threading.Thread(target=save)
            thread.start()
            time.sleep(took * 1.3 * moment / (self.MOMENTS - 1))
            victim.process.kill()
            thread.join()
            victim.close()
            act(server, "erase")
            status, restored = act(server, "restore", "target")
            self.assertEqual(status, 200)
            self.assertIn(restored["n_restored"], states)
            count, want = states[restored["n_restored"]]
            answer = server.post("/completion", prompt=ids[:count] + [7, 8], n_predict=6, temperature=0, n_probs=2)
            self.assertEqual(answer["completion_probabilities"], want)
            self.assertGreaterEqual(answer["tokens_cached"], count)


def serve(test, model, *arguments):
    good, serve_test.MODEL = serve_test.MODEL, model
    try:
        server = Server(*arguments)
    finally:
        serve_test.MODEL = good
    test.addCleanup(server.close)
    return server


def small_synth(folder, layers):
    path = os.path.join(folder, "synth.gguf")
    if not os.path.exists(path):
        subprocess.run([serve_test.STOKER, "synth", "--shape", "tiny", "--moe-layers", str(layers), "--experts", "F16", "-o", path],
                       capture_output=True, check=True)
    return path


class LostDevice(unittest.TestCase):
    def test_what_is_told_of_memory_is_what_is_left(self):
        server = Server("--device", "host:1,vram=64MiB,lose-at=3000", "--vram", "12MiB")
        self.addCleanup(server.close)

        def told():
            lines = server.ask("GET", "/metrics")[1].splitlines()
            metrics = dict(line.rsplit(" ", 1) for line in lines if line[0] != "#")
            memory = server.ask("GET", "/live")[1]["memory"]
            self.assertEqual(float(metrics["stoker:resident_bytes"]), memory["resident_bytes"])
            self.assertEqual(float(metrics["stoker:vram_expert_slots"]), memory["vram_slots"])
            return memory

        def ask():
            return server.ask("POST", "/completion", {"prompt": "The sky", "n_predict": 20, **GREEDY})[0]

        before = told()
        self.assertEqual(before["devices"], 1)
        self.assertGreater(before["vram_slots"], 0)
        statuses = [ask()]
        while statuses[-1] == 200 and len(statuses) < 100:
            statuses.append(ask())
        self.assertEqual((statuses[-1], ask()), (500, 200))
        after = told()
        self.assertEqual((after["devices"], after["vram_slots"], after["vram_bytes"]), (0, 0, 0))
        self.assertGreater(after["resident_bytes"], before["resident_bytes"] + (1 << 20))
        self.assertEqual(after["expert_slots"], before["expert_slots"])


class Faults(unittest.TestCase):
    def setUp(self):
        self.folder = tempfile.mkdtemp(prefix="stoker-fault-")
        self.addCleanup(shutil.rmtree, self.folder)

    def test_the_bundled_model(self):
        model = os.path.join(self.folder, "model.gguf")
        shutil.copy(serve_test.MODEL, model)
        self.check(model, 300, 3)

    def test_a_model_that_streams(self):
        self.check(small_synth(self.folder, 8), 10, 1)

    def check(self, model, first_id, count):
        """Cuts a matrix of an expert off while it serves: an expert that cannot be read ends only who wants it, also of those
        who generate together: `count` tokens each, so few that some do not want it."""
        facts = json.loads(subprocess.run([serve_test.STOKER, "inspect", "--json", model], capture_output=True, check=True).stdout)
        server = serve(self, model, "--parallel", 4, "--queue", 32, "--ram", str(facts["smallest_expert_budget_bytes"] + (1 << 20)) + "B",
                       "--no-preload", "--prefetch", "off", "--policy", "lru")
        with open(model, "rb") as file:
            header = gguf_edit.Header(file.read())
        size = os.path.getsize(model)
        begins = sorted((t["offset"] + header.data_start, name) for name, t in header.tensors.items())
        at = max(i for i, (_, name) in enumerate(begins) if "_exps." in name)
        end = begins[at + 1][0] if at + 1 < len(begins) else size
        kept = end - (end - begins[at][0]) // facts["experts_per_layer"]
        prompts = [[first_id + 23 * i] for i in range(16)]  # few tokens: few experts are wanted

        def ask(i):
            status, answer = server.ask("POST", "/completion", {"prompt": prompts[i], "n_predict": count, **GREEDY})
            return status, answer["content"] if status == 200 else answer["error"]["message"]

        def ask_all():
            answers = [None] * len(prompts)

            def one(i):
                answers[i] = ask(i)

            threads = [threading.Thread(target=one, args=(i,)) for i in range(len(prompts))]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            return answers

        want = ask_all()
        self.assertEqual({status for status, _ in want}, {200})
        with open(model, "rb") as file:
            file.seek(kept)
            tail = file.read()
        os.truncate(model, kept)
        for i in range(len(prompts)):
            ask(i)  # until no slot has the expert any more
        alone = [ask(i) for i in range(len(prompts))]
        self.assertEqual({status for status, _ in alone}, {200, 500})
        for (status, said), (_, before) in zip(alone, want):
            if status == 200:
                self.assertEqual(said, before)
            else:
                self.assertIn(os.path.basename(model), said)
        for _ in range(3):
            self.assertEqual(ask_all(), alone)
        with open(model, "r+b") as file:
            file.seek(kept)
            file.write(tail)
        self.assertEqual(ask_all(), want)


if __name__ == "__main__":
    serve_test.STOKER = os.path.abspath(sys.argv[1])
    serve_test.MODEL = os.path.join(sys.argv[2], "tests", "models", "ember-37m-q4_k_m.gguf")
    unittest.main(argv=[sys.argv[0]] + sys.argv[3:], verbosity=2)

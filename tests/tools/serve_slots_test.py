#!/usr/bin/env python3
"""`stoker serve` and the disk: slots that are saved and restored, also when the server is killed in between, and experts that
cannot be read.  usage: serve_slots_test.py STOKER SOURCE_ROOT [unittest arguments]
"""

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

    def test_killed_while_saving(self):
        rng = random.Random(8)
        server = self.start()
        text, _, slot = self.said(server, PROMPT)
        longer = PROMPT + text + " Therefore"
        self.assertEqual(self.act(server, slot, "save", "kept")[0], 200)
        size = os.path.getsize(os.path.join(self.folder, "kept"))
        want = self.said(server, longer)[:2]
        for round in range(4):
            victim = Server("--parallel", 1, "--slot-save-path", self.folder)
            self.act(victim, 0, "restore", "kept")
            stop = threading.Event()

            def save():
                while not stop.is_set():
                    try:
                        self.act(victim, 0, "save", "target")
                    except OSError:
                        return

            thread = threading.Thread(target=save)
            thread.start()
            time.sleep(0.05 + rng.random() * 0.1)
            victim.process.kill()
            stop.set()
            thread.join()
            victim.close()
            # What has the name is whole.
            if os.path.exists(os.path.join(self.folder, "target")):
                self.assertEqual(os.path.getsize(os.path.join(self.folder, "target")), size)
                self.act(server, 0, "erase")
                self.act(server, 1, "erase")
                self.assertEqual(self.act(server, 0, "restore", "target")[0], 200)
                self.assertEqual(self.said(server, longer)[:2], want)
        self.assertTrue(os.path.exists(os.path.join(self.folder, "target")))


class Faults(unittest.TestCase):
    def test_an_expert_that_cannot_be_read_ends_only_who_wants_it(self):
        folder = tempfile.mkdtemp(prefix="stoker-fault-")
        self.addCleanup(shutil.rmtree, folder)
        model = os.path.join(folder, "model.gguf")
        shutil.copy(serve_test.MODEL, model)
        facts = json.loads(subprocess.run([serve_test.STOKER, "inspect", "--json", model], capture_output=True, check=True).stdout)
        good, serve_test.MODEL = serve_test.MODEL, model
        try:
            server = Server("--parallel", 4, "--queue", 32, "--ram", str(facts["smallest_expert_budget_bytes"] + (1 << 20)) + "B",
                            "--no-preload", "--prefetch", "off", "--policy", "lru")
        finally:
            serve_test.MODEL = good
        self.addCleanup(server.close)
        prompts = [[300 + 37 * i] for i in range(16)]  # one token each: few experts are wanted

        def ask_all():
            answers = [None] * len(prompts)

            def ask(i):
                answers[i] = server.ask("POST", "/completion", {"prompt": prompts[i], "n_predict": 1, **GREEDY})

            threads = [threading.Thread(target=ask, args=(i,)) for i in range(len(prompts))]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            return answers

        want = ask_all()
        self.assertEqual({status for status, _ in want}, {200})
        size = os.path.getsize(model)
        with open(model, "rb") as file:
            file.seek(size - CUT)
            tail = file.read()
        os.truncate(model, size - CUT)
        failed, passed = 0, 0
        for _ in range(4):
            for (status, answer), (_, before) in zip(ask_all(), want):
                if status == 200:
                    passed += 1
                    self.assertEqual(answer["content"], before["content"])
                else:
                    failed += 1
                    self.assertEqual(status, 500)
                    self.assertIn("model.gguf", answer["error"]["message"])
        self.assertGreater(failed, 0)
        self.assertGreater(passed, 0)
        with open(model, "r+b") as file:
            file.seek(size - CUT)
            file.write(tail)
        self.assertEqual([(s, a["content"]) for s, a in ask_all()], [(s, a["content"]) for s, a in want])


CUT = 204_672 + 36_864  # bytes at the end of the bundled model: the shared expert's, and a matrix of the last layer's last expert

if __name__ == "__main__":
    serve_test.STOKER = os.path.abspath(sys.argv[1])
    serve_test.MODEL = os.path.join(sys.argv[2], "tests", "models", "ember-37m-q4_k_m.gguf")
    unittest.main(argv=[sys.argv[0]] + sys.argv[3:], verbosity=2)

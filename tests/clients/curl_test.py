#!/usr/bin/env python3
"""curl against the server: a chat, whole and streamed, and the statuses of errors.
usage: curl_test.py STOKER SOURCE_ROOT
"""

import json
import os
import shutil
import subprocess
import sys
import unittest

SKIPPED = 77


class Curl(unittest.TestCase):
    def setUp(self):
        self.server = serve_test.Server("--parallel", 2, "--api-key", "k")
        self.addCleanup(self.server.close)

    def curl(self, path, *arguments, key="k"):
        command = ["curl", "-sS", "-w", "\n%{http_code}", "-H", "Authorization: Bearer " + key,
                   "http://127.0.0.1:%d%s" % (self.server.port, path), *arguments]
        done = subprocess.run(command, capture_output=True, timeout=120)
        text, _, code = done.stdout.decode().rpartition("\n")
        return int(code), text

    def test_chat(self):
        body = {"messages": [{"role": "user", "content": "The sky"}], "max_tokens": 8, "temperature": 0}
        code, whole = self.curl("/v1/chat/completions", "-d", json.dumps(body))
        self.assertEqual(code, 200)
        code, stream = self.curl("/v1/chat/completions", "-N", "-d", json.dumps({**body, "stream": True}))
        events = [line[6:] for line in stream.split("\n") if line.startswith("data: ")]
        self.assertEqual((code, events[-1]), (200, "[DONE]"))
        text = "".join(json.loads(e)["choices"][0]["delta"].get("content", "") for e in events[:-1])
        self.assertEqual(text, json.loads(whole)["choices"][0]["message"]["content"])

    def test_statuses(self):
        self.assertEqual(self.curl("/v1/models", key="x")[0], 401)
        self.assertEqual(self.curl("/nothing")[0], 404)
        self.assertEqual(self.curl("/v1/chat/completions", "-d", "{")[0], 400)
        self.assertEqual(self.curl("/v1/chat/completions", "-X", "PUT", "-d", "{}")[0], 405)
        self.assertEqual(self.curl("/health", "-I")[0], 200)


if __name__ == "__main__":
    if shutil.which("curl") is None:
        print("skipped: curl is not installed")
        sys.exit(SKIPPED)
    sys.path.insert(0, os.path.join(sys.argv[2], "tests", "tools"))
    import serve_test
    serve_test.STOKER = os.path.abspath(sys.argv[1])
    serve_test.MODEL = os.path.join(sys.argv[2], "tests", "models", "ember-37m-q4_k_m.gguf")
    unittest.main(argv=[sys.argv[0]], verbosity=2)

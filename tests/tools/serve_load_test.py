#!/usr/bin/env python3
"""`stoker serve` under load and abuse: thousands of requests over 32 connections, and clients of every bad kind beside a stream
that must not notice.  usage: serve_load_test.py STOKER SOURCE_ROOT REQUESTS [unittest arguments]
"""

import json
import os
import re
import socket
import struct
import sys
import threading
import time
import unittest

import serve_test
from serve_test import TIME_LIMIT, Server

REQUESTS = 0
CONNECTIONS = 32
MANY = 10000  # from so many on, memory must have stopped growing after the first quarter
MIB = 1 << 20


class Abused(unittest.TestCase):
    arguments = ("--parallel", 4, "--queue", 32)
    environment = None  # as this process's

    @classmethod
    def setUpClass(cls):
        cls.server = Server(*cls.arguments, env=cls.environment)
        cls.witness = {"prompt": "Once upon a time", "max_tokens": 300, "temperature": 1, "seed": 7, "cache_prompt": False}
        cls.alone = cls.server.post("/v1/completions", **cls.witness)["choices"][0]["text"]

    @classmethod
    def tearDownClass(cls):
        assert cls.server.close() == 0

    def rss(self):
        with open("/proc/%d/statm" % self.server.process.pid) as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGESIZE")

    def sockets(self):
        folder = "/proc/%d/fd" % self.server.process.pid
        count = 0
        for name in os.listdir(folder):
            try:
                count += os.readlink(os.path.join(folder, name)).startswith("socket:")
            except OSError:
                pass
        return count

    def beside_a_stream(self, abuse):
        """Runs `abuse` while a stream runs, whose text must be what it is alone."""
        texts = []

        def stream():
            events, done = self.server.stream("/v1/completions", **self.witness)
            texts.append("".join(e["choices"][0]["text"] for e in events) if done else None)

        thread = threading.Thread(target=stream)
        thread.start()
        try:
            abuse()
        finally:
            thread.join()
        self.assertEqual(texts, [self.alone])
        self.assertEqual(self.server.ask("GET", "/health")[0], 200)

    def connect(self):
        connection = socket.create_connection(("127.0.0.1", self.server.port), timeout=TIME_LIMIT)
        self.addCleanup(connection.close)
        return connection

    def raw(self, data, then=b""):
        """The status that bytes on a socket are answered with; 0: the connection was closed without one."""
        with self.connect() as connection:
            try:
                connection.sendall(data)
                if then:
                    connection.sendall(then)
            except OSError:
                pass  # closed while sending: what it said is there all the same
            answer = b""
            try:
                while b"\r\n" not in answer:
                    part = connection.recv(65536)
                    if not part:
                        break
                    answer += part
            except ConnectionError:
                pass
            return int(answer.split(b" ")[1]) if answer.startswith(b"HTTP/1.1 ") else 0

    def post_head(self, length, path="/v1/completions"):
        return b"POST %s HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % (path.encode(), length)


class Load(Abused):
    @classmethod
    def setUpClass(cls):
        if REQUESTS >= MANY:
            # AddressSanitizer keeps what threads have freed, which 70 of them go on filling for thousands of requests; the flood of
            # 400, as for every change, is with it.
            options = os.environ.get("ASAN_OPTIONS", "") + ":quarantine_size_mb=0:thread_local_quarantine_size_kb=0"
            cls.environment = dict(os.environ, ASAN_OPTIONS=options)
        super().setUpClass()

    def flood(self, count):
        """`count` short requests over 32 connections that are kept; returns the statuses."""
        left, lock, statuses = [count], threading.Lock(), {}

        def client():
            connection = self.server.connect()
            while True:
                with lock:
                    if left[0] == 0:
                        break
                    left[0] -= 1
                    number = left[0]
                body = {"prompt": [5 + number % 200, 17], "max_tokens": 1, "temperature": 0, "stream": number % 3 == 0}
                connection.request("POST", "/v1/completions", json.dumps(body))
                response = connection.getresponse()
                text = response.read()
                ok = response.status == 200 and (b"[DONE]" in text if body["stream"] else b"usage" in text)
                with lock:
                    statuses[response.status if ok else "bad"] = statuses.get(response.status if ok else "bad", 0) + 1
            connection.close()

        threads = [threading.Thread(target=client) for _ in range(CONNECTIONS)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return statuses

    def test_many_short_requests_leave_nothing_behind(self):
        self.assertEqual(self.flood(REQUESTS // 4), {200: REQUESTS // 4})
        before = self.rss()
        begin = time.time()
        self.assertEqual(self.flood(REQUESTS), {200: REQUESTS})
        print("%d requests: %.0f per second, RSS %+.1f MiB" % (REQUESTS, REQUESTS / (time.time() - begin), (self.rss() - before) / MIB))
        if REQUESTS >= MANY:  # a few grow what every thread keeps
            self.assertLess(self.rss() - before, 16 * MIB)
        limit = time.time() + TIME_LIMIT
        while self.sockets() > 4:  # the listening one; idle ones of clients that have left are noticed within a moment
            self.assertLess(time.time(), limit)
            time.sleep(0.1)


class Abuse(Abused):
    def open_stream(self, small_window=False):
        connection = socket.socket()
        self.addCleanup(connection.close)
        if small_window:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1024)
        connection.settimeout(TIME_LIMIT)
        connection.connect(("127.0.0.1", self.server.port))
        body = json.dumps({"prompt": "The sky", "max_tokens": 400, "temperature": 1, "stream": True, "logprobs": 20}).encode()
        connection.sendall(self.post_head(len(body)) + body)
        return connection

    def test_slow_readers(self):
        def abuse():
            slow = [self.open_stream(small_window=True) for _ in range(3)]
            for _ in range(20):
                for connection in slow:
                    connection.recv(1)
                time.sleep(0.02)
            self.assertEqual(self.server.post("/tokenize", content="x")["tokens"], self.server.post("/tokenize", content="x")["tokens"])
            for connection in slow:
                connection.close()
        self.beside_a_stream(abuse)

    def test_clients_that_vanish_while_they_are_answered(self):
        def abuse():
            for i in range(24):
                connection = self.open_stream()
                connection.recv(10)
                if i % 2:  # with a reset instead of an end
                    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                connection.close()
        self.beside_a_stream(abuse)
        limit = time.time() + TIME_LIMIT
        while any(slot["is_processing"] for slot in self.server.ask("GET", "/slots")[1]):
            self.assertLess(time.time(), limit)
            time.sleep(0.02)

    def test_half_sent_bodies(self):
        def abuse():
            waiting = []
            for _ in range(16):
                connection = self.connect()
                connection.sendall(self.post_head(1000) + b'{"prompt": "')
                waiting.append(connection)
            self.assertEqual(self.server.ask("POST", "/tokenize", {"content": "x"})[0], 200)  # others need not wait for them
            for connection in waiting:
                connection.close()
        self.beside_a_stream(abuse)

    def test_large_bodies(self):
        piece = b"x" * MIB
        before = self.rss()

        def told():
            with self.connect() as connection:
                connection.sendall(self.post_head(100 * MIB))
                try:
                    for _ in range(100):
                        connection.sendall(piece)
                except OSError:
                    pass
                self.assertTrue(connection.recv(100).startswith(b"HTTP/1.1 413 "))

        def chunked():
            with self.connect() as connection:
                connection.sendall(b"POST /tokenize HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n")
                try:
                    for _ in range(100):
                        connection.sendall(b"%x\r\n" % MIB + piece + b"\r\n")
                except OSError:
                    pass
                self.assertTrue(connection.recv(100).startswith(b"HTTP/1.1 413 "))

        def long_header():
            self.assertIn(self.raw(b"GET /health HTTP/1.1\r\nX: " + 100 * piece), (0, 400, 414, 431))

        def many_headers():
            self.assertIn(self.raw(b"GET /health HTTP/1.1\r\n" + (1 << 20) * b"X: y\r\n" + b"\r\n"), (0, 400, 414, 431))

        def long_line():
            self.assertIn(self.raw(b"GET /" + 100 * piece), (0, 400, 414))

        def packed():
            body = b"\x1f\x8b" + bytes(1000)
            head = b"POST /tokenize HTTP/1.1\r\nHost: x\r\nContent-Encoding: gzip\r\nContent-Length: %d\r\n\r\n" % len(body)
            self.assertEqual(self.raw(head + body), 400)

        for abuse in (told, chunked, long_header, many_headers, long_line, packed):
            with self.subTest(abuse.__name__):
                self.beside_a_stream(abuse)
        self.assertLess(self.rss() - before, 160 * MIB)  # the allocator keeps some of one chunked body

    def test_a_refused_body_is_no_request(self):
        """What follows a refused request on its connection is never taken for another one."""
        inner = b"GET /v1/models HTTP/1.1\r\nHost: x\r\n\r\n"
        with self.connect() as connection:
            connection.sendall(self.post_head(1 << 30) + inner * 10)
            connection.shutdown(socket.SHUT_WR)
            answer = b""
            while part := connection.recv(65536):
                answer += part
        self.assertEqual(answer.count(b"HTTP/1.1 "), 1)

    def test_without_a_length_there_is_no_body(self):
        with self.connect() as connection:
            connection.sendall(b"POST /tokenize HTTP/1.1\r\nHost: x\r\n\r\nGET /health HTTP/1.1\r\nConnection: close\r\n\r\n")
            answer = b""
            while part := connection.recv(65536):
                answer += part
        self.assertEqual(re.findall(rb"HTTP/1.1 (\d+)", answer), [b"400", b"200"])

    def test_what_is_not_http(self):
        for data in (b"\x16\x03\x01\x02\x00\x01\x00", b"\0" * 1000, b"GET\r\n\r\n", b"GET / HTTP/9.9\r\n\r\n", b"\r\n\r\n",
                     b"POST /tokenize HTTP/1.1\r\nContent-Length: -5\r\n\r\n{}", b"POST /tokenize HTTP/1.1\r\nContent-Length: 99999999999999999999\r\n\r\n",
                     b"POST /tokenize HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", b"GET /health HTTP/1.1\r\nno colon\r\n\r\n"):
            with self.subTest(data[:60]), self.connect() as connection:
                connection.sendall(data)
                connection.shutdown(socket.SHUT_WR)
                answer = connection.recv(65536)
                self.assertTrue(answer == b"" or answer[:9] == b"HTTP/1.1 ", answer[:80])
        self.assertEqual(self.server.ask("GET", "/health")[0], 200)

    def test_bodies_that_are_wrong(self):
        good = {"prompt": "x", "max_tokens": 1}
        for status, body in (
                (400, b"{"), (400, b""), (400, b"null"), (400, b"[]"), (400, b'"x"'), (400, b"{" * 50000), (400, b'{"a":' * 50000),
                (400, b'{"prompt": "\xff\xfe"}'), (400, b'{"prompt": "\\ud800"}'), (400, b'{"prompt": "x", "max_tokens": 1e999}'),
                (400, {"prompt": 5}), (400, {"prompt": {}}), (400, {"prompt": [[]]}), (400, {"prompt": ["x", 3]}), (400, {"prompt": None}),
                (400, {**good, "temperature": "hot"}), (400, {**good, "max_tokens": "many"}), (400, {**good, "stream": "yes"}),
                (400, {**good, "stop": 3}), (400, {**good, "n": -1}), (400, {**good, "seed": 1.5}), (400, {**good, "top_p": [1]}),
                (400, {**good, "prompt": "x " * 10000}), (200, {**good, "unknown": {"field": [1]}}), (200, good)):
            got, answer = self.server.ask("POST", "/v1/completions", body)
            self.assertEqual(got, status, (body if len(str(body)) < 100 else str(body)[:100], answer))
            if status == 400:
                self.assertTrue(answer["error"]["message"])

    def test_paths(self):
        for path in ("/../../etc/passwd", "/..%2f..%2fetc/passwd", "/%2e%2e/%2e%2e/etc/passwd", "//etc/passwd", "/chat.js/../style.css",
                     "/%00", "/index.html%00.js", "/v1/models/../../metrics", "/" + "a" * 5000, "/style.css/", "/serve/web/chat.js"):
            status = self.raw(b"GET %s HTTP/1.1\r\nHost: x\r\n\r\n" % path.encode())
            self.assertIn(status, (400, 404), path)
        for method, path in (("DELETE", "/v1/models"), ("PUT", "/v1/completions"), ("POST", "/health"), ("GET", "/completion")):
            self.assertIn(self.server.ask(method, path)[0], (404, 405), (method, path))


class SlowHeaders(unittest.TestCase):
    """More clients than threads, each of which sends a byte of a header now and then."""

    def test_others_are_served_and_the_slow_are_closed(self):
        server = Server("--parallel", 1, "--queue", 0)  # 33 threads
        self.addCleanup(server.close)
        slow, stop = [], threading.Event()
        for _ in range(45):
            connection = socket.create_connection(("127.0.0.1", server.port), timeout=TIME_LIMIT)
            self.addCleanup(connection.close)
            connection.sendall(b"POST /tokenize HTTP/1.1\r\nX: ")
            slow.append(connection)

        def dribble():
            while not stop.wait(0.2):
                for connection in slow:
                    try:
                        connection.send(b"x")
                    except OSError:
                        pass

        thread = threading.Thread(target=dribble)
        thread.start()
        try:
            begin = time.time()
            self.assertEqual(server.ask("POST", "/tokenize", {"content": "x"})[0], 200)
            self.assertLess(time.time() - begin, 9)  # a round of 2 seconds is before it; those whom nobody waits behind have 10
            for connection in slow:
                try:
                    while connection.recv(1000):
                        pass
                except ConnectionError:
                    pass
            self.assertLess(time.time() - begin, 25)
        finally:
            stop.set()
            thread.join()
        self.assertEqual(server.ask("GET", "/health")[0], 200)

    def test_connections_that_say_nothing_do_not_keep_others_out(self):
        server = Server("--parallel", 1, "--queue", 0)
        self.addCleanup(server.close)
        for _ in range(200):  # 33 have threads, 128 wait, others are told to come again
            self.addCleanup(socket.create_connection(("127.0.0.1", server.port), timeout=TIME_LIMIT).close)
        statuses = set()
        limit = time.time() + TIME_LIMIT
        while 200 not in statuses:
            self.assertLess(time.time(), limit)
            connection = server.connect()
            try:
                connection.request("POST", "/tokenize", '{"content": "x"}')
                statuses.add(connection.getresponse().status)
            except OSError:
                statuses.add("closed")  # its request met the answer to its connection
            connection.close()
            time.sleep(0.2)
        self.assertTrue(statuses <= {200, 503, "closed"} and len(statuses) > 1, statuses)


class Keys(Abused):
    arguments = ("--api-key", "secret")

    @classmethod
    def setUpClass(cls):
        cls.server = Server(*cls.arguments)

    def test_wrong_keys(self):
        for path in ("/v1/models", "/props", "/slots", "/metrics", "/live"):
            self.assertEqual(self.server.ask("GET", path)[0], 401, path)
            self.assertEqual(self.server.ask("GET", path, None, {"Authorization": "Bearer secret"})[0], 200, path)
        for key in ("", "Bearer", "Bearer ", "bearer secret", "Bearer secre", "Bearer secrett", "Basic c2VjcmV0", "Bearer " + "s" * 7000):
            for path in ("/v1/chat/completions", "/tokenize"):
                self.assertEqual(self.server.ask("POST", path, {}, {"Authorization": key})[0], 401, (key[:20], path))
        for path in ("/", "/chat.js", "/health"):
            self.assertEqual(self.server.ask("GET", path)[0], 200, path)


if __name__ == "__main__":
    serve_test.STOKER = os.path.abspath(sys.argv[1])
    serve_test.MODEL = os.path.join(sys.argv[2], "tests", "models", "ember-37m-q4_k_m.gguf")
    REQUESTS = int(sys.argv[3])
    unittest.main(argv=[sys.argv[0]] + sys.argv[4:], verbosity=2)

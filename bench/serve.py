#!/usr/bin/env python3
"""How `stoker serve` shares a machine: tokens/s of 1, 2, 4, 8 streams together, and how long a stream waits for its next token
while another user's long prompt is read.

usage: bench/serve.py STOKER MODEL [--streams 1,2,4,8] [--tokens N] [--prompt-tokens N] [--rounds N] [-- OPTIONS OF SERVE]

The client shares the server's cores, which users elsewhere do not: one that woke for every token of the bundled model took 3 to
4 % of two cores. So streams whose speed is measured are looked at every few milliseconds, all at once.
"""

import argparse
import itertools
import json
import math
import signal
import socket
import statistics
import subprocess
import sys
import threading
import time

EVENT = b"data: {"
LOOK_SECONDS = 0.005


class Server:
    def __init__(self, stoker, model, options):
        self.process = subprocess.Popen([stoker, "serve", "-m", model, "--port", "0", *options], stderr=subprocess.PIPE)
        for line in self.process.stderr:
            if b"http://" in line:
                self.port = int(line.split(b"http://127.0.0.1:")[1].split(b",")[0])
                threading.Thread(target=self.process.stderr.read, daemon=True).start()
                return
        raise SystemExit("the server did not start")

    def send(self, body):
        """Asks for a stream. The socket from which to read it."""
        text = json.dumps({"temperature": 1, "cache_prompt": False, "stream": True, **body})
        client = socket.create_connection(("127.0.0.1", self.port), timeout=600)
        client.sendall(("POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Type: application/json\r\n"
                        "Content-Length: %d\r\n\r\n%s" % (len(text), text)).encode())
        return client

    def token_times(self, body, times, stop=None):
        """Appends a time for every event of a stream, until it ends or `stop` is set. Reads the socket itself: a client that
        parses takes as long for a token as a small model does, and here it shares the server's cores."""
        with self.send(body) as client:
            rest = b""
            while received := client.recv(1 << 16):
                now = time.perf_counter()
                if not times and rest == b"" and not received.startswith(b"HTTP/1.1 200"):
                    raise SystemExit(received.decode())
                rest += received
                times.extend([now] * rest.count(EVENT))
                rest = rest.split(EVENT)[-1][1 - len(EVENT):]  # an event may begin here and go on in the next piece
                if stop is not None and stop.is_set():
                    break

    def close(self):
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(120)


def prompt(number, tokens):
    """Ids of the vocabulary's middle, other ones for each number."""
    return [300 + (number * 7919 + i * 31) % 1500 for i in range(tokens)]


class Received:
    """What has come of a stream."""

    def __init__(self, client):
        self.client, self.events, self.ended = client, 0, False
        self.rest = b""  # an event may begin here and go on in the next piece
        client.setblocking(False)

    def look(self):
        while not self.ended:
            try:
                piece = self.client.recv(1 << 16)
            except BlockingIOError:
                return
            if self.events == 0 and self.rest == b"" and not piece.startswith(b"HTTP/1.1 200"):
                raise SystemExit(piece.decode())
            self.ended = not piece
            pieces = (self.rest + piece).split(EVENT)
            self.events += len(pieces) - 1
            self.rest = pieces[-1][1 - len(EVENT):]
        self.client.close()


def together(server, streams, tokens):
    """Tokens per second of all streams, from when all have begun to when the first ends. How many have come is looked up at both
    times, so that looking seldom makes no error."""
    received = [Received(server.send({"prompt": prompt(i, 16), "max_tokens": tokens, "seed": i})) for i in range(streams)]
    looks = []  # (time, events) while all run
    while not all(stream.ended for stream in received):
        time.sleep(LOOK_SECONDS)
        for stream in received:
            stream.look()
        if all(stream.events > 0 and not stream.ended for stream in received):
            looks.append((time.perf_counter(), sum(stream.events for stream in received)))
    if not looks or looks[0][1] == looks[-1][1]:
        return math.nan  # too short
    (begin, first), (end, last) = looks[0], looks[-1]
    return (last - first) / (end - begin)


def gaps_beside_a_prompt(server, prompt_tokens, number):
    """Gaps of a stream, in ms: before another user's prompt comes, and while it is read. None: the stream ended before."""
    times, stop = [], threading.Event()
    body = {"prompt": prompt(50 + number, 16), "max_tokens": -1, "seed": number}
    thread = threading.Thread(target=server.token_times, args=(body, times, stop))
    thread.start()
    while len(times) < 50 and thread.is_alive():
        time.sleep(0.01)
    begin = time.perf_counter()
    server.token_times({"prompt": prompt(number, prompt_tokens), "max_tokens": 1}, [])
    end = time.perf_counter()
    lasted = thread.is_alive()
    stop.set()
    thread.join()
    pairs = list(zip(times, times[1:]))
    if not lasted:
        return None
    before = [1e3 * (b - a) for a, b in pairs if b < begin]
    during = [1e3 * (b - a) for a, b in pairs if b >= begin and a <= end]
    return before, during, end - begin


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stoker")
    parser.add_argument("model")
    parser.add_argument("--streams", default="1,2,4,8")
    parser.add_argument("--tokens", type=int, default=200)
    parser.add_argument("--prompt-tokens", type=int, default=4000)
    parser.add_argument("--rounds", type=int, default=9)
    border = sys.argv.index("--") if "--" in sys.argv else len(sys.argv)
    o = parser.parse_args(sys.argv[1:border])
    counts = [int(n) for n in o.streams.split(",")]
    context = 2 * max(o.prompt_tokens, o.tokens) + 100
    server = Server(o.stoker, o.model, ["--parallel", str(max(2, *counts)), "-c", str(context), *sys.argv[border + 1:]])
    try:
        together(server, 1, o.tokens)  # warm
        print("| streams | tokens/s, all (median of %d) | by one |\n|---|---|---|" % o.rounds)
        speeds = {n: [] for n in counts}
        for _ in range(o.rounds):  # in turns, so that a drift of the machine meets all
            for n in counts:
                speeds[n].append(together(server, n, o.tokens))
        for n in counts:
            ratios = [speed / one for speed, one in zip(speeds[n], speeds[counts[0]])]  # of a round, which a drift spares
            print("| %d | %.1f | %.2f |" % (n, statistics.median(speeds[n]), statistics.median(ratios)))
        print("\n| %d-token prompt read in | gaps of a stream before, median | during, median | during, 99 %% | worst | worst / median |"
              "\n|---|---|---|---|---|---|" % o.prompt_tokens)
        found = (gaps_beside_a_prompt(server, o.prompt_tokens, i) for i in range(20 * o.rounds))
        for before, during, seconds in itertools.islice(filter(None, found), o.rounds):
            median = statistics.median(during)
            high = sorted(during)[int(0.99 * (len(during) - 1))]
            print("| %.2f s | %.2f ms | %.2f ms | %.2f ms | %.2f ms | %.1f |" %
                  (seconds, statistics.median(before), median, high, max(during), max(during) / median))
    finally:
        server.close()


main()

#!/usr/bin/env python3
"""bench/cache on two small traces of known routing. usage: cache_test.py CACHE_BENCH"""

import gzip
import io
import os
import subprocess
import sys
import tarfile
import tempfile

TOKENS, LAYERS, TOP_K = 60, 3, 6


def esft_archive(path, offset):
    """Layer by layer: the same six of 12 experts at even tokens, the other six at odd ones."""
    with tarfile.open(path, "w:xz") as archive:
        for layer in range(1, LAYERS + 1):
            lines = []
            for _ in range(2):  # sequences
                ids = [str(offset + t % 2 * TOP_K + i) for t in range(TOKENS // 2) for i in range(TOP_K)]
                lines.append("\t".join(ids) + "\t\t" + "\t".join(["0.1"] * len(ids)) + "\n")
            data = "".join(lines).encode()
            info = tarfile.TarInfo("x/expert_weights_%d.txt" % layer)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))


def big_moe_file(path):
    with gzip.open(path, "wt") as file:
        file.write("# route_trace v1\nturn,phase,step,layer,slot,expert,weight,residency,expert_bytes\n")
        for step in range(10):
            for layer in range(2):
                for slot in range(2):
                    file.write("0,0,%d,%d,%d,%d,0.5,0,1\n" % (step, layer, slot, slot))
        file.write("0,0,10,0,0,1,0.5,0,1\n")  # not computed to the end: left out


def row(text, title, name):
    block = text[text.index(title):].split("\n\n")[0]
    return next(line.split() for line in block.splitlines() if line.split()[:1] == [name])


def main():
    with tempfile.TemporaryDirectory() as folder:
        esft_archive(os.path.join(folder, "even.tar.xz"), 0)
        esft_archive(os.path.join(folder, "late.tar.xz"), 20)
        big_moe_file(os.path.join(folder, "few.route.csv.gz"))
        out = subprocess.run([sys.argv[1], "--data", folder, "--capacity", "10,20"], capture_output=True, text=True)
        assert out.returncode == 0, out.stderr
        text = out.stdout
        for budget in ("layer", "global"):
            title = "even: 60 tokens, 3 layers, 6 of 64 experts; budget: %s" % budget
            # 13 slots hold all twelve: only the first two tokens miss. 6 slots: the optimum keeps one half.
            for policy in ("Belady", "auto", "ema", "lru", "lfu", "slru", "s3fifo", "least-stale", "mrs"):
                assert row(text, title, policy)[2] == "96.7", (budget, policy, row(text, title, policy))
            assert row(text, title, "lru")[1] == "0.0"
            assert row(text, title, "Belady")[1] == "48.3", row(text, title, "Belady")
            title = "few: 10 tokens, 2 layers, 2 of 64 experts; budget: %s" % budget
            assert row(text, title, "auto")[1] == "90.0"
        assert "even > late" in text
        empty = os.path.join(folder, "empty")
        os.mkdir(empty)
        out = subprocess.run([sys.argv[1], "--data", empty], capture_output=True, text=True)
        assert out.returncode == 1 and "no traces" in out.stderr, out
    print("passed")


main()

#!/usr/bin/env python3
"""What the default policy with governed prefetch, and slots filled while the drive idles, gains over plain LRU without: runs of
both take turns, A B B A, on one model under a replayed routing. Ratio of the medians, and how far runs of the same kind lie apart.
usage: prefetch.py STOKER [--model FILE] [--ram SIZE,SIZE] [--rounds N] [--tokens N] [--lookahead N]

Without --model one of 3 GB is made in --folder, and removed; without --ram the budgets are 12 and 30 % of its experts.
Goals: at about 30 % a ratio of 1.15 or more; where the disk is the bottleneck, busy 92 % of the time; never slower.
"""

import argparse
import sys
import tempfile

import streaming_runs
from streaming_runs import Run, median, spread

PROFILES = ("synthetic:default", "synthetic:pessimistic")
UNITS = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}


def size(text):
    return int(float(text[:-1]) * UNITS[text[-1]]) if text[-1] in UNITS else int(text)


def compare(options, model, ram_bytes, routing):
    kinds = {"plain": ["--policy", "lru", "--predictor", "none", "--no-preload"],
             "governed": ["--lookahead", options.lookahead, "--prefetch", options.prefetch]}
    runs = {kind: [] for kind in kinds}
    for number in range(options.rounds):
        for kind in ("plain", "governed") if number % 2 == 0 else ("governed", "plain"):
            runs[kind].append(Run(options.stoker, model, ram_bytes, routing, options.tokens, kinds[kind]))
    speeds = {kind: [run.tokens_per_second for run in runs[kind]] for kind in kinds}
    last = runs["governed"][-1]
    print("| %s | %.2f GiB | %.2f (%.0f %%) | %.2f (%.0f %%) | %.2f | %.0f %% | %.0f %% | %.0f %% | %s |" % (
        routing, ram_bytes / 2**30, median(speeds["plain"]), 100 * spread(speeds["plain"]), median(speeds["governed"]),
        100 * spread(speeds["governed"]), median(speeds["governed"]) / median(speeds["plain"]),
        100 * median([run.disk_busy for run in runs["plain"]]), 100 * median([run.disk_busy for run in runs["governed"]]),
        100 * last.useful, last.prefetch), flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stoker")
    parser.add_argument("--model")
    parser.add_argument("--folder", help="where to put the model (default: the system's for temporary files)")
    parser.add_argument("--ram", help="budgets, such as 3G,8G")
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--tokens", type=int, default=1024, help="measured tokens of a run: the governor needs 768")
    parser.add_argument("--lookahead", type=int, default=1)
    parser.add_argument("--prefetch", default="auto")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        model = options.model or streaming_runs.make_model(options.stoker, folder)
        full = streaming_runs.full_budget(options.stoker, model)
        budgets = [size(text) for text in options.ram.split(",")] if options.ram else [int(full * s) for s in (0.12, 0.3)]
        print("| routing | RAM | LRU tokens/s (spread) | governed | ratio | disk busy, LRU | governed | useful | prefetch |")
        print("|---|---|---|---|---|---|---|---|---|")
        for routing in PROFILES:
            for ram_bytes in budgets:
                compare(options, model, ram_bytes, routing)
    return 0


sys.exit(main())

#!/usr/bin/env python3
"""Whether experts come as fast from a pack as from the file that it was made of: runs of both take turns, A B B A, on a model of
which a part fits, without predictions, so that every read is waited for. Cold: the first tokens, whose experts are nearly all read.
usage: pack.py STOKER [--folder DIR] [--rounds N] [--tokens N]

A model of 3 GB and its pack are made in --folder, and removed. Reads go around the page cache.
"""

import argparse
import os
import subprocess
import sys
import tempfile

import streaming_runs
from streaming_runs import Run, median, spread

SHARES = (0.12, 0.3)  # of the experts' bytes
WITHOUT_GUESSES = ["--predictor", "none", "--no-preload"]


def compare(options, models, ram_bytes):
    runs = {kind: [] for kind in models}
    for number in range(options.rounds):
        for kind in list(models) if number % 2 == 0 else reversed(list(models)):
            runs[kind].append(Run(options.stoker, models[kind], ram_bytes, "synthetic:default", options.tokens, WITHOUT_GUESSES))
    cold = {kind: [run.facts["samples_ts"][0] for run in runs[kind]] for kind in models}
    warm = {kind: [run.tokens_per_second for run in runs[kind]] for kind in models}
    for name, speeds in (("cold", cold), ("streamed", warm)):
        original, pack = speeds["original"], speeds["pack"]
        print("| %.2f GiB | %s | %.2f (%.0f %%) | %.2f (%.0f %%) | %.2f |" % (
            ram_bytes / 2**30, name, median(original), 100 * spread(original), median(pack), 100 * spread(pack),
            median(pack) / median(original)), flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stoker")
    parser.add_argument("--folder", help="where to put the models (default: the system's for temporary files)")
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--tokens", type=int, default=192, help="measured tokens of a run, after 80 that fill the cache")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        original, pack = streaming_runs.make_model(options.stoker, folder), os.path.join(folder, "pack.gguf")
        subprocess.run([options.stoker, "pack", "-m", original, "-o", pack], check=True, stdout=subprocess.DEVNULL,
                       stderr=subprocess.DEVNULL)
        full = streaming_runs.full_budget(options.stoker, original)
        print("| RAM | | original tokens/s (spread) | pack tokens/s (spread) | pack / original |\n|---|---|---|---|---|")
        for share in SHARES:
            compare(options, {"original": original, "pack": pack}, int(full * share))
    return 0


sys.exit(main())

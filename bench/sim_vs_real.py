#!/usr/bin/env python3
"""The simulator against this machine. Each round measures the machine, runs `stoker bench` for every routing and budget, and
simulates the same runs on what was measured; the medians of both speeds are compared. Measuring and running take turns because
machines with neighbours drift by more than the difference that is looked for.
usage: sim_vs_real.py STOKER [--model FILE] [--machine FILE.toml] [--rounds N] [--tokens N] [--limit SHARE]

Without --model one of 3 GB is made in --folder, and removed. With --limit the exit code is 1 when a simulated speed is
further than that from the median of the measured ones.
"""

import argparse
import os
import sys
import tempfile

import streaming_runs
from streaming_runs import PIECE_TOKENS, Run, median, run_json, spread

SHARES = (0.15, 0.3, 0.6)  # of the budget that holds all experts
ROUTINGS = ("synthetic:default", "synthetic:pessimistic")


def simulate(options, model, machine, ram_bytes, routing, extra):
    facts = run_json(options.stoker, "simulate", "-m", model, "--machine", machine, "--ram", "%dK" % (ram_bytes // 1024),
                     "--routing", routing, "--tokens", 16 + PIECE_TOKENS + max(2 * PIECE_TOKENS, options.tokens), "-c",
                     PIECE_TOKENS // 2, "--json", *extra)
    return facts["warm"]


def compare(options, model, folder):
    full = streaming_runs.full_budget(options.stoker, model)
    cases = [(routing, share) for routing in ROUTINGS for share in SHARES]
    extra = ["--prefetch", options.prefetch, "--predictor", options.predictor]
    runs = {case: [] for case in cases}
    simulated = {case: [] for case in cases}
    for _ in range(options.rounds):
        machine = options.machine
        if machine is None:
            machine = os.path.join(folder, "machine.toml")
            streaming_runs.measure_machine(options.stoker, model, machine)
        for routing, share in cases:
            runs[routing, share].append(Run(options.stoker, model, int(full * share), routing, options.tokens, extra))
            simulated[routing, share].append(simulate(options, model, machine, int(full * share), routing, extra))
    print("| routing | RAM | measured tokens/s | spread | simulated | spread | difference | disk busy | simulated |")
    print("|---|---|---|---|---|---|---|---|---|")
    worst = 0
    for routing, share in cases:
        speeds = [run.tokens_per_second for run in runs[routing, share]]
        expected = [warm["tokens_per_second"] for warm in simulated[routing, share]]
        difference = median(expected) / median(speeds) - 1
        worst = max(worst, abs(difference))
        print("| %s | %.0f %% | %.2f | %.0f %% | %.2f | %.0f %% | %+.1f %% | %.0f %% | %.0f %% |" % (
            routing, share * 100, median(speeds), 100 * spread(speeds), median(expected), 100 * spread(expected),
            100 * difference, 100 * median([run.disk_busy for run in runs[routing, share]]),
            100 * median([warm["disk_busy_share"] for warm in simulated[routing, share]])))
    print("\nlargest difference: %.1f %%" % (100 * worst))
    return worst


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stoker")
    parser.add_argument("--model")
    parser.add_argument("--machine", help="machine file; default: this machine is measured in every round")
    parser.add_argument("--folder", help="where to put the model (default: the system's for temporary files)")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--tokens", type=int, default=256, help="measured tokens of a run")
    parser.add_argument("--prefetch", default="off")
    parser.add_argument("--predictor", default="none")
    parser.add_argument("--limit", type=float, default=0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        model = options.model or streaming_runs.make_model(options.stoker, folder)
        worst = compare(options, model, folder)
    return 1 if options.limit and worst > options.limit else 0


sys.exit(main())

#!/usr/bin/env python3
"""Whether cores, devices and links work at the same time: decode on host devices whose compute and link are modelled, so that
two cores show what a machine with cards would. Per layer: time, time each lane was busy, the largest of these and their sum.
usage: overlap.py STOKER [--model FILE] [--tokens N] [--threads N] [--cases N] [--require RATIO]

Goal: a layer takes at most 1.1 times its busiest lane. Layers with experts are cut out of the timeline, from the beginning of
attention to the next layer's, so the output head and sampling are in none. With several devices the busiest lane is another in
each layer, the layer's home, so it is taken per layer.

Attention must have ended before anything else of the layer can begin, and it is computed in one lane: its home device's, or the
cores'. "bound" allows for that and no more: the busiest lane until attention has ended, then the busiest of what each lane
has left. Where the busiest lane is not the one that computes attention, no schedule reaches the goal, and time / bound says
what is lost. Without --model one of 2.4 GB is made in --folder, and removed.
"""

import argparse
import bisect
import json
import os
import subprocess
import sys
import tempfile

MODEL_ARGUMENTS = ["--shape", "deepseek-v2-lite", "--moe-layers", "3", "--experts", "Q8_0", "--attn", "Q8_0"]
# Devices, and memory of each as a share of all experts.
CASES = ((1, 0.02), (1, 0.06), (1, 0.15), (1, 0.4), (2, 0.06))
# A modelled device must be faster than cores are taken to be (20 GB/s), or nothing is moved there, and slower than a core of
# this machine, which does its work.
LINK, COMPUTE = 13, 22


def decode(stoker, model, expert_bytes, case, tokens, threads, folder):
    """The timeline of one `stoker bench` as lane -> [(begin, end, name, busy)], in order, and how many passes are measured."""
    count, share = case
    path = os.path.join(folder, "timeline.json")
    vram = int(share * expert_bytes) + (256 << 20)  # the latter for attention and the FFNs that every token passes
    subprocess.run([stoker, "bench", "-m", model, "-p", "0", "-n", str(tokens), "-r", "2", "-t", str(threads), "--routing",
                    "synthetic:default", "--device", "host:%d,vram=%dMiB,link=%gGB/s,compute=%gGB/s" % (
                        count, 2 * vram // 2**20 + 64, LINK, COMPUTE),
                    "--vram", "%dM" % (vram // 2**20), "--timeline", path], check=True, stdout=subprocess.DEVNULL,
                   stderr=subprocess.PIPE)
    with open(path, encoding="utf-8") as chart:
        events = json.load(chart)["traceEvents"]
    os.remove(path)
    names = {e["tid"]: e["args"]["name"] for e in events if e["name"] == "thread_name"}
    lanes = {name: [] for name in names.values()}
    for e in events:
        if e["ph"] == "X":
            lanes[names[e["tid"]]].append((e["ts"], e["ts"] + e["dur"], e["name"], e["cat"] == "busy"))
    for spans in lanes.values():
        spans.sort()
    return lanes, 2 * tokens


def layer_cuts(lanes, facts, passes):
    """Of the last passes, each layer with experts but the last: from the beginning of its attention to the next one's."""
    begins = [begin for begin, _, name, _ in lanes["CPU"] if name == "attention"]
    layers, dense = facts["layers"], facts["dense_layers"]
    begins = begins[len(begins) - layers * passes:]
    return [(begins[i + l], begins[i + l + 1]) for i in range(0, len(begins), layers) for l in range(dense, layers - 1)]


def busy(spans, cuts):
    """Time with a busy span, of each cut; both are in order."""
    times, first = [], 0
    for cut_begin, cut_end in cuts:
        counted, time = cut_begin, 0
        while first < len(spans) and spans[first][1] <= cut_begin:
            first += 1
        for begin, end, _, is_busy in spans[first:]:
            if begin >= cut_end:
                break
            if is_busy and min(end, cut_end) > max(begin, counted):
                time += min(end, cut_end) - max(begin, counted)
                counted = min(end, cut_end)
        times.append(time)
    return times


def ends_of_attention(spans, cuts):
    """Of each cut: when the first thing begins that is neither attention nor waiting for a device that computes it."""
    begins = [begin for begin, _, name, _ in spans if name not in ("attention", "device_wait")]
    return [min(end, begins[bisect.bisect_left(begins, begin)]) for begin, end in cuts]


def report(case, lanes, cuts):
    """Prints a row; returns time per layer / busiest lane, and / bound."""
    per_layer = 1e-3 / len(cuts)
    ends = ends_of_attention(lanes["CPU"], cuts)
    before = [busy(spans, [(begin, end) for (begin, _), end in zip(cuts, ends)]) for spans in lanes.values()]
    after = [busy(spans, [(begin, end) for begin, (_, end) in zip(ends, cuts)]) for spans in lanes.values()]
    bound = sum(map(max, zip(*before)), sum(map(max, zip(*after)))) * per_layer
    uses = {name: busy(spans, cuts) for name, spans in lanes.items()}
    busiest = sum(map(max, zip(*uses.values()))) * per_layer
    time = sum(end - begin for begin, end in cuts) * per_layer
    totals = {name: sum(times) * per_layer for name, times in uses.items()}
    print("| %d, %.0f %% | %.2f | %.2f | %.2f | %.2f | %.2f | %.2f | %s |" % (
        case[0], 100 * case[1], time, busiest, bound, sum(totals.values()), time / busiest, time / bound,
        ", ".join("%s %.2f" % use for use in totals.items() if use[1] >= 0.01)), flush=True)
    return time / busiest, time / bound


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stoker")
    parser.add_argument("--model")
    parser.add_argument("--folder", help="where to put model and timelines (default: the system's for temporary files)")
    parser.add_argument("--tokens", type=int, default=48)
    parser.add_argument("--cases", type=int, default=len(CASES), help="the first N of them (default: all)")
    parser.add_argument("--threads", type=int, default=1, help="the other cores are for what devices really compute")
    parser.add_argument("--require", type=float, help="exit 1 when a layer takes longer, in times of its bound")
    options = parser.parse_args()
    worst = worst_of_bound = 0
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        model = options.model or os.path.join(folder, "model.gguf")
        if not options.model:
            subprocess.run([options.stoker, "synth", "-o", model] + MODEL_ARGUMENTS, check=True, stdout=subprocess.DEVNULL,
                           stderr=subprocess.DEVNULL)
        facts = json.loads(subprocess.run([options.stoker, "inspect", model, "--json"], check=True, capture_output=True).stdout)
        print("| devices, experts on each | ms per layer | busiest lane | bound | sum | time / busiest | time / bound | lanes |")
        print("|---|---|---|---|---|---|---|---|")
        for case in CASES[:options.cases]:
            lanes, passes = decode(options.stoker, model, facts["routed_bytes"], case, options.tokens, options.threads, folder)
            ratio, of_bound = report(case, lanes, layer_cuts(lanes, facts, passes))
            worst, worst_of_bound = max(worst, ratio), max(worst_of_bound, of_bound)
    print("most: %.2f times the busiest lane, %.2f times the bound" % (worst, worst_of_bound))
    return 1 if options.require and worst_of_bound > options.require else 0


sys.exit(main())

"""What sim_vs_real.py, prefetch.py and pack.py share: a model to stream, runs of `stoker bench`, tables."""

import json
import os
import statistics
import subprocess

# 1 dense and 5 MoE layers of V2-Lite's shape: 2 GB of experts.
MODEL_ARGUMENTS = ["--shape", "deepseek-v2-lite", "--moe-layers", "5", "--experts", "Q4_K", "--down", "Q8_0", "--attn", "Q8_0"]
PIECE_TOKENS = 64  # one repetition of `stoker bench`; the first, and 16 tokens before it, fill the cache


def run_json(*command):
    result = subprocess.run([str(part) for part in command], stdout=subprocess.PIPE, stderr=subprocess.PIPE, check=False)
    if result.returncode != 0:
        raise SystemExit("%s: %s" % (" ".join(str(part) for part in command), result.stderr.decode().strip()))
    return json.loads(result.stdout)


def make_model(stoker, folder):
    """Writes the model into `folder` and returns its path."""
    path = os.path.join(folder, "model.gguf")
    subprocess.run([stoker, "synth", "-o", path] + MODEL_ARGUMENTS, check=True, stdout=subprocess.DEVNULL,
                   stderr=subprocess.DEVNULL)
    return path


def full_budget(stoker, model):
    return run_json(stoker, "inspect", model, "--json")["full_expert_budget_bytes"]


class Run:
    """One `stoker bench` of generation under a replayed routing, the cache filled before."""

    def __init__(self, stoker, model, ram_bytes, routing, tokens, extra):
        pieces = 1 + max(2, tokens // PIECE_TOKENS)
        self.facts = run_json(stoker, "bench", "-m", model, "-p", 0, "-n", PIECE_TOKENS, "-r", pieces, "--ram",
                              "%dK" % (ram_bytes // 1024), "--routing", routing, "--json", *extra)[0]
        warm = self.facts["samples_ts"][1:]
        self.tokens_per_second = len(warm) / sum(1 / speed for speed in warm)
        self.disk_busy = self.facts["disk_busy_share"]
        self.useful = self.facts.get("prefetch_useful_share", 0)
        self.prefetch = self.facts.get("prefetch", "off")


def median(values):
    return statistics.median(values)


def spread(values):
    """Half of the range, relative to the median."""
    return (max(values) - min(values)) / 2 / median(values)


def measure_machine(stoker, model, path):
    subprocess.run([stoker, "tune", "--measure", "-m", model, "-o", path], check=True, stdout=subprocess.DEVNULL)

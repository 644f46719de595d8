#!/usr/bin/env python3
"""Routing traces of other projects as the plain text that bench/cache reads.

usage: routing_data.py FOLDER

Looks below FOLDER for ESFT's expert_weights_LAYER.txt in NAME.tar.xz (a line per sequence: ids, two tabs, weights; the
same sequences in every file) and for BigMoeOnEdge's NAME.route.csv.gz (a line per use). Prints for each
  trace NAME LAYERS EXPERTS TOP_K
and then a line per token: `id weight` for all its experts, layer by layer, weights in 1/10000. `-` begins a sequence.
"""

import csv
import gzip
import os
import re
import sys
import tarfile


def scaled(weight):
    return max(1, round(10000 * float(weight)))


def show(name, sequences):
    """sequences: lists of tokens, a token: lists (by layer) of (id, weight)."""
    first = sequences[0][0]
    experts = 1 + max(e for s in sequences for t in s for layer in t for e, _ in layer)
    experts = 64 if experts <= 64 else (experts + 63) // 64 * 64  # the last ones may never be used
    print("trace", name, len(first), experts, len(first[0]))
    for sequence in sequences:
        print("-")
        for token in sequence:
            print(" ".join("%d %d" % pair for layer in token for pair in layer))


def esft(path, top_k=6):
    layers = {}
    with tarfile.open(path, "r:xz") as archive:
        for member in archive:
            number = re.search(r"expert_weights_(\d+)\.txt$", member.name)
            if number:
                lines = archive.extractfile(member).read().decode().splitlines()
                layers[int(number.group(1))] = [line.split("\t\t") for line in lines if line.strip()]
    order = [layers[i] for i in sorted(layers)]
    sequences = []
    for s in range(len(order[0])):
        columns = [(layer[s][0].split("\t"), layer[s][1].split("\t")) for layer in order]
        tokens = len(columns[0][0]) // top_k
        sequences.append([[[(int(ids[i]), scaled(weights[i])) for i in range(t * top_k, (t + 1) * top_k)]
                           for ids, weights in columns] for t in range(tokens)])
    return sequences


def big_moe(path):
    tokens = {}
    with gzip.open(path, "rt") as text:
        for row in csv.DictReader(line for line in text if not line.startswith("#")):
            token = tokens.setdefault((int(row["turn"]), int(row["phase"]), int(row["step"])), {})
            token.setdefault(int(row["layer"]), []).append((int(row["expert"]), scaled(row["weight"])))
    layers = 1 + max(layer for token in tokens.values() for layer in token)
    top_k = max(len(uses) for token in tokens.values() for uses in token.values())
    turns = {}
    for (turn, _, _), token in sorted(tokens.items()):
        # Some tokens, such as the last ones of a prompt, are not computed to the end.
        if len(token) == layers and all(len(uses) == top_k for uses in token.values()):
            turns.setdefault(turn, []).append([token[layer] for layer in range(layers)])
    return [turns[turn] for turn in sorted(turns)]


def main():
    if len(sys.argv) != 2 or not os.path.isdir(sys.argv[1]):
        sys.exit(__doc__)
    for folder, subfolders, names in os.walk(sys.argv[1]):
        subfolders.sort()
        for name in sorted(names):
            path = os.path.join(folder, name)
            if name.endswith(".tar.xz"):
                show(name[: -len(".tar.xz")], esft(path))
            elif name.endswith(".route.csv.gz"):
                show(name[: -len(".route.csv.gz")], big_moe(path))


main()

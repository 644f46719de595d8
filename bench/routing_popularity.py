#!/usr/bin/env python3
"""Makes scheduler/trace/v3_popularity.h: how unequal the popularity of experts is, layer by layer, in counts that were
measured on DeepSeek-V3/R1.  usage: routing_popularity.py COUNTS.json > scheduler/trace/v3_popularity.h

COUNTS.json is {"logical_count": [[tokens of expert 0, 1, ...] of layer 0, ...]}, as SGLang's statistics of expert
distribution have it; layers without experts have zeros. Per layer the header keeps a few quantiles of
ln(count / mean): which expert is popular is not kept, only how popular the most and least popular are.
"""

import json
import math
import sys

LEVELS = [0.002, 0.02, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 0.98, 0.998]


def quantile(values, level):
    """Of sorted values, the i-th of n standing for level (i + 0.5) / n."""
    at = min(max(level * len(values) - 0.5, 0), len(values) - 1)
    low = min(int(at), len(values) - 2)
    return values[low] + (values[low + 1] - values[low]) * (at - low)


def top_share(counts, share):
    counts = sorted(counts, reverse=True)
    n = share * len(counts)
    return (sum(counts[: int(n)]) + (n - int(n)) * counts[int(n)]) / sum(counts)


def main():
    with open(sys.argv[1], encoding="utf-8") as file:
        layers = [row for row in json.load(file)["logical_count"] if sum(row) > 0]
    print("// Made by bench/routing_popularity.py; see there. Quantiles of ln(count / mean) of an expert, in hundredths, of")
    print("// DeepSeek-V3/R1's %d layers with experts, in order (decoding, public statistics of SGLang)." % len(layers))
    print("// The hottest 10, 20, 30, 50 %% of a layer's experts get %s of its slots, mean over layers." % ", ".join(
        "%.3f" % (sum(top_share(row, share) for row in layers) / len(layers)) for share in (0.1, 0.2, 0.3, 0.5)))
    print("#pragma once\n\n#include <array>\n\n#include \"kernels/base/types.h\"\n\nnamespace stoker {\n")
    print("constexpr std::array<f64, %d> kPopularityLevels = {%s};" % (len(LEVELS), ", ".join("%g" % x for x in LEVELS)))
    print("constexpr std::array<std::array<i16, %d>, %d> kV3Popularity = {{" % (len(LEVELS), len(layers)))
    for row in layers:
        mean = sum(row) / len(row)
        logs = sorted(math.log(max(count, 1) / mean) for count in row)
        print("    {%s}," % ", ".join("%d" % round(100 * quantile(logs, level)) for level in LEVELS))
    print("}};\n\n}  // namespace stoker")


main()

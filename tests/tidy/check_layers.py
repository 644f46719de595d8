#!/usr/bin/env python3
"""Who may include whom: ARCHITECTURE.md's table, as a test.

A file's area is the longest prefix of its path in AREAS; each `#include "..."` from the root must lead to an area that
the file's own may use. usage: check_layers.py ROOT | --self-test
"""

import os
import re
import sys

# Area: path prefixes (folders end in a slash; others match FILE.h and FILE.cc and FILE_anything).
AREAS = {
    "base": ["kernels/base/"],
    "device": ["kernels/device/"],
    "format": ["kernels/format/"],
    "kernels": ["kernels/ops", "kernels/ref/", "kernels/cpu/", "kernels/cuda/"],
    "expert_table": ["scheduler/model_file/expert_table"],
    "model_file": ["scheduler/model_file/"],
    "plan": ["scheduler/plan.h", "scheduler/home_devices"],
    "predictor": ["scheduler/policy/predictor"],
    "popularity": ["scheduler/policy/popularity"],
    "policy": ["scheduler/policy/"],
    "tier_interfaces": ["scheduler/tiers/reader.h", "scheduler/tiers/copier.h"],
    "slab": ["scheduler/tiers/slab", "scheduler/tiers/slice", "scheduler/tiers/vram"],
    "tiers": ["scheduler/tiers/"],
    "trace": ["scheduler/trace/"],
    "streamer": ["scheduler/streamer"],
    "facade": ["scheduler/scheduler", "scheduler/expectations", "scheduler/forecaster", "scheduler/device_tier"],
    "sim": ["scheduler/sim/"],
    # The planner, the probe, and whatever else of the scheduler sizes things before anything moves.
    "planner": ["scheduler/"],
    "runtime_engine": ["runtime/engine"],
    "runtime": ["runtime/"],
    "tools": ["tools/"],
    "tests": ["tests/", "bench/"],
}

SCHEDULER_CORE = ["base", "expert_table", "plan", "policy", "predictor", "tier_interfaces"]
EVERYTHING_BELOW_TOOLS = [a for a in AREAS if a not in ("tools", "tests")]

MAY_INCLUDE = {
    "base": [],
    "device": ["base"],
    "format": ["base"],
    "kernels": ["base", "device", "format"],
    "expert_table": ["base", "format", "model_file"],
    "model_file": ["base", "format", "expert_table"],
    "plan": ["base"],
    "predictor": ["base"],
    "popularity": ["base"],
    "policy": ["base", "expert_table", "plan", "popularity"],
    "tier_interfaces": ["base", "device"],
    "slab": ["base", "device", "expert_table", "plan", "tier_interfaces"],
    "tiers": ["base", "device", "expert_table", "plan", "tier_interfaces", "slab"],
    "trace": ["base", "format", "predictor"],
    "streamer": SCHEDULER_CORE + ["slab"],
    "facade": SCHEDULER_CORE + ["device", "model_file", "slab", "streamer"],
    "planner": ["base", "device", "format", "expert_table", "model_file", "plan", "policy", "popularity", "tier_interfaces", "slab", "tiers"],
    "sim": SCHEDULER_CORE + ["format", "slab", "trace", "streamer", "facade"],
    # The engine alone wires concrete tiers and the planner together.
    "runtime_engine": [a for a in EVERYTHING_BELOW_TOOLS if a != "sim"],
    "runtime": ["base", "device", "format", "kernels", "expert_table", "model_file", "plan", "popularity", "predictor", "trace", "streamer", "facade", "runtime_engine"],
    "tools": [a for a in EVERYTHING_BELOW_TOOLS if a not in ("kernels", "slab")],
    "tests": list(AREAS),
}

# Only this file knows io_uring, so that there is one place to audit.
SYSTEM_HEADERS = {"liburing.h": ["scheduler/tiers/disk"]}

SOURCE_ENDINGS = (".h", ".cc", ".cu", ".cuh")
INCLUDE = re.compile(r'^\s*#\s*include\s+(["<])([^">]+)[">]', re.MULTILINE)


def area_of(path):
    best, best_length = None, -1
    for area, prefixes in AREAS.items():
        for prefix in prefixes:
            if path.startswith(prefix) and len(prefix) > best_length:
                best, best_length = area, len(prefix)
    return best


def check_file(path, text, exists):
    """Problems of one file; `exists(path)` says whether the repository has a file."""
    problems = []
    area = area_of(path)
    if area is None:
        return ["%s: belongs to no layer" % path]
    for bracket, target in INCLUDE.findall(text):
        if bracket == "<":
            allowed = SYSTEM_HEADERS.get(target)
            if allowed and area != "tests" and not any(path.startswith(p) for p in allowed):
                problems.append("%s: <%s> belongs to %s alone" % (path, target, ", ".join(allowed)))
            continue
        target_area = area_of(target)
        if target_area is None or (exists is not None and not exists(target)):
            problems.append('%s: "%s" is not a path from the root' % (path, target))
        elif target_area != area and target_area not in MAY_INCLUDE[area]:
            problems.append("%s (%s) may not include %s (%s)" % (path, area, target, target_area))
    return problems


def sources(root):
    for layer in ("kernels", "scheduler", "runtime", "tools", "tests", "bench"):
        for folder, _, names in os.walk(os.path.join(root, layer)):
            for name in names:
                if name.endswith(SOURCE_ENDINGS):
                    yield os.path.relpath(os.path.join(folder, name), root)


def self_test():
    def problems(path, text):
        return len(check_file(path, text, None))

    bad = [
        ("scheduler/policy/lru.cc", '#include "kernels/ops.h"\n'),
        ("scheduler/policy/lru.cc", '#include "scheduler/tiers/disk.h"\n'),
        ("scheduler/scheduler.cc", '#include "runtime/engine.h"\n'),
        ("scheduler/scheduler.cc", '#include "scheduler/tiers/disk.h"\n'),
        ("kernels/ref/matmul.cc", '#include "scheduler/plan.h"\n'),
        ("kernels/base/log.cc", '#include "kernels/format/blocks.h"\n'),
        ("runtime/forward.cc", '#include "scheduler/tiers/disk.h"\n'),
        ("runtime/forward.cc", '#include "tools/options.h"\n'),
        ("tools/run.cc", '#include "tests/support/shared_data.h"\n'),
        ("tools/run.cc", '#include "options.h"\n'),
        ("tools/run.cc", "  #  include <liburing.h>\n"),
        ("elsewhere/file.cc", ""),
    ]
    good = [
        ("scheduler/policy/lru.cc", '#include "scheduler/model_file/expert_table.h"\n#include <vector>\n'),
        ("scheduler/scheduler.cc", '#include "scheduler/tiers/reader.h"\n'),
        ("runtime/engine.cc", '#include "scheduler/tiers/disk.h"\n'),
        ("scheduler/tiers/disk.cc", "#include <liburing.h>\n"),
        ("tests/scheduler/disk_test.cc", '#include "runtime/engine.h"\n'),
    ]
    for path, text in bad:
        assert problems(path, text) == 1, "not noticed: %s %s" % (path, text)
    for path, text in good:
        assert problems(path, text) == 0, "wrongly noticed: %s %s" % (path, text)


def main():
    if sys.argv[1:] == ["--self-test"]:
        self_test()
        print("self-test passed")
        return 0
    root = sys.argv[1]
    paths = sorted(sources(root))
    problems = []
    for path in paths:
        text = open(os.path.join(root, path), encoding="utf-8").read()
        # Includes of generated headers would need a build folder; there are none.
        problems += check_file(path, text, lambda target: os.path.exists(os.path.join(root, target)))
    for problem in problems:
        print(problem)
    print("%d files, %d problems" % (len(paths), len(problems)))
    return 1 if problems or len(paths) < 20 else 0


sys.exit(main())

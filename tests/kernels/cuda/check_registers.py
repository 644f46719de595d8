#!/usr/bin/env python3
"""The matrix-vector kernels, those of floats included, and the router must keep everything in registers on sm_86: no spills, at
most 128 registers, so that two blocks of 256 threads share a multiprocessor. Reads what ptxas -v said.
usage: check_registers.py KERNELS REPORT..."""

import re
import sys

MOST_REGISTERS = 128
CHECKED = re.compile(r"\d(float_)?matvec_kernel|\droute_kernel")
ENTRY = re.compile(r"Compiling entry function '(\S+)' for '(sm_\d+)'")
SPILL = re.compile(r"(\d+) bytes spill stores, (\d+) bytes spill loads")
USED = re.compile(r"Used (\d+) registers")


def kernels(text):
    """(name, architecture, spilled bytes, registers) of each entry function."""
    name = None
    for line in text.splitlines():
        if match := ENTRY.search(line):
            name, architecture, spilled = match.group(1), match.group(2), 0
        elif name and (match := SPILL.search(line)):
            spilled = int(match.group(1)) + int(match.group(2))
        elif name and (match := USED.search(line)):
            yield name, architecture, spilled, int(match.group(1))
            name = None


def main():
    wanted, problems, seen, most = int(sys.argv[1]), [], 0, 0
    for path in sys.argv[2:]:
        with open(path, encoding="utf-8") as file:
            for name, architecture, spilled, registers in kernels(file.read()):
                if architecture != "sm_86" or not CHECKED.search(name):
                    continue
                seen += 1
                most = max(most, registers)
                if spilled > 0:
                    problems.append("%s spills %d bytes" % (name, spilled))
                if registers > MOST_REGISTERS:
                    problems.append("%s uses %d registers, more than %d" % (name, registers, MOST_REGISTERS))
    if seen == 0:
        print("skipped: this build has no code for sm_86")
        return 77
    if seen != wanted:
        problems.append("%d kernels for sm_86 in the reports, expected %d" % (seen, wanted))
    print("\n".join(problems) if problems else "%d kernels, at most %d registers, no spills" % (seen, most))
    return 1 if problems else 0


sys.exit(main())

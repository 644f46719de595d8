#!/usr/bin/env bash
# Compiles a .cu and keeps ptxas' report on registers and spills, which a test reads. usage: compile.sh REPORT NVCC ARG...
set -uo pipefail
report=$1
shift
"$@" -Xptxas -v 2>"$report" || { code=$?; cat "$report" >&2; exit $code; }
grep -E 'warning|error' "$report" >&2 || true

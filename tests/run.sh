#!/usr/bin/env bash
# Dependencies, build, tests.
#   tests/run.sh                    everything, in build/
#   tests/run.sh --asan | --tsan    under AddressSanitizer + UndefinedBehaviorSanitizer, or ThreadSanitizer, in a build
#                                   folder of its own
#   --fast                          the fast suite only: what a sanitizer can run in a few minutes
#   --werror                        warnings are errors
set -euo pipefail
cd "$(dirname "$0")/.."

folder=build
tests=()
programs=()  # what to build; none: everything
setup=()
run=(--print-errorlogs)
# -g1: line numbers for the sanitizers' reports, without the variables that take a third of the compiler's time.
sanitized=(-Db_lundef=false -Ddebug=false -Dcpp_args=-g1 -Doptimization=1 -Dbenches=false -Dcuda=disabled)
export UBSAN_OPTIONS=print_stacktrace=1:halt_on_error=1
for option in "$@"; do
  case $option in
    --asan)
      folder=build-asan
      setup+=(-Db_sanitize=address,undefined "${sanitized[@]}")
      run+=(--timeout-multiplier 4)
      ;;
    --tsan)
      folder=build-tsan
      setup+=(-Db_sanitize=thread "${sanitized[@]}")
      run+=(--timeout-multiplier 20)
      # The programs whose code has threads: pool and ops, readers, slab, streamer, scheduler. Whole models are
      # computed by the same code, too slowly under this sanitizer for every change; so is the server, by hand:
      # ninja tools/stoker, then meson test 'serve abuse'.
      tests=(base ops reader slab lru_cache policies planner prefetch scheduler streaming)
      programs=(tests/kernels/base_test tests/kernels/cpu/ops_test tests/scheduler/tiers/{reader,slab}_test
                tests/scheduler/policy/{lru_cache,policies}_test tests/scheduler/{planner,prefetch,scheduler,streaming}_test)
      export TSAN_OPTIONS="suppressions=$PWD/tests/tsan.supp halt_on_error=1"
      ;;
    --fast) run+=(--suite fast) ;;
    --werror) setup+=(-Dwerror=true) ;;
    *) echo "tests/run.sh: unknown option $option (--asan, --tsan, --fast, --werror)" >&2; exit 1 ;;
  esac
done

tools/install-packages.sh build tests
tools/install-packages.sh clients browser || echo 'tests of clients and of the page will be skipped' >&2
if [ -f $folder/build.ninja ]; then
  [ ${#setup[@]} -eq 0 ] || meson configure $folder "${setup[@]}"
else
  meson setup $folder ${setup[@]+"${setup[@]}"}
fi
ninja -C $folder ${programs[@]+"${programs[@]}"}
meson test -C $folder --no-rebuild "${run[@]}" ${tests[@]+"${tests[@]}"}

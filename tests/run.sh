#!/usr/bin/env bash
# Dependencies, build, tests.
#   tests/run.sh                    everything, in build/
#   tests/run.sh --asan | --tsan    under AddressSanitizer + UndefinedBehaviorSanitizer, or ThreadSanitizer, in a build
#                                   folder of its own
#   --fast                          the fast suite only: what a sanitizer can run in a few minutes. Leaves out the checks
#                                   of undefined behaviour at each access through a pointer, half of the compiler's time;
#                                   and of --tsan whole models on devices and the server over HTTP, which take long
#   --werror                        warnings are errors
set -euo pipefail
cd "$(dirname "$0")/.."

folder=build
sanitize=
fast=
tests=()
setup=()
run=(--print-errorlogs)
export UBSAN_OPTIONS=print_stacktrace=1:halt_on_error=1
for option in "$@"; do
  case $option in
    --asan)
      folder=build-asan
      sanitize=address,undefined
      run+=(--timeout-multiplier 4)
      ;;
    --tsan)
      folder=build-tsan
      sanitize=thread
      run+=(--timeout-multiplier 20)
      # The programs whose code has threads: pool and ops, readers, slab, streamer, devices, scheduler. Whole models are
      # computed by the same code, too slowly under this sanitizer for every change.
      tests=(base device device_tier ops reader slab lru_cache policies planner prefetch scheduler streaming)
      export TSAN_OPTIONS="suppressions=$PWD/tests/tsan.supp halt_on_error=1"
      ;;
    --fast)
      fast=1
      run+=(--suite fast)
      ;;
    --werror) setup+=(-Dwerror=true) ;;
    *) echo "tests/run.sh: unknown option $option (--asan, --tsan, --fast, --werror)" >&2; exit 1 ;;
  esac
done

# Whole models on host devices, and all of the server, its engine included, as clients find it.
[ "$sanitize" != thread ] || [ -n "$fast" ] || tests+=(devices serve 'serve abuse' 'serve slots')

if [ -n "$sanitize" ]; then
  # -g1: line numbers for the sanitizers' reports, without the variables that take a third of the compiler's time.
  arguments=-g1
  [ -z "$fast" ] || arguments+=' -fno-sanitize=null,alignment,object-size,vptr'
  setup+=(-Db_sanitize=$sanitize -Db_lundef=false -Ddebug=false -Doptimization=1 -Dbenches=false -Dcuda=disabled
          -Dcpp_args="$arguments")
fi

tools/install-packages.sh build tests
tools/install-packages.sh clients browser || echo 'tests of clients and of the page will be skipped' >&2
if [ -f $folder/build.ninja ]; then
  [ ${#setup[@]} -eq 0 ] || meson configure $folder "${setup[@]}"
else
  meson setup $folder ${setup[@]+"${setup[@]}"}
fi
# The fast suite, and tests by name, build what they need alone.
[ -n "$fast" ] || [ ${#tests[@]} -gt 0 ] || ninja -C $folder
meson test -C $folder "${run[@]}" ${tests[@]+"${tests[@]}"}

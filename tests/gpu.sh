#!/usr/bin/env bash
# Everything that needs a CUDA card: builds with CUDA, runs every kernel against its twin and the bundled model with its
# experts on the card, then the same under compute-sanitizer's memcheck and racecheck. Exits 77, skipped, without a card, and
# when all that could be run has passed but compute-sanitizer is not installed.
#   tests/gpu.sh [ARCH,...]     compute capabilities to build for; default: those of the cards here
set -euo pipefail
cd "$(dirname "$0")/.."

# Not in a pipe: what reads no further than the first card would end nvidia-smi with an error.
gpus=$(nvidia-smi -L 2>/dev/null || true)
if [[ $gpus != *'GPU '* ]]; then
  echo 'SKIPPED: no CUDA card here (nvidia-smi lists none). Nothing was tested.' >&2
  exit 77
fi
nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader
tools/install-packages.sh build tests

archs=${1:-$(nvidia-smi --query-gpu=compute_cap --format=csv,noheader | tr -d . | sort -nu | paste -sd,)}
folder=build-gpu
if [ -f $folder/build.ninja ]; then
  meson configure $folder -Dgpu_archs="$archs"
else
  meson setup $folder -Dcuda=enabled -Dgpu_archs="$archs" -Dbuildtype=release
fi
ninja -C $folder tests/kernels/cuda/gpu_test tests/kernels/cuda/cuda_kernels_test tests/runtime/gpu_engine_test tools/stoker
test=$folder/tests/kernels/cuda/gpu_test
engine_test=$folder/tests/runtime/gpu_engine_test

echo '=== kernels on an emulated card'
$folder/tests/kernels/cuda/cuda_kernels_test
echo '=== kernels on the card'
$test || { code=$?; [ $code != 77 ] || echo 'nvidia-smi sees a card, CUDA does not: see the line above' >&2; exit 1; }
echo '=== links and memory'
$folder/tools/stoker devices
echo '=== a model with its experts on the card'
$engine_test
sanitizer=$(command -v compute-sanitizer || ls /usr/local/cuda/bin/compute-sanitizer 2>/dev/null || true)
if [ -z "$sanitizer" ]; then
  echo 'passed, but SKIPPED: compute-sanitizer is not installed: memcheck and racecheck were not run' >&2
  exit 77
fi
# Calls that fail are checked by who makes them: that memory cannot be pinned, say, is no error.
echo '=== memcheck'
"$sanitizer" --tool memcheck --report-api-errors no --error-exitcode 9 "$test"
"$sanitizer" --tool memcheck --report-api-errors no --error-exitcode 9 "$engine_test"
# Every access to shared memory is traced: the products' case alone would take an hour.
echo '=== racecheck'
"$sanitizer" --tool racecheck --error-exitcode 9 "$test" --test-case-exclude='*products of all block*'
echo 'passed'

#!/usr/bin/env bash
# Everything that needs a CUDA card: builds with CUDA, runs every kernel against its twin and the bundled model with its
# experts on the card, then, where compute-sanitizer is installed, the same under memcheck and racecheck. Without a card
# it says so and skips.
#   tests/gpu.sh [ARCH,...]     compute capabilities to build for; default: the card's own
set -euo pipefail
cd "$(dirname "$0")/.."

if ! command -v nvidia-smi >/dev/null || ! nvidia-smi -L 2>/dev/null | grep -q '^GPU'; then
  echo 'SKIPPED: no CUDA card here (nvidia-smi lists none). Nothing was tested.'
  exit 0
fi
nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader

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
$test || { code=$?; [ $code != 77 ] || echo 'nvidia-smi sees a card, CUDA does not: see the line above'; exit 1; }
echo '=== links and memory'
$folder/tools/stoker devices --device cuda:0,0
echo '=== a model with its experts on the card'
$engine_test
sanitizer=$(command -v compute-sanitizer || ls /usr/local/cuda/bin/compute-sanitizer 2>/dev/null || true)
if [ -z "$sanitizer" ]; then
  echo 'SKIPPED: compute-sanitizer is not installed: memcheck and racecheck were not run'
  exit 0
fi
echo '=== memcheck'
"$sanitizer" --tool memcheck --error-exitcode 9 "$test"
"$sanitizer" --tool memcheck --error-exitcode 9 "$engine_test"
# Every access to shared memory is traced: the products' case alone would take an hour.
echo '=== racecheck'
"$sanitizer" --tool racecheck --error-exitcode 9 "$test" --test-case-exclude='*products of all block*'
echo 'passed'

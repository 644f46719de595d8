#!/usr/bin/env bash
# Speed of the CUDA kernels on this machine's first card, into bench/results/gpu-CARD.txt with the machine's name, the date
# and the commit. Exits 1 without a card: nothing was measured. usage: bench/gpu.sh [option of bench/cuda_kernels]...
set -euo pipefail
cd "$(dirname "$0")/.."
if ! command -v nvidia-smi >/dev/null || ! nvidia-smi -L 2>/dev/null | grep -q '^GPU'; then
  echo 'no CUDA card here (nvidia-smi lists none): nothing was measured' >&2
  exit 1
fi
archs=$(nvidia-smi --query-gpu=compute_cap --format=csv,noheader | tr -d . | sort -nu | paste -sd,)
folder=build-gpu
if [ -f $folder/build.ninja ]; then
  meson configure $folder -Dgpu_archs="$archs"
else
  meson setup $folder -Dcuda=enabled -Dgpu_archs="$archs" -Dbuildtype=release
fi
ninja -C $folder bench/cuda_kernels
card=$(nvidia-smi --query-gpu=name --format=csv,noheader | head -1)
result=bench/results/gpu-$(echo "$card" | tr 'A-Z ' 'a-z-' | tr -cd 'a-z0-9-').txt
{
  echo "machine $(uname -n), $card, $(date -u +%F), commit $(git rev-parse --short HEAD)$(git diff --quiet HEAD || echo ' and changes')"
  nvidia-smi --query-gpu=driver_version,clocks.max.sm,clocks.max.mem,power.limit --format=csv
  $folder/bench/cuda_kernels "$@"
} | tee "$result.part"
mv "$result.part" "$result"
echo "written: $result"

#!/usr/bin/env bash
# Speed of the CUDA kernels on this machine's first card, and of a model on the CPU, with its experts on the card, and on
# two logical cards (of 22 GiB, where the card has that much), into bench/results/gpu-CARD.txt with the machine's name, the
# date and the commit. Exits 1 without a card: nothing was measured.
#   bench/gpu.sh [-m FILE] [option of bench/cuda_kernels]...     FILE: the model; default: the bundled one
set -euo pipefail
cd "$(dirname "$0")/.."
if ! command -v nvidia-smi >/dev/null || ! nvidia-smi -L 2>/dev/null | grep -q '^GPU'; then
  echo 'no CUDA card here (nvidia-smi lists none): nothing was measured' >&2
  exit 1
fi
model=tests/models/ember-37m-q4_k_m.gguf
if [ "${1:-}" = -m ]; then
  model=${2:?a model file comes after -m}
  shift 2
fi
archs=$(nvidia-smi --query-gpu=compute_cap --format=csv,noheader | tr -d . | sort -nu | paste -sd,)
folder=build-gpu
if [ -f $folder/build.ninja ]; then
  meson configure $folder -Dgpu_archs="$archs"
else
  meson setup $folder -Dcuda=enabled -Dgpu_archs="$archs" -Dbuildtype=release
fi
ninja -C $folder bench/cuda_kernels tools/stoker
card=$(nvidia-smi --query-gpu=name --format=csv,noheader | head -1)
result=bench/results/gpu-$(echo "$card" | tr 'A-Z ' 'a-z-' | tr -cd 'a-z0-9-').txt
{
  echo "machine $(uname -n), $card, $(date -u +%F), commit $(git rev-parse --short HEAD)$(git diff --quiet HEAD || echo ' and changes')"
  nvidia-smi --query-gpu=driver_version,clocks.max.sm,clocks.max.mem,power.limit --format=csv
  $folder/tools/stoker devices --device cuda:0
  $folder/bench/cuda_kernels "$@"
  mib=$(nvidia-smi --query-gpu=memory.total --format=csv,noheader,nounits | head -1)
  two='cuda:0,0'
  [ "$mib" -lt 48000 ] || two+=' --vram 22GiB,22GiB'
  for device in cpu cuda:0 "$two"; do
    echo "stoker bench -m $(basename "$model") --device $device"
    $folder/tools/stoker bench -m "$model" --device $device  # unquoted: an option may follow
  done
} | tee "$result.part"
mv "$result.part" "$result"
echo "written: $result"

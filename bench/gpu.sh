#!/usr/bin/env bash
# Speed of the CUDA kernels on this machine's first card, and of a model on the CPU, with its experts on the card, on two
# logical cards (of 22 GiB, where the card has that much), and on the first two cards where there are two, into
# bench/results/gpu-CARD.txt with the machine's name, the date and the commit. Exits 1 without a card: nothing was measured.
#   bench/gpu.sh [-m FILE] [option of bench/cuda_kernels]...     FILE: the model; default: the bundled one
set -euo pipefail
model=tests/models/ember-37m-q4_k_m.gguf
if [ "${1:-}" = -m ]; then
  model=$(realpath "${2:?a model file comes after -m}")
  [ -f "$model" ] || { echo "$model: there is no such file" >&2; exit 1; }
  shift 2
fi
cd "$(dirname "$0")/.."
# Not in a pipe: what reads no further than the first card would end nvidia-smi with an error.
gpus=$(nvidia-smi -L 2>/dev/null || true)
if [[ $gpus != *'GPU '* ]]; then
  echo 'no CUDA card here (nvidia-smi lists none): nothing was measured' >&2
  exit 1
fi
tools/install-packages.sh build tests
# Otherwise CUDA begins with the fastest card, nvidia-smi with the first slot.
export CUDA_DEVICE_ORDER=PCI_BUS_ID
archs=$(nvidia-smi --query-gpu=compute_cap --format=csv,noheader | tr -d . | sort -nu | paste -sd,)
folder=build-gpu
if [ -f $folder/build.ninja ]; then
  meson configure $folder -Dgpu_archs="$archs"
else
  meson setup $folder -Dcuda=enabled -Dgpu_archs="$archs" -Dbuildtype=release
fi
ninja -C $folder bench/cuda_kernels tools/stoker
card=$(nvidia-smi -i 0 --query-gpu=name --format=csv,noheader)
result=bench/results/gpu-$(echo "$card" | tr 'A-Z ' 'a-z-' | tr -cd 'a-z0-9-').txt
{
  echo "machine $(uname -n), $card, $(date -u +%F), commit $(git rev-parse --short HEAD)$(git diff --quiet HEAD || echo ' and changes')"
  nvidia-smi --query-gpu=name,driver_version,clocks.max.sm,clocks.max.mem,power.limit --format=csv
  $folder/tools/stoker devices
  $folder/bench/cuda_kernels "$@"
  mib=$(nvidia-smi -i 0 --query-gpu=memory.total --format=csv,noheader,nounits)
  devices=(cpu cuda:0 'cuda:0,0')
  [ "$mib" -lt 48000 ] || devices[2]+=' --vram 22GiB,22GiB'
  [ "$(grep -c '^GPU ' <<<"$gpus")" -lt 2 ] || devices+=(cuda:0,1)
  for device in "${devices[@]}"; do
    echo "stoker bench -m $(basename "$model") --device $device"
    $folder/tools/stoker bench -m "$model" --device $device  # unquoted: an option may follow
  done
} | tee "$result.part"
mv "$result.part" "$result"
echo "written: $result"

#!/usr/bin/env bash
# Compiles the CUDA kernels for every architecture that is supported, in a build folder of its own (about ten minutes on
# two cores). CI compiles only the default, sm_86 and PTX.
set -euo pipefail
cd "$(dirname "$0")/.."
folder=build-cuda-all
[ -f $folder/build.ninja ] || meson setup $folder -Dcuda=enabled -Dgpu_archs=75,80,86,89,90,120 -Dtests=false -Dbenches=false
ninja -C $folder kernels/cuda/libcuda_kernels.a

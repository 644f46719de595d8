// The matrix-vector kernel of a family of formats as functions that launch it; included by one .cu per family, so that
// they compile at the same time.
#pragma once

#include <cuda_runtime.h>

#include <algorithm>

#include "kernels/cuda/matvec.h"
#include "kernels/cuda/matvec_launch.h"

namespace stoker::cuda {

// Two blocks per multiprocessor: 128 registers for each thread, and loads of the one behind arithmetic of the other.
constexpr int kMatvecBlocksPerProcessor = 2;

template <class Block, int kTokens>
__global__ void __launch_bounds__(kWarp* kMatvecWarps, kMatvecBlocksPerProcessor) matvec_kernel(const MatvecArgs args) {
  extern __shared__ uint4 memory[];
  matvec<Block, kTokens>(Gpu{reinterpret_cast<std::byte*>(memory)}, args);
}

template <class Block>
void launch_matvec(const MatvecArgs& args, const MatvecShape& shape, CUstream_st* stream) {
  const i64 items = args.job_limit * div_up(args.rows, kPackedRows);
  const i64 blocks = std::min(items, i64{shape.processors} * kMatvecBlocksPerProcessor);
  if (blocks == 0) return;
  const dim3 grid(static_cast<unsigned>(blocks)), threads(kWarp * kMatvecWarps);
  if (shape.tokens <= 1)
    matvec_kernel<Block, 1><<<grid, threads, matvec_shared_bytes<Block>(1), stream>>>(args);
  else
    matvec_kernel<Block, kMatvecTokens>
        <<<grid, threads, matvec_shared_bytes<Block>(kMatvecTokens), stream>>>(args);
}

}  // namespace stoker::cuda

// The products of a family of formats as functions that launch them; included by one .cu per family, so that they
// compile at the same time.
#pragma once

#include <cuda_runtime.h>

#include <algorithm>

#include "kernels/cuda/gemm.h"
#include "kernels/cuda/matvec_launch.h"

namespace stoker::cuda {

// Two blocks per multiprocessor: 128 registers for each thread, and loads of the one behind arithmetic of the other.
constexpr int kBlocksPerProcessor = 2;

// What a launch may have without asking for more (cudaFuncSetAttribute); two blocks have it on Ampere and later.
constexpr i64 kSharedBytes = 48 * kKiB;

// The list is in the launch's parameters.
__device__ inline MatvecArgs with_jobs(const MatvecArgs& args, const MatvecJobList& list) {
  MatvecArgs result = args;
  if (args.jobs == nullptr && args.uniform.matrices == 0) result.jobs = list.at;
  return result;
}

template <class Block, int kTokens>
__global__ void __launch_bounds__(kWarp* kMatvecWarps, kBlocksPerProcessor)
    matvec_kernel(const __grid_constant__ MatvecArgs args, const __grid_constant__ MatvecJobList list) {
  extern __shared__ uint4 memory[];
  matvec<Block, kTokens>(Gpu{reinterpret_cast<std::byte*>(memory)}, with_jobs(args, list));
}

template <class Block>
__global__ void __launch_bounds__(kGemmThreads, kBlocksPerProcessor)
    gemm_kernel(const __grid_constant__ MatvecArgs args, const __grid_constant__ MatvecJobList list, i64 token_tiles) {
  extern __shared__ uint4 memory[];
  gemm<Block>(Gpu{reinterpret_cast<std::byte*>(memory)}, with_jobs(args, list), token_tiles);
}

inline unsigned grid_for(i64 items, int processors) {
  return static_cast<unsigned>(std::min(items, i64{processors} * kBlocksPerProcessor));
}

template <class Block>
void start_matvec(const MatvecArgs& args, const MatvecJobList* list, i64 tokens, int processors, CUstream_st* stream) {
  static_assert(matvec_shared_bytes<Block>(kMatvecTokens) <= kSharedBytes);
  static constexpr MatvecJobList kNone{};
  const unsigned blocks = grid_for(args.job_limit * div_up(args.rows, kPackedRows), processors);
  if (blocks == 0) return;
  const MatvecJobList& jobs = list != nullptr ? *list : kNone;
  if (tokens <= 1)
    matvec_kernel<Block, 1><<<blocks, kWarp * kMatvecWarps, matvec_shared_bytes<Block>(1), stream>>>(args, jobs);
  else
    matvec_kernel<Block, kMatvecTokens>
        <<<blocks, kWarp * kMatvecWarps, matvec_shared_bytes<Block>(kMatvecTokens), stream>>>(args, jobs);
}

template <class Block>
void start_gemm(const MatvecArgs& args, const MatvecJobList* list, i64 tokens, int processors, CUstream_st* stream) {
  static_assert(gemm_shared_bytes<Block> <= kSharedBytes);
  static constexpr MatvecJobList kNone{};
  const i64 token_tiles = div_up(tokens, kGemmTokens);
  const unsigned blocks = grid_for(args.job_limit * div_up(args.rows, kGemmRows) * token_tiles, processors);
  if (blocks == 0) return;
  gemm_kernel<Block>
      <<<blocks, kGemmThreads, gemm_shared_bytes<Block>, stream>>>(args, list != nullptr ? *list : kNone, token_tiles);
}

}  // namespace stoker::cuda

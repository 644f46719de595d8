// Starts the products of matvec.h and gemm.h. Errors of a launch are CUDA's, found by cudaGetLastError().
#pragma once

#include "kernels/cuda/matvec.h"

struct CUstream_st;

namespace stoker::cuda {

// Jobs that travel with the launch instead of lying on the card: less than the 4 KiB that parameters may have.
constexpr i64 kLaunchJobs = 48;
struct MatvecJobList {
  MatvecJob at[kLaunchJobs];
};

// Tokens of a job from which on tensor cores compute it.
constexpr i64 kGemmFromTokens = kMatvecTokens + 1;

struct MatvecLaunch {
  // `list`: the jobs when args.jobs is nullptr and args.uniform has no matrices. `tokens`: largest of the jobs' (at most
  // kMatvecTokens); 1 has a kernel of its own. `processors`: the card's.
  void (*matvec)(const MatvecArgs& args, const MatvecJobList* list, i64 tokens, int processors, CUstream_st* stream);
  // Jobs of any number of tokens, without second matrices.
  void (*gemm)(const MatvecArgs& args, const MatvecJobList* list, i64 tokens, int processors, CUstream_st* stream);
};

// Both are nullptr for formats without blocks.
MatvecLaunch matvec_launch(BlockType type);

// Parts of it, one per file.
using MatvecStart = decltype(MatvecLaunch::matvec);
MatvecStart matvec_block32(BlockType type);
MatvecStart matvec_k(BlockType type);
MatvecStart matvec_iq(BlockType type);
MatvecStart gemm_block32(BlockType type);
MatvecStart gemm_k(BlockType type);
MatvecStart gemm_iq(BlockType type);

}  // namespace stoker::cuda

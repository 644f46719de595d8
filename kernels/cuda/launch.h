// Starts the kernels that are not products of quantised matrices. Errors of a launch are CUDA's, found by
// cudaGetLastError().
#pragma once

#include "kernels/cuda/attention_rows.h"
#include "kernels/cuda/file_rows.h"
#include "kernels/cuda/float_matvec.h"
#include "kernels/cuda/hand_over.h"
#include "kernels/cuda/job_list.h"
#include "kernels/cuda/latent_attention.h"
#include "kernels/cuda/route.h"
#include "kernels/cuda/rows.h"

struct CUstream_st;

namespace stoker::cuda {

// What launches need to know of a card.
struct Card {
  int processors = 0;
  i64 shared_limit = 0;        // bytes that a block may have
  const u32* books = nullptr;  // DecodeBooks on the card
};

void start_quantize(const QuantizeArgs& args, i64 out_stride_bytes, const Card& card, CUstream_st* stream);
void start_rms_norm(const RmsNormArgs& args, i64 q8_32_stride, i64 q8_256_stride, const Card& card, CUstream_st* stream);
void start_attention_rows(const AttentionRowsArgs& args, const AttentionRuns& runs, const Card& card, CUstream_st* stream);
void start_combine(const CombineArgs& args, const Card& card, CUstream_st* stream);
void start_add(f32* y, const f32* x, i64 count, const Card& card, CUstream_st* stream);
void start_silu(const SiluArgs& args, const Card& card, CUstream_st* stream);
void start_argmax(const ArgmaxArgs& args, const Card& card, CUstream_st* stream);
void start_route(const RouteArgs& args, const Card& card, CUstream_st* stream);
void start_hand_over(const HandOverArgs& args, const Card& card, CUstream_st* stream);
void start_job_list(const JobListArgs& args, const Card& card, CUstream_st* stream);

// F32, F16 or BF16 weights.
void start_float_matvec(BlockType type, const FloatMatvecArgs& args, const Card& card, CUstream_st* stream);

// Block formats: into the packed order, and back. Others are the same in both.
void start_pack(BlockType type, const PackArgs& args, const Card& card, CUstream_st* stream);
void start_unpack(BlockType type, const PackArgs& args, const Card& card, CUstream_st* stream);
// Every format.
void start_float_rows(BlockType type, const FloatRowsArgs& args, const Card& card, CUstream_st* stream);

// The parts, then their merging. False, and nothing is started, when a cache row needs more shared memory than a block
// may have.
bool start_latent_attention(const AttentionArgs& args, const AttentionParts& parts, const MergeArgs& merge, const Card& card,
                            CUstream_st* stream);

}  // namespace stoker::cuda

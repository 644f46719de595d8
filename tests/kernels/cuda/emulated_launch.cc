// What the .cu files define, on an emulated card in a stream of the fake CUDA runtime: with these two, the ops of cards, from
// their table to the kernels' bodies, run without one. Linked in before the objects that nvcc makes.
#include <doctest/doctest.h>

#include <memory>

#include "kernels/cuda/gemm.h"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/matvec_launch.h"
#include "tests/kernels/cuda/emulated_gpu.h"
#include "tests/kernels/cuda/which_card.h"
#include "tests/kernels/device/fake_cuda.h"

namespace stoker {

namespace test {
const bool kEmulatedCard = true;
}

namespace cuda {

namespace {

using test::EmulatedThread;

constexpr i64 kBlocks = 3;  // the grid does not show

// `body` has its arguments by value, as a kernel has.
template <class Body>
void post(CUstream_st* stream, const test::Launch& launch, Body body) {
  test::fake_cuda::launch(stream, [launch, body] { test::emulate(launch, body); });
}

template <class Body>
void post_rows(CUstream_st* stream, i64 items, Body body) {
  if (items > 0) post(stream, {kBlocks, kRowThreads, 0}, body);
}

// The arguments, with the jobs of the list where they have none, and the list.
struct WithJobs {
  MatvecArgs args;
  std::shared_ptr<const MatvecJobList> list;

  WithJobs(const MatvecArgs& a, const MatvecJobList* jobs) : args(a) {
    if (jobs != nullptr) list = std::make_shared<MatvecJobList>(*jobs);
    if (args.jobs == nullptr && args.uniform.matrices == 0) args.jobs = list->at;
  }
};

template <class Block>
void start_matvec(const MatvecArgs& args, const MatvecJobList* list, i64 tokens, int, CUstream_st* stream) {
  CHECK(tokens <= kMatvecTokens);
  const WithJobs with(args, list);
  if (tokens <= 1)
    post(stream, {kBlocks, kWarp * kMatvecWarps, matvec_shared_bytes<Block>(1)},
         [with](const EmulatedThread& t) { matvec<Block, 1>(t, with.args); });
  else
    post(stream, {kBlocks, kWarp * kMatvecWarps, matvec_shared_bytes<Block>(kMatvecTokens)},
         [with](const EmulatedThread& t) { matvec<Block, kMatvecTokens>(t, with.args); });
}

template <class Block>
void start_gemm(const MatvecArgs& args, const MatvecJobList* list, i64 tokens, int, CUstream_st* stream) {
  const WithJobs with(args, list);
  const i64 token_tiles = div_up(tokens, kGemmTokens);
  post(stream, {kBlocks, kGemmThreads, gemm_shared_bytes<Block>},
       [with, token_tiles](const EmulatedThread& t) { gemm<Block>(t, with.args, token_tiles); });
}

template <class Weight>
void start_float(const FloatMatvecArgs& args, CUstream_st* stream) {
  if (args.matrices * args.rows > 0)
    post(stream, {kBlocks, kWarp * kFloatWarps, 0}, [args](const EmulatedThread& t) { float_matvec<Weight>(t, args); });
}

template <int kTiles>
bool start_attention(const AttentionArgs& args, const AttentionParts& parts, const Card& card, CUstream_st* stream) {
  const i64 bytes = AttentionLayout(16 * kTiles, args.latent, args.rope).bytes;
  if (bytes > card.shared_limit) return false;
  post(stream, {args.parts * attention_groups(args.heads, kTiles), kAttentionThreads, bytes},
       [args, parts](const EmulatedThread& t) { latent_attention<kTiles>(t, args, parts); });
  return true;
}

}  // namespace

// All block formats: their families do not matter here.
MatvecStart matvec_block32(BlockType type) {
  MatvecStart start = nullptr;
  for_each_block_format([&]<class Block>(BlockType format) {
    if (format == type) start = start_matvec<Block>;
  });
  return start;
}
MatvecStart matvec_k(BlockType) { return nullptr; }
MatvecStart matvec_iq(BlockType) { return nullptr; }
MatvecStart gemm_block32(BlockType type) {
  MatvecStart start = nullptr;
  for_each_block_format([&]<class Block>(BlockType format) {
    if (format == type) start = start_gemm<Block>;
  });
  return start;
}
MatvecStart gemm_k(BlockType) { return nullptr; }
MatvecStart gemm_iq(BlockType) { return nullptr; }

void start_quantize(const QuantizeArgs& args, i64 out_stride_bytes, const Card&, CUstream_st* stream) {
  post_rows(stream, args.rows * args.cols, [=](const EmulatedThread& t) { quantize_rows(t, args, out_stride_bytes); });
}
void start_rms_norm(const RmsNormArgs& args, i64 q8_32_stride, i64 q8_256_stride, const Card&, CUstream_st* stream) {
  // Fewer threads than on a card, of which each would take its time here.
  post(stream, {kBlocks, kRowThreads, kRowWarps * i64{sizeof(f32)}},
       [=](const EmulatedThread& t) { rms_norm_rows(t, args, q8_32_stride, q8_256_stride); });
}
void start_attention_rows(const AttentionRowsArgs& args, const AttentionRuns& runs, const Card&, CUstream_st* stream) {
  post(stream, {kBlocks, kRowThreads, kRowWarps * i64{sizeof(f32)}}, [=](const EmulatedThread& t) { attention_rows(t, args, runs); });
}
void start_combine(const CombineArgs& args, const Card&, CUstream_st* stream) {
  post_rows(stream, args.tokens * args.hidden, [=](const EmulatedThread& t) { combine_rows(t, args); });
}
void start_add(f32* y, const f32* x, i64 count, const Card&, CUstream_st* stream) {
  post_rows(stream, count, [=](const EmulatedThread& t) { add_rows(t, y, x, count); });
}
void start_silu(const SiluArgs& args, const Card&, CUstream_st* stream) {
  post_rows(stream, args.count, [=](const EmulatedThread& t) { silu_rows(t, args); });
}
void start_argmax(const ArgmaxArgs& args, const Card&, CUstream_st* stream) {
  post(stream, {kBlocks, kRowThreads, 8 * kRowThreads}, [=](const EmulatedThread& t) { argmax_rows(t, args); });
}
void start_route(const RouteArgs& args, const Card&, CUstream_st* stream) {
  post(stream, {kBlocks, kWarp, route_shared_bytes(args.experts)}, [=](const EmulatedThread& t) { route_tokens(t, args); });
}
void start_hand_over(const HandOverArgs& args, const Card&, CUstream_st* stream) {
  post(stream, {1, kRowThreads, 0}, [=](const EmulatedThread& t) { hand_over(t, args); });
}
void start_job_list(const JobListArgs& args, const Card&, CUstream_st* stream) {
  post(stream, {1, kRowThreads, job_list_shared_bytes(args.experts)}, [=](const EmulatedThread& t) { make_job_list(t, args); });
}

void start_float_matvec(BlockType type, const FloatMatvecArgs& args, const Card&, CUstream_st* stream) {
  if (type == BlockType::F32) start_float<WeightF32>(args, stream);
  if (type == BlockType::F16) start_float<WeightF16>(args, stream);
  if (type == BlockType::BF16) start_float<WeightBF16>(args, stream);
}

void start_pack(BlockType type, const PackArgs& args, const Card&, CUstream_st* stream) {
  for_each_block_format([&]<class Block>(BlockType format) {
    if (format == type)
      post(stream, {kBlocks, kWarp * kPackWarps, 0}, [args](const EmulatedThread& t) { pack_matrix<Block>(t, args); });
  });
}
void start_unpack(BlockType type, const PackArgs& args, const Card&, CUstream_st* stream) {
  for_each_block_format([&]<class Block>(BlockType format) {
    if (format == type)
      post(stream, {kBlocks, kWarp * kPackWarps, 0}, [args](const EmulatedThread& t) { unpack_matrix<Block>(t, args); });
  });
}
void start_float_rows(BlockType type, const FloatRowsArgs& args, const Card&, CUstream_st* stream) {
  for_each_block_format([&]<class Block>(BlockType format) {
    if (format == type) post_rows(stream, args.rows, [args](const EmulatedThread& t) { float_rows<Block>(t, args); });
  });
  if (type == BlockType::F32) post_rows(stream, args.rows, [args](const EmulatedThread& t) { plain_rows<WeightF32>(t, args); });
  if (type == BlockType::F16) post_rows(stream, args.rows, [args](const EmulatedThread& t) { plain_rows<WeightF16>(t, args); });
  if (type == BlockType::BF16) post_rows(stream, args.rows, [args](const EmulatedThread& t) { plain_rows<WeightBF16>(t, args); });
}

bool start_latent_attention(const AttentionArgs& args, const AttentionParts& parts, const MergeArgs& merge, const Card& card,
                            CUstream_st* stream) {
  bool started = args.heads > 16 && start_attention<2>(args, parts, card, stream);
  if (!started) started = start_attention<1>(args, parts, card, stream);
  if (!started) return false;
  post(stream, {kBlocks, kAttentionThreads, 0}, [=](const EmulatedThread& t) { merge_attention(t, merge, parts); });
  return true;
}

}  // namespace cuda

}  // namespace stoker

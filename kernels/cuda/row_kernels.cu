#include <cuda_runtime.h>

#include <algorithm>

#include "kernels/cuda/launch.h"

namespace stoker::cuda {

namespace {

__global__ void quantize_kernel(const QuantizeArgs args, i64 out_stride_bytes) {
  quantize_rows(Gpu{nullptr}, args, out_stride_bytes);
}
__global__ void __launch_bounds__(kNormThreads) rms_norm_kernel(const RmsNormArgs args, i64 q8_32_stride, i64 q8_256_stride) {
  extern __shared__ uint4 memory[];
  rms_norm_rows(Gpu{reinterpret_cast<std::byte*>(memory)}, args, q8_32_stride, q8_256_stride);
}
__global__ void attention_rows_kernel(const __grid_constant__ AttentionRowsArgs args, const __grid_constant__ AttentionRuns runs) {
  extern __shared__ uint4 memory[];
  attention_rows(Gpu{reinterpret_cast<std::byte*>(memory)}, args, runs);
}
__global__ void combine_kernel(const CombineArgs args) { combine_rows(Gpu{nullptr}, args); }
__global__ void add_kernel(f32* y, const f32* x, i64 count) { add_rows(Gpu{nullptr}, y, x, count); }
__global__ void silu_kernel(const SiluArgs args) { silu_rows(Gpu{nullptr}, args); }
__global__ void argmax_kernel(const ArgmaxArgs args) {
  extern __shared__ uint4 memory[];
  argmax_rows(Gpu{reinterpret_cast<std::byte*>(memory)}, args);
}
__global__ void route_kernel(const RouteArgs args) {
  extern __shared__ uint4 memory[];
  route_tokens(Gpu{reinterpret_cast<std::byte*>(memory)}, args);
}
__global__ void hand_over_kernel(const __grid_constant__ HandOverArgs args) { hand_over(Gpu{nullptr}, args); }
__global__ void job_list_kernel(const JobListArgs args) {
  extern __shared__ uint4 memory[];
  make_job_list(Gpu{reinterpret_cast<std::byte*>(memory)}, args);
}
template <class Weight>
__global__ void __launch_bounds__(kWarp* kFloatWarps) float_matvec_kernel(const FloatMatvecArgs args) {
  float_matvec<Weight>(Gpu{nullptr}, args);
}

// One block per `each` items, as many as are there or fill the card several times over; 0: nothing to do.
unsigned grid(i64 items, i64 each, const Card& card) {
  return static_cast<unsigned>(std::min(div_up(items, each), i64{card.processors} * 8));
}

}  // namespace

void start_quantize(const QuantizeArgs& args, i64 out_stride_bytes, const Card& card, CUstream_st* stream) {
  if (const unsigned blocks = grid(args.rows * div_up(args.cols, 256), kRowWarps, card); blocks > 0)
    quantize_kernel<<<blocks, kRowThreads, 0, stream>>>(args, out_stride_bytes);
}

void start_rms_norm(const RmsNormArgs& args, i64 q8_32_stride, i64 q8_256_stride, const Card& card, CUstream_st* stream) {
  if (const unsigned blocks = grid(args.rows, 1, card); blocks > 0)
    rms_norm_kernel<<<blocks, kNormThreads, kNormThreads / kWarp * sizeof(f32), stream>>>(args, q8_32_stride, q8_256_stride);
}

void start_attention_rows(const AttentionRowsArgs& args, const AttentionRuns& runs, const Card& card, CUstream_st* stream) {
  if (const unsigned blocks = grid(args.rows * attention_row_items(args), 1, card); blocks > 0)
    attention_rows_kernel<<<blocks, kRowThreads, kRowWarps * sizeof(f32), stream>>>(args, runs);
}

void start_combine(const CombineArgs& args, const Card& card, CUstream_st* stream) {
  if (const unsigned blocks = grid(args.tokens * args.hidden, kRowThreads, card); blocks > 0)
    combine_kernel<<<blocks, kRowThreads, 0, stream>>>(args);
}

void start_add(f32* y, const f32* x, i64 count, const Card& card, CUstream_st* stream) {
  if (const unsigned blocks = grid(count, kRowThreads, card); blocks > 0)
    add_kernel<<<blocks, kRowThreads, 0, stream>>>(y, x, count);
}

void start_silu(const SiluArgs& args, const Card& card, CUstream_st* stream) {
  if (const unsigned blocks = grid(args.count, kRowThreads, card); blocks > 0)
    silu_kernel<<<blocks, kRowThreads, 0, stream>>>(args);
}

void start_argmax(const ArgmaxArgs& args, const Card& card, CUstream_st* stream) {
  if (const unsigned blocks = grid(args.rows, 1, card); blocks > 0)
    argmax_kernel<<<blocks, kRowThreads, 8 * kRowThreads, stream>>>(args);
}

void start_route(const RouteArgs& args, const Card& card, CUstream_st* stream) {
  if (const unsigned blocks = grid(args.tokens, 1, card); blocks > 0)
    route_kernel<<<blocks, kWarp, static_cast<size_t>(route_shared_bytes(args.experts)), stream>>>(args);
}

void start_hand_over(const HandOverArgs& args, const Card&, CUstream_st* stream) {
  hand_over_kernel<<<1, kRowThreads, 0, stream>>>(args);
}

void start_job_list(const JobListArgs& args, const Card&, CUstream_st* stream) {
  job_list_kernel<<<1, kRowThreads, static_cast<size_t>(job_list_shared_bytes(args.experts)), stream>>>(args);
}

void start_float_matvec(BlockType type, const FloatMatvecArgs& args, const Card& card, CUstream_st* stream) {
  const unsigned blocks = grid(args.matrices * args.rows, kFloatWarps, card);
  if (blocks == 0) return;
  switch (type) {
    case BlockType::F32: float_matvec_kernel<WeightF32><<<blocks, kWarp * kFloatWarps, 0, stream>>>(args); break;
    case BlockType::F16: float_matvec_kernel<WeightF16><<<blocks, kWarp * kFloatWarps, 0, stream>>>(args); break;
    default: float_matvec_kernel<WeightBF16><<<blocks, kWarp * kFloatWarps, 0, stream>>>(args); break;
  }
}

}  // namespace stoker::cuda

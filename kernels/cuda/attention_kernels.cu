#include <cuda_runtime.h>

#include <algorithm>

#include "kernels/cuda/launch.h"

namespace stoker::cuda {

namespace {

template <int kTiles>
__global__ void __launch_bounds__(kAttentionThreads)
    latent_attention_kernel(const __grid_constant__ AttentionArgs args, const __grid_constant__ AttentionParts parts) {
  extern __shared__ uint4 memory[];
  latent_attention<kTiles>(Gpu{reinterpret_cast<std::byte*>(memory)}, args, parts);
}

__global__ void merge_kernel(const __grid_constant__ MergeArgs args, const __grid_constant__ AttentionParts parts) {
  merge_attention(Gpu{nullptr}, args, parts);
}

template <int kTiles>
bool start(const AttentionArgs& args, const AttentionParts& parts, const Card& card, CUstream_st* stream) {
  const i64 bytes = AttentionLayout(16 * kTiles, args.latent, args.rope).bytes;
  if (bytes > card.shared_limit) return false;
  cudaFuncSetAttribute(latent_attention_kernel<kTiles>, cudaFuncAttributeMaxDynamicSharedMemorySize,
                       static_cast<int>(bytes));
  const i64 blocks = args.parts * attention_groups(args.heads, kTiles);
  latent_attention_kernel<kTiles><<<static_cast<unsigned>(blocks), kAttentionThreads, static_cast<size_t>(bytes), stream>>>(
      args, parts);
  return true;
}

}  // namespace

bool start_latent_attention(const AttentionArgs& args, const AttentionParts& parts, const MergeArgs& merge, const Card& card,
                            CUstream_st* stream) {
  // 32 heads read a tile once, if there are so many and Turing's 64 KiB do not forbid it.
  bool started = args.heads > 16 && start<2>(args, parts, card, stream);
  if (!started) started = start<1>(args, parts, card, stream);
  if (!started) return false;
  merge_kernel<<<static_cast<unsigned>(args.parts * args.heads), kAttentionThreads, 0, stream>>>(merge, parts);
  return true;
}

}  // namespace stoker::cuda

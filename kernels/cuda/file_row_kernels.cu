#include <cuda_runtime.h>

#include <algorithm>

#include "kernels/cuda/launch.h"

namespace stoker::cuda {

namespace {

template <class Block>
__global__ void pack_kernel(const PackArgs args) {
  pack_matrix<Block>(Gpu{nullptr}, args);
}
template <class Block>
__global__ void unpack_kernel(const PackArgs args) {
  unpack_matrix<Block>(Gpu{nullptr}, args);
}
template <class Block>
__global__ void float_rows_kernel(const FloatRowsArgs args) {
  float_rows<Block>(Gpu{nullptr}, args);
}
template <class Weight>
__global__ void plain_rows_kernel(const FloatRowsArgs args) {
  plain_rows<Weight>(Gpu{nullptr}, args);
}

unsigned grid(i64 items, i64 each, const Card& card) {
  return static_cast<unsigned>(std::min(div_up(items, each), i64{card.processors} * 16));
}

// Of a matrix that is to be packed or unpacked.
template <class Block>
unsigned pack_grid(const PackArgs& args, const Card& card) {
  return grid(div_up(args.rows, kPackedRows) * (args.cols / Block::kWeights), kPackWarps, card);
}

}  // namespace

void start_pack(BlockType type, const PackArgs& args, const Card& card, CUstream_st* stream) {
  for_each_block_format([&]<class Block>(BlockType format) {
    if (format != type) return;
    const unsigned blocks = pack_grid<Block>(args, card);
    if (blocks > 0) pack_kernel<Block><<<blocks, kWarp * kPackWarps, 0, stream>>>(args);
  });
}

void start_unpack(BlockType type, const PackArgs& args, const Card& card, CUstream_st* stream) {
  for_each_block_format([&]<class Block>(BlockType format) {
    if (format != type) return;
    const unsigned blocks = pack_grid<Block>(args, card);
    if (blocks > 0) unpack_kernel<Block><<<blocks, kWarp * kPackWarps, 0, stream>>>(args);
  });
}

void start_float_rows(BlockType type, const FloatRowsArgs& args, const Card& card, CUstream_st* stream) {
  for_each_block_format([&]<class Block>(BlockType format) {
    if (format != type) return;
    const unsigned blocks = grid(args.rows * (args.cols / Block::kWeights), kRowThreads, card);
    if (blocks > 0) float_rows_kernel<Block><<<blocks, kRowThreads, 0, stream>>>(args);
  });
  const unsigned blocks = grid(args.rows * args.cols, kRowThreads, card);
  if (blocks == 0) return;
  if (type == BlockType::F32) plain_rows_kernel<WeightF32><<<blocks, kRowThreads, 0, stream>>>(args);
  if (type == BlockType::F16) plain_rows_kernel<WeightF16><<<blocks, kRowThreads, 0, stream>>>(args);
  if (type == BlockType::BF16) plain_rows_kernel<WeightBF16><<<blocks, kRowThreads, 0, stream>>>(args);
}

}  // namespace stoker::cuda

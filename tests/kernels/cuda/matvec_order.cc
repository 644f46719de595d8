#include "tests/kernels/cuda/matvec_order.h"

#include "kernels/cuda/matvec.h"

namespace stoker::test {

// Each warp has every eighth block; warps are added in order.
f32 in_kernel_order(const MatmulTile& tile, BlockType type, const std::byte* row, const std::byte* x) {
  const BlockTypeInfo& format = info(type);
  const i64 x_block = format.block_weights == 32 ? sizeof(ActQ8_32) : sizeof(ActQ8_256);
  f32 total = 0;
  for (i64 warp = 0; warp < cuda::kMatvecWarps; warp++) {
    f32 sum = 0;
    for (i64 b = warp; b < tile.cols / format.block_weights; b += cuda::kMatvecWarps) {
      MatmulTile one = tile;
      f32 value;
      one.w = row + b * format.block_bytes;
      one.rows = one.tokens = 1;
      one.cols = format.block_weights;
      one.x = x + b * x_block;
      one.x_rows = one.y_rows = nullptr;
      one.y = &value;
      leaf_table(IsaLevel::ref).matmul_q8[static_cast<i64>(type)](one);
      sum += value;
    }
    total = warp == 0 ? sum : total + sum;
  }
  return total;
}

}  // namespace stoker::test

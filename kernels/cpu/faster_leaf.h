// Which of two leaves with the same bits is faster on this CPU, found by trying: about 50 us.
#pragma once

#include <immintrin.h>

#include "kernels/cpu/leaf.h"

namespace stoker {
namespace {

// Cycles of the time stamp for a small product, the best of several: what disturbs it only makes it longer.
inline u64 cycles_of(MatmulLeaf leaf, const MatmulTile& tile) {
  u64 best = ~u64{0};
  for (int run = 0; run < 8; run++) {
    const u64 start = __rdtsc(), took = (leaf(tile), __rdtsc() - start);
    best = took < best ? took : best;
  }
  return best;
}

// Of a format with super-blocks. A wrong answer costs time only.
template <class Block>
inline bool is_faster(MatmulLeaf leaf, MatmulLeaf than) {
  constexpr i64 kBlocks = 16;
  const Block w[4][kBlocks] = {};
  const ActQ8_256 x[kBlocks] = {};
  f32 y[4];
  const MatmulTile tile = {.w = reinterpret_cast<const std::byte*>(w),
                           .w_row_bytes = sizeof w[0],
                           .rows = 4,
                           .cols = 256 * kBlocks,
                           .x = reinterpret_cast<const std::byte*>(x),
                           .x_stride_bytes = sizeof x,
                           .x_rows = nullptr,
                           .y = y,
                           .y_stride = 4,
                           .y_rows = nullptr,
                           .tokens = 1};
  return cycles_of(leaf, tile) < cycles_of(than, tile);
}

}  // namespace
}  // namespace stoker

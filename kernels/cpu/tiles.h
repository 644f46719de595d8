// How products are cut for the leaves: blocks of tokens whose activations stay in L2 against blocks of rows.
#pragma once

#include <algorithm>

#include "kernels/cpu/leaf.h"

namespace stoker {

constexpr i64 kTileTokens = 32;
constexpr i64 kTileRows = 32;               // at least
constexpr i64 kTileBytes = 512 * kKiB;      // of weights, which the tokens' passes over a tile find in L2
// So many tokens meet the weights in one pass, and a tile is all there is: putting activations into a leaf's order for 32
// rows took 6 % of the time that memory needs for these.
constexpr i64 kOnePassTokens = 4;

// From so many tokens on, unpacking a block once for all of them pays. Both leaves give the same bits, so this changes
// no result.
constexpr i64 kLeastGemmTokens = 9;

struct MatmulLeaves {
  MatmulLeaf few, many;  // many: nullptr where the level has no GEMM
};

inline MatmulLeaves matmul_leaf(Stream& stream, BlockType type, ActivationForm form) {
  const LeafTable& leaves = leaf_table(stream.level());
  const i64 index = static_cast<i64>(type);
  if (form == ActivationForm::F32) return {leaves.matmul_f32[index], leaves.gemm_f32[index]};
  return {leaves.matmul_q8[index], leaves.gemm_q8[index]};
}

// Runs `whole`, rows [begin, end): all of it through a GEMM, which cuts for itself, or piece by piece.
inline void run_tiles(const MatmulLeaves& leaves, const MatmulTile& whole, i64 begin, i64 end) {
  const bool gemm = leaves.many != nullptr && whole.tokens >= kLeastGemmTokens;
  const bool all_rows = gemm || whole.tokens <= kOnePassTokens;
  const i64 tile_rows = all_rows ? end - begin : std::max(kTileRows, kTileBytes / whole.w_row_bytes);
  const i64 tile_tokens = gemm ? whole.tokens : kTileTokens;
  for (i64 r = begin; r < end; r += tile_rows) {
    for (i64 t = 0; t < whole.tokens; t += tile_tokens) {
      MatmulTile tile = whole;
      tile.w = whole.w + r * whole.w_row_bytes;
      tile.rows = std::min(tile_rows, end - r);
      tile.tokens = std::min(tile_tokens, whole.tokens - t);
      tile.x = whole.x_rows != nullptr ? whole.x : whole.x + t * whole.x_stride_bytes;
      tile.x_rows = whole.x_rows != nullptr ? whole.x_rows + t : nullptr;
      tile.y = whole.y_rows != nullptr ? whole.y + r : whole.y + t * whole.y_stride + r;
      tile.y_rows = whole.y_rows != nullptr ? whole.y_rows + t : nullptr;
      (gemm ? leaves.many : leaves.few)(tile);
    }
  }
}

}  // namespace stoker

// PieceSize: how many tokens of a prompt pass the model together, where nobody says. Experts that are not in memory are read
// again for every piece, so a larger one reads less, and its buffers take more of the memory that is kept free. Where devices
// compute experts a piece stays small: these get what a piece has wanted when each of its layers ends, and a prompt of one
// piece would be the CPU's alone (simulated on two cards, 8192 tokens in pieces of 2048 take 1.3 times as long as in pieces of 512).
#pragma once

#include <functional>

#include "kernels/base/types.h"

namespace stoker {

constexpr i64 kPiece = 512, kLargestPiece = 2048;

// From kPiece to kLargestPiece, and at most the context: the largest whose buffers, in bytes by their number of rows, take at most
// a quarter of `free_bytes` more than those of kPiece.
i64 largest_piece(i64 context, i64 free_bytes, const std::function<i64(i64 rows)>& buffers);

}  // namespace stoker

#include "runtime/piece_size.h"

#include <algorithm>

namespace stoker {

i64 largest_piece(i64 context, i64 free_bytes, const std::function<i64(i64)>& buffers) {
  i64 piece = std::min(kPiece, context);
  const i64 most_bytes = buffers(piece) + free_bytes / 4;
  for (i64 rows = 2 * kPiece; rows <= kLargestPiece && piece < context; rows *= 2) {
    const i64 next = std::min(rows, context);
    if (buffers(next) > most_bytes) break;
    piece = next;
  }
  return piece;
}

}  // namespace stoker

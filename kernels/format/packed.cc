#include "kernels/format/packed.h"

#include <cstring>

namespace stoker {

i64 packed_bytes(BlockType type, i64 rows, i64 cols) {
  return (info(type).block_weights == 1 ? rows : round_up(rows, kPackedRows)) * row_bytes(type, cols);
}

namespace {

// Calls move(byte of the file's order, byte of the packed order, count) for every piece of every row.
template <class Block, class Move>
void for_each_piece(i64 rows, i64 cols, Move&& move) {
  constexpr auto& pieces = Packed<Block>::kPieces;
  constexpr i64 kBytes = sizeof(Block);
  static_assert(pieces.offset(pieces.count()) == kBytes);
  const i64 blocks = cols / Block::kWeights;
  for (i64 r = 0; r < rows; r++)
    for (i64 b = 0; b < blocks; b++) {
      const i64 file = (r * blocks + b) * kBytes;
      const i64 tile = (r / kPackedRows * blocks + b) * kPackedRows * kBytes;
      for (i64 p = 0; p < pieces.count(); p++) {
        const Piece piece = pieces.at[static_cast<size_t>(p)];
        move(file + piece.from, tile + kPackedRows * pieces.offset(p) + r % kPackedRows * piece.bytes,
             i64{piece.bytes});
      }
    }
}

template <class Move>
void for_each_piece(BlockType type, i64 rows, i64 cols, Move&& move) {
  if (info(type).block_weights == 1) {
    move(i64{0}, i64{0}, rows * row_bytes(type, cols));
    return;
  }
  for_each_block_format([&]<class Block>(BlockType format) {
    if (format == type) for_each_piece<Block>(rows, cols, move);
  });
}

}  // namespace

void pack_rows(BlockType type, i64 rows, i64 cols, const std::byte* from, std::byte* to) {
  const i64 bytes = packed_bytes(type, rows, cols);
  if (rows * row_bytes(type, cols) < bytes) std::memset(to, 0, static_cast<size_t>(bytes));
  for_each_piece(type, rows, cols, [&](i64 file, i64 packed, i64 count) {
    std::memcpy(to + packed, from + file, static_cast<size_t>(count));
  });
}

void unpack_rows(BlockType type, i64 rows, i64 cols, const std::byte* from, std::byte* to) {
  for_each_piece(type, rows, cols, [&](i64 file, i64 packed, i64 count) {
    std::memcpy(to + file, from + packed, static_cast<size_t>(count));
  });
}

}  // namespace stoker

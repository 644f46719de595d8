// The order in which a GPU keeps a matrix: the blocks as published, every bit, in another place.
//
// Rows are taken 32 at a time, one per lane of a warp. Column b of such a tile is the block b of its 32 rows, taken
// apart into pieces of at most 16 bytes; a piece of all rows comes before the next piece:
//
//   tile t, block b, piece p, row r   at   ((t * blocks + b) * 32 * block_bytes) + 32 * offset(p) + r * bytes(p)
//
// so that a warp loads 512 adjacent, aligned bytes where a row in the file has 16 at an even address. Sums stay in the
// lane. Rows that the last tile lacks are zero bytes. Formats without blocks (F32, F16, BF16) are kept as they are.
#pragma once

#include <array>

#include "kernels/base/host_device.h"
#include "kernels/base/types.h"
#include "kernels/format/block_type.h"
#include "kernels/format/block_formats.h"
#include "kernels/format/blocks.h"

namespace stoker {

constexpr i64 kPackedRows = 32;

// Bytes [from, from + bytes) of a block. Pieces are ordered by falling size: each is aligned to its size, in 32 rows.
struct Piece {
  i16 from, bytes;
};

template <size_t kCount>
struct Pieces {
  std::array<Piece, kCount> at;

  static constexpr i64 count() { return static_cast<i64>(kCount); }
  // Bytes of a block that lie before piece p.
  constexpr i64 offset(i64 p) const {
    i64 result = 0;
    for (i64 i = 0; i < p; i++) result += at[static_cast<size_t>(i)].bytes;
    return result;
  }
  // Index of piece p's first word in registers, where a piece of 1 or 2 bytes takes a word.
  constexpr i64 word(i64 p) const {
    i64 result = 0;
    for (i64 i = 0; i < p; i++) result += div_up(at[static_cast<size_t>(i)].bytes, 4);
    return result;
  }
  constexpr i64 words() const { return word(count()); }
};

// kRun pieces of 16 bytes from `from` on, then the tail: how all lists below are written.
template <size_t kRun, size_t kTail>
constexpr Pieces<kRun + kTail> pieces(i64 from, const std::array<Piece, kTail>& tail) {
  Pieces<kRun + kTail> result{};
  for (size_t i = 0; i < kRun + kTail; i++)
    result.at[i] = i < kRun ? Piece{static_cast<i16>(from + 16 * static_cast<i64>(i)), 16} : tail[i - kRun];
  return result;
}

// The pieces of a format, and in comments the registers that hold its fields.
template <class Block>
struct Packed;

template <>
struct Packed<BlockQ4_0> {  // qs 0-3, d 4
  static constexpr auto kPieces = pieces<1>(2, std::array<Piece, 1>{{{0, 2}}});
};
template <>
struct Packed<BlockIQ4_NL> : Packed<BlockQ4_0> {};
template <>
struct Packed<BlockQ4_1> {  // qs 0-3, d | m 4
  static constexpr auto kPieces = pieces<1>(4, std::array<Piece, 1>{{{0, 4}}});
};
template <>
struct Packed<BlockQ5_0> {  // qs 0-3, qh 4, d 5
  static constexpr auto kPieces = pieces<1>(6, std::array<Piece, 2>{{{2, 4}, {0, 2}}});
};
template <>
struct Packed<BlockQ5_1> {  // qs 0-3, d | m 4, qh 5
  static constexpr auto kPieces = pieces<1>(8, std::array<Piece, 1>{{{0, 8}}});
};
template <>
struct Packed<BlockQ8_0> {  // qs 0-7, d 8
  static constexpr auto kPieces = pieces<2>(2, std::array<Piece, 1>{{{0, 2}}});
};
template <>
struct Packed<BlockMXFP4> {  // qs 0-3, e 4
  static constexpr auto kPieces = pieces<1>(1, std::array<Piece, 1>{{{0, 1}}});
};
template <>
struct Packed<BlockQ2_K> {  // scales 0-3, qs 4-19, d | dmin 20
  static constexpr auto kPieces = pieces<5>(0, std::array<Piece, 1>{{{80, 4}}});
};
template <>
struct Packed<BlockQ3_K> {  // hmask 0-7, qs 8-23, scales 24-26, d 27
  static constexpr auto kPieces = pieces<6>(0, std::array<Piece, 3>{{{96, 8}, {104, 4}, {108, 2}}});
};
template <>
struct Packed<BlockQ4_K> {  // d | dmin 0, scales 1-3, qs 4-35
  static constexpr auto kPieces = pieces<9>(0, std::array<Piece, 0>{});
};
template <>
struct Packed<BlockQ5_K> {  // d | dmin 0, scales 1-3, qh 4-11, qs 12-43
  static constexpr auto kPieces = pieces<11>(0, std::array<Piece, 0>{});
};
template <>
struct Packed<BlockQ6_K> {  // ql 0-31, qh 32-47, scales 48-51, d 52
  static constexpr auto kPieces = pieces<13>(0, std::array<Piece, 1>{{{208, 2}}});
};
template <>
struct Packed<BlockIQ2_XXS> {  // qs 0-15, d 16
  static constexpr auto kPieces = pieces<4>(2, std::array<Piece, 1>{{{0, 2}}});
};
template <>
struct Packed<BlockIQ2_XS> {  // qs 0-15, scales 16-17, d 18
  static constexpr auto kPieces = pieces<4>(2, std::array<Piece, 2>{{{66, 8}, {0, 2}}});
};
template <>
struct Packed<BlockIQ2_S> {  // qs 0-7, signs 8-15, qh 16-17, scales 18-19, d 20
  static constexpr auto kPieces = pieces<5>(2, std::array<Piece, 1>{{{0, 2}}});
};
template <>
struct Packed<BlockIQ3_XXS> {  // qs 0-15, signs 16-23, d 24
  static constexpr auto kPieces = pieces<6>(2, std::array<Piece, 1>{{{0, 2}}});
};
template <>
struct Packed<BlockIQ3_S> {  // qs 0-15, qh 16-17, signs 18-25, scales 26, d 27
  static constexpr auto kPieces = pieces<6>(2, std::array<Piece, 3>{{{98, 8}, {106, 4}, {0, 2}}});
};
template <>
struct Packed<BlockIQ4_XS> {  // qs 0-31, d | scales_h 32, scales_l 33
  static constexpr auto kPieces = pieces<8>(8, std::array<Piece, 1>{{{0, 8}}});
};
template <>
struct Packed<BlockIQ1_S> {  // qs 0-7, qh 8-11, d 12
  static constexpr auto kPieces = pieces<3>(2, std::array<Piece, 1>{{{0, 2}}});
};
template <>
struct Packed<BlockIQ1_M> {  // qs 0-7, qh 8-11, scales 12-13
  static constexpr auto kPieces = pieces<3>(0, std::array<Piece, 1>{{{48, 8}}});
};

// Bytes of a matrix in this order: as in the file, rows rounded up to whole tiles where the format has blocks.
i64 packed_bytes(BlockType type, i64 rows, i64 cols);

// Between the file's order, [rows] rows of row_bytes(type, cols), and the packed one, packed_bytes(). Each undoes the
// other. The two must not overlap; any alignment.
void pack_rows(BlockType type, i64 rows, i64 cols, const std::byte* from, std::byte* to);
void unpack_rows(BlockType type, i64 rows, i64 cols, const std::byte* from, std::byte* to);

}  // namespace stoker

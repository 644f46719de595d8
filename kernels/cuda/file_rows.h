// Rows of weights in the file's order on the card: into the packed order after an upload, back before a download, and to
// floats (embeddings).
#pragma once

#include "kernels/cuda/float_matvec.h"
#include "kernels/format/decode.h"

namespace stoker::cuda {

// From the file's order, [rows] rows at any alignment, to the packed one, packed_bytes(), or the other way.
struct PackArgs {
  const std::byte* from;
  std::byte* to;
  i64 rows, cols;
};

// Calls move(byte of the file's order, byte of the packed order, count) for one piece after the other of a block.
template <class Block, class Move, size_t... kIndex>
HOST_DEVICE void for_each_piece(i64 file, i64 packed, i64 lane, const Move& move, std::index_sequence<kIndex...>) {
  constexpr auto kPieces = Packed<Block>::kPieces;
  (move(file + kPieces.at[kIndex].from,
        packed + kPackedRows * kPieces.offset(kIndex) + lane * kPieces.at[kIndex].bytes, i64{kPieces.at[kIndex].bytes}),
   ...);
}

constexpr int kPackWarps = 8;

// A warp per tile and block: its 32 rows piece by piece, so that what it touches in the packed order are whole lines. The
// file's rows lie apart, but a row's next blocks are in the lines of its last ones. Calls move(whether there is such a
// row, then as above). Blocks of kPackWarps warps.
template <class Block, class Machine, class Move>
HOST_DEVICE void for_each_packed_piece(const Machine& m, const PackArgs& a, const Move& move) {
  const i64 blocks = a.cols / Block::kWeights, tiles = (a.rows + kPackedRows - 1) / kPackedRows;
  const i64 lane = m.thread() % kWarp;
  for (i64 i = m.block() * kPackWarps + m.thread() / kWarp; i < tiles * blocks; i += m.blocks() * kPackWarps) {
    const i64 row = i / blocks * kPackedRows + lane, b = i % blocks;
    auto moved = [&](i64 file, i64 packed, i64 count) { move(row < a.rows, file, packed, count); };
    for_each_piece<Block>((row * blocks + b) * i64{sizeof(Block)}, i * kPackedRows * i64{sizeof(Block)}, lane, moved,
                          std::make_index_sequence<Packed<Block>::kPieces.count()>());
  }
}

template <class Block, class Machine>
HOST_DEVICE void pack_matrix(const Machine& m, const PackArgs& a) {
  for_each_packed_piece<Block>(m, a, [&](bool real, i64 file, i64 packed, i64 count) {
    for (i64 i = 0; i < count; i++) a.to[packed + i] = real ? a.from[file + i] : std::byte{0};
  });
}

template <class Block, class Machine>
HOST_DEVICE void unpack_matrix(const Machine& m, const PackArgs& a) {
  for_each_packed_piece<Block>(m, a, [&](bool real, i64 file, i64 packed, i64 count) {
    for (i64 i = 0; real && i < count; i++) a.to[file + i] = a.from[packed + i];
  });
}

struct FloatRowsArgs {
  const std::byte* from;  // rows of the file; any alignment
  const i32* ids;         // [rows]: which rows, or nullptr: the first ones
  i64 rows, cols;
  f32* y;  // [rows, cols]
  const u32* books;
};

// Registers of a block in the file.
template <class Block, size_t... kIndex>
HOST_DEVICE void gather_block(const std::byte* from, u32* w, std::index_sequence<kIndex...>) {
  constexpr auto kPieces = Packed<Block>::kPieces;
  auto gather = [&](i64 word, i64 from_byte, i64 bytes) {
    for (i64 i = 0; i < bytes; i++) {
      const u32 byte = static_cast<u32>(from[from_byte + i]) << (8 * (i % 4));
      w[word + i / 4] = i % 4 == 0 ? byte : w[word + i / 4] | byte;
    }
  };
  (gather(kPieces.word(kIndex), kPieces.at[kIndex].from, kPieces.at[kIndex].bytes), ...);
}

// A thread per block of weights. Not fast: an embedding is one row per token.
template <class Block, class Machine>
HOST_DEVICE void float_rows(const Machine& m, const FloatRowsArgs& a) {
  using D = Decode<Block>;
  const i64 blocks = a.cols / Block::kWeights;
  for (i64 i = m.block() * m.threads() + m.thread(); i < a.rows * blocks; i += m.blocks() * m.threads()) {
    const i64 row = i / blocks, b = i % blocks, from = a.ids != nullptr ? a.ids[row] : row;
    u32 w[Packed<Block>::kPieces.words()];
    gather_block<Block>(a.from + (from * blocks + b) * i64{sizeof(Block)}, w,
                        std::make_index_sequence<Packed<Block>::kPieces.count()>());
    f32* y = a.y + row * a.cols + b * Block::kWeights;
    UNROLL
    for (int g = 0; g < Block::kWeights / 32; g++) {
      WeightGroup group{.code = {}, .scale = {1, 1}, .offset = {1, 1}};
      D::group(w, g, a.books + D::kBook.first, group);
      UNROLL
      for (int k = 0; k < 32; k++) {
        const i32 code = static_cast<i8>(group.code[k / 4] >> (8 * (k % 4))) - D::kBias;
        f32 value = rounded_product(D::d(w) * static_cast<f32>(group.scale[k / 16]), static_cast<f32>(code));
        if constexpr (D::kHasOffset)
          value = rounded_sum(value, rounded_product(D::m(w), static_cast<f32>(group.offset[k / 16])));
        y[32 * g + k] = value;
      }
    }
  }
}

// The same for formats without blocks; `from` aligned to a weight.
template <class Weight, class Machine>
HOST_DEVICE void plain_rows(const Machine& m, const FloatRowsArgs& a) {
  for (i64 i = m.block() * m.threads() + m.thread(); i < a.rows * a.cols; i += m.blocks() * m.threads()) {
    const i64 row = i / a.cols, from = a.ids != nullptr ? a.ids[row] : row;
    a.y[i] = reinterpret_cast<const Weight*>(a.from)[from * a.cols + i % a.cols].get();
  }
}

}  // namespace stoker::cuda

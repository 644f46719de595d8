// How the GEMMs of block formats walk a MatmulTile: some rows of weights are unpacked, a chunk of columns at a time,
// into panels that stay in L1, and all tokens of a pass go by. A kernel supplies:
//
//   struct Kernel {
//     static constexpr i64 kRows;        // unpacked together: what a turn of tokens is prepared for
//     using Block = ...;                 // in the file's layout
//     using Activation = ...;            // one per block
//     static constexpr i64 kPanelBlocks, kChunkPanels;  // chunk: what is unpacked of a row at once
//     static constexpr i64 kPieceBlocks; // a row's sums are finished and added to y so often; a multiple of the chunk
//     static constexpr int kTurn;        // tokens that meet the panels together
//     using Panels = ...;                // what is unpacked of kRows rows
//     using Sums = ...;                  // partial sums of a token: an array of f32
//     // `rows` rows, w_row_bytes apart.
//     static void unpack(const std::byte* w, i64 w_row_bytes, i64 rows, i64 blocks, Panels& out);
//     struct Tokens;                     // what the kTurn activations of a chunk are turned into, once for all rows
//     template <int kTokens>
//     static void prepare(const Activation* const (&x)[kTokens], i64 blocks, Tokens& out);
//     // Adds the products of `blocks` blocks to the sums of kTokens tokens.
//     template <int kTokens>
//     static void multiply(const Panels& w, i64 rows, const Tokens& x, i64 blocks, Sums* sums);
//     static f32 total(const Sums& sums, i64 row);
//   };
//
// The sums of a (token, row) are added in the order of the columns, as the leaf for few tokens adds them: both give the
// same bits, so it does not show which one the size of a batch has chosen. Partial sums wait in scratch between chunks.
//
// Everything is in an unnamed namespace: the header is compiled for more than one instruction level.
#pragma once

#include "kernels/cpu/leaf.h"

namespace stoker {
namespace {

constexpr i64 kGemmTokens = 128;  // per pass: what a block is unpacked for
constexpr i64 kWholeRow = i64{1} << 40;  // a multiple of every chunk

template <class Kernel>
struct GemmScratch {
  alignas(64) typename Kernel::Panels panels;
  alignas(64) typename Kernel::Sums sums[kGemmTokens];
  typename Kernel::Tokens tokens;
  const typename Kernel::Activation* x[kGemmTokens];
};

template <class Kernel, int kTokens>
void gemm_turn(GemmScratch<Kernel>& scratch, i64 first_block, i64 blocks, i64 rows, i64 token) {
  const typename Kernel::Activation* x[kTokens];
  for (int t = 0; t < kTokens; t++) x[t] = scratch.x[token + t] + first_block;
  Kernel::template prepare<kTokens>(x, blocks, scratch.tokens);
  Kernel::template multiply<kTokens>(scratch.panels, rows, scratch.tokens, blocks, scratch.sums + token);
}

// Blocks [first, end) of `rows` rows against all tokens of the pass.
template <class Kernel>
void gemm_piece(GemmScratch<Kernel>& scratch, const std::byte* w, i64 w_row_bytes, i64 rows, i64 first, i64 end,
                i64 tokens) {
  constexpr i64 kChunk = Kernel::kPanelBlocks * Kernel::kChunkPanels;
  __builtin_memset(scratch.sums, 0, static_cast<unsigned long>(tokens) * sizeof scratch.sums[0]);
  for (; first < end; first += kChunk) {
    const i64 blocks = end - first < kChunk ? end - first : kChunk;
    Kernel::unpack(w + first * i64{sizeof(typename Kernel::Block)}, w_row_bytes, rows, blocks, scratch.panels);
    i64 t = 0;
    for (; t + Kernel::kTurn <= tokens; t += Kernel::kTurn)
      gemm_turn<Kernel, Kernel::kTurn>(scratch, first, blocks, rows, t);
    for (; t < tokens; t++) gemm_turn<Kernel, 1>(scratch, first, blocks, rows, t);
  }
}

template <class Kernel>
void gemm_pass(GemmScratch<Kernel>& scratch, const MatmulTile& tile, i64 first_token, i64 tokens) {
  for (i64 t = 0; t < tokens; t++) {
    i64 from = tile.x_rows != nullptr ? tile.x_rows[first_token + t] : first_token + t;
    scratch.x[t] = reinterpret_cast<const typename Kernel::Activation*>(tile.x + from * tile.x_stride_bytes);
  }
  const i64 blocks = tile.cols / Kernel::Block::kWeights;
  for (i64 row = 0; row < tile.rows; row += Kernel::kRows) {
    const i64 rows = tile.rows - row < Kernel::kRows ? tile.rows - row : Kernel::kRows;
    for (i64 first = 0; first < blocks; first += Kernel::kPieceBlocks) {
      const i64 end = blocks - first < Kernel::kPieceBlocks ? blocks : first + Kernel::kPieceBlocks;
      gemm_piece<Kernel>(scratch, tile.w + row * tile.w_row_bytes, tile.w_row_bytes, rows, first, end, tokens);
      for (i64 t = 0; t < tokens; t++) {
        i64 to = tile.y_rows != nullptr ? tile.y_rows[first_token + t] : first_token + t;
        f32* y = tile.y + to * tile.y_stride + row;
        for (i64 r = 0; r < rows; r++) {
          f32 total = Kernel::total(scratch.sums[t], r);
          y[r] = first == 0 ? total : y[r] + total;
        }
      }
    }
  }
}

template <class Kernel>
void gemm_tile(const MatmulTile& tile) {
  GemmScratch<Kernel> scratch;
  for (i64 first = 0; first < tile.tokens; first += kGemmTokens)
    gemm_pass<Kernel>(scratch, tile, first, tile.tokens - first < kGemmTokens ? tile.tokens - first : kGemmTokens);
}

}  // namespace
}  // namespace stoker

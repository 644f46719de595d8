// Quantised matrix times few vectors, the work of decoding: packed weights (kernels/format/packed.h) times 8-bit
// activations, for a list of jobs (an expert, or a matrix, and up to 8 tokens).
//
// A lane has a row of a tile of 32, so that nothing is exchanged between lanes; the eight warps of a block take every
// eighth block of the columns and add their parts up in order. Blocks stay on the card and take (job, tile) one after
// the other. All integers are exact, and a result depends on its row and token alone: not on the grid, not on
// neighbours. Weights bypass L1, which then holds the activations, read at the same address by all lanes; code books
// are in shared memory.
//
// Bytes read: those of the weights once per job, the activations once per tile (from L1 or L2).
#pragma once

#include "kernels/cuda/activation_rows.h"
#include "kernels/cuda/gpu.h"
#include "kernels/format/decode.h"
#include "kernels/format/packed_load.h"

#ifndef __CUDA_ARCH__
#include <cmath>
#endif

namespace stoker::cuda {

constexpr int kMatvecWarps = 8;
constexpr int kMatvecTokens = 8;  // of a job, at most

struct MatvecJob {
  const std::byte* first;   // packed matrix
  const std::byte* second;  // or nullptr. With it the result is silu(first x) * (second x)
  const i32* x_rows;        // [tokens] rows of x, or nullptr: x_first + t
  const i32* y_rows;        // [tokens] rows of y, or nullptr: y_first + t
  i32 x_first, y_first;
  i32 tokens;
};

struct MatvecArgs {
  const MatvecJob* jobs;
  const i32* job_count;  // or nullptr: job_limit
  i64 job_limit;
  i64 rows, cols;  // of each matrix
  const std::byte* x;
  i64 x_stride_bytes;
  f32* y;  // row t at y + t * y_stride
  i64 y_stride;
  const u32* books;  // DecodeBooks
};

// Bytes of shared memory.
template <class Block>
constexpr i64 matvec_book_bytes = round_up(Decode<Block>::kBook.words() * 4, 16);
template <class Block>
constexpr i64 matvec_shared_bytes(i64 tokens) {
  return matvec_book_bytes<Block> + 2 * kMatvecWarps * tokens * kPackedRows * i64{sizeof(f32)};
}

HOST_DEVICE f32 silu(f32 x) {
#ifdef __CUDA_ARCH__
  return x / (1.0f + expf(-x));
#else
  return x / (1.0f + std::exp(-x));
#endif
}

// Dot products of the 32 weights of a group with those of a token, each half for itself.
HOST_DEVICE void dot_halves(const WeightGroup& w, const std::byte* q, i32 (&half)[2]) {
  UNROLL
  for (int h = 0; h < 2; h++) {
    u32 x[4];
    load_16(q + 16 * h, x);
    half[h] = 0;
    UNROLL
    for (int k = 0; k < 4; k++) half[h] = dot4(w.code[4 * h + k], x[k], half[h]);
  }
}

// Adds block b of the columns, in registers `w`, times every token.
template <class Block, int kTokens>
HOST_DEVICE void add_block(const u32* w, const u32* book, const ActivationRow* x, int tokens, i64 b, f32* sums) {
  using D = Decode<Block>;
  constexpr int kGroups = Block::kWeights / 32;
  i32 total[kTokens], offset[kTokens];
  UNROLL
  for (int t = 0; t < kTokens; t++) total[t] = offset[t] = 0;
  UNROLL
  for (int g = 0; g < kGroups; g++) {
    WeightGroup group;
    D::group(w, g, book, group);
    UNROLL
    for (int t = 0; t < kTokens; t++) {
      if (t >= tokens) continue;
      i32 half[2];
      dot_halves(group, x[t].q((b * kGroups + g) * 32), half);
      if constexpr (kGroups == 1) {
        total[t] = half[0] + half[1];
        if constexpr (D::kBias != 0 || D::kHasOffset) offset[t] = x[t].sum_32(b);
        if constexpr (D::kBias != 0) total[t] -= D::kBias * offset[t];
      } else {
        u32 sums_16 = 0;
        if constexpr (D::kBias != 0 || D::kHasOffset) sums_16 = x[t].sums_16(b * kGroups + g);
        UNROLL
        for (int h = 0; h < 2; h++) {
          i32 sum = static_cast<i16>(sums_16 >> (16 * h));
          if constexpr (D::kBias != 0) half[h] -= D::kBias * sum;
          total[t] += group.scale[h] * half[h];
          if constexpr (D::kHasOffset) offset[t] += group.offset[h] * sum;
        }
      }
    }
  }
  // As the twin: matmul_q8.cc.
  UNROLL
  for (int t = 0; t < kTokens; t++) {
    if (t >= tokens) continue;
    f32 value = rounded_product(D::d(w), static_cast<f32>(total[t]));
    if constexpr (D::kHasOffset) value = rounded_sum(value, rounded_product(D::m(w), static_cast<f32>(offset[t])));
    sums[t] = rounded_sum(sums[t], rounded_product(value, x[t].d(b)));
  }
}

// One matrix of a job: this warp's part of 32 rows, to partial[warp][token][row].
template <class Block, int kTokens, class Machine>
HOST_DEVICE void multiply_tile(const Machine& m, const MatvecArgs& a, const std::byte* tile, const u32* book,
                               const ActivationRow* x, int tokens, f32* partial) {
  const int warp = m.thread() / kWarp, lane = m.thread() % kWarp;
  const i64 blocks = a.cols / Block::kWeights;
  f32 sums[kTokens];
  UNROLL
  for (int t = 0; t < kTokens; t++) sums[t] = 0;
  for (i64 b = warp; b < blocks; b += kMatvecWarps) {
    u32 w[kBlockWords<Block>];
    load_block<Block>(tile + b * kPackedRows * i64{sizeof(Block)}, lane, w);
    add_block<Block, kTokens>(w, book, x, tokens, b, sums);
  }
  UNROLL
  for (int t = 0; t < kTokens; t++)
    if (t < tokens) partial[(warp * kTokens + t) * kPackedRows + lane] = sums[t];
}

// Block of 32 * kMatvecWarps threads, matvec_shared_bytes<Block>(kTokens) of shared memory.
template <class Block, int kTokens, class Machine>
HOST_DEVICE void matvec(const Machine& m, const MatvecArgs& a) {
  u32* book = m.template shared<u32>(0);
  f32* partial = m.template shared<f32>(matvec_book_bytes<Block>);
  constexpr i64 kPart = kMatvecWarps * kTokens * kPackedRows;
  for (i64 i = m.thread(); i < Decode<Block>::kBook.words(); i += m.threads())
    book[i] = a.books[Decode<Block>::kBook.first + i];
  m.sync();

  const i64 tiles = (a.rows + kPackedRows - 1) / kPackedRows;
  const i64 tile_bytes = a.cols / Block::kWeights * kPackedRows * i64{sizeof(Block)};
  const i64 jobs = a.job_count != nullptr ? *a.job_count : a.job_limit;
  for (i64 item = m.block(); item < jobs * tiles; item += m.blocks()) {
    const MatvecJob job = a.jobs[item / tiles];
    const i64 tile = item % tiles;
    ActivationRow x[kTokens];
    UNROLL
    for (int t = 0; t < kTokens; t++) {
      const int token = t < job.tokens ? t : 0;
      const i64 row = job.x_rows != nullptr ? job.x_rows[token] : job.x_first + token;
      x[t] = {a.x + row * a.x_stride_bytes, a.cols};
    }
    multiply_tile<Block, kTokens>(m, a, job.first + tile * tile_bytes, book, x, job.tokens, partial);
    if (job.second != nullptr)
      multiply_tile<Block, kTokens>(m, a, job.second + tile * tile_bytes, book, x, job.tokens, partial + kPart);
    m.sync();
    for (int i = m.thread(); i < job.tokens * static_cast<int>(kPackedRows); i += m.threads()) {
      const i64 t = i / kPackedRows, row = tile * kPackedRows + i % kPackedRows;
      if (row >= a.rows) continue;
      f32 first = partial[i], second = partial[kPart + i];
      for (int warp = 1; warp < kMatvecWarps; warp++) {
        first += partial[warp * kTokens * kPackedRows + i];
        if (job.second != nullptr) second += partial[kPart + warp * kTokens * kPackedRows + i];
      }
      const i64 to = job.y_rows != nullptr ? job.y_rows[t] : job.y_first + t;
      a.y[to * a.y_stride + row] = job.second != nullptr ? silu(first) * second : first;
    }
    m.sync();
  }
}

}  // namespace stoker::cuda

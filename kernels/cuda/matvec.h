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
#include "kernels/cuda/rows.h"
#include "kernels/format/decode.h"
#include "kernels/format/packed_load.h"

namespace stoker::cuda {

constexpr int kMatvecWarps = 8;
constexpr int kMatvecTokens = 8;  // of a job, at most

struct MatvecJob {
  const std::byte* first;   // packed matrix
  const std::byte* second;  // or nullptr. With it the result is silu(first x) * (second x)
  const i32* x_rows;        // [tokens] rows of x, or nullptr: x_first + t * x_step
  const i32* y_rows;        // [tokens] rows of y, or nullptr: y_first + t
  i32 x_first, x_step, y_first;
  i32 tokens;
  i64 y_offset;  // added to y, in elements
};

// The same for matrices at equal distances (heads; or just one) and any number of tokens: x row t * matrices + matrix,
// y at t * y_stride + matrix * y_matrix_stride.
struct MatvecUniform {
  const std::byte* first;
  i64 matrix_stride_bytes;
  i64 matrices, tokens;
  i64 y_matrix_stride;
};

struct MatvecArgs {
  const MatvecJob* jobs;  // or nullptr: `uniform`
  const i32* job_count;   // on the card, or nullptr: job_limit
  i64 job_limit;          // of `uniform`: uniform_jobs()
  MatvecUniform uniform;
  i64 rows, cols;  // of each matrix
  const std::byte* x;
  i64 x_stride_bytes;
  f32* y;  // row t at y + t * y_stride
  i64 y_stride;
  const u32* books;  // DecodeBooks
};

// Jobs of at most `most` tokens that this makes.
HOST_DEVICE i64 uniform_jobs(const MatvecUniform& u, i64 most) {
  return u.matrices * ((u.tokens + most - 1) / most);
}

HOST_DEVICE MatvecJob job_at(const MatvecArgs& a, i64 i, i64 most) {
  if (a.jobs != nullptr) return a.jobs[i];
  const MatvecUniform& u = a.uniform;
  const i64 matrix = i % u.matrices, token = i / u.matrices * most;
  const i64 tokens = u.tokens - token < most ? u.tokens - token : most;
  return {.first = u.first + matrix * u.matrix_stride_bytes,
          .second = nullptr,
          .x_rows = nullptr,
          .y_rows = nullptr,
          .x_first = static_cast<i32>(token * u.matrices + matrix),
          .x_step = static_cast<i32>(u.matrices),
          .y_first = static_cast<i32>(token),
          .tokens = static_cast<i32>(tokens),
          .y_offset = matrix * u.y_matrix_stride};
}

// Bytes of shared memory.
template <class Block>
constexpr i64 matvec_book_bytes = round_up(Decode<Block>::kBook.words() * 4, 16);
template <class Block>
constexpr i64 matvec_shared_bytes(i64 tokens) {
  return matvec_book_bytes<Block> + 2 * kMatvecWarps * tokens * kPackedRows * i64{sizeof(f32)} +
         tokens * i64{sizeof(ActivationRow)};
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

// Adds block b of the columns, in registers `w`, times every token to sums[t * kPackedRows].
template <class Block, int kTokens>
HOST_DEVICE void add_block(const u32* w, const u32* book, const ActivationRow* x, int tokens, int b, f32* sums) {
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
    f32& sum = sums[t * kPackedRows];
    sum = rounded_sum(sum, rounded_product(value, x[t].d(b)));
  }
}

// One matrix of a job: this warp's part of 32 rows, to partial[warp][token][row].
template <class Block, int kTokens, class Machine>
HOST_DEVICE void multiply_tile(const Machine& m, const MatvecArgs& a, const std::byte* tile, const u32* book,
                               const ActivationRow* x, int tokens, f32* partial) {
  const int warp = m.thread() / kWarp, lane = m.thread() % kWarp;
  const int blocks = static_cast<int>(a.cols / Block::kWeights);
  // In shared memory, where no other thread touches them: registers are scarce.
  f32* sums = partial + warp * kTokens * kPackedRows + lane;
  for (int t = 0; t < tokens; t++) sums[t * kPackedRows] = 0;
  for (int b = warp; b < blocks; b += kMatvecWarps) {
    u32 w[kBlockWords<Block>];
    load_block<Block>(tile + i64{b} * kPackedRows * i64{sizeof(Block)}, lane, w);
    add_block<Block, kTokens>(w, book, x, tokens, b, sums);
  }
}

// Both matrices of a job, to partial[matrix][warp][token][row].
template <class Block, int kTokens, class Machine>
HOST_DEVICE void multiply_item(const Machine& m, const MatvecArgs& a, const MatvecJob& job, int tile,
                               const u32* book, f32* partial) {
  const i64 tile_bytes = a.cols / Block::kWeights * kPackedRows * i64{sizeof(Block)};
  // In shared memory, because registers are scarce.
  ActivationRow* x = reinterpret_cast<ActivationRow*>(partial + 2 * kMatvecWarps * kTokens * kPackedRows);
  if (m.thread() < job.tokens) {
    const i64 token = m.thread();
    const i64 row = job.x_rows != nullptr ? job.x_rows[token] : job.x_first + token * job.x_step;
    x[token] = {a.x + row * a.x_stride_bytes, static_cast<i32>(a.cols)};
  }
  m.sync();
  constexpr i64 kPart = kMatvecWarps * kTokens * kPackedRows;
  const std::byte* matrices[2] = {job.first, job.second};
  for (int i = 0; i < 2; i++)
    if (matrices[i] != nullptr)
      multiply_tile<Block, kTokens>(m, a, matrices[i] + tile * tile_bytes, book, x, job.tokens, partial + i * kPart);
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

  // In 32 bits where possible: registers are scarce.
  const int tiles = static_cast<int>((a.rows + kPackedRows - 1) / kPackedRows);
  const int items = static_cast<int>(a.job_count != nullptr ? *a.job_count : a.job_limit) * tiles;
  for (int item = static_cast<int>(m.block()); item < items; item += static_cast<int>(m.blocks())) {
    const int tile = item % tiles;
    multiply_item<Block, kTokens>(m, a, job_at(a, item / tiles, kTokens), tile, book, partial);
    m.sync();
    // The job is asked for again: kept over the products it would cost registers that they need.
    const MatvecJob job = job_at(a, item / tiles, kTokens);
    for (int i = m.thread(); i < job.tokens * static_cast<int>(kPackedRows); i += m.threads()) {
      const i64 t = i / kPackedRows, row = tile * kPackedRows + i % kPackedRows;
      if (row >= a.rows) continue;
      f32 first = partial[i], second = partial[kPart + i];
      for (int warp = 1; warp < kMatvecWarps; warp++) {
        first += partial[warp * kTokens * kPackedRows + i];
        if (job.second != nullptr) second += partial[kPart + warp * kTokens * kPackedRows + i];
      }
      const i64 to = job.y_rows != nullptr ? job.y_rows[t] : job.y_first + t;
      a.y[to * a.y_stride + job.y_offset + row] = job.second != nullptr ? silu(first) * second : first;
    }
    m.sync();
  }
}

}  // namespace stoker::cuda

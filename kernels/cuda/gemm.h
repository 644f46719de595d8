// Quantised matrix times many vectors on tensor cores, the work of prompts: packed weights become halves in shared
// memory, 64 rows by 128 columns at a time, and meet as many columns of 64 tokens. Activations are the same 8-bit rows
// that the matrix-vector kernel reads (their codes are exact in halves), so a prompt needs no other form of them.
//
// Errors: weights are rounded to f16; so are activations of formats with blocks of 32, which have a scale per 32 columns
// where sums have one per 128. Sums are float, in the order of columns: a result depends on its row and token alone.
#pragma once

#include "kernels/cuda/matvec.h"

namespace stoker::cuda {

constexpr int kGemmThreads = 256;
constexpr i64 kGemmRows = 64, kGemmTokens = 64, kGemmCols = 128;
constexpr i64 kGemmStride = kGemmCols + 8;  // halves; rows fall into different banks

template <class Block>
constexpr i64 gemm_shared_bytes =
    matvec_book_bytes<Block> + (kGemmRows + kGemmTokens) * kGemmStride * 2 + kGemmTokens * 4;

// Takes MatvecArgs with jobs of any number of tokens, without second matrices. Items of the grid: every job's rows by
// kGemmRows, and its tokens by kGemmTokens, `token_tiles` of them at most.
template <class Block, class Machine>
class Gemm {
 public:
  HOST_DEVICE Gemm(const Machine& m, const MatvecArgs& a)
      : m_(m),
        a_(a),
        book_(m.template shared<u32>(0)),
        weights_(m.template shared<u16>(matvec_book_bytes<Block>)),
        tokens_(weights_ + kGemmRows * kGemmStride),
        factor_(reinterpret_cast<f32*>(tokens_ + kGemmTokens * kGemmStride)) {}

  HOST_DEVICE void load_book() const {
    for (i64 i = m_.thread(); i < D::kBook.words(); i += m_.threads()) book_[i] = a_.books[D::kBook.first + i];
    m_.sync();
  }

  // Rows from `row` and tokens from `token` on.
  HOST_DEVICE void multiply(const MatvecJob& job, i64 row, i64 token) {
    f32 sums[kEights][4] = {};
    for (i64 col = 0; col < a_.cols; col += kGemmCols) {
      place_weights(job, row, col);
      place_tokens(job, token, col);
      m_.sync();
      add_products(sums);
      m_.sync();
    }
    write(job, row, token, sums);
  }

 private:
  using D = Decode<Block>;
  static constexpr int kGroups = Block::kWeights / 32;
  static constexpr int kEights = 4;  // of tokens, of a warp: warps are 4 x 2, each has 16 rows and 32 tokens

  HOST_DEVICE int warp() const { return m_.thread() / kWarp; }
  HOST_DEVICE int lane() const { return m_.thread() % kWarp; }

  // Eight halves at once.
  struct alignas(16) Eight {
    u16 each[8];
  };

  // 32 weights of a lane's row as halves.
  HOST_DEVICE static void to_halves(const u32* w, const WeightGroup& group, u16* to) {
    const f32 d = D::d(w), m = D::m(w);
    UNROLL
    for (int e = 0; e < 4; e++) {
      Eight eight;
      UNROLL
      for (int i = 0; i < 8; i++) {
        const int k = 8 * e + i;
        const i32 code = static_cast<i8>(group.code[k / 4] >> (8 * (k % 4))) - D::kBias;
        f32 value = d * static_cast<f32>(kGroups == 1 ? code : group.scale[k / 16] * code);
        if constexpr (D::kHasOffset) value += m * static_cast<f32>(kGroups == 1 ? 1 : group.offset[k / 16]);
        eight.each[i] = half_bits(value);
      }
      *reinterpret_cast<Eight*>(to + 8 * e) = eight;
    }
  }

  // Warps take two tiles of 32 rows and four groups of 32 columns.
  HOST_DEVICE void place_weights(const MatvecJob& job, i64 row, i64 col) const {
    const i64 tile = row / kPackedRows + warp() % 2;
    const i64 group = col / 32 + warp() / 2, b = group / kGroups, blocks = a_.cols / Block::kWeights;
    u16* to = weights_ + (warp() % 2 * kPackedRows + lane()) * kGemmStride + warp() / 2 * 32;
    if (tile * kPackedRows >= a_.rows || b >= blocks) {
      for (int e = 0; e < 4; e++) *reinterpret_cast<Eight*>(to + 8 * e) = Eight{};
      return;
    }
    u32 w[kBlockWords<Block>];
    load_block<Block>(job.first + (tile * blocks + b) * kPackedRows * i64{sizeof(Block)}, lane(), w);
    UNROLL
    for (int g = 0; g < kGroups; g++)  // the group's number must be known to the compiler
      if (g == group % kGroups) {
        WeightGroup decoded;
        D::group(w, g, book_, decoded);
        to_halves(w, decoded, to);
      }
  }

  // Scales of the four groups of 32 activations from `col` on.
  HOST_DEVICE f32 scale(const ActivationRow& x, i64 col) const {
    return col < a_.cols ? x.d(kGroups == 1 ? col / 32 : col / 256) : 0.0f;
  }

  // Four threads per token, 32 columns each.
  HOST_DEVICE void place_tokens(const MatvecJob& job, i64 first, i64 col) const {
    const i64 t = m_.thread() / 4, token = first + t, part = m_.thread() % 4;
    u16* to = tokens_ + t * kGemmStride + 32 * part;
    const bool real = token < job.tokens;
    i64 row = 0;
    if (real) row = job.x_rows != nullptr ? i64{job.x_rows[token]} : job.x_first + token * job.x_step;
    const ActivationRow x{a_.x + row * a_.x_stride_bytes, static_cast<i32>(a_.cols)};
    f32 largest = 0;
    for (i64 p = 0; p < 4; p++) {
      const f32 d = real ? scale(x, col + 32 * p) : 0.0f;
      if (!(d <= largest)) largest = d;  // no number stays none
    }
    const f32 share = largest > 0 && real ? scale(x, col + 32 * part) / largest : 1.0f;
    if (part == 0) factor_[t] = largest;
    for (int h = 0; h < 2; h++) {
      u32 q[4] = {0, 0, 0, 0};
      if (real && col + 32 * part < a_.cols) load_16(x.q(col + 32 * part + 16 * h), q);
      UNROLL
      for (int e = 0; e < 2; e++) {
        Eight eight;
        UNROLL
        for (int i = 0; i < 8; i++) {
          const int k = 8 * e + i;
          eight.each[i] = half_bits(static_cast<f32>(static_cast<i8>(q[k / 4] >> (8 * (k % 4)))) * share);
        }
        *reinterpret_cast<Eight*>(to + 16 * h + 8 * e) = eight;
      }
    }
  }

  HOST_DEVICE static u32 pair(const u16* at) { return *reinterpret_cast<const u32*>(at); }

  HOST_DEVICE void add_products(f32 (&sums)[kEights][4]) const {
    f32 products[kEights][4] = {};
    const u16* rows = weights_ + (warp() / 2 * 16 + lane() / 4) * kGemmStride + lane() % 4 * 2;
    const u16* tokens = tokens_ + (warp() % 2 * 32 + lane() / 4) * kGemmStride + lane() % 4 * 2;
    UNROLL
    for (int k = 0; k < kGemmCols; k += 16) {
      const u32 a[4] = {pair(rows + k), pair(rows + 8 * kGemmStride + k), pair(rows + k + 8),
                        pair(rows + 8 * kGemmStride + k + 8)};
      UNROLL
      for (int n = 0; n < kEights; n++) {
        const u32 b[2] = {pair(tokens + 8 * n * kGemmStride + k), pair(tokens + 8 * n * kGemmStride + k + 8)};
        m_.multiply(products[n], a, b);
      }
    }
    UNROLL
    for (int n = 0; n < kEights; n++)
      UNROLL
      for (int i = 0; i < 4; i++)
        sums[n][i] += products[n][i] * factor_[warp() % 2 * 32 + 8 * n + lane() % 4 * 2 + i % 2];
  }

  HOST_DEVICE void write(const MatvecJob& job, i64 first_row, i64 first_token, const f32 (&sums)[kEights][4]) const {
    UNROLL
    for (int n = 0; n < kEights; n++)
      UNROLL
      for (int i = 0; i < 4; i++) {
        const i64 row = first_row + warp() / 2 * 16 + lane() / 4 + i / 2 * 8;
        const i64 token = first_token + warp() % 2 * 32 + 8 * n + lane() % 4 * 2 + i % 2;
        if (row >= a_.rows || token >= job.tokens) continue;
        const i64 to = job.y_rows != nullptr ? i64{job.y_rows[token]} : job.y_first + token;
        a_.y[to * a_.y_stride + job.y_offset + row] = sums[n][i];
      }
  }

  const Machine& m_;
  const MatvecArgs& a_;
  u32* book_;
  u16 *weights_, *tokens_;  // [64][kGemmStride] each
  f32* factor_;             // [64]: what a token's products are to be multiplied with
};

// Blocks of kGemmThreads with gemm_shared_bytes<Block>.
template <class Block, class Machine>
HOST_DEVICE void gemm(const Machine& m, const MatvecArgs& a, i64 token_tiles) {
  Gemm<Block, Machine> product(m, a);
  product.load_book();
  const i64 row_tiles = (a.rows + kGemmRows - 1) / kGemmRows;
  const i64 jobs = a.job_count != nullptr ? *a.job_count : a.job_limit;
  for (i64 i = m.block(); i < jobs * row_tiles * token_tiles; i += m.blocks()) {
    // Neighbours share weights.
    const i64 token = i % token_tiles * kGemmTokens, row = i / token_tiles % row_tiles * kGemmRows;
    const MatvecJob job = job_at(a, i / token_tiles / row_tiles, a.uniform.tokens);
    if (token < job.tokens) product.multiply(job, row, token);
  }
}

}  // namespace stoker::cuda

// AVX-512 products of the common block formats with float activations; the others keep those of the avx2 level.
//
// Blocks are unpacked with 256-bit instructions (float_blocks_avx2.h), sixteen codes at a time become weights and meet
// up to four tokens. Per (token, row) four chains of sixteen sums, weights 16 i .. 16 i + 15 of the row in chain i % 4.
// One token meets four rows side by side, a quarter of the tile apart: long streams, which memory likes.
#include "kernels/cpu/float_blocks_avx2.h"
#include "kernels/cpu/matmul_avx512.h"

namespace stoker {
namespace {

template <int kTokens>
struct MultiplyFloats {
  const f32* x[kTokens];
  __m512 sum[kTokens][4];
  int first_chain;  // of the block

  template <bool kOffset>
  __attribute__((always_inline)) static __m512 to_weights(__m128i codes, f32 scale, f32 offset) {
    __m512 value = _mm512_mul_ps(_mm512_set1_ps(scale), _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(codes)));
    if constexpr (kOffset) value = _mm512_add_ps(value, _mm512_set1_ps(offset));
    return value;
  }

  template <bool kOffset>
  __attribute__((always_inline)) void step(int index, __m256i codes, f32 scale0, f32 scale1, f32 offset0, f32 offset1) {
    __m512 low = to_weights<kOffset>(_mm256_castsi256_si128(codes), scale0, offset0);
    __m512 high = to_weights<kOffset>(_mm256_extracti128_si256(codes, 1), scale1, offset1);
    const int chain = (first_chain + 2 * index) % 4;
#pragma GCC unroll 4
    for (int t = 0; t < kTokens; t++) {
      sum[t][chain] = _mm512_fmadd_ps(low, _mm512_loadu_ps(x[t] + 32 * index), sum[t][chain]);
      sum[t][chain + 1] = _mm512_fmadd_ps(high, _mm512_loadu_ps(x[t] + 32 * index + 16), sum[t][chain + 1]);
    }
  }
};

// Rows row, row + step, ... of the tile.
template <class Block, int kTokens, int kRows>
__attribute__((noinline)) void multiply_rows(const MatmulTile& tile, i64 row, i64 step, const f32* const (&x)[kTokens],
                                             f32* const (&y)[kTokens]) {
  const i64 blocks = tile.cols / Block::kWeights;
  const Block* block[kRows];
  MultiplyFloats<kTokens> sink[kRows];
#pragma GCC unroll 4
  for (int r = 0; r < kRows; r++) {
    block[r] = reinterpret_cast<const Block*>(tile.w + (row + r * step) * tile.w_row_bytes);
#pragma GCC unroll 4
    for (int t = 0; t < kTokens; t++) {
      sink[r].x[t] = x[t];
#pragma GCC unroll 4
      for (int k = 0; k < 4; k++) sink[r].sum[t][k] = _mm512_setzero_ps();
    }
  }
  auto multiply = [&](i64 b, int first_chain) __attribute__((always_inline)) {
#pragma GCC unroll 4
    for (int r = 0; r < kRows; r++) {
      const Block& w = block[r][b];
      _mm_prefetch(reinterpret_cast<const char*>(&w) + kPrefetchBytes, _MM_HINT_T0);
      sink[r].first_chain = first_chain;
      unpack_steps(w, sink[r]);
#pragma GCC unroll 4
      for (int t = 0; t < kTokens; t++) sink[r].x[t] += Block::kWeights;
    }
  };
  i64 b = 0;
  if constexpr (Block::kWeights == 32) {
    for (; b + 2 <= blocks; b += 2) {
      multiply(b, 0);
      multiply(b + 1, 2);
    }
  }
  for (; b < blocks; b++) multiply(b, 0);
#pragma GCC unroll 4
  for (int r = 0; r < kRows; r++)
#pragma GCC unroll 4
    for (int t = 0; t < kTokens; t++) {
      __m512(&sum)[4] = sink[r].sum[t];
      y[t][row + r * step] =
          _mm512_reduce_add_ps(_mm512_add_ps(_mm512_add_ps(sum[0], sum[1]), _mm512_add_ps(sum[2], sum[3])));
    }
}

template <class Block, int kTokens>
void multiply_tokens(const MatmulTile& tile, i64 first_token) {
  constexpr int kRows = kTokens == 1 ? 4 : 1;
  const f32* x[kTokens];
  f32* y[kTokens];
#pragma GCC unroll 4
  for (int t = 0; t < kTokens; t++) {
    i64 token = first_token + t;
    i64 from = tile.x_rows != nullptr ? tile.x_rows[token] : token;
    x[t] = reinterpret_cast<const f32*>(tile.x + from * tile.x_stride_bytes);
    y[t] = tile.y + (tile.y_rows != nullptr ? tile.y_rows[token] : token) * tile.y_stride;
  }
  const i64 step = tile.rows / kRows;
  for (i64 row = 0; row < step; row++) multiply_rows<Block, kTokens, kRows>(tile, row, step, x, y);
  for (i64 row = step * kRows; row < tile.rows; row++) multiply_rows<Block, kTokens, 1>(tile, row, 1, x, y);
}

template <class Block>
void multiply_float_blocks(const MatmulTile& tile) {
  i64 token = 0;
  for (; token + 4 <= tile.tokens; token += 4) multiply_tokens<Block, 4>(tile, token);
  for (; token + 2 <= tile.tokens; token += 2) multiply_tokens<Block, 2>(tile, token);
  if (token < tile.tokens) multiply_tokens<Block, 1>(tile, token);
}

}  // namespace

void fill_matmul_exact_avx512(LeafTable& table) {
  auto set = [&table](BlockType type, MatmulLeaf leaf) { table.matmul_f32[static_cast<i64>(type)] = leaf; };
  set(BlockType::Q4_0, multiply_float_blocks<BlockQ4_0>);
  set(BlockType::Q5_0, multiply_float_blocks<BlockQ5_0>);
  set(BlockType::Q8_0, multiply_float_blocks<BlockQ8_0>);
  set(BlockType::IQ4_NL, multiply_float_blocks<BlockIQ4_NL>);
  set(BlockType::Q4_K, multiply_float_blocks<BlockQ4_K>);
  set(BlockType::Q5_K, multiply_float_blocks<BlockQ5_K>);
  set(BlockType::Q6_K, multiply_float_blocks<BlockQ6_K>);
  set(BlockType::IQ4_XS, multiply_float_blocks<BlockIQ4_XS>);
}

}  // namespace stoker

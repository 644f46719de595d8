// AVX2 matmul with float activations: of float weights, and in exact mode of every block format.
//
// One chain of eight partial sums per (token, row). Several rows or tokens go side by side, which hides the
// latency of an FMA and reads each activation once for all rows of a turn. A block is turned into the floats that
// its format defines.
#include "kernels/cpu/float_blocks_avx2.h"
#include "kernels/cpu/matmul_avx2.h"

namespace stoker {
namespace {

// What columns beyond the last multiple of eight need: the first `count` (0 .. 7) lanes are on.
inline __m256i first_lanes(i64 count) {
  const __m256i lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
  return _mm256_cmpgt_epi32(_mm256_set1_epi32(static_cast<int>(count)), lane);
}

// The last `count` (1 .. 7) 16-bit weights, zeros behind them, without reading past the row.
inline __m128i load_words(const u16* p, i64 count) {
  alignas(16) u16 words[8] = {};
  for (i64 i = 0; i < count; i++) words[i] = p[i];
  return _mm_load_si128(reinterpret_cast<const __m128i*>(words));
}

struct WeightF32 {
  using Element = f32;
  static __m256 load(const f32* p) { return _mm256_loadu_ps(p); }
  static __m256 load_tail(const f32* p, i64 count) { return _mm256_maskload_ps(p, first_lanes(count)); }
};

struct WeightF16 {
  using Element = u16;
  static __m256 load(const u16* p) { return _mm256_cvtph_ps(load_128(p)); }
  static __m256 load_tail(const u16* p, i64 count) { return _mm256_cvtph_ps(load_words(p, count)); }
};

struct WeightBF16 {
  using Element = u16;
  static __m256 widen(__m128i words) {
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(words), 16));
  }
  static __m256 load(const u16* p) { return widen(load_128(p)); }
  static __m256 load_tail(const u16* p, i64 count) { return widen(load_words(p, count)); }
};

inline const f32* x_row(const MatmulTile& tile, i64 token) {
  i64 from = tile.x_rows != nullptr ? tile.x_rows[token] : token;
  return reinterpret_cast<const f32*>(tile.x + from * tile.x_stride_bytes);
}

inline f32* y_row(const MatmulTile& tile, i64 token) {
  return tile.y + (tile.y_rows != nullptr ? tile.y_rows[token] : token) * tile.y_stride;
}

// kRows * kTokens chains: eight fill both FMA units of a core.
template <class Weight, int kTokens, int kRows>
__attribute__((noinline)) void multiply_float_rows(const std::byte* w, i64 w_row_bytes, i64 cols,
                                                   const f32* const (&x)[kTokens], f32* const (&y)[kTokens],
                                                   i64 row) {
  using Element = typename Weight::Element;
  const Element* rows[kRows];
  __m256 sum[kRows][kTokens];
#pragma GCC unroll 4
  for (int r = 0; r < kRows; r++) {
    rows[r] = reinterpret_cast<const Element*>(w + r * w_row_bytes);
#pragma GCC unroll 4
    for (int t = 0; t < kTokens; t++) sum[r][t] = _mm256_setzero_ps();
  }
  i64 col = 0;
  for (; col + 8 <= cols; col += 8) {
    __m256 weights[kRows];
#pragma GCC unroll 4
    for (int r = 0; r < kRows; r++) {
      _mm_prefetch(reinterpret_cast<const char*>(rows[r] + col) + kPrefetchBytes, _MM_HINT_T0);
      weights[r] = Weight::load(rows[r] + col);
    }
#pragma GCC unroll 4
    for (int t = 0; t < kTokens; t++) {
      __m256 activations = _mm256_loadu_ps(x[t] + col);
#pragma GCC unroll 4
      for (int r = 0; r < kRows; r++) sum[r][t] = _mm256_fmadd_ps(weights[r], activations, sum[r][t]);
    }
  }
  if (col < cols) {
    __m256i lanes = first_lanes(cols - col);
#pragma GCC unroll 4
    for (int r = 0; r < kRows; r++) {
      __m256 weights = Weight::load_tail(rows[r] + col, cols - col);
#pragma GCC unroll 4
      for (int t = 0; t < kTokens; t++)
        sum[r][t] = _mm256_fmadd_ps(weights, _mm256_maskload_ps(x[t] + col, lanes), sum[r][t]);
    }
  }
#pragma GCC unroll 4
  for (int r = 0; r < kRows; r++)
#pragma GCC unroll 4
    for (int t = 0; t < kTokens; t++) y[t][row + r] = sum_lanes(sum[r][t]);
}

template <class Weight, int kTokens>
void multiply_float_pass(const MatmulTile& tile, i64 first_row, i64 last_row, i64 first_token) {
  constexpr int kRows = kTokens == 4 ? 2 : 4;
  const f32* x[kTokens];
  f32* y[kTokens];
  for (int t = 0; t < kTokens; t++) {
    x[t] = x_row(tile, first_token + t);
    y[t] = y_row(tile, first_token + t);
  }
  const std::byte* w = tile.w + first_row * tile.w_row_bytes;
  i64 row = first_row;
  for (; row + kRows <= last_row; row += kRows, w += kRows * tile.w_row_bytes)
    multiply_float_rows<Weight, kTokens, kRows>(w, tile.w_row_bytes, tile.cols, x, y, row);
  for (; row < last_row; row++, w += tile.w_row_bytes)
    multiply_float_rows<Weight, kTokens, 1>(w, tile.w_row_bytes, tile.cols, x, y, row);
}

template <class Weight>
void multiply_float_tile(const MatmulTile& tile) {
  i64 rows_per_pass = tile.rows;
  if (tile.tokens > 4) rows_per_pass = round_up(kPassBytes / (tile.w_row_bytes + 1) + 1, kRowsPerTurn);
  for (i64 row = 0; row < tile.rows; row += rows_per_pass) {
    i64 last = row + rows_per_pass < tile.rows ? row + rows_per_pass : tile.rows;
    i64 token = 0;
    for (; token + 4 <= tile.tokens; token += 4) multiply_float_pass<Weight, 4>(tile, row, last, token);
    for (; token + 2 <= tile.tokens; token += 2) multiply_float_pass<Weight, 2>(tile, row, last, token);
    if (token < tile.tokens) multiply_float_pass<Weight, 1>(tile, row, last, token);
  }
}

// --- exact mode
// ---------------------------------------------------------------------------------------------------

// One or two tokens multiply the weights as they are unpacked; more share the unpacked block. Either way a (token, row)
// has the same four chains: weights 8 i .. 8 i + 7 go to chain i % 4.
constexpr i64 kExactTokens = 16;

inline f32 sum_chains(const __m256 (&chain)[4]) {
  return sum_lanes(_mm256_add_ps(_mm256_add_ps(chain[0], chain[1]), _mm256_add_ps(chain[2], chain[3])));
}

template <int kTokens>
struct MultiplyFloats {
  const f32* x[kTokens];
  __m256 sum[kTokens][4];

  template <bool kOffset>
  __attribute__((always_inline)) void step(int index, __m256i codes, f32 scale0, f32 scale1, f32 offset0, f32 offset1) {
    for_each_eight<kOffset>(index, codes, scale0, scale1, offset0, offset1, [this](int first, __m256 weights) __attribute__((always_inline)) {
#pragma GCC unroll 4
      for (int t = 0; t < kTokens; t++) {
        __m256& chain = sum[t][first / 8 % 4];
        chain = _mm256_fmadd_ps(weights, _mm256_loadu_ps(x[t] + first), chain);
      }
    });
  }
};

template <class Block, int kTokens>
void multiply_unpacking(const MatmulTile& tile, i64 first_token) {
  for (i64 row = 0; row < tile.rows; row++) {
    const Block* block = reinterpret_cast<const Block*>(tile.w + row * tile.w_row_bytes);
    MultiplyFloats<kTokens> sink;
#pragma GCC unroll 4
    for (int t = 0; t < kTokens; t++) {
      sink.x[t] = x_row(tile, first_token + t);
#pragma GCC unroll 4
      for (__m256& chain : sink.sum[t]) chain = _mm256_setzero_ps();
    }
    for (i64 col = 0; col < tile.cols; col += Block::kWeights, block++) {
      _mm_prefetch(reinterpret_cast<const char*>(block) + kPrefetchBytes, _MM_HINT_T0);
      unpack_steps(*block, sink);
#pragma GCC unroll 4
      for (int t = 0; t < kTokens; t++) sink.x[t] += Block::kWeights;
    }
#pragma GCC unroll 4
    for (int t = 0; t < kTokens; t++)
      y_row(tile, first_token + t)[row] = sum_chains(sink.sum[t]);
  }
}

template <class Block>
void multiply_unpacked(const MatmulTile& tile, i64 row, i64 first_token, i64 tokens) {
  constexpr int kWeights = static_cast<int>(Block::kWeights);
  const Block* block = reinterpret_cast<const Block*>(tile.w + row * tile.w_row_bytes);
  __m256 sum[kExactTokens][4];
  for (i64 t = 0; t < tokens; t++)
    for (__m256& chain : sum[t]) chain = _mm256_setzero_ps();
  for (i64 col = 0; col < tile.cols; col += kWeights, block++) {
    alignas(32) f32 w[kWeights];
    StoreFloats sink{w};
    unpack_steps(*block, sink);
    for (i64 t = 0; t < tokens; t++) {
      const f32* x = x_row(tile, first_token + t) + col;
      __m256 chain[4] = {sum[t][0], sum[t][1], sum[t][2], sum[t][3]};
      for (int i = 0; i < kWeights; i += 32)
#pragma GCC unroll 4
        for (int k = 0; k < 4; k++)
          chain[k] = _mm256_fmadd_ps(_mm256_load_ps(w + i + 8 * k), _mm256_loadu_ps(x + i + 8 * k), chain[k]);
      for (int k = 0; k < 4; k++) sum[t][k] = chain[k];
    }
  }
  for (i64 t = 0; t < tokens; t++) y_row(tile, first_token + t)[row] = sum_chains(sum[t]);
}

template <class Block>
void multiply_exact_tile(const MatmulTile& tile) {
  i64 token = 0;
  for (; tile.tokens - token > 2; token += kExactTokens) {
    i64 tokens = tile.tokens - token < kExactTokens ? tile.tokens - token : kExactTokens;
    for (i64 row = 0; row < tile.rows; row++) multiply_unpacked<Block>(tile, row, token, tokens);
  }
  if (tile.tokens - token == 2) multiply_unpacking<Block, 2>(tile, token);
  if (tile.tokens - token == 1) multiply_unpacking<Block, 1>(tile, token);
}

}  // namespace

void fill_matmul_float_avx2(LeafTable& table) {
  auto set = [&table](BlockType type, MatmulLeaf leaf) { table.matmul_f32[static_cast<i64>(type)] = leaf; };
  set(BlockType::F32, multiply_float_tile<WeightF32>);
  set(BlockType::F16, multiply_float_tile<WeightF16>);
  set(BlockType::BF16, multiply_float_tile<WeightBF16>);
  for_each_block_format([&]<class Block>(BlockType type) { set(type, multiply_exact_tile<Block>); });
}

}  // namespace stoker

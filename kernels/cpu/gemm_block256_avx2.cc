// AVX2 GEMM of Q4_K, Q5_K, Q6_K and IQ4_XS.
//
// Sums of (token, row) are those of the leaves for few tokens (matmul_*_avx2.cc) bit for bit: the same integers in the
// same eight lanes, the same float operations per block. Only unpacking is done elsewhere, once for all tokens.
#include "kernels/cpu/gemm_avx2.h"
#include "kernels/cpu/gemm_unpack_linear.h"
#include "kernels/cpu/gemm_walk.h"

namespace stoker {
namespace {

// What the bytes of a Panel256 are, and what its factors and m do.
enum class Kind256 {
  minimum,  // unsigned; sum += d * total, then += m * (factors . sums of x)
  offset,   // unsigned; sum += d * (total + factors . sums of x)
  sign,     // signed;   sum += d * total
};

template <class BlockT, Kind256 kKind>
struct Gemm256 {
  using Block = BlockT;
  using Panel = Panel256;
  using Activation = ActQ8_256;
  static constexpr i64 kRows = 8, kPanelBlocks = 1, kChunkPanels = 4, kPieceBlocks = kWholeRow, kLanes = 8;
  static constexpr int kTurn = 4;
  using Panels = Panel[kRows][kChunkPanels];
  using Sums = f32[kRows][kLanes];

  static void unpack(const std::byte* w, i64 w_row_bytes, i64 rows, i64 blocks, Panels& out) {
    for (i64 r = 0; r < rows; r++)
      for (i64 b = 0; b < blocks; b++) unpack_block(block_at<Block>(w + r * w_row_bytes, b), out[r][b]);
  }

  struct Tokens {
    const Activation* of[kTurn];
  };
  template <int kTokens>
  static void prepare(const Activation* const (&x)[kTokens], i64, Tokens& out) {
    for (int t = 0; t < kTokens; t++) out.of[t] = x[t];
  }

  template <int kTokens>
  __attribute__((noinline)) static void multiply_row(const Panel* w, const Tokens& x, i64 blocks, i64 row, Sums* sums) {
    const Activation* at[kTokens];
    __m256 sum[kTokens];
#pragma GCC unroll 4
    for (int t = 0; t < kTokens; t++) {
      at[t] = x.of[t];
      sum[t] = _mm256_load_ps(sums[t][row]);
    }
    for (i64 b = 0; b < blocks; b++, w++) {
      __m256i total[kTokens];
      clear(total);
#pragma GCC unroll 8
      for (int step = 0; step < 8; step++) {
        __m256i codes = load_256(w->codes + 32 * step), scale = load_256(w->scales[step]);
        if constexpr (kKind == Kind256::sign)
          add_signed_step(_mm256_abs_epi8(codes), codes, scale, at, 0, step, total);
        else
          add_step(codes, scale, at, 0, step, total);
      }
      __m256 d = _mm256_broadcast_ss(&w->d), m = _mm256_broadcast_ss(&w->m);
      __m256i factors = load_256(w->factors);
#pragma GCC unroll 4
      for (int t = 0; t < kTokens; t++) {
        if constexpr (kKind == Kind256::offset) total[t] = _mm256_add_epi32(total[t], dot_sums(factors, *at[t]));
        sum[t] = add_scaled(d, *at[t], total[t], sum[t]);
        if constexpr (kKind == Kind256::minimum) sum[t] = add_scaled(m, *at[t], dot_sums(factors, *at[t]), sum[t]);
        at[t]++;
      }
    }
#pragma GCC unroll 4
    for (int t = 0; t < kTokens; t++) _mm256_store_ps(sums[t][row], sum[t]);
  }

  template <int kTokens>
  static void multiply(const Panels& w, i64 rows, const Tokens& x, i64 blocks, Sums* sums) {
    for (i64 r = 0; r < rows; r++) multiply_row<kTokens>(w[r], x, blocks, r, sums);
  }

  static f32 total(const Sums& sums, i64 row) { return sum_lanes(_mm256_load_ps(sums[row])); }
};

}  // namespace

void fill_gemm_block256_avx2(LeafTable& table) {
  auto set = [&table](BlockType type, MatmulLeaf leaf) { table.gemm_q8[static_cast<i64>(type)] = leaf; };
  set(BlockType::Q4_K, gemm_tile<Gemm256<BlockQ4_K, Kind256::minimum>>);
  set(BlockType::Q5_K, gemm_tile<Gemm256<BlockQ5_K, Kind256::minimum>>);
  set(BlockType::Q6_K, gemm_tile<Gemm256<BlockQ6_K, Kind256::offset>>);
  set(BlockType::IQ4_XS, gemm_tile<Gemm256<BlockIQ4_XS, Kind256::sign>>);
}

}  // namespace stoker

// AVX2 GEMM of block formats with 8-bit activations.
//
// Sums of (token, row) are those of the leaves for few tokens (matmul_*_avx2.cc) bit for bit: the same integers in the
// same eight lanes, the same float operations per block. Only unpacking is done elsewhere, once for all tokens.
#include "kernels/cpu/gemm_avx2.h"
#include "kernels/cpu/gemm_unpack_book.h"
#include "kernels/cpu/gemm_walk.h"

namespace stoker {
namespace {

// --- super-blocks --------------------------------------------------------------------------------------------------

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
  static constexpr i64 kPanelBlocks = 1, kChunkPanels = 4, kPieceBlocks = kWholeRow, kLanes = 8;
  static constexpr int kTurn = 4;
  using Panels = Panel[kGemmRows][kChunkPanels];
  using Sums = f32[kGemmRows][kLanes];

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

  static f32 total(const f32* sum) { return sum_lanes(_mm256_load_ps(sum)); }
};

// --- blocks of 32 --------------------------------------------------------------------------------------------------

enum class Kind32 {
  sign,       // signed bytes:   sum += d * x.d * total
  offset_8,   // unsigned bytes: the same, total less x.sum in each lane: codes stand for code - 8
  offset_16,  // twice that
  minimum,    // unsigned bytes: sum += x.d * (d * total + m * x.sum), the latter in the lowest lane
};

template <class BlockT, Kind32 kKind>
struct Gemm32 {
  using Block = BlockT;
  using Panel = Panel32;
  using Activation = ActQ8_32;
  static constexpr i64 kPanelBlocks = Panel::kBlocks, kChunkPanels = 4, kPieceBlocks = kWholeRow, kLanes = 8;
  static constexpr i64 kChunk = kPanelBlocks * kChunkPanels;
  static constexpr int kTurn = 4;
  using Panels = Panel[kGemmRows][kChunkPanels];
  using Sums = f32[kGemmRows][kLanes];

  static void unpack(const std::byte* w, i64 w_row_bytes, i64 rows, i64 blocks, Panels& out) {
    for (i64 r = 0; r < rows; r++)
      for (i64 b = 0; b < blocks; b++)
        unpack_block(block_at<Block>(w + r * w_row_bytes, b), out[r][b / kPanelBlocks], b % kPanelBlocks);
  }

  // Aligned copies, and what belongs to blocks side by side.
  struct Tokens {
    alignas(64) i8 q[kTurn][kChunk][32];
    alignas(32) f32 d[kTurn][kChunk];
    alignas(32) f32 sum[kTurn][kChunk];  // minimum
    i32 offset[kTurn][kChunk];           // offset_8, offset_16: what each lane is to lose
  };
  template <int kTokens>
  static void prepare(const Activation* const (&x)[kTokens], i64 blocks, Tokens& out) {
    for (int t = 0; t < kTokens; t++)
#pragma GCC unroll 4
      for (i64 b = 0; b < blocks; b++) {
        const Activation& from = x[t][b];
        store_256(out.q[t][b], load_256(from.q));
        out.d[t][b] = from.d;
        if constexpr (kKind == Kind32::minimum) out.sum[t][b] = static_cast<f32>(from.sum);
        if constexpr (kKind == Kind32::offset_8) out.offset[t][b] = from.sum;
        if constexpr (kKind == Kind32::offset_16) out.offset[t][b] = 2 * from.sum;
      }
  }

  // Block `i` of a panel, `b` of the chunk. scale: d * x.d of the panel's blocks for each row and token, or m * x.sum.
  template <int kRows, int kTokens>
  static inline __attribute__((always_inline)) void add_block(const Panel* const (&w)[kRows], int i, const Tokens& x,
                                                              i64 b, const f32 (&scale)[kRows][kTokens][8],
                                                              __m256 (&sum)[kRows][kTokens]) {
    const __m256i ones = _mm256_set1_epi16(1);
    __m256i codes[kRows], magnitudes[kRows];
#pragma GCC unroll 2
    for (int r = 0; r < kRows; r++) {
      codes[r] = load_256(w[r]->codes[i]);
      magnitudes[r] = _mm256_abs_epi8(codes[r]);
    }
#pragma GCC unroll 4
    for (int t = 0; t < kTokens; t++) {
      const __m256i q = load_256(x.q[t][b]);
      const __m256i offset = _mm256_castps_si256(_mm256_broadcast_ss(reinterpret_cast<const f32*>(&x.offset[t][b])));
#pragma GCC unroll 2
      for (int r = 0; r < kRows; r++) {
        __m256i pairs;
        if constexpr (kKind == Kind32::sign)
          pairs = _mm256_maddubs_epi16(magnitudes[r], _mm256_sign_epi8(q, codes[r]));
        else
          pairs = _mm256_maddubs_epi16(codes[r], q);
        __m256i total = _mm256_madd_epi16(pairs, ones);
        if constexpr (kKind == Kind32::offset_8 || kKind == Kind32::offset_16) total = _mm256_sub_epi32(total, offset);
        if constexpr (kKind == Kind32::minimum) {
          __m256 minimum = _mm256_zextps128_ps256(_mm_load_ss(&scale[r][t][i]));
          __m256 part = _mm256_fmadd_ps(_mm256_broadcast_ss(&w[r]->d[i]), _mm256_cvtepi32_ps(total), minimum);
          sum[r][t] = _mm256_add_ps(sum[r][t], _mm256_mul_ps(part, _mm256_broadcast_ss(&x.d[t][b])));
        } else {
          sum[r][t] = _mm256_fmadd_ps(_mm256_broadcast_ss(&scale[r][t][i]), _mm256_cvtepi32_ps(total), sum[r][t]);
        }
        __asm__("" : "+x"(sum[r][t]));  // here and now, or GCC fills the stack with postponed products
      }
    }
  }

  template <int kRows, int kTokens>
  __attribute__((noinline)) static void multiply_rows(const Panels& panels, i64 row, const Tokens& x, i64 blocks,
                                                      Sums* sums) {
    __m256 sum[kRows][kTokens];
    const Panel* w[kRows];
#pragma GCC unroll 2
    for (int r = 0; r < kRows; r++) {
      w[r] = panels[row + r];
#pragma GCC unroll 4
      for (int t = 0; t < kTokens; t++) sum[r][t] = _mm256_load_ps(sums[t][row + r]);
    }
    for (i64 first = 0; first < blocks; first += 8) {
      alignas(32) f32 scale[kRows][kTokens][8];
#pragma GCC unroll 2
      for (int r = 0; r < kRows; r++)
#pragma GCC unroll 4
        for (int t = 0; t < kTokens; t++) {
          const f32* one = kKind == Kind32::minimum ? w[r]->m : w[r]->d;
          const f32* other = kKind == Kind32::minimum ? x.sum[t] : x.d[t];
          _mm256_store_ps(scale[r][t], _mm256_mul_ps(_mm256_load_ps(one), _mm256_load_ps(other + first)));
        }
      __asm__("" : : : "memory");  // the scales are to be loaded one by one, not shuffled out of registers
      if (blocks - first >= 8) {
#pragma GCC unroll 8
        for (int i = 0; i < 8; i++) add_block<kRows, kTokens>(w, i, x, first + i, scale, sum);
      } else {
        for (int i = 0; first + i < blocks; i++) add_block<kRows, kTokens>(w, i, x, first + i, scale, sum);
      }
#pragma GCC unroll 2
      for (int r = 0; r < kRows; r++) w[r]++;
    }
#pragma GCC unroll 2
    for (int r = 0; r < kRows; r++)
#pragma GCC unroll 4
      for (int t = 0; t < kTokens; t++) _mm256_store_ps(sums[t][row + r], sum[r][t]);
  }

  template <int kTokens>
  static void multiply(const Panels& w, i64 rows, const Tokens& x, i64 blocks, Sums* sums) {
    i64 r = 0;
    for (; r + 2 <= rows; r += 2) multiply_rows<2, kTokens>(w, r, x, blocks, sums);
    if (r < rows) multiply_rows<1, kTokens>(w, r, x, blocks, sums);
  }

  static f32 total(const f32* sum) { return sum_lanes(_mm256_load_ps(sum)); }
};

}  // namespace

void fill_gemm_q8_avx2(LeafTable& table) {
  auto set = [&table](BlockType type, MatmulLeaf leaf) { table.gemm_q8[static_cast<i64>(type)] = leaf; };
  set(BlockType::Q4_0, gemm_tile<Gemm32<BlockQ4_0, Kind32::offset_8>>);
  set(BlockType::Q4_1, gemm_tile<Gemm32<BlockQ4_1, Kind32::minimum>>);
  set(BlockType::Q5_0, gemm_tile<Gemm32<BlockQ5_0, Kind32::offset_16>>);
  set(BlockType::Q5_1, gemm_tile<Gemm32<BlockQ5_1, Kind32::minimum>>);
  set(BlockType::Q8_0, gemm_tile<Gemm32<BlockQ8_0, Kind32::sign>>);
  set(BlockType::IQ4_NL, gemm_tile<Gemm32<BlockIQ4_NL, Kind32::sign>>);
  set(BlockType::MXFP4, gemm_tile<Gemm32<BlockMXFP4, Kind32::sign>>);
  set(BlockType::Q2_K, gemm_tile<Gemm256<BlockQ2_K, Kind256::minimum>>);
  set(BlockType::Q3_K, gemm_tile<Gemm256<BlockQ3_K, Kind256::offset>>);
  set(BlockType::Q4_K, gemm_tile<Gemm256<BlockQ4_K, Kind256::minimum>>);
  set(BlockType::Q5_K, gemm_tile<Gemm256<BlockQ5_K, Kind256::minimum>>);
  set(BlockType::Q6_K, gemm_tile<Gemm256<BlockQ6_K, Kind256::offset>>);
  set(BlockType::IQ2_XXS, gemm_tile<Gemm256<BlockIQ2_XXS, Kind256::sign>>);
  set(BlockType::IQ2_XS, gemm_tile<Gemm256<BlockIQ2_XS, Kind256::sign>>);
  set(BlockType::IQ2_S, gemm_tile<Gemm256<BlockIQ2_S, Kind256::sign>>);
  set(BlockType::IQ3_XXS, gemm_tile<Gemm256<BlockIQ3_XXS, Kind256::sign>>);
  set(BlockType::IQ3_S, gemm_tile<Gemm256<BlockIQ3_S, Kind256::sign>>);
  set(BlockType::IQ4_XS, gemm_tile<Gemm256<BlockIQ4_XS, Kind256::sign>>);
  set(BlockType::IQ1_S, gemm_tile<Gemm256<BlockIQ1_S, Kind256::offset>>);
  set(BlockType::IQ1_M, gemm_tile<Gemm256<BlockIQ1_M, Kind256::offset>>);
}

}  // namespace stoker

// AVX2 GEMM of the code book formats and of Q2_K and Q3_K, on top of what unpacks them for few tokens
// (matmul_turned_avx2.h).
//
// A panel holds a block's codes in the order of the parts. Magnitudes with signs become unsigned codes weight + kBias;
// the sums of each run of parts start at -kBias * (the activations that they meet), so that they are what the leaf has,
// lane by lane: the same integers, the same float operations in the same order, the same pieces of the columns, the
// same bits.
#pragma once

#include "kernels/cpu/gemm_walk.h"
#include "kernels/cpu/matmul_turned_avx2.h"

namespace stoker {
namespace {

template <class Format>
struct alignas(32) TurnedPanel {
  u8 codes[2][4][32];
  i16 scales[2][4 / Format::kRun][16];
  typename Format::Start start;
  f32 d, minus_min;
};

template <class Format>
struct GemmTurned {
  using Block = typename Format::Block;
  using Panel = TurnedPanel<Format>;
  using Activation = ActQ8_256;
  // Turning the activations takes as long as four rows of products: many rows share it, a block at a time in L1.
  static constexpr i64 kRows = 32, kPanelBlocks = 1, kChunkPanels = 1, kPieceBlocks = kChunkBlocks, kLanes = 8;
  static constexpr int kTurn = 4, kRun = Format::kRun;
  static_assert(kPieceBlocks % kChunkPanels == 0);
  using Panels = Panel[kRows][kChunkPanels];
  using Sums = f32[kRows][kLanes];

  static void unpack_block(const Block& w, Panel& out) {
    typename Format::Prepared prepared;
    Format::prepare(w, prepared);
#pragma GCC unroll 4
    for (int part = 0; part < 8; part += 2) {
      const int h = part / 4, k = part % 4;
      __m256i codes[2];
      Format::codes(w, prepared, h, k, codes);
#pragma GCC unroll 2
      for (int i = 0; i < 2; i++) {
        if constexpr (Format::kBias != 0)
          codes[i] = _mm256_add_epi8(_mm256_sign_epi8(codes[i], Format::signs(prepared, h, k + i)),
                                     _mm256_set1_epi8(Format::kBias));
        store_256(out.codes[h][k + i], codes[i]);
      }
      if (k % kRun == 0) store_256(out.scales[h][k / kRun], Format::scales(prepared, h, k));
    }
    out.start = prepared.start;
  }

  static void unpack(const std::byte* w, i64 w_row_bytes, i64 rows, i64 blocks, Panels& out) {
    for (i64 row = 0; row < rows; row += 4)
      for (i64 b = 0; b < blocks; b++) {
        const Block* block[4];
        for (i64 r = 0; r < 4; r++)
          block[r] = &block_at<Block>(w + (row + r < rows ? row + r : rows - 1) * w_row_bytes, b);
        alignas(16) f32 d[4], minus_min[4] = {};
        _mm_store_ps(d, _mm_mul_ps(Format::d(block), _mm_set1_ps(Format::kFactor)));
        if constexpr (kHasMinimum<Format>)
          _mm_store_ps(minus_min, _mm_xor_ps(Format::dmin(block), _mm_set1_ps(-0.0f)));
        for (i64 r = 0; r < 4 && row + r < rows; r++) {
          unpack_block(*block[r], out[row + r][b]);
          out[row + r][b].d = d[r];
          out[row + r][b].minus_min = minus_min[r];
        }
      }
  }

  struct Token : Format::Turned {
    i16 run_start[2][4 / kRun][16];  // with kBias
  };
  struct Tokens {
    Token x[kTurn][kChunkPanels];
  };
  template <int kTokens>
  static void prepare(const Activation* const (&x)[kTokens], i64 blocks, Tokens& out) {
    for (int t = 0; t < kTokens; t++)
      for (i64 b = 0; b < blocks; b++) {
        Token& to = out.x[t][b];
        turn(x[t][b], to);
        if constexpr (Format::kBias != 0)
#pragma GCC unroll 4
          for (int part = 0; part < 8; part += kRun) {
            __m256i sum = _mm256_setzero_si256();
#pragma GCC unroll 4
            for (int i = part; i < part + kRun; i++)
              sum = _mm256_sub_epi16(
                  sum, _mm256_maddubs_epi16(_mm256_set1_epi8(Format::kBias), load_256(to.q[part / 4][i % 4])));
            store_256(to.run_start[part / 4][part % 4 / kRun], sum);
          }
      }
  }

  template <int kTokens>
  __attribute__((noinline)) static void multiply_row(const Panel* w, const Tokens& tokens, i64 blocks, i64 row,
                                                     Sums* sums) {
    __m256 sum[kTokens];
#pragma GCC unroll 4
    for (int t = 0; t < kTokens; t++) sum[t] = _mm256_load_ps(sums[t][row]);
    for (i64 b = 0; b < blocks; b++, w++) {
      __m256i total[kTokens];
#pragma GCC unroll 4
      for (int t = 0; t < kTokens; t++) total[t] = Format::start(w->start, tokens.x[t][b]);
#pragma GCC unroll 4
      for (int part = 0; part < 8; part += kRun) {
        const int h = part / 4, k = part % 4;
        const __m256i scales = load_256(w->scales[h][k / kRun]);
#pragma GCC unroll 4
        for (int t = 0; t < kTokens; t++) {
          const Token& x = tokens.x[t][b];
          __m256i run;
          if constexpr (Format::kBias != 0) run = load_256(x.run_start[h][k / kRun]);
#pragma GCC unroll 4
          for (int i = 0; i < kRun; i++) {
            const __m256i pairs = _mm256_maddubs_epi16(load_256(w->codes[h][k + i]), load_256(x.q[h][k + i]));
            run = i == 0 && Format::kBias == 0 ? pairs : _mm256_add_epi16(run, pairs);
          }
          add_now_i32(total[t], _mm256_madd_epi16(run, scales));
        }
      }
      auto add = [&](const f32& d, int t, __m256i integers) __attribute__((always_inline)) {
        const __m256 both = _mm256_mul_ps(_mm256_broadcast_ss(&d), _mm256_broadcast_ss(&tokens.x[t][b].d));
        sum[t] = _mm256_fmadd_ps(both, _mm256_cvtepi32_ps(integers), sum[t]);
      };
#pragma GCC unroll 4
      for (int t = 0; t < kTokens; t++) {
        add(w->d, t, total[t]);
        if constexpr (kHasMinimum<Format>) add(w->minus_min, t, Format::minimum(w->start, tokens.x[t][b]));
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

// `Few` multiplies few tokens, `Many` unpacks for the GEMM: the same format, perhaps with other look-ups.
template <class Few, class Many = Few>
void set_turned_leaves(LeafTable& table, BlockType type) {
  table.matmul_q8[static_cast<i64>(type)] = multiply_turned_tile<Few>;
  table.gemm_q8[static_cast<i64>(type)] = gemm_tile<GemmTurned<Many>>;
}

}  // namespace
}  // namespace stoker

// AVX-512 GEMM of the code book formats, on top of what unpacks them for few tokens (matmul_codebook_tile_avx512.h).
//
// A panel holds a block's codes in the format's order and its scales; the products of a block are four
// vpdpbusd per row and token. Same sums, same order, same pieces of the columns as there: the same bits.
#pragma once

#include "kernels/cpu/gemm_walk.h"
#include "kernels/cpu/matmul_codebook_tile_avx512.h"

namespace stoker {
namespace {

template <class Format>
struct alignas(64) CodebookPanel {
  u8 codes[4][64];
  f32 scales[Format::kScales][16];
};

template <class Format>
struct GemmCodebook {
  using Block = typename Format::Block;
  using Panel = CodebookPanel<Format>;
  using Activation = ActQ8_256;
  static constexpr i64 kRows = 8, kPanelBlocks = 1, kChunkPanels = 4, kPieceBlocks = kChunkBlocks, kLanes = 16;
  static constexpr int kTurn = 4, kShare = 4 / Format::kScales;
  static_assert(kPieceBlocks % kChunkPanels == 0);
  using Panels = Panel[kRows][kChunkPanels];
  using Sums = f32[kRows][kLanes];

  // Rows kRow and kRow + 1.
  template <int kRow>
  static void store(const Format& w, Panel& first, Panel& second) {
    auto part = [&]<int kPart>() __attribute__((always_inline)) {
      __m512i codes[2];
      w.template codes<kPart, kRow>(codes);
      _mm512_store_si512(first.codes[kPart], codes[0]);
      _mm512_store_si512(second.codes[kPart], codes[1]);
    };
    part.template operator()<0>();
    part.template operator()<1>();
    part.template operator()<2>();
    part.template operator()<3>();
#pragma GCC unroll 2
    for (int s = 0; s < Format::kScales; s++) {
      _mm512_store_ps(first.scales[s], w.scales[kRow][s]);
      _mm512_store_ps(second.scales[s], w.scales[kRow + 1][s]);
    }
  }

  // Rows that are looked up together but do not exist repeat the last one; their panels are not used.
  __attribute__((noinline, flatten)) static void unpack(const std::byte* w, i64 w_row_bytes, i64 rows, i64 blocks,
                                                        Panels& out) {
    constexpr int kRows = Format::kRows;
    static_assert(kRows % kRows == 0);
    for (i64 row = 0; row < rows; row += kRows)
      for (i64 b = 0; b < blocks; b++) {
        const Block* block[kRows];
        for (i64 r = 0; r < kRows; r++) {
          const i64 real = row + r < rows ? row + r : rows - 1;
          block[r] = reinterpret_cast<const Block*>(w + real * w_row_bytes) + b;
        }
        const Format unpacked(block);
        store<0>(unpacked, out[row][b], out[row + 1][b]);
        if constexpr (kRows == 4) store<2>(unpacked, out[row + 2][b], out[row + 3][b]);
      }
  }

  struct Tokens {
    alignas(64) Turned<Format> x[kTurn][kChunkPanels];
    f32 d[kTurn][kChunkPanels];
  };
  template <int kTokens>
  static void prepare(const Activation* const (&x)[kTokens], i64 blocks, Tokens& out) {
    for (int t = 0; t < kTokens; t++)
      for (i64 b = 0; b < blocks; b++) {
        turn(x[t][b], out.x[t][b]);
        out.d[t][b] = x[t][b].d;
      }
  }

  template <int kRows, int kTokens>
  __attribute__((noinline)) static void multiply_rows(const Panels& panels, i64 row, const Tokens& x, i64 blocks,
                                                      Sums* sums) {
    __m512 sum[kRows][kTokens];
#pragma GCC unroll 2
    for (int r = 0; r < kRows; r++)
#pragma GCC unroll 4
      for (int t = 0; t < kTokens; t++) sum[r][t] = _mm512_load_ps(sums[t][row + r]);
    for (i64 b = 0; b < blocks; b++) {
#pragma GCC unroll 2
      for (int s = 0; s < Format::kScales; s++) {
        __m512i total[kRows][kTokens];
#pragma GCC unroll 2
        for (int r = 0; r < kRows; r++)
#pragma GCC unroll 4
          for (int t = 0; t < kTokens; t++) total[r][t] = _mm512_load_si512(x.x[t][b].start[s]);
#pragma GCC unroll 4
        for (int part = s * kShare; part < (s + 1) * kShare; part++)
#pragma GCC unroll 4
          for (int t = 0; t < kTokens; t++) {
            __m512i activations = _mm512_load_si512(x.x[t][b].q[part]);
#pragma GCC unroll 2
            for (int r = 0; r < kRows; r++)
              total[r][t] =
                  _mm512_dpbusd_epi32(total[r][t], _mm512_load_si512(panels[row + r][b].codes[part]), activations);
          }
#pragma GCC unroll 2
        for (int r = 0; r < kRows; r++)
#pragma GCC unroll 4
          for (int t = 0; t < kTokens; t++) {
            __m512 scale = _mm512_mul_ps(_mm512_load_ps(panels[row + r][b].scales[s]), _mm512_set1_ps(x.d[t][b]));
            sum[r][t] = _mm512_fmadd_ps(scale, _mm512_cvtepi32_ps(total[r][t]), sum[r][t]);
          }
      }
    }
#pragma GCC unroll 2
    for (int r = 0; r < kRows; r++)
#pragma GCC unroll 4
      for (int t = 0; t < kTokens; t++) _mm512_store_ps(sums[t][row + r], sum[r][t]);
  }

  template <int kTokens>
  static void multiply(const Panels& w, i64 rows, const Tokens& x, i64 blocks, Sums* sums) {
    i64 r = 0;
    for (; r + 2 <= rows; r += 2) multiply_rows<2, kTokens>(w, r, x, blocks, sums);
    if (r < rows) multiply_rows<1, kTokens>(w, r, x, blocks, sums);
  }

  static f32 total(const Sums& sums, i64 row) { return _mm512_reduce_add_ps(_mm512_load_ps(sums[row])); }
};

// What a code book format sets: its product with few tokens and with many.
template <class Format>
void set_leaves(LeafTable& table, BlockType type) {
  table.matmul_q8[static_cast<i64>(type)] = multiply_tile<Format>;
  table.gemm_q8[static_cast<i64>(type)] = gemm_tile<GemmCodebook<Format>>;
}

}  // namespace
}  // namespace stoker

// AVX2 GEMM of the formats with blocks of 32 weights. block32_avx2.h says why it has the bits of the product with few
// tokens.
//
// Eight rows lie in the lanes: a block becomes registers that hold the same few weights of each row, and the tokens'
// bytes are broadcast. So a block of eight rows has one conversion and one scale. Codes of up to 5 bits are multiplied
// four at a time and added as i16 while they fit; bytes are widened, as are the activations then, and multiplied in
// pairs: |w| with the signs moved to x takes three instructions for four weights, and this takes two.
#include "kernels/cpu/block32_avx2.h"
#include "kernels/cpu/gemm_avx2.h"
#include "kernels/cpu/gemm_walk.h"
#include "kernels/cpu/transpose_avx2.h"

namespace stoker {
namespace {

// The lane of four bytes at p in all lanes.
inline __m256i broadcast_lane(const void* p) {
  return _mm256_castps_si256(_mm256_broadcast_ss(static_cast<const f32*>(p)));
}

// Eight rows of eight lanes -> eight columns, 32 bytes apart.
inline void store_columns(__m256i (&row)[8], u8* out) {
  transpose_8x8(row);
#pragma GCC unroll 8
  for (int i = 0; i < 8; i++) store_256(out + 32 * i, row[i]);
}

template <class Format>
struct GemmBlock32 {
  static constexpr bool kWide = Format::kCodes == Codes::bytes;
  static constexpr int kRegisters = kWide ? 16 : 8;  // of a block
  // Registers of eight rows that meet one token's bytes as operands in memory, or tokens that meet one register:
  // vpmaddubsw takes only signed bytes, the activations, from memory.
  static constexpr int kVectors = kWide ? 4 : 1;

  using Block = typename Format::Block;
  using Activation = ActQ8_32;
  // A block of eight rows.
  struct alignas(32) Panel {
    u8 codes[kRegisters][32];  // [.][8 rows][4 bytes, or 2 i16]
    f32 d[8], m[8];
  };
  static constexpr i64 kRows = 8 * kVectors, kPanelBlocks = 1, kChunkPanels = kWide ? 8 : 16,
                       kPieceBlocks = kWholeRow;
  static constexpr int kTurn = 4;
  using Panels = Panel[kVectors][kChunkPanels];
  using Sums = f32[2][kRows];  // of even and of odd blocks
  static_assert(kChunkPanels % 2 == 0);

  // Of eight rows; those that do not exist repeat the first.
  static void unpack_rows(const std::byte* w, i64 w_row_bytes, i64 rows, i64 blocks, Panel* out) {
    for (i64 b = 0; b < blocks; b++) {
      const Block* block[8];
      __m256i codes[8];
#pragma GCC unroll 8
      for (int r = 0; r < 8; r++) {
        block[r] = &block_at<Block>(w + (r < rows ? r : 0) * w_row_bytes, b);
        codes[r] = Format::codes(*block[r]);
      }
      Panel& to = out[b];
      if constexpr (kWide) {
        __m256i half[8];
#pragma GCC unroll 8
        for (int r = 0; r < 8; r++) half[r] = _mm256_cvtepi8_epi16(_mm256_castsi256_si128(codes[r]));
        store_columns(half, to.codes[0]);
#pragma GCC unroll 8
        for (int r = 0; r < 8; r++) half[r] = _mm256_cvtepi8_epi16(_mm256_extracti128_si256(codes[r], 1));
        store_columns(half, to.codes[8]);
      } else {
        store_columns(codes, to.codes[0]);
      }
      _mm256_store_ps(to.d, Format::scales(block));
      if constexpr (Format::kMinimum) _mm256_store_ps(to.m, Format::minima(block));
    }
  }
  static void unpack(const std::byte* w, i64 w_row_bytes, i64 rows, i64 blocks, Panels& out) {
    for (i64 v = 0; 8 * v < rows; v++)
      unpack_rows(w + 8 * v * w_row_bytes, w_row_bytes, rows - 8 * v, blocks, out[v]);
  }

  struct Tokens {
    const Activation* of[kTurn];
    alignas(32) i16 wide[kTurn][kWide ? kChunkPanels : 1][32];  // kWide
  };
  template <int kTokens>
  static void prepare(const Activation* const (&x)[kTokens], i64 blocks, Tokens& out) {
    for (int t = 0; t < kTokens; t++) {
      out.of[t] = x[t];
      if constexpr (kWide)
        for (i64 b = 0; b < blocks; b++) {
          store_256(out.wide[t][b], _mm256_cvtepi8_epi16(load_128(x[t][b].q)));
          store_256(out.wide[t][b] + 16, _mm256_cvtepi8_epi16(load_128(x[t][b].q + 16)));
        }
    }
  }

  // The integer sums of eight rows and each token.
  template <int kOf, int kTokens>
  static inline __attribute__((always_inline)) void dot(const Panel* const (&w)[kOf], const u8* const (&x)[kTokens],
                                                        __m256i (&total)[kOf][kTokens]) {
    // Registers whose products may be added before a sum of i16 is widened.
    constexpr int kGroup = kWide ? kRegisters : Format::kCodes == Codes::nibble ? 8 : 4;
    const __m256i ones = _mm256_set1_epi16(1);
#pragma GCC unroll 2
    for (int first = 0; first < kRegisters; first += kGroup) {
      __m256i sum[kOf][kTokens];
#pragma GCC unroll 16
      for (int i = first; i < first + kGroup; i++)
#pragma GCC unroll 4
        for (int v = 0; v < kOf; v++)
#pragma GCC unroll 4
          for (int t = 0; t < kTokens; t++) {
            const __m256i codes = load_256(w[v]->codes[i]), part = broadcast_lane(x[t] + 4 * i);
            const __m256i product =
                kWide ? _mm256_madd_epi16(codes, part) : _mm256_maddubs_epi16(codes, part);
            if (i == first)
              sum[v][t] = product;
            else if constexpr (kWide)
              add_now_i32(sum[v][t], product);
            else
              add_now_i16(sum[v][t], product);
          }
#pragma GCC unroll 4
      for (int v = 0; v < kOf; v++)
#pragma GCC unroll 4
        for (int t = 0; t < kTokens; t++) {
          if constexpr (!kWide) sum[v][t] = _mm256_madd_epi16(sum[v][t], ones);
          total[v][t] = first == 0 ? sum[v][t] : _mm256_add_epi32(total[v][t], sum[v][t]);
        }
    }
  }

  // Block b of the chunk: kOf times eight rows from `vector` on, kTokens tokens from `token` on.
  template <int kOf, int kTokens>
  static inline __attribute__((always_inline)) void add_block(const Panels& panels, i64 vector, const Tokens& x,
                                                              int token, i64 b, Sums* sums) {
    const Panel* w[kOf];
#pragma GCC unroll 4
    for (int v = 0; v < kOf; v++) w[v] = &panels[vector + v][b];
    const u8* bytes[kTokens];
#pragma GCC unroll 4
    for (int t = 0; t < kTokens; t++)
      bytes[t] = reinterpret_cast<const u8*>(kWide ? static_cast<const void*>(x.wide[token + t][b])
                                                   : x.of[token + t][b].q);
    __m256i total[kOf][kTokens];
    dot<kOf, kTokens>(w, bytes, total);
#pragma GCC unroll 4
    for (int t = 0; t < kTokens; t++) {
      const Activation& activation = x.of[token + t][b];
      const __m256 x_d = _mm256_broadcast_ss(&activation.d);
#pragma GCC unroll 4
      for (int v = 0; v < kOf; v++) {
        f32* at = sums[token + t][b % 2] + 8 * (vector + v);
        if constexpr (Format::kOffset != 0)
          total[v][t] = _mm256_sub_epi32(total[v][t], _mm256_set1_epi32(activation.sum * Format::kOffset));
        __m256 sum = _mm256_load_ps(at);
        sum = _mm256_fmadd_ps(_mm256_mul_ps(_mm256_load_ps(w[v]->d), x_d), _mm256_cvtepi32_ps(total[v][t]), sum);
        if constexpr (Format::kMinimum) {
          const __m256 x_sum = _mm256_cvtepi32_ps(_mm256_set1_epi32(activation.sum));
          sum = _mm256_fmadd_ps(_mm256_load_ps(w[v]->m), _mm256_mul_ps(x_d, x_sum), sum);
        }
        _mm256_store_ps(at, sum);
      }
    }
  }

  template <int kTokens>
  __attribute__((noinline)) static void multiply(const Panels& w, i64 rows, const Tokens& x, i64 blocks, Sums* sums) {
    if constexpr (kVectors == 1) {
      for (i64 b = 0; b < blocks; b++) add_block<1, kTokens>(w, 0, x, 0, b, sums);
    } else {
      for (int t = 0; t < kTokens; t++)
        if (rows > kRows - 8) {
          for (i64 b = 0; b < blocks; b++) add_block<kVectors, 1>(w, 0, x, t, b, sums);
        } else {
          for (i64 v = 0; 8 * v < rows; v++)
            for (i64 b = 0; b < blocks; b++) add_block<1, 1>(w, v, x, t, b, sums);
        }
    }
  }

  static f32 total(const Sums& sums, i64 row) { return sums[0][row] + sums[1][row]; }
};

}  // namespace

void fill_gemm_block32_avx2(LeafTable& table) {
  auto set = [&table](BlockType type, MatmulLeaf leaf) { table.gemm_q8[static_cast<i64>(type)] = leaf; };
  set(BlockType::Q4_0, gemm_tile<GemmBlock32<Q4_0>>);
  set(BlockType::Q4_1, gemm_tile<GemmBlock32<Q4_1>>);
  set(BlockType::Q5_0, gemm_tile<GemmBlock32<Q5_0>>);
  set(BlockType::Q5_1, gemm_tile<GemmBlock32<Q5_1>>);
  set(BlockType::Q8_0, gemm_tile<GemmBlock32<Q8_0>>);
  set(BlockType::IQ4_NL, gemm_tile<GemmBlock32<IQ4_NL>>);
  set(BlockType::MXFP4, gemm_tile<GemmBlock32<MXFP4>>);
}

}  // namespace stoker

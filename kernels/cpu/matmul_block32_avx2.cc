// AVX2 matmul of the formats with blocks of 32 weights (block32_avx2.h).
//
// Two blocks of four rows go together: eight integer sums are folded into one register, which then meets its eight
// scales at once. A conversion and a scale for every block cost as much as its products.
#include "kernels/cpu/block32_avx2.h"
#include "kernels/cpu/matmul_avx2.h"

namespace stoker {
namespace {

// `one` in the four lower lanes, `other` in the upper ones.
inline __m256 both(const f32& one, const f32& other) {
  return _mm256_blend_ps(_mm256_broadcast_ss(&one), _mm256_broadcast_ss(&other), 0xf0);
}
inline __m256i both(i32 one, i32 other) {
  return _mm256_blend_epi32(_mm256_set1_epi32(one), _mm256_set1_epi32(other), 0xf0);
}

// Four registers of codes times x, each half of a register summed by lanes 0 .. 3 and 4 .. 7 apart.
template <Codes kCodes>
inline __attribute__((always_inline)) __m256i dots_by_half(const __m256i* codes, __m256i x) {
  const __m256i ones = _mm256_set1_epi16(1);
  __m256i dot[4];
#pragma GCC unroll 4
  for (int i = 0; i < 4; i++) {
    if constexpr (kCodes == Codes::bytes) {
      // |-128| is 128 as an unsigned byte (2 * 128 * 127 fits i16); x is never -128, so its negation exists.
      __m256i pairs = _mm256_maddubs_epi16(_mm256_abs_epi8(codes[i]), _mm256_sign_epi8(x, codes[i]));
      dot[i] = _mm256_madd_epi16(pairs, ones);
    } else {
      dot[i] = _mm256_maddubs_epi16(codes[i], x);
    }
  }
  if constexpr (kCodes == Codes::bytes)
    return _mm256_hadd_epi32(_mm256_hadd_epi32(dot[0], dot[1]), _mm256_hadd_epi32(dot[2], dot[3]));
  __m256i eights = _mm256_hadd_epi16(_mm256_hadd_epi16(dot[0], dot[1]), _mm256_hadd_epi16(dot[2], dot[3]));
  return _mm256_madd_epi16(eights, ones);
}

template <class Format>
struct Block32Turn {
  using Activation = ActQ8_32;
  using Block = typename Format::Block;

  // Blocks `one` and `other` of four rows. Lanes 0 .. 3 of a sum are the rows' chains of even blocks.
  template <int kTokens>
  static inline __attribute__((always_inline)) void add_blocks(const std::byte* const (&w)[4], i64 one, i64 other,
                                                               const Activation* const (&x)[kTokens],
                                                               __m256 (&sum)[kTokens]) {
    const Block* block[8];
    __m256i codes[8];
#pragma GCC unroll 4
    for (int r = 0; r < 4; r++) {
      block[r] = &fetch<Block>(w[r], one);
      block[4 + r] = &fetch<Block>(w[r], other);
    }
#pragma GCC unroll 8
    for (int i = 0; i < 8; i++) codes[i] = Format::codes(*block[i]);
    const __m256 d = Format::scales(block);
    __m256 m;
    if constexpr (Format::kMinimum) m = Format::minima(block);
#pragma GCC unroll 1
    for (int t = 0; t < kTokens; t++) {
      const Activation &a = x[t][one], &b = x[t][other];
      const __m256i first = dots_by_half<Format::kCodes>(codes, load_256(a.q));
      const __m256i second = dots_by_half<Format::kCodes>(codes + 4, load_256(b.q));
      __m256i total = _mm256_add_epi32(_mm256_permute2x128_si256(first, second, 0x20),
                                       _mm256_permute2x128_si256(first, second, 0x31));
      if constexpr (Format::kOffset != 0)
        total = _mm256_sub_epi32(total, _mm256_mullo_epi32(both(a.sum, b.sum), _mm256_set1_epi32(Format::kOffset)));
      const __m256 x_d = both(a.d, b.d);
      sum[t] = _mm256_fmadd_ps(_mm256_mul_ps(d, x_d), _mm256_cvtepi32_ps(total), sum[t]);
      if constexpr (Format::kMinimum)
        sum[t] = _mm256_fmadd_ps(m, _mm256_mul_ps(x_d, _mm256_cvtepi32_ps(both(a.sum, b.sum))), sum[t]);
    }
  }

  // `rows` (1 .. 4) rows, `step` apart. Those that do not exist repeat the first.
  template <int kTokens>
  __attribute__((noinline)) static void multiply(const MatmulTile& tile, i64 row, i64 step, i64 rows, i64 blocks,
                                                 const Activation* const (&x)[kTokens], f32* const (&y)[kTokens]) {
    const std::byte* w[4];
    for (i64 r = 0; r < 4; r++) w[r] = tile.w + (row + (r < rows ? r : 0) * step) * tile.w_row_bytes;
    __m256 sum[kTokens];
#pragma GCC unroll 4
    for (int t = 0; t < kTokens; t++) sum[t] = _mm256_setzero_ps();
    i64 b = 0;
    for (; b + 2 <= blocks; b += 2) add_blocks<kTokens>(w, b, b + 1, x, sum);
    if (b < blocks) {  // the chains of odd blocks stay as they are
      __m256 before[kTokens];
#pragma GCC unroll 4
      for (int t = 0; t < kTokens; t++) before[t] = sum[t];
      add_blocks<kTokens>(w, b, b, x, sum);
#pragma GCC unroll 4
      for (int t = 0; t < kTokens; t++) sum[t] = _mm256_blend_ps(sum[t], before[t], 0xf0);
    }
    for (int t = 0; t < kTokens; t++) {
      alignas(16) f32 total[4];
      _mm_store_ps(total, _mm_add_ps(_mm256_castps256_ps128(sum[t]), _mm256_extractf128_ps(sum[t], 1)));
      for (i64 r = 0; r < rows; r++) y[t][row + r * step] = total[r];
    }
  }
};

}  // namespace

void fill_matmul_block32_avx2(LeafTable& table) {
  auto set = [&table](BlockType type, MatmulLeaf leaf) { table.matmul_q8[static_cast<i64>(type)] = leaf; };
  set(BlockType::Q4_0, walk_rows<Block32Turn<Q4_0>>);
  set(BlockType::Q4_1, walk_rows<Block32Turn<Q4_1>>);
  set(BlockType::Q5_0, walk_rows<Block32Turn<Q5_0>>);
  set(BlockType::Q5_1, walk_rows<Block32Turn<Q5_1>>);
  set(BlockType::Q8_0, walk_rows<Block32Turn<Q8_0>>);
  set(BlockType::IQ4_NL, walk_rows<Block32Turn<IQ4_NL>>);
  set(BlockType::MXFP4, walk_rows<Block32Turn<MXFP4>>);
}

}  // namespace stoker

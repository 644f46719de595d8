// How the AVX2 kernels of the code book formats (IQ1, IQ2, IQ3) and of Q2_K and Q3_K walk a MatmulTile.
//
// A register holds four times 8 weights. Here these belong to four groups of weights with a scale each, so that what
// stands in one place of several registers has one scale: products are added in i16 first and meet their scale once.
// The activations are put into that order too, once per tile (`TurnedBlock`, `PlanesBlock`).
//
// A format supplies:
//
//   struct Format {
//     using Block = ...;              // 256 weights
//     using Turned = ...;             // TurnedBlock, SummedBlock or PlanesBlock: what part (h, k) is, h < 2, k < 4
//     static constexpr f32 kFactor;   // a weight is kFactor * d * scale * (code with its sign + what start() adds)
//     static constexpr int kRun;      // parts that have one scale and whose products fit an i16 together: 2 or 4
//     static constexpr int kBias;     // 0: codes are what they are. Else magnitudes that have signs(), and up to kBias
//     struct Prepared;                // what is unpacked ahead of the products, because it is a long chain of steps
//     static void prepare(const Block& w, Prepared& out);
//     // Parts (h, k) and (h, k + 1); bytes.
//     static void codes(const Block& w, const Prepared& p, int h, int k, __m256i (&out)[2]);
//     static __m256i signs(const Prepared& p, int h, int k);  // negative bytes where the weight is, else positive
//     // For the sums of parts (h, k) .. (h, k + kRun - 1), words.
//     static __m256i scales(const Prepared& p, int h, int k);
//     struct Start;                   // what start() needs of a block; one is `p.start`
//     static __m256i start(const Start& s, const Turned& x);  // what the sum of a block begins with
//     static __m128 d(const Block* const (&w)[4]);
//     // Where a group has a minimum, dmin * an integer, that all its weights have taken off; others lack both.
//     static __m256i minimum(const Start& s, const Turned& x);  // the integers times x
//     static __m128 dmin(const Block* const (&w)[4]);
//   };
//
// Blocks are prepared some ahead of the first that is multiplied. In one piece, the chain of a block is so long that
// the next block does not fit into the window of the CPU, and its latency shows: IQ1_S took 77 cycles a block on Zen 3
// instead of 47.
//
// Everything is in an unnamed namespace: see matmul_tile_avx2.h.
#pragma once

#include "kernels/cpu/matmul_tile_avx2.h"

namespace stoker {
namespace {

// Part (h, k) holds the k-th 8 values of the groups of 32 values 2 h, 2 h + 1, 4 + 2 h and 5 + 2 h.
struct alignas(32) TurnedBlock {
  i8 q[2][4][32];
  f32 d;
};

struct SummedBlock : TurnedBlock {
  alignas(32) i16 eight_sums[2][16];  // of each 8 q: of the groups 0 1 4 5, then of 2 3 6 7
  i16 group_sums[8];                  // of each 32 q
};

template <class Format>
constexpr bool kHasMinimum = requires { Format::dmin; };

// For the 2-bit planes of Q2_K and Q3_K. Part (h, k), p = 4 h + k, holds the values 8 (p % 2) .. + 7 of four groups of
// 16: those from 32 (p / 2), and behind it from 128, 16 and 144.
struct alignas(32) PlanesBlock {
  i8 q[2][4][32];
  i16 sums[16], minus_4_sums[16];  // of each 16 q, and times -4: even groups, then odd groups
  f32 d;
};

// Blocks of activations that are turned at once: 4 tokens take 44 KiB of stack. Longer rows are taken in pieces, at
// columns that depend on nothing else.
constexpr i64 kChunkBlocks = 32;

// Blocks of four rows that are prepared at once. One or two are loaded again while their stores are still under way,
// which took a quarter more time.
constexpr i64 kPrepareAhead = 4;

template <class Turned, int kTokens>
struct Chunk {
  Turned x[kTokens][kChunkBlocks];
};

inline void turn(const ActQ8_256& x, TurnedBlock& out) {
#pragma GCC unroll 2
  for (int h = 0; h < 2; h++) {
    const i8 *low = x.q + 64 * h, *high = low + 128;
    const __m256i even_low = _mm256_unpacklo_epi64(load_256(low), load_256(low + 32));
    const __m256i odd_low = _mm256_unpackhi_epi64(load_256(low), load_256(low + 32));
    const __m256i even_high = _mm256_unpacklo_epi64(load_256(high), load_256(high + 32));
    const __m256i odd_high = _mm256_unpackhi_epi64(load_256(high), load_256(high + 32));
    store_256(out.q[h][0], _mm256_permute2x128_si256(even_low, even_high, 0x20));
    store_256(out.q[h][1], _mm256_permute2x128_si256(odd_low, odd_high, 0x20));
    store_256(out.q[h][2], _mm256_permute2x128_si256(even_low, even_high, 0x31));
    store_256(out.q[h][3], _mm256_permute2x128_si256(odd_low, odd_high, 0x31));
  }
  out.d = x.d;
}

inline void turn(const ActQ8_256& x, SummedBlock& out) {
  turn(x, static_cast<TurnedBlock&>(out));
  __m256i sums[8];  // of four q
#pragma GCC unroll 8
  for (int g = 0; g < 8; g++) {
    const __m256i pairs = _mm256_maddubs_epi16(_mm256_set1_epi8(1), load_256(x.q + 32 * g));
    sums[g] = _mm256_madd_epi16(pairs, _mm256_set1_epi16(1));
    out.group_sums[g] = static_cast<i16>(x.sums[2 * g] + x.sums[2 * g + 1]);
  }
#pragma GCC unroll 2
  for (int h = 0; h < 2; h++) {
    // Halves: the first two sums of two groups, the last two. Then a half for the lower groups, one for the upper.
    const __m256i lower = _mm256_hadd_epi32(sums[2 * h], sums[2 * h + 1]);
    const __m256i upper = _mm256_hadd_epi32(sums[4 + 2 * h], sums[5 + 2 * h]);
    const __m256i words = _mm256_packs_epi32(_mm256_permute2x128_si256(lower, upper, 0x20),
                                             _mm256_permute2x128_si256(lower, upper, 0x31));
    store_256(out.eight_sums[h], _mm256_shuffle_epi32(words, 0b11'01'10'00));
  }
}

inline void turn(const ActQ8_256& x, PlanesBlock& out) {
#pragma GCC unroll 4
  for (int plane = 0; plane < 4; plane++) {
    const __m256i low = load_256(x.q + 32 * plane), high = load_256(x.q + 32 * plane + 128);
    store_256(out.q[plane / 2][plane % 2 * 2], _mm256_unpacklo_epi64(low, high));
    store_256(out.q[plane / 2][plane % 2 * 2 + 1], _mm256_unpackhi_epi64(low, high));
  }
  // Even words to the front of each half, then to the front of all.
  const __m256i halves = _mm256_shuffle_epi8(
      load_256(x.sums), _mm256_setr_epi8(0, 1, 4, 5, 8, 9, 12, 13, 2, 3, 6, 7, 10, 11, 14, 15, 0, 1, 4, 5, 8, 9, 12, 13,
                                         2, 3, 6, 7, 10, 11, 14, 15));
  const __m256i sums = _mm256_permute4x64_epi64(halves, 0b11'01'10'00);
  store_256(out.sums, sums);
  store_256(out.minus_4_sums, _mm256_slli_epi16(_mm256_sub_epi16(_mm256_setzero_si256(), sums), 2));
  out.d = x.d;
}

// For scales(): words `first` and `second` of each half of `words`, each four times.
inline __m256i spread_words(__m256i words, int first, int second) {
  const long long word_0 = 0x0100'0100'0100'0100, next = 0x0202'0202'0202'0202;
  const long long one = word_0 + first * next, other = word_0 + second * next;
  return _mm256_shuffle_epi8(words, _mm256_setr_epi64x(one, other, one, other));
}

// 2 s + 1 of eight 32-bit fields with s in the top four bits.
inline __m256i odd_scales_of_fields(__m256i fields) {
  return _mm256_or_si256(_mm256_srli_epi32(fields, 27), _mm256_set1_epi32(1));
}

// The f16 of four blocks.
template <class Block>
inline __m128 halves_of(const Block* const (&w)[4]) {
  auto half = [&](int r) __attribute__((always_inline)) { return static_cast<short>(w[r]->d); };
  return _mm_cvtph_ps(_mm_setr_epi16(half(0), half(1), half(2), half(3), 0, 0, 0, 0));
}

// total[t] = the integer sum of a block and x[t], in eight lanes.
template <class Format, int kTokens>
inline __attribute__((always_inline)) void dots(const typename Format::Block& w,
                                                const typename Format::Prepared& prepared,
                                                const typename Format::Turned* const (&x)[kTokens], i64 b,
                                                __m256i (&total)[kTokens]) {
#pragma GCC unroll 4
  for (int t = 0; t < kTokens; t++) total[t] = Format::start(prepared.start, x[t][b]);
#pragma GCC unroll 4
  for (int part = 0; part < 8; part += Format::kRun) {
    const int h = part / 4, k = part % 4;
    __m256i codes[Format::kRun / 2][2], signs[Format::kRun];
#pragma GCC unroll 2
    for (int i = 0; i < Format::kRun / 2; i++) Format::codes(w, prepared, h, k + 2 * i, codes[i]);
    if constexpr (Format::kBias != 0)
#pragma GCC unroll 4
      for (int i = 0; i < Format::kRun; i++) signs[i] = Format::signs(prepared, h, k + i);
    const __m256i scales = Format::scales(prepared, h, k);
#pragma GCC unroll 4
    for (int t = 0; t < kTokens; t++) {
      __m256i sums[Format::kRun];
#pragma GCC unroll 4
      for (int i = 0; i < Format::kRun; i++) {
        __m256i q = load_256(x[t][b].q[h][k + i]);
        if constexpr (Format::kBias != 0) q = _mm256_sign_epi8(q, signs[i]);
        sums[i] = _mm256_maddubs_epi16(codes[i / 2][i % 2], q);
      }
      __m256i sum = _mm256_add_epi16(sums[0], sums[1]);
      if constexpr (Format::kRun == 4) sum = _mm256_add_epi16(sum, _mm256_add_epi16(sums[2], sums[3]));
      add_now_i32(total[t], _mm256_madd_epi16(sum, scales));
    }
  }
}

// Row r is at w[r].
template <class Format, int kTokens>
__attribute__((noinline)) void multiply_turned(const std::byte* const (&w)[4], i64 blocks,
                                               const Chunk<typename Format::Turned, kTokens>& chunk,
                                               f32 (&out)[4][kTokens]) {
  using Block = typename Format::Block;
  const typename Format::Turned* x[kTokens];
  __m256 sum[4][kTokens];
#pragma GCC unroll 4
  for (int t = 0; t < kTokens; t++) {
    x[t] = chunk.x[t];
#pragma GCC unroll 4
    for (int r = 0; r < 4; r++) sum[r][t] = _mm256_setzero_ps();
  }
  typename Format::Prepared prepared[kPrepareAhead][4];
  alignas(16) f32 scale[kPrepareAhead][4], minus_min[kPrepareAhead][4];  // d and -dmin, of one token with d of x
  auto prepare = [&](i64 b, i64 i) __attribute__((always_inline)) {
    const Block* block[4];
#pragma GCC unroll 4
    for (int r = 0; r < 4; r++) {
      block[r] = &fetch<Block>(w[r], b);
      Format::prepare(*block[r], prepared[i][r]);
    }
    auto with_x = [&](__m128 d) __attribute__((always_inline)) {
      return kTokens == 1 ? _mm_mul_ps(d, _mm_broadcast_ss(&x[0][b].d)) : d;
    };
    _mm_store_ps(scale[i], with_x(_mm_mul_ps(Format::d(block), _mm_set1_ps(Format::kFactor))));
    if constexpr (kHasMinimum<Format>)
      _mm_store_ps(minus_min[i], with_x(_mm_xor_ps(Format::dmin(block), _mm_set1_ps(-0.0f))));
  };
  auto multiply = [&](i64 b, i64 i, int r) __attribute__((always_inline)) {
    __m256i total[kTokens];
    dots<Format, kTokens>(block_at<Block>(w[r], b), prepared[i][r], x, b, total);
    auto add = [&](const f32& d, int t, __m256i integers) __attribute__((always_inline)) {
      __m256 both = _mm256_broadcast_ss(&d);
      if constexpr (kTokens > 1) both = _mm256_mul_ps(both, _mm256_broadcast_ss(&x[t][b].d));
      sum[r][t] = _mm256_fmadd_ps(both, _mm256_cvtepi32_ps(integers), sum[r][t]);
    };
#pragma GCC unroll 4
    for (int t = 0; t < kTokens; t++) {
      add(scale[i][r], t, total[t]);
      if constexpr (kHasMinimum<Format>) add(minus_min[i][r], t, Format::minimum(prepared[i][r].start, x[t][b]));
    }
  };
  for (i64 first = 0; first < blocks; first += kPrepareAhead) {
    const i64 count = blocks - first < kPrepareAhead ? blocks - first : kPrepareAhead;
    for (i64 i = 0; i < count; i++) prepare(first + i, i);
    for (i64 i = 0; i < count; i++)
      if constexpr (kTokens == 1) {
#pragma GCC unroll 4
        for (int r = 0; r < 4; r++) multiply(first + i, i, r);
      } else {
#pragma GCC unroll 1
        for (int r = 0; r < 4; r++) multiply(first + i, i, r);  // not unrolled: 4 x 4 sums are too many registers
      }
  }
#pragma GCC unroll 4
  for (int r = 0; r < 4; r++)
#pragma GCC unroll 4
    for (int t = 0; t < kTokens; t++) out[r][t] = sum_lanes(sum[r][t]);
}

// Rows [first_row, last_row) and kTokens tokens. Of one token the four rows of a turn lie a quarter of the rows apart.
template <class Format, int kTokens>
void turned_pass(const MatmulTile& tile, i64 first_row, i64 last_row, i64 first_token) {
  Chunk<typename Format::Turned, kTokens> chunk;
  const ActQ8_256* x[kTokens];
  f32* y[kTokens];
  for (int t = 0; t < kTokens; t++) {
    const i64 token = first_token + t;
    const i64 from = tile.x_rows != nullptr ? tile.x_rows[token] : token;
    const i64 to = tile.y_rows != nullptr ? tile.y_rows[token] : token;
    x[t] = reinterpret_cast<const ActQ8_256*>(tile.x + from * tile.x_stride_bytes);
    y[t] = tile.y + to * tile.y_stride;
  }
  const i64 all_blocks = tile.cols / 256;
  for (i64 first = 0; first < all_blocks; first += kChunkBlocks) {
    const i64 blocks = all_blocks - first < kChunkBlocks ? all_blocks - first : kChunkBlocks;
    for (int t = 0; t < kTokens; t++)
      for (i64 b = 0; b < blocks; b++) turn(x[t][first + b], chunk.x[t][b]);
    // `rows` (1 .. 4) rows; those that do not exist repeat the last.
    auto multiply = [&](i64 row, i64 step, i64 rows) {
      const std::byte* w[4];
      for (i64 r = 0; r < 4; r++)
        w[r] = tile.w + (row + (r < rows ? r : rows - 1) * step) * tile.w_row_bytes +
               first * i64{sizeof(typename Format::Block)};
      f32 out[4][kTokens];
      multiply_turned<Format, kTokens>(w, blocks, chunk, out);
      for (int t = 0; t < kTokens; t++)
        for (i64 r = 0; r < rows; r++) {
          f32& result = y[t][row + r * step];
          result = first == 0 ? out[r][t] : result + out[r][t];
        }
    };
    const i64 turns = (last_row - first_row) / 4, rest = first_row + 4 * turns;
    const i64 step = kTokens == 1 ? turns : 1, advance = kTokens == 1 ? 1 : 4;
    for (i64 turn = 0; turn < turns; turn++) multiply(first_row + turn * advance, step, 4);
    if (rest < last_row) multiply(rest, 1, last_row - rest);
  }
}

template <class Format>
void multiply_turned_tile(const MatmulTile& tile) {
  walk_tile(tile, [&]<int kTokens>(i64 first_row, i64 last_row, i64 token) {
    turned_pass<Format, kTokens>(tile, first_row, last_row, token);
  });
}

}  // namespace
}  // namespace stoker

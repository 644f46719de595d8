// AVX2 matmul of the i-quants with magnitudes from a code book and signs stored apart (IQ2_*, IQ3_*), and of
// IQ4_XS.
#include "kernels/cpu/faster_leaf.h"
#include "kernels/cpu/look_up_avx2.h"
#include "kernels/cpu/matmul_avx2.h"
#include "kernels/cpu/matmul_scales_avx2.h"
#include "kernels/format/blocks.h"
#include "kernels/format/codebooks.h"

namespace stoker {
namespace {

// 32 bytes of seven sign bits -> sign bytes: bit 7 makes the number of ones even.
inline __m256i add_parity(__m256i seven) {
  constexpr char odd = static_cast<char>(0x80);
  const __m256i parity = _mm256_setr_epi8(0, odd, odd, 0, odd, 0, 0, odd, odd, 0, 0, odd, 0, odd, odd, 0, 0,
                                          odd, odd, 0, odd, 0, 0, odd, odd, 0, 0, odd, 0, odd, odd, 0);
  __m256i nibble = _mm256_set1_epi8(15);
  __m256i low = _mm256_shuffle_epi8(parity, _mm256_and_si256(seven, nibble));
  __m256i high = _mm256_shuffle_epi8(parity, _mm256_and_si256(_mm256_srli_epi16(seven, 4), nibble));
  return _mm256_or_si256(seven, _mm256_xor_si256(low, high));
}

// Eight u32 with four 7-bit fields each -> 32 bytes of seven bits.
inline __m256i spread_sevens(__m256i fields) {
  __m256i byte_0 = _mm256_and_si256(fields, _mm256_set1_epi32(0x7f));
  __m256i byte_1 = _mm256_and_si256(_mm256_slli_epi32(fields, 1), _mm256_set1_epi32(0x7f00));
  __m256i byte_2 = _mm256_and_si256(_mm256_slli_epi32(fields, 2), _mm256_set1_epi32(0x7f0000));
  __m256i byte_3 = _mm256_and_si256(_mm256_slli_epi32(fields, 3), _mm256_set1_epi32(0x7f000000));
  return _mm256_or_si256(_mm256_or_si256(byte_0, byte_1), _mm256_or_si256(byte_2, byte_3));
}

// The sign bits of a super-block, a word per 8 weights, so that a shuffle and a product sign a step. Register i has
// steps 4 i .. + 3, each half of it the words of that half of the steps.
struct Signs {
  __m256i words[2];

  // Of sign byte b, the low byte of the word is b << 1 | 1 and the high byte b | 1: shifted left by 6 - 2 k, bit 2 k is
  // the top bit of the low byte and bit 2 k + 1 that of the high byte, and a one from below keeps both from being zero.
  explicit Signs(__m256i bytes) {
    const __m256i one = _mm256_set1_epi8(1);
    bytes = even_then_odd_words(bytes);
    __m256i even = _mm256_or_si256(_mm256_add_epi8(bytes, bytes), one), odd = _mm256_or_si256(bytes, one);
    words[0] = _mm256_unpacklo_epi8(even, odd);
    words[1] = _mm256_unpackhi_epi8(even, odd);
  }
  Signs() = default;

  // For add_signed_step: negative where the weight is, else positive.
  __m256i step(int index) const {
    const long long k = 0x0100'0100'0100'0100 + index % 4 * 0x0404'0404'0404'0404, next = 0x0202'0202'0202'0202;
    const __m256i spread = _mm256_setr_epi64x(k, k + next, k, k + next);
    const __m256i move = _mm256_set1_epi64x(0x0001'0004'0010'0040);
    return _mm256_mullo_epi16(_mm256_shuffle_epi8(words[index / 4], spread), move);
  }
};

// 2 s + 1 of eight 32-bit fields with s in the top four bits.
inline __m256i odd_scales_of_fields(__m256i fields) {
  return _mm256_or_si256(_mm256_srli_epi32(fields, 27), _mm256_set1_epi32(1));
}

// 2 s + 1 of sixteen nibbles s in order, one per 16 weights.
inline StepScales odd_scales_of_nibbles(const u8 (&scales)[8]) {
  __m128i packed = load_64(scales);
  __m128i even_odd = _mm_unpacklo_epi64(packed, _mm_srli_epi16(packed, 4));
  __m256i s = _mm256_cvtepu8_epi16(_mm_and_si128(even_odd, _mm_set1_epi8(15)));
  return _mm256_add_epi16(_mm256_add_epi16(s, s), _mm256_set1_epi16(1));
}

// sum[t] += d * factor * x.d * total
template <int kTokens>
inline void finish(u16 d, f32 factor, const ActQ8_256* const (&x)[kTokens], i64 b,
                   const __m256i (&total)[kTokens], __m256 (&sum)[kTokens]) {
  __m256 scale = _mm256_mul_ps(broadcast_half(d), _mm256_set1_ps(factor));
#pragma GCC unroll 4
  for (int t = 0; t < kTokens; t++) sum[t] = add_scaled(scale, x[t][b], total[t], sum[t]);
}

// What is the same in all code book formats once indices, signs and scales are known. kStepIndices: indices
// per 32 weights.
template <int kStepIndices, class Book, class Index, class Scales, int kTokens>
inline void accumulate_book(Book book, const Index* index, const Signs& signs, const Scales& scales,
                            u16 d, f32 factor, const ActQ8_256* const (&x)[kTokens], i64 b,
                            __m256 (&sum)[kTokens]) {
  __m256i total[kTokens];
  clear(total);
#pragma GCC unroll 8
  for (int step = 0; step < 8; step++)
    add_signed_step(look_up(book, index + kStepIndices * step), signs.step(step), step_scale(scales, step), x,
                    b, step, total);
  finish(d, factor, x, b, total, sum);
}

// The odd u32 of 64 bytes.
inline __m256i odd_u32(const void* p) {
  __m256 first = _mm256_castsi256_ps(load_256(p));
  __m256 second = _mm256_castsi256_ps(load_256(static_cast<const std::byte*>(p) + 32));
  __m256i odd = _mm256_castps_si256(_mm256_shuffle_ps(first, second, 0b11'01'11'01));
  return _mm256_permute4x64_epi64(odd, 0b11'01'10'00);
}

struct SignsAndScales {
  Signs signs;
  LaneScales scales;
};

struct WordScales {
  StepScales words;
};
inline __m256i step_scale(const WordScales& scales, int step) { return step_scale(scales.words, step); }

template <int kIndices, class Scales>
struct IndicesSignsAndScales {
  alignas(32) u16 index[kIndices];
  Signs signs;
  Scales scales;

  void store(int at, __m256i indices) { _mm256_store_si256(reinterpret_cast<__m256i*>(index + at), indices); }
};

// Magnitudes 8 .. 43 (all IQ2): i16 sums stay below 2 * 43 * 127 = 10922.
struct IQ2_XXS {
  using Block = BlockIQ2_XXS;
  using Activation = ActQ8_256;
  using Prepared = SignsAndScales;

  static void prepare(const Block& w, Prepared& out) {
    __m256i fields = odd_u32(w.qs);
    out.signs = Signs(add_parity(spread_sevens(fields)));
    out.scales.store(odd_scales_of_fields(fields));
  }

  template <int kTokens>
  static void accumulate(const Block& w, const Prepared& prepared, const Activation* const (&x)[kTokens],
                         i64 b, __m256 (&sum)[kTokens]) {
    accumulate_book<8>(entries<u64>(&kGridIq2Xxs), reinterpret_cast<const u8*>(w.qs), prepared.signs,
                       prepared.scales, w.d, 0.125f, x, b, sum);
  }
};

struct IQ2_XS {
  using Block = BlockIQ2_XS;
  using Activation = ActQ8_256;
  using Prepared = IndicesSignsAndScales<32, WordScales>;

  static void prepare(const Block& w, Prepared& out) {
    __m256i first = load_256(w.qs), second = load_256(w.qs + 16);
    const __m256i nine = _mm256_set1_epi16(511);
    out.store(0, _mm256_and_si256(first, nine));
    out.store(16, _mm256_and_si256(second, nine));
    __m256i sevens = _mm256_packus_epi16(_mm256_srli_epi16(first, 9), _mm256_srli_epi16(second, 9));
    out.signs = Signs(add_parity(_mm256_permute4x64_epi64(sevens, 0b11'01'10'00)));
    out.scales.words = odd_scales_of_nibbles(w.scales);
  }

  template <int kTokens>
  static void accumulate(const Block& w, const Prepared& prepared, const Activation* const (&x)[kTokens],
                         i64 b, __m256 (&sum)[kTokens]) {
    accumulate_book<4>(entries<u64>(&kGridIq2Xs), prepared.index, prepared.signs, prepared.scales, w.d,
                       0.125f, x, b, sum);
  }
};

struct IQ2_S {
  using Block = BlockIQ2_S;
  using Activation = ActQ8_256;
  using Prepared = IndicesSignsAndScales<32, WordScales>;

  static void prepare(const Block& w, Prepared& out) {
    // Two high bits of index i: bits 2 (i % 4), + 1 of qh[i / 4], moved to bits 8 and 9 through a product
    // with a power of two.
    __m256i high_bytes = _mm256_broadcastsi128_si256(load_64(w.qh));
    const __m256i move = _mm256_set1_epi64x(0x0004'0010'0040'0100);
    const __m256i two = _mm256_set1_epi16(0x300);
#pragma GCC unroll 2
    for (int half = 0; half < 2; half++) {
      const char k = static_cast<char>(4 * half);
      const __m256i spread =
          _mm256_setr_epi8(k, -1, k, -1, k, -1, k, -1, k + 1, -1, k + 1, -1, k + 1, -1, k + 1, -1, k + 2, -1,
                           k + 2, -1, k + 2, -1, k + 2, -1, k + 3, -1, k + 3, -1, k + 3, -1, k + 3, -1);
      __m256i high = _mm256_mullo_epi16(_mm256_shuffle_epi8(high_bytes, spread), move);
      __m256i low = _mm256_cvtepu8_epi16(load_128(w.qs + 16 * half));
      out.store(16 * half, _mm256_or_si256(low, _mm256_and_si256(high, two)));
    }
    out.signs = Signs(load_256(w.signs));
    out.scales.words = odd_scales_of_nibbles(w.scales);
  }

  template <int kTokens>
  static void accumulate(const Block& w, const Prepared& prepared, const Activation* const (&x)[kTokens],
                         i64 b, __m256 (&sum)[kTokens]) {
    accumulate_book<4>(entries<u64>(&kGridIq2S), prepared.index, prepared.signs, prepared.scales, w.d,
                       0.125f, x, b, sum);
  }
};

// Magnitudes 4 .. 62: i16 sums stay below 2 * 62 * 127 = 15748. Book: const u32* or GatheredBook.
template <class Book>
struct IQ3_XXS {
  using Block = BlockIQ3_XXS;
  using Activation = ActQ8_256;
  using Prepared = SignsAndScales;

  static void prepare(const Block& w, Prepared& out) {
    __m256i fields = load_256(w.signs);
    out.signs = Signs(add_parity(spread_sevens(fields)));
    out.scales.store(odd_scales_of_fields(fields));
  }

  template <int kTokens>
  static void accumulate(const Block& w, const Prepared& prepared, const Activation* const (&x)[kTokens],
                         i64 b, __m256 (&sum)[kTokens]) {
    accumulate_book<8>(Book{entries<u32>(&kGridIq3Xxs)}, w.qs, prepared.signs, prepared.scales, w.d, 0.25f, x, b, sum);
  }
};

// Magnitudes 1 .. 15: i16 sums stay below 2 * 15 * 127 = 3810. Book as for IQ3_XXS.
template <class Book>
struct IQ3_S {
  using Block = BlockIQ3_S;
  using Activation = ActQ8_256;
  using Prepared = IndicesSignsAndScales<64, LaneScales>;

  static void prepare(const Block& w, Prepared& out) {
    __m256i high_bytes = _mm256_broadcastsi128_si256(load_64(w.qh));
    const __m256i one = _mm256_set1_epi8(1);
    __m256i high[2] = {_mm256_and_si256(bits_to_bytes<0>(high_bytes), one),
                       _mm256_and_si256(bits_to_bytes<1>(high_bytes), one)};
#pragma GCC unroll 2
    for (int half = 0; half < 2; half++) {
      // Unpacking works within halves: exchange the middle quarters first, so that indices come out in order.
      __m256i low = _mm256_permute4x64_epi64(load_256(w.qs + 32 * half), 0b11'01'10'00);
      __m256i ninth = _mm256_permute4x64_epi64(high[half], 0b11'01'10'00);
      out.store(32 * half, _mm256_unpacklo_epi8(low, ninth));
      out.store(32 * half + 16, _mm256_unpackhi_epi8(low, ninth));
    }
    out.signs = Signs(load_256(w.signs));
    __m256i packed = _mm256_set1_epi32(static_cast<int>(load_u32(w.scales)));
    __m256i s = _mm256_srlv_epi32(packed, _mm256_setr_epi32(0, 4, 8, 12, 16, 20, 24, 28));
    s = _mm256_and_si256(s, _mm256_set1_epi32(15));
    out.scales.store(_mm256_add_epi32(_mm256_add_epi32(s, s), _mm256_set1_epi32(1)));
  }

  template <int kTokens>
  static void accumulate(const Block& w, const Prepared& prepared, const Activation* const (&x)[kTokens],
                         i64 b, __m256 (&sum)[kTokens]) {
    accumulate_book<8>(Book{entries<u32>(&kGridIq3S)}, prepared.index, prepared.signs, prepared.scales, w.d, 1.0f, x, b,
                       sum);
  }
};

// A code book of -127 .. 113: i16 sums stay below 2 * 127 * 127 = 32258.
struct IQ4_XS {
  using Block = BlockIQ4_XS;
  using Activation = ActQ8_256;

  static StepScales unpack_scales(const Block& w) {
    __m256i low = _mm256_srlv_epi32(_mm256_set1_epi32(static_cast<int>(load_u32(w.scales_l))),
                                    _mm256_setr_epi32(0, 4, 8, 12, 16, 20, 24, 28));
    __m256i high =
        _mm256_srlv_epi32(_mm256_set1_epi32(w.scales_h), _mm256_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14));
    low = _mm256_and_si256(low, _mm256_set1_epi32(15));
    high = _mm256_slli_epi32(_mm256_and_si256(high, _mm256_set1_epi32(3)), 4);
    return step_scales_of_lanes(_mm256_sub_epi32(_mm256_or_si256(low, high), _mm256_set1_epi32(32)));
  }

  template <int kTokens>
  static void accumulate(const Block& w, const Activation* const (&x)[kTokens], i64 b,
                         __m256 (&sum)[kTokens]) {
    __m256i book = _mm256_broadcastsi128_si256(load_128(&kIq4Nl));
    StepScales scales = unpack_scales(w);
    __m256i total[kTokens];
    clear(total);
#pragma GCC unroll 8
    for (int step = 0; step < 8; step++) {
      __m256i weights = _mm256_shuffle_epi8(book, nibbles(load_128(w.qs + 16 * step)));
      add_signed_step(_mm256_abs_epi8(weights), weights, step_scale(scales, step), x, b, step, total);
    }
    finish(w.d, 1.0f, x, b, total, sum);
  }
};

}  // namespace

void fill_matmul_iq_avx2(LeafTable& table) {
  auto set = [&table](BlockType type, MatmulLeaf leaf) { table.matmul_q8[static_cast<i64>(type)] = leaf; };
  set(BlockType::IQ2_XXS, multiply_tile<IQ2_XXS>);
  set(BlockType::IQ2_XS, multiply_tile<IQ2_XS>);
  set(BlockType::IQ2_S, multiply_tile<IQ2_S>);
  const MatmulLeaf loads = multiply_tile<IQ3_XXS<const u32*>>, gathers = multiply_tile<IQ3_XXS<GatheredBook>>;
  const bool gather = is_faster<BlockIQ3_XXS>(gathers, loads);
  set(BlockType::IQ3_XXS, gather ? gathers : loads);
  set(BlockType::IQ3_S, gather ? multiply_tile<IQ3_S<GatheredBook>> : multiply_tile<IQ3_S<const u32*>>);
  set(BlockType::IQ4_XS, multiply_tile<IQ4_XS>);
}

}  // namespace stoker

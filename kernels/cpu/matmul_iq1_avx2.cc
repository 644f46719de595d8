// AVX2 matmul of IQ1_S and IQ1_M: ternary weights -1, 0, 1 from a code book, moved by +-1/8.
//
// Integers come from counting in eighths: 8 * weight + 8 * delta is 8 g +- 1. The book has 8 (g + 1), unsigned as
// maddubs wants it; the deltas less what that adds meet sums of x.
#include "kernels/cpu/gemm_turned_avx2.h"
#include "kernels/cpu/look_up_avx2.h"
#include "kernels/cpu/matmul_avx2.h"
#include "kernels/format/blocks.h"
#include "kernels/format/codebooks.h"

namespace stoker {
namespace {

// Parts of entries whose indices are words at index[0 .. 3], two by two.
inline void look_up_pairs(const u16* const (&index)[4], __m256i (&out)[2]) {
  const u64* book = entries<u64>(&kEighthsIq1S);
  u32 first[4], second[4];
#pragma GCC unroll 4
  for (int g = 0; g < 4; g++) {
    // One load for two indices, because loads are what binds. Left alone, GCC would load each.
    u32 both = load_u32(index[g]);
    __asm__("" : "+r"(both));
    first[g] = both & 0xffff;
    second[g] = both >> 16;
  }
  out[0] = look_up(book, first);
  out[1] = look_up(book, second);
}

// Codes 0, 8, 16: 8 * 16 * 127 = 16256 in four parts.
struct IQ1_S {
  using Block = BlockIQ1_S;
  using Turned = SummedBlock;
  static constexpr f32 kFactor = 0.125f;
  static constexpr int kRun = 4, kBias = 0;
  struct Start {
    __m128i factors;  // s * (delta - 8) per 32 weights
  };
  struct Prepared {
    alignas(32) u16 index[8][4];
    __m256i scales[2];
    Start start;
  };

  static void prepare(const Block& w, Prepared& out) {
    const __m128i heads = load_128(w.qh);
    const __m128i s = _mm_or_si128(_mm_and_si128(_mm_srli_epi16(heads, 11), _mm_set1_epi16(14)), _mm_set1_epi16(1));
    const __m256i both_s = _mm256_broadcastsi128_si256(s);
    const __m256i both_heads = _mm256_broadcastsi128_si256(heads);
    const __m256i doubled = _mm256_add_epi16(both_heads, both_heads);  // bit 15 is not of an index
#pragma GCC unroll 2
    for (int half = 0; half < 2; half++) {
      // Word i: three bits from 3 (i % 4) of its head, by the high half of a product with a power of two, as AVX2 has
      // no shift of words by different counts.
      const long long word = 0x0100'0100'0100'0100 + half * 0x0808'0808'0808'0808, next = 0x0202'0202'0202'0202;
      const __m256i each =
          _mm256_shuffle_epi8(doubled, _mm256_setr_epi64x(word, word + next, word + 2 * next, word + 3 * next));
      const __m256i moved = _mm256_mulhi_epu16(each, _mm256_set1_epi64x(0x0040'0200'1000'8000));
      const __m256i high = _mm256_slli_epi16(_mm256_and_si256(moved, _mm256_set1_epi16(7)), 8);
      store_256(out.index[4 * half], _mm256_or_si256(_mm256_cvtepu8_epi16(load_128(w.qs + 16 * half)), high));
      // Scales of groups 2 h, 2 h + 1, 4 + 2 h, 5 + 2 h.
      const long long s_word = 0x0100'0100'0100'0100 + half * 0x0404'0404'0404'0404;
      out.scales[half] = _mm256_shuffle_epi8(
          both_s, _mm256_setr_epi64x(s_word, s_word + next, s_word + 4 * next, s_word + 5 * next));
    }
    // delta = -1 where bit 15 is set, else 1: |s * (delta - 8)| <= 135.
    const __m128i delta = _mm_or_si128(_mm_srai_epi16(heads, 15), _mm_set1_epi16(1));
    out.start.factors = _mm_mullo_epi16(_mm_sub_epi16(delta, _mm_set1_epi16(8)), s);
  }

  static void codes(const Block&, const Prepared& p, int h, int k, __m256i (&out)[2]) {
    const auto& index = p.index;
    look_up_pairs({&index[2 * h][k], &index[2 * h + 1][k], &index[4 + 2 * h][k], &index[5 + 2 * h][k]}, out);
  }
  static __m256i scales(const Prepared& p, int h, int) { return p.scales[h]; }
  static __m256i start(const Start& s, const SummedBlock& x) {
    return _mm256_zextsi128_si256(_mm_madd_epi16(s.factors, load_128(x.group_sums)));
  }
  static __m128 d(const Block* const (&w)[4]) { return halves_of(w); }
};

// The same codes. A scale per 16 weights and a delta per 8.
struct IQ1_M {
  using Block = BlockIQ1_M;
  using Turned = SummedBlock;
  static constexpr f32 kFactor = 0.125f;
  static constexpr int kRun = 2, kBias = 0;
  struct Start {
    __m256i factors[2];  // s * (delta - 8) per 8 weights, in the order of eight_sums
  };
  struct Prepared {
    alignas(32) u16 index[2][4][4];  // of the groups 0 1 4 5, then of 2 3 6 7
    __m256i scales;                  // of the sixteen groups of 16 weights
    Start start;
  };

  // 2 s + 1 of the sixteen groups in order: three bits from 3 (i % 4) of word i / 4, moved to bit 1 as in IQ1_S.
  static __m256i unpack_scales(const Block& w) {
    const __m256i packed = _mm256_set1_epi64x(static_cast<long long>(load_u64(w.scales)));
    const long long word = 0x0100'0100'0100'0100, next = 0x0202'0202'0202'0202;
    const __m256i each =
        _mm256_shuffle_epi8(packed, _mm256_setr_epi64x(word, word + next, word + 2 * next, word + 3 * next));
    const __m256i moved = _mm256_mulhi_epu16(_mm256_slli_epi16(each, 4), _mm256_set1_epi64x(0x0010'0080'0400'2000));
    return _mm256_or_si256(_mm256_and_si256(moved, _mm256_set1_epi16(14)), _mm256_set1_epi16(1));
  }

  static void prepare(const Block& w, Prepared& out) {
    out.scales = unpack_scales(w);
    // A nibble per 8 weights: three bits of the index, and the top bit says that delta is negative.
    const __m256i bytes = _mm256_cvtepu8_epi16(load_128(w.qh));
    const __m256i nibbles = _mm256_and_si256(_mm256_or_si256(bytes, _mm256_slli_epi16(bytes, 4)), _mm256_set1_epi8(15));
    const __m256i qs = load_256(w.qs);
#pragma GCC unroll 2
    for (int h = 0; h < 2; h++) {
      const __m256i words = h == 0 ? _mm256_unpacklo_epi8(qs, nibbles) : _mm256_unpackhi_epi8(qs, nibbles);
      const __m256i s = h == 0 ? _mm256_unpacklo_epi16(out.scales, out.scales)
                               : _mm256_unpackhi_epi16(out.scales, out.scales);
      store_256(out.index[h], _mm256_and_si256(words, _mm256_set1_epi16(0x7ff)));
      const __m256i negative = _mm256_and_si256(_mm256_srli_epi16(words, 10), _mm256_set1_epi16(2));
      out.start.factors[h] = _mm256_mullo_epi16(_mm256_sub_epi16(_mm256_set1_epi16(-7), negative), s);
    }
  }

  static void codes(const Block&, const Prepared& p, int h, int k, __m256i (&out)[2]) {
    const auto& index = p.index[h];
    look_up_pairs({&index[0][k], &index[1][k], &index[2][k], &index[3][k]}, out);
  }
  static __m256i scales(const Prepared& p, int h, int k) {
    return spread_words(p.scales, 4 * h + k / 2, 4 * h + 2 + k / 2);
  }
  static __m256i start(const Start& s, const SummedBlock& x) {
    return _mm256_add_epi32(_mm256_madd_epi16(s.factors[0], load_256(x.eight_sums[0])),
                            _mm256_madd_epi16(s.factors[1], load_256(x.eight_sums[1])));
  }
  // f16 from the top nibbles of the four words, the first word's lowest.
  static __m128 d(const Block* const (&w)[4]) {
    auto words = [&](int r) __attribute__((always_inline)) { return static_cast<long long>(load_u64(w[r]->scales)); };
    const __m256i nibbles = _mm256_srli_epi16(_mm256_setr_epi64x(words(0), words(1), words(2), words(3)), 12);
    const __m256i pairs = _mm256_madd_epi16(nibbles, _mm256_set1_epi64x(0x1000'0100'0010'0001));
    const __m256i halves = _mm256_or_si256(pairs, _mm256_srli_epi64(pairs, 32));
    const __m256i low = _mm256_shuffle_epi8(halves, _mm256_set1_epi32(0x0908'0100));
    return _mm_cvtph_ps(_mm_unpacklo_epi32(_mm256_castsi256_si128(low), _mm256_extracti128_si256(low, 1)));
  }
};

}  // namespace

void fill_matmul_iq1_avx2(LeafTable& table) {
  set_turned_leaves<IQ1_S>(table, BlockType::IQ1_S);
  set_turned_leaves<IQ1_M>(table, BlockType::IQ1_M);
}

}  // namespace stoker

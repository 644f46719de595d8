// AVX-512 matmul of IQ1_S and IQ1_M: ternary weights g from a code book, moved by +-1/8.
//
// In eighths a weight is 8 g + delta, delta = +-1. With the book's 8 (g + 1) it is 8 (g + 1) + (2 or 0) - 9.
//
// The book's 16 KiB are in L1. An entry is an ordinary load, or eight are a gather: that is faster on Golden Cove (25
// cycles a block of IQ1_S against 32) and slower on Zen, so each CPU is asked once. Looking digits up in registers took
// 128 permutations for as many indices.
#include "kernels/cpu/faster_leaf.h"
#include "kernels/cpu/gemm_codebook_avx512.h"
#include "kernels/cpu/look_up_avx512.h"
#include "kernels/cpu/matmul_avx512.h"
#include "kernels/format/blocks.h"
#include "kernels/format/codebooks.h"

namespace stoker {
namespace {

constexpr f32 kFactor = kIq1Delta;

enum class LookUpBy { loads, gathers };

// What is the same for both formats. kStep: bits from one index' upper three bits to the next one's in a word of qh.
template <LookUpBy kBy, int kStep>
struct Iq1 {
  static constexpr i32 kBias = 9;
  static constexpr int kRows = 4;
  static constexpr bool kUnpackAhead = false;
  using Order = EntryOrder;

  __m512i entries[kRows][4];    // part j of a row: entries j, 4 + j, ..., 28 + j
  __mmask8 positive[kRows][4];  // those whose delta is

  // Qword p of `fields`: the four bytes of qs and the word of qh of the weights 32 p ..
  static void look_up(const u8* qs, const void* qh, __m512i fields, __m512i (&out)[4]) {
    const u64* book = reinterpret_cast<const u64*>(&kEighthsIq1S);
    if constexpr (kBy == LookUpBy::gathers) {
#pragma GCC unroll 4
      for (int j = 0; j < 4; j++) {
        const __m512i bits = _mm512_set1_epi64(8 * j + ((32 + kStep * j) << 8));
        __m512i index = _mm512_and_si512(_mm512_multishift_epi64_epi8(bits, fields), _mm512_set1_epi64(2047));
        out[j] = _mm512_i64gather_epi64(index, book, 8);
      }
    } else {
#pragma GCC unroll 8
      for (int p = 0; p < 8; p++) {
        const u64 four = four_indices(qs + 4 * p, static_cast<const u8*>(qh) + 2 * p);
#pragma GCC unroll 4
        for (int j = 0; j < 4; j++) {
          const u64* entry = book + (j < 3 ? four >> (16 * j) & 0xffff : four >> 48);
          if (p == 0)
            out[j] = _mm512_castsi128_si512(_mm_loadu_si64(entry));
          else
            out[j] = _mm512_mask_set1_epi64(out[j], static_cast<__mmask8>(1 << p), static_cast<long long>(*entry));
        }
      }
    }
  }

  // As words. In a general register, because indices that pass through memory wait for each other there.
  static u64 four_indices(const u8* qs, const u8* qh) {
    u16 word;
    __builtin_memcpy(&word, qh, sizeof word);
    const u64 low = _pdep_u64(load_u32(qs), 0x00ff'00ff'00ff'00ff);
    if constexpr (kStep == 3) return low | _pdep_u64(word, 0x0700'0700'0700'0700);
    return low | _pdep_u64(word & 0x7777u, 0x0f00'0f00'0f00'0f00);
  }

  template <int kPart, int kRow>
  void codes(__m512i (&out)[2]) const {
#pragma GCC unroll 2
    for (int r = 0; r < 2; r++) {
      __m512i eighths = entries[kRow + r][kPart];
      out[r] = _mm512_mask_or_epi64(eighths, positive[kRow + r][kPart], eighths, _mm512_set1_epi8(2));
    }
  }
};

template <class Block>
inline __m512i load_block(const Block& w) {
  return _mm512_maskz_loadu_epi8((u64{1} << sizeof(Block)) - 1, &w);
}

template <LookUpBy kBy>
struct IQ1_S : Iq1<kBy, 3> {
  using Block = BlockIQ1_S;
  static constexpr int kScales = 1;
  static constexpr int kRows = Iq1<kBy, 3>::kRows;

  __m512 scales[kRows][kScales];

  explicit IQ1_S(const Block* const (&w)[kRows]) {
    static constexpr Bytes order =
        bytes([](int i) { return i % 8 < 4 ? 2 + 4 * (i / 8) + i % 8 : 34 + 2 * (i / 8) + i % 2; });
    static constexpr Bytes top_four = bytes([](int) { return 32 + 12; });
#pragma GCC unroll 4
    for (int r = 0; r < kRows; r++) {
      const __m512i fields = _mm512_permutexvar_epi8(order, load_block(*w[r]));
      this->look_up(w[r]->qs, w[r]->qh, fields, this->entries[r]);
      const __mmask8 all_positive = _mm512_testn_epi64_mask(fields, _mm512_set1_epi64(i64{1} << (32 + 15)));
#pragma GCC unroll 4
      for (int j = 0; j < 4; j++) this->positive[r][j] = all_positive;
      __m512i s = _mm512_multishift_epi64_epi8(top_four, fields);
      scales[r][0] = _mm512_mul_ps(odd_scales_of_three_bits(s, kFactor), broadcast_half(w[r]->d));
    }
  }
};

template <LookUpBy kBy>
struct IQ1_M : Iq1<kBy, 4> {
  using Block = BlockIQ1_M;
  static constexpr int kScales = 2;
  static constexpr int kRows = Iq1<kBy, 4>::kRows;

  __m512 scales[kRows][kScales];

  explicit IQ1_M(const Block* const (&w)[kRows]) {
    static constexpr Bytes order =
        bytes([](int i) { return i % 8 < 4 ? 4 * (i / 8) + i % 8 : 32 + 2 * (i / 8) + i % 2; });
#pragma GCC unroll 4
    for (int r = 0; r < kRows; r++) {
      const __m512i fields = _mm512_permutexvar_epi8(order, load_block(*w[r]));
      this->look_up(w[r]->qs, w[r]->qh, fields, this->entries[r]);
#pragma GCC unroll 4
      for (int j = 0; j < 4; j++)
        this->positive[r][j] = _mm512_testn_epi64_mask(fields, _mm512_set1_epi64(i64{1} << (32 + 4 * j + 3)));
      unpack_scales(*w[r], scales[r]);
    }
  }

  // Per word four scales of three bits and a quarter of d. Lanes 2 p and 2 p + 1: group 2 p, then group 2 p + 1.
  static void unpack_scales(const Block& w, __m512 (&out)[2]) {
    static constexpr Bytes even = bytes([](int i) { return 16 * (i / 16) + 6 * (i / 8 % 2); });
    static constexpr Bytes odd = bytes([](int i) { return even.at[i] + 3; });
    const u64 words = load_u64(w.scales);
    const __m512i all = _mm512_set1_epi64(static_cast<long long>(words));
    const __m512 d = broadcast_half(static_cast<u16>(_pext_u64(words, 0xf000'f000'f000'f000)));
    out[0] = _mm512_mul_ps(odd_scales_of_three_bits(_mm512_multishift_epi64_epi8(even, all), kFactor), d);
    out[1] = _mm512_mul_ps(odd_scales_of_three_bits(_mm512_multishift_epi64_epi8(odd, all), kFactor), d);
  }
};

// A GEMM unpacks once for many tokens: loads everywhere.
template <template <LookUpBy> class Format>
void set_iq1_leaves(LeafTable& table, BlockType type, bool gathers) {
  set_leaves<Format<LookUpBy::loads>>(table, type);
  if (gathers) table.matmul_q8[static_cast<i64>(type)] = multiply_tile<Format<LookUpBy::gathers>>;
}

}  // namespace

void fill_matmul_iq1_avx512(LeafTable& table) {
  const bool gathers = is_faster<BlockIQ1_S>(multiply_tile<IQ1_S<LookUpBy::gathers>>,
                                             multiply_tile<IQ1_S<LookUpBy::loads>>);
  set_iq1_leaves<IQ1_S>(table, BlockType::IQ1_S, gathers);
  set_iq1_leaves<IQ1_M>(table, BlockType::IQ1_M, gathers);
}

}  // namespace stoker

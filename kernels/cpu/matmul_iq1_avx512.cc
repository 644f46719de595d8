// AVX-512 matmul of IQ1_S and IQ1_M: ternary weights g from a code book, moved by +-1/8.
//
// In eighths a weight is 8 g + delta, delta = +-1. With the digit u = g + 1 of the book it is 8 u + (2 or 0) - 9.
//
// The book's 4 KiB of digits do not stay in registers, and loading them would take longer than looking up. So four
// rows, 128 indices, are looked up at once.
#include "kernels/cpu/look_up_avx512.h"
#include "kernels/cpu/matmul_avx512.h"
#include "kernels/format/blocks.h"
#include "kernels/format/codebooks.h"

namespace stoker {
namespace {

constexpr f32 kFactor = kIq1Delta;

// The indices of two rows: bytes are of eight entries of the first, eight of the second, ...
struct Indices {
  __m512i low;     // bits 0 .. 7
  __m512i bit[3];  // 0xff where bit 8, 9, 10 is set
};

struct LookedUp {
  __m512i of[2];
};

// One plane's bytes for two sets of indices.
struct LookUp {
  const Indices (&index)[2];
  __mmask64 bit_7[2];

  template <int kEntries>
  LookedUp among(const u8* plane) const {
    LookedUp result;
    if constexpr (kEntries == 256) {
      const __m512i part[4] = {load_512(plane), load_512(plane + 64), load_512(plane + 128), load_512(plane + 192)};
#pragma GCC unroll 2
      for (int i = 0; i < 2; i++) {
        __m512i low = index[i].low;
        low = _mm512_mask2_permutex2var_epi8(part[0], low, _knot_mask64(bit_7[i]), part[1]);
        result.of[i] = _mm512_mask2_permutex2var_epi8(part[2], low, bit_7[i], part[3]);
      }
    } else {
      constexpr int kBit = kEntries == 512 ? 0 : kEntries == 1024 ? 1 : 2;
      const LookedUp lower = among<kEntries / 2>(plane), upper = among<kEntries / 2>(plane + kEntries / 2);
#pragma GCC unroll 2
      for (int i = 0; i < 2; i++)
        result.of[i] = _mm512_ternarylogic_epi64(lower.of[i], upper.of[i], index[i].bit[kBit], 0xd8);  // c ? b : a
    }
    return result;
  }
};

// What is the same once indices, deltas and scales are known.
struct Iq1 {
  static constexpr i32 kBias = 9;
  static constexpr int kRows = 4;

  __m512i digits[4];  // byte r: four 2-bit digits, those of run r
  __m512i deltas[4];  // byte r: 2 where delta > 0, else 0
  __m512 scales[4];

  // index[i] is of rows 2 i and 2 i + 1.
  void look_up(const Indices (&index)[2]) {
    const LookUp look_up{index, {_mm512_movepi8_mask(index[0].low), _mm512_movepi8_mask(index[1].low)}};
    const u8* book = planes_in_memory(kPlanesIq1S);
    const LookedUp low = look_up.among<2048>(book), high = look_up.among<2048>(book + 2048);
#pragma GCC unroll 2
    for (int i = 0; i < 2; i++) {
      digits[2 * i] = _mm512_unpacklo_epi8(low.of[i], high.of[i]);
      digits[2 * i + 1] = _mm512_unpackhi_epi8(low.of[i], high.of[i]);
    }
  }

  template <int kRow, int kPart>
  __m512i codes() const {
    __m512i eights;  // digit kPart at bits 3 and 4
    if constexpr (kPart < 2)
      eights = _mm512_slli_epi16(digits[kRow], 3 - 2 * kPart);
    else
      eights = _mm512_srli_epi16(digits[kRow], 2 * kPart - 3);
    return _mm512_ternarylogic_epi64(_mm512_set1_epi8(0x18), eights, deltas[kRow], 0xca);  // a ? b : c
  }
};

// Bit first + i of the low dword of its qword, for each byte: 0xff where it is set.
template <int i>
inline __m512i bit_mask(__m512i dwords, const Bytes& first) {
  __m512i number = _mm512_add_epi8(first, _mm512_set1_epi8(i));
  return _mm512_movm_epi8(_mm512_bitshuffle_epi64_mask(dwords, number));
}

// `first`: of the three bits 8 .. 10 of an index.
template <class Block>
inline Indices unpack_indices(const Block& a, const Block& b, const Bytes& first) {
  __m512i high = alternate_dwords(load_128(a.qh), load_128(b.qh));
  return {alternate_qwords(load_256(a.qs), load_256(b.qs)),
          {bit_mask<0>(high, first), bit_mask<1>(high, first), bit_mask<2>(high, first)}};
}

struct IQ1_S : Iq1 {
  using Block = BlockIQ1_S;

  explicit IQ1_S(const Block* const (&w)[kRows]) {
    static constexpr Bytes three_bits = bytes([](int i) { return 16 * (i % 8 / 4) + 3 * (i % 4); });
    look_up({unpack_indices(*w[0], *w[1], three_bits), unpack_indices(*w[2], *w[3], three_bits)});
    static constexpr Bytes bit_15_to_1 = bytes([](int) { return 14; });
    static constexpr Bytes top_four = bytes([](int) { return 12; });
#pragma GCC unroll 4
    for (int r = 0; r < kRows; r++) {
      __m512i head = _mm512_cvtepu16_epi64(load_128(w[r]->qh));
      deltas[r] = _mm512_andnot_si512(_mm512_multishift_epi64_epi8(bit_15_to_1, head), _mm512_set1_epi8(2));
      __m512i s = _mm512_multishift_epi64_epi8(top_four, head);
      scales[r] = _mm512_mul_ps(odd_scales_of_three_bits(s, kFactor), broadcast_half(w[r]->d));
    }
  }
};

struct IQ1_M : Iq1 {
  using Block = BlockIQ1_M;

  explicit IQ1_M(const Block* const (&w)[kRows]) {
    static constexpr Bytes three_bits = bytes([](int i) { return 4 * (i % 8); });
    look_up({unpack_indices(*w[0], *w[1], three_bits), unpack_indices(*w[2], *w[3], three_bits)});
#pragma GCC unroll 4
    for (int r = 0; r < kRows; r++) {
      // Two runs per nibble; its bit 3 to bit 1.
      static constexpr Bytes bit_3_to_1 = bytes([](int i) { return 4 * (i % 8 / 2) + 2; });
      __m512i four_nibbles = _mm512_cvtepu16_epi64(load_128(w[r]->qh));
      deltas[r] = _mm512_andnot_si512(_mm512_multishift_epi64_epi8(bit_3_to_1, four_nibbles), _mm512_set1_epi8(2));
      scales[r] = unpack_scales(*w[r]);
    }
  }

  // Per word four scales of three bits and a quarter of d.
  static __m512 unpack_scales(const Block& w) {
    static constexpr Bytes three_bits = bytes([](int i) { return 16 * (i / 16) + 3 * (i % 16 / 4); });
    const u64 words = load_u64(w.scales);
    __m512i s = _mm512_multishift_epi64_epi8(three_bits, _mm512_set1_epi64(static_cast<long long>(words)));
    u16 d = static_cast<u16>(_pext_u64(words, 0xf000'f000'f000'f000));
    return _mm512_mul_ps(odd_scales_of_three_bits(s, kFactor), broadcast_half(d));
  }
};

}  // namespace

void fill_matmul_iq1_avx512(LeafTable& table) {
  auto set = [&table](BlockType type, MatmulLeaf leaf) { table.matmul_q8[static_cast<i64>(type)] = leaf; };
  set(BlockType::IQ1_S, multiply_tile<IQ1_S>);
  set(BlockType::IQ1_M, multiply_tile<IQ1_M>);
}

}  // namespace stoker

// AVX2 matmul of Q2_K and Q3_K, whose 2-bit codes lie in four planes: the fields of a byte are weights 32 apart. A
// register of either half of the block would meet two scales, eight bytes of both meet four; so a plane is two parts of
// matmul_turned_avx2.h with the same scales.
#include "kernels/cpu/gemm_turned_avx2.h"
#include "kernels/cpu/matmul_avx2.h"
#include "kernels/cpu/matmul_scales_avx2.h"
#include "kernels/format/blocks.h"

namespace stoker {
namespace {

struct Planes {
  using Turned = PlanesBlock;
  static constexpr f32 kFactor = 1.0f;
  static constexpr int kRun = 2, kBias = 0;

  // Bytes of both halves of 128 weights, as the parts have them.
  static __m256i part_bytes(const u8 (&qs)[64], int part) {
    const __m256i first = load_256(qs), second = load_256(qs + 32);
    return part == 0 ? _mm256_unpacklo_epi64(first, second) : _mm256_unpackhi_epi64(first, second);
  }
  // Of plane p: groups 2 p and 8 + 2 p in the lower half, those behind them in the upper.
  static __m256i plane_scales(__m256i words, int plane) { return spread_words(words, plane, 4 + plane); }
};

// Codes 0 .. 3: 4 * 3 * 127 = 1524 in two parts.
struct Q2_K : Planes {
  using Block = BlockQ2_K;
  struct Start {
    __m256i minima;
  };
  struct Prepared {
    __m256i scales;
    Start start;
  };

  static void prepare(const Block& w, Prepared& out) {
    const __m256i packed = _mm256_cvtepu8_epi16(even_then_odd(load_128(w.scales)));
    out.scales = _mm256_and_si256(packed, _mm256_set1_epi16(15));
    out.start.minima = _mm256_srli_epi16(packed, 4);
  }

  static void codes(const Block& w, const Prepared&, int h, int k, __m256i (&out)[2]) {
#pragma GCC unroll 2
    for (int i = 0; i < 2; i++) out[i] = masked(_mm256_srli_epi16(part_bytes(w.qs, i), 4 * h + k), 3);
  }
  static __m256i scales(const Prepared& p, int h, int k) { return plane_scales(p.scales, 2 * h + k / 2); }
  static __m256i start(const Start&, const PlanesBlock&) { return _mm256_setzero_si256(); }
  static __m256i minimum(const Start& s, const PlanesBlock& x) {
    return _mm256_madd_epi16(s.minima, load_256(x.sums));
  }

  // The f16 pairs d, dmin of four blocks.
  static __m128i pairs(const Block* const (&w)[4]) {
    auto pair = [&](int r) __attribute__((always_inline)) { return static_cast<int>(load_u32(&w[r]->d)); };
    return _mm_setr_epi32(pair(0), pair(1), pair(2), pair(3));
  }
  static __m128 d(const Block* const (&w)[4]) {
    return _mm_cvtph_ps(_mm_shuffle_epi8(pairs(w), _mm_set1_epi64x(0x0d0c'0908'0504'0100)));
  }
  static __m128 dmin(const Block* const (&w)[4]) {
    return _mm_cvtph_ps(_mm_shuffle_epi8(pairs(w), _mm_set1_epi64x(0x0f0e'0b0a'0706'0302)));
  }
};

// Codes 0 .. 7 stand for -4 .. 3: 4 * 7 * 127 = 3556 in two parts.
struct Q3_K : Planes {
  using Block = BlockQ3_K;
  struct Start {
    __m256i scales;
  };
  struct Prepared {
    Start start;
  };

  // Sixteen i8 scales -32 .. 31, even groups, then odd groups.
  static __m128i unpack_scales(const Block& w) {
    // The last 16 of the 18 bytes that end the block are two bytes of qs too early; nothing behind it may be touched.
    __m128i end = load_128(w.qs + 62);
    __m128i low = _mm_shuffle_epi8(end, _mm_setr_epi8(2, 4, 6, 8, 2, 4, 6, 8, 3, 5, 7, 9, 3, 5, 7, 9));
    low = _mm_and_si128(_mm_srlv_epi32(low, _mm_setr_epi32(0, 4, 0, 4)), _mm_set1_epi8(15));
    // Bits 2 i, 2 i + 1 of word i become the top two of its bytes.
    __m128i high = _mm_shuffle_epi8(end, _mm_setr_epi8(10, 12, 10, 12, 10, 12, 10, 12, 11, 13, 11, 13, 11, 13, 11, 13));
    high = _mm_mullo_epi16(high, _mm_set1_epi64x(0x0001'0004'0010'0040));
    high = _mm_srli_epi16(_mm_and_si128(high, _mm_set1_epi8(static_cast<char>(0xc0))), 2);
    return _mm_sub_epi8(_mm_or_si128(low, high), _mm_set1_epi8(32));
  }

  static void prepare(const Block& w, Prepared& out) {
    out.start.scales = _mm256_cvtepi8_epi16(unpack_scales(w));
  }

  // Planes 0 and 2, or 1 and 3, as nibbles: two bits of qs, and above them the one of hmask, moved there by a look-up of
  // the four bits that a byte of qs has.
  static __m256i nibbles_of(const Block& w, int part, int odd) {
    const __m256i mask = load_256(w.hmask), low = masked(mask, 15), high = masked(_mm256_srli_epi16(mask, 4), 15);
    const __m256i four = part == 0 ? _mm256_unpacklo_epi64(low, high) : _mm256_unpackhi_epi64(low, high);
    const __m256i moved = odd != 0 ? _mm256_setr_epi64x(0x0404'0000'0404'0000, 0x4444'4040'4444'4040,
                                                        0x0404'0000'0404'0000, 0x4444'4040'4444'4040)
                                   : _mm256_set1_epi64x(0x4440'4440'0400'0400);
    const __m256i bits = part_bytes(w.qs, part);
    return _mm256_or_si256(masked(odd != 0 ? _mm256_srli_epi16(bits, 2) : bits, 0x33),
                           _mm256_shuffle_epi8(moved, four));
  }

  static void codes(const Block& w, const Prepared&, int h, int k, __m256i (&out)[2]) {
#pragma GCC unroll 2
    for (int i = 0; i < 2; i++) {
      const __m256i nibbles = nibbles_of(w, i, k / 2);
      out[i] = masked(h != 0 ? _mm256_srli_epi16(nibbles, 4) : nibbles, 15);
    }
  }
  static __m256i scales(const Prepared& p, int h, int k) { return plane_scales(p.start.scales, 2 * h + k / 2); }
  static __m256i start(const Start& s, const PlanesBlock& x) {
    return _mm256_madd_epi16(s.scales, load_256(x.minus_4_sums));
  }
  static __m128 d(const Block* const (&w)[4]) { return halves_of(w); }
};

}  // namespace

void fill_matmul_planes_avx2(LeafTable& table) {
  set_turned_leaves<Q2_K>(table, BlockType::Q2_K);
  set_turned_leaves<Q3_K>(table, BlockType::Q3_K);
}

}  // namespace stoker

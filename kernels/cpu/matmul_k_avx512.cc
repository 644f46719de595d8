// AVX-512 matmul of the super-block formats with linear codes, and of IQ4_XS, whose scales work as theirs do.
#include "kernels/cpu/matmul_avx512.h"
#include "kernels/cpu/matmul_tile_avx512.h"
#include "kernels/format/blocks.h"
#include "kernels/format/codebooks.h"

namespace stoker {
namespace {

// What all have in common but for order and number of scales.
template <class BlockType, class Order, int kScales>
struct SuperBlock {
  using Block = BlockType;
  using Activation = ActQ8_256;
  using Turned = Turned256;
  using Unpacked = Codes256<kScales>;
  static constexpr i64 kUnitBytes = sizeof(Block);
  static void turn(const ActQ8_256* x, i64, Turned& out) { turn_256<Order>(*x, out); }
  static void add(const Unpacked& w, const Turned& x, __m512& sum) { add_256(w, x, sum); }
};

inline __m512 broadcast_half(u16 h) { return _mm512_cvtph_ps(_mm256_set1_epi16(static_cast<short>(h))); }

// Lane l: four times value first + step * (l / 4) of sixteen.
template <int kFirst, int kStep>
inline __m512 each_four_times(__m512 values) {
  constexpr int a = kFirst, b = a + kStep, c = b + kStep, d = c + kStep;
  return _mm512_permutexvar_ps(_mm512_setr_epi32(a, a, a, a, b, b, b, b, c, c, c, c, d, d, d, d), values);
}

// The eight scales and eight minima of Q4_K and Q5_K, times d and dmin.
inline __m512 scales_and_minima(const u8 (&packed)[12], u16 d, u16 dmin) {
  u32 a = load_word<u32>(packed), b = load_word<u32>(packed + 4), c = load_word<u32>(packed + 8);
  __asm__("" : "+r"(a), "+r"(b), "+r"(c));  // GCC would do this in vector registers, which have enough to do
  const u32 six = 0x3f3f3f3f, four = 0x0f0f0f0f, two = 0x30303030;
  const u64 scales = (a & six) | static_cast<u64>((c & four) | ((a >> 2) & two)) << 32;
  const u64 minima = (b & six) | static_cast<u64>(((c >> 4) & four) | ((b >> 2) & two)) << 32;
  __m128i bytes = _mm_set_epi64x(static_cast<long long>(minima), static_cast<long long>(scales));
  __m256i halves = _mm256_inserti128_si256(_mm256_castsi128_si256(_mm_set1_epi16(static_cast<short>(d))),
                                           _mm_set1_epi16(static_cast<short>(dmin)), 1);
  return _mm512_mul_ps(_mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(bytes)), _mm512_cvtph_ps(halves));
}

// Scales and offsets of groups of 32 in PairOrder: registers 0 and 1 hold the even groups, 2 and 3 the odd ones.
inline void set_pair_scales(__m512 scales_minima, Codes256<2>& out) {
  out.scale[0] = each_four_times<0, 2>(scales_minima);
  out.scale[1] = each_four_times<1, 2>(scales_minima);
  const __m512i minima = _mm512_setr_epi32(8, 8, 9, 9, 10, 10, 11, 11, 12, 12, 13, 13, 14, 14, 15, 15);
  out.offset = _mm512_permutexvar_ps(minima, scales_minima);
}

// Nibbles of four pairs of groups, 32 bytes a pair, in PairOrder.
inline void set_pair_nibbles(const u8 (&qs)[128], Codes256<2>& out) {
  __m512i first = load_512(qs), second = load_512(qs + 64);
  __m512i even = _mm512_shuffle_i64x2(first, second, 0b10'00'10'00);
  __m512i odd = _mm512_shuffle_i64x2(first, second, 0b11'01'11'01);
  out.code[0] = low_nibbles(even);
  out.code[1] = low_nibbles(odd);
  out.code[2] = high_nibbles(even);
  out.code[3] = high_nibbles(odd);
}

struct Q4_K : SuperBlock<BlockQ4_K, PairOrder, 2> {
  static Unpacked unpack(const std::byte* at, i64) {
    const Block& w = *reinterpret_cast<const Block*>(at);
    Unpacked out;
    set_pair_nibbles(w.qs, out);
    set_pair_scales(scales_and_minima(w.scales, w.d, w.dmin), out);
    return out;
  }
};

// Bit g of byte j of qh is the fifth bit of weight 32 g + j.
struct Q5_K : SuperBlock<BlockQ5_K, PairOrder, 2> {
  static Unpacked unpack(const std::byte* at, i64) {
    const Block& w = *reinterpret_cast<const Block*>(at);
    Unpacked out;
    set_pair_nibbles(w.qs, out);
    const __m512i even =
        _mm512_setr_epi64(0x0101010101010101, 0x0101010101010101, 0x0404040404040404, 0x0404040404040404,
                          0x1010101010101010, 0x1010101010101010, 0x4040404040404040, 0x4040404040404040);
    const __m512i odd = _mm512_slli_epi16(even, 1), sixteen = _mm512_set1_epi8(16);
    __m512i high[2] = {_mm512_broadcast_i32x4(load_128(w.qh)), _mm512_broadcast_i32x4(load_128(w.qh + 16))};
#pragma GCC unroll 4
    for (int k = 0; k < 4; k++) {
      __mmask64 set = _mm512_test_epi8_mask(high[k % 2], k < 2 ? even : odd);
      out.code[k] = _mm512_mask_add_epi8(out.code[k], set, out.code[k], sixteen);
    }
    set_pair_scales(scales_and_minima(w.scales, w.d, w.dmin), out);
    return out;
  }
};

// Codes 0 .. 63 stand for -32 .. 31.
struct Q6_K : SuperBlock<BlockQ6_K, NaturalOrder, 4> {
  static Unpacked unpack(const std::byte* at, i64) {
    const Block& w = *reinterpret_cast<const Block*>(at);
    Unpacked out;
#pragma GCC unroll 2
    for (int half = 0; half < 2; half++) {
      __m512i low = load_512(w.ql + 64 * half);
      __m512i high = _mm512_broadcast_i64x4(load_256(w.qh + 32 * half));
      // The two high bits of each weight to bits 4 and 5; what else is rotated there is masked out.
      __m512i first = _mm512_rolv_epi64(high, _mm512_setr_epi64(4, 4, 4, 4, 2, 2, 2, 2));
      __m512i second = _mm512_rolv_epi64(high, _mm512_setr_epi64(0, 0, 0, 0, 62, 62, 62, 62));
      const __m512i bits = _mm512_set1_epi8(0x30);
      // a | (b & c)
      out.code[2 * half] = _mm512_ternarylogic_epi64(low_nibbles(low), first, bits, 0xf8);
      out.code[2 * half + 1] = _mm512_ternarylogic_epi64(high_nibbles(low), second, bits, 0xf8);
    }
    __m512 scales = _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(load_128(w.scales)));
    scales = _mm512_mul_ps(scales, broadcast_half(w.d));
    out.scale[0] = each_four_times<0, 1>(scales);
    out.scale[1] = each_four_times<4, 1>(scales);
    out.scale[2] = each_four_times<8, 1>(scales);
    out.scale[3] = each_four_times<12, 1>(scales);
    out.offset = _mm512_mul_ps(scales, _mm512_set1_ps(32));
    return out;
  }
};

// Register k of HalfOrder: bits 2 k, 2 k + 1 of each byte.
template <int k>
inline __m512i two_bits(__m512i packed) {
  return _mm512_and_si512(_mm512_srli_epi16(packed, 2 * k), _mm512_set1_epi8(3));
}

// Codes 0 .. 3 times scales 0 .. 15 are bytes, and one register's worth of sums is left.
struct Q2_K : SuperBlock<BlockQ2_K, HalfOrder, 1> {
  // The scales of register k as words. A word's product with two codes is two products, as neither passes 45.
  template <int k>
  static __m512i word_scales(__m512i scales) {
    constexpr char a = 2 * k, b = a + 1, c = a + 8, d = a + 9;
    const __m512i from = join(_mm_set1_epi16(a), _mm_set1_epi16(b), _mm_set1_epi16(c), _mm_set1_epi16(d));
    return _mm512_maskz_permutexvar_epi8(0x5555'5555'5555'5555, from, scales);
  }

  static Unpacked unpack(const std::byte* at, i64) {
    const Block& w = *reinterpret_cast<const Block*>(at);
    Unpacked out;
    const __m128i packed = load_128(w.scales), nibble = _mm_set1_epi8(15);
    const __m512i scales = _mm512_castsi128_si512(_mm_and_si128(packed, nibble));
    const __m512i codes = load_512(w.qs);
    out.code[0] = _mm512_mullo_epi16(two_bits<0>(codes), word_scales<0>(scales));
    out.code[1] = _mm512_mullo_epi16(two_bits<1>(codes), word_scales<1>(scales));
    out.code[2] = _mm512_mullo_epi16(two_bits<2>(codes), word_scales<2>(scales));
    out.code[3] = _mm512_mullo_epi16(two_bits<3>(codes), word_scales<3>(scales));
    out.scale[0] = broadcast_half(w.d);
    __m128i minima = _mm_and_si128(_mm_srli_epi16(packed, 4), nibble);
    out.offset = _mm512_mul_ps(_mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(minima)), broadcast_half(w.dmin));
    return out;
  }
};

// Codes 0 .. 7 stand for -4 .. 3.
struct Q3_K : SuperBlock<BlockQ3_K, HalfOrder, 4> {
  static __m512 unpack_scales(const Block& w) {
    const u64 low = load_word<u64>(w.scales), four = 0x0f0f0f0f0f0f0f0f;
    const u64 high = load_word<u32>(w.scales + 8), two = 0x0303030303030303;
    const u64 spread = high | high << 30;  // the next two bits of each byte in the upper four bytes
    const u64 first = (low & four) | (spread & two) << 4;
    const u64 second = ((low >> 4) & four) | ((spread >> 4) & two) << 4;
    __m128i bytes = _mm_set_epi64x(static_cast<long long>(second), static_cast<long long>(first));
    __m512i scales = _mm512_sub_epi32(_mm512_cvtepu8_epi32(bytes), _mm512_set1_epi32(32));
    return _mm512_mul_ps(_mm512_cvtepi32_ps(scales), broadcast_half(w.d));
  }

  // Register k: its groups are 2 k, 2 k + 1 of each half of eight.
  template <int k>
  static void set(__m512i codes, __m512i high, __m512 scales, Unpacked& out) {
    const __m512i bit = _mm512_inserti64x4(_mm512_set1_epi8(1 << k), _mm256_set1_epi8(static_cast<char>(16 << k)), 1);
    __mmask64 third = _mm512_test_epi8_mask(high, bit);
    __m512i two = two_bits<k>(codes);
    out.code[k] = _mm512_mask_add_epi8(two, third, two, _mm512_set1_epi8(4));
    constexpr int a = 2 * k, b = a + 1, c = a + 8, d = a + 9;
    out.scale[k] = _mm512_permutexvar_ps(_mm512_setr_epi32(a, a, a, a, b, b, b, b, c, c, c, c, d, d, d, d), scales);
  }

  static Unpacked unpack(const std::byte* at, i64) {
    const Block& w = *reinterpret_cast<const Block*>(at);
    Unpacked out;
    const __m512 scales = unpack_scales(w);
    const __m512i codes = load_512(w.qs), high = _mm512_broadcast_i64x4(load_256(w.hmask));
    set<0>(codes, high, scales, out);
    set<1>(codes, high, scales, out);
    set<2>(codes, high, scales, out);
    set<3>(codes, high, scales, out);
    out.offset = _mm512_mul_ps(scales, _mm512_set1_ps(4));
    return out;
  }
};

// Code book values -127 .. 113 with 128 added are unsigned.
struct IQ4_XS : SuperBlock<BlockIQ4_XS, BlockOrder, 2> {
  static Unpacked unpack(const std::byte* at, i64) {
    const Block& w = *reinterpret_cast<const Block*>(at);
    Unpacked out;
    const __m512i book = _mm512_xor_si512(_mm512_broadcast_i32x4(load_128(&kIq4Nl)), _mm512_set1_epi8(-128));
#pragma GCC unroll 2
    for (int half = 0; half < 2; half++) {
      __m512i packed = load_512(w.qs + 64 * half);
      out.code[2 * half] = _mm512_shuffle_epi8(book, low_nibbles(packed));
      out.code[2 * half + 1] = _mm512_shuffle_epi8(book, high_nibbles(packed));
    }
    // Six bits each: four of scales_l, two of scales_h.
    __m256i low = _mm256_srlv_epi32(_mm256_set1_epi32(load_word<i32>(w.scales_l)),
                                    _mm256_setr_epi32(0, 4, 8, 12, 16, 20, 24, 28));
    __m256i high = _mm256_srlv_epi32(_mm256_set1_epi32(w.scales_h), _mm256_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14));
    low = _mm256_and_si256(low, _mm256_set1_epi32(15));
    high = _mm256_slli_epi32(_mm256_and_si256(high, _mm256_set1_epi32(3)), 4);
    __m256i six = _mm256_sub_epi32(_mm256_or_si256(low, high), _mm256_set1_epi32(32));
    __m512 scales = _mm512_zextps256_ps512(_mm256_cvtepi32_ps(six));
    scales = _mm512_mul_ps(scales, broadcast_half(w.d));
    out.scale[0] = each_four_times<0, 1>(scales);
    out.scale[1] = each_four_times<4, 1>(scales);
    const __m512i twice = _mm512_setr_epi32(0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 6, 7, 7);
    out.offset = _mm512_mul_ps(_mm512_permutexvar_ps(twice, scales), _mm512_set1_ps(128));
    return out;
  }
};

}  // namespace

void fill_matmul_k_avx512(LeafTable& table) {
  auto set = [&table](BlockType type, MatmulLeaf leaf) { table.matmul_q8[static_cast<i64>(type)] = leaf; };
  set(BlockType::Q2_K, multiply_tile<Q2_K>);
  set(BlockType::Q3_K, multiply_tile<Q3_K>);
  set(BlockType::Q4_K, multiply_tile<Q4_K>);
  set(BlockType::Q5_K, multiply_tile<Q5_K>);
  set(BlockType::Q6_K, multiply_tile<Q6_K>);
  set(BlockType::IQ4_XS, multiply_tile<IQ4_XS>);
}

}  // namespace stoker

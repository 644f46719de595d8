// AVX-512 matmul of the formats with blocks of 32 weights and one scale (and perhaps a minimum) each.
//
// Eight blocks are a unit. The first 16 weights of four blocks are one register, their second 16 another, so that a
// lane's weights have one scale; scales and offsets of the eight blocks are computed together.
#include "kernels/cpu/matmul_avx512.h"
#include "kernels/cpu/matmul_tile_avx512.h"
#include "kernels/format/blocks.h"
#include "kernels/format/codebooks.h"

namespace stoker {
namespace {

constexpr i64 kUnitBlocks = kUnitColumns / 32;

struct TurnedBlocks {
  alignas(64) i8 q[4][64];  // BlockOrder
  f32 d[kUnitBlocks];
  f32 minus_sums[kUnitBlocks];  // -d * (sum of the block)
};

// A weight is scale * code - offset, and both of the eight blocks are in order.
struct CodeBlocks {
  __m512i code[4];
  __m256 scale, offset;
};

// Scale and sum of two blocks.
inline __m128i load_heads(const ActQ8_32* x) {
  return _mm_set_epi64x(load_word<long long>(x + 1), load_word<long long>(x));
}

inline void turn_unit(const ActQ8_32* x, TurnedBlocks& out) {
#pragma GCC unroll 2
  for (int half = 0; half < 2; half++) {
    const ActQ8_32* b = x + 4 * half;
    _mm512_store_si512(out.q[2 * half], join(load_128(b[0].q), load_128(b[1].q), load_128(b[2].q), load_128(b[3].q)));
    _mm512_store_si512(out.q[2 * half + 1],
                       join(load_128(b[0].q + 16), load_128(b[1].q + 16), load_128(b[2].q + 16), load_128(b[3].q + 16)));
    const __m128 first = _mm_castsi128_ps(load_heads(b)), second = _mm_castsi128_ps(load_heads(b + 2));
    const __m128 d = _mm_shuffle_ps(first, second, 0b10'00'10'00), sum = _mm_shuffle_ps(first, second, 0b11'01'11'01);
    _mm_storeu_ps(out.d + 4 * half, d);
    const __m128 sums = _mm_cvtepi32_ps(_mm_castps_si128(sum));
    _mm_storeu_ps(out.minus_sums + 4 * half, _mm_mul_ps(_mm_xor_ps(d, _mm_set1_ps(-0.0f)), sums));
  }
}

inline void turn_blocks(const ActQ8_32* x, i64 columns, TurnedBlocks& out) {
  if (columns >= kUnitColumns) return turn_unit(x, out);
  ActQ8_32 there[kUnitBlocks] = {};
  __builtin_memcpy(there, x, static_cast<size_t>(columns / 32) * sizeof(ActQ8_32));
  turn_unit(there, out);
}

inline void add_blocks(const CodeBlocks& w, const TurnedBlocks& x, __m512& sum) {
  const __m512 scale = _mm512_castps256_ps512(_mm256_mul_ps(w.scale, _mm256_loadu_ps(x.d)));
  const __m512i blocks = _mm512_setr_epi32(0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3);
#pragma GCC unroll 2
  for (int half = 0; half < 2; half++) {
    __m512i total = _mm512_dpbusd_epi32(_mm512_setzero_si512(), w.code[2 * half], _mm512_load_si512(x.q[2 * half]));
    total = _mm512_dpbusd_epi32(total, w.code[2 * half + 1], _mm512_load_si512(x.q[2 * half + 1]));
    __m512i from = half == 0 ? blocks : _mm512_add_epi32(blocks, _mm512_set1_epi32(4));
    sum = _mm512_fmadd_ps(_mm512_cvtepi32_ps(total), _mm512_permutexvar_ps(from, scale), sum);
  }
  sum = _mm512_fmadd_ps(_mm512_zextps256_ps512(w.offset), _mm512_zextps256_ps512(_mm256_loadu_ps(x.minus_sums)), sum);
}

// f16 numbers, one of each block, as floats. Put together in scalar registers: vector ports have enough to do.
template <class Block>
inline __m256 halves(const Block* w, u16 Block::* which) {
  u64 four[2];
#pragma GCC unroll 2
  for (int i = 0; i < 2; i++) {
    const Block* b = w + 4 * i;
    u64 low = b[0].*which | static_cast<u64>(b[1].*which) << 16, high = b[2].*which | static_cast<u64>(b[3].*which) << 16;
    __asm__("" : "+r"(low), "+r"(high));  // GCC would insert them into a vector one by one
    four[i] = low | high << 32;
  }
  return _mm256_cvtph_ps(_mm_set_epi64x(static_cast<long long>(four[1]), static_cast<long long>(four[0])));
}

// Codes of blocks whose bytes are nibbles.
template <class Block>
inline void set_nibbles(const Block* w, CodeBlocks& out) {
#pragma GCC unroll 2
  for (int half = 0; half < 2; half++) {
    const Block* b = w + 4 * half;
    __m512i packed = join(load_128(b[0].qs), load_128(b[1].qs), load_128(b[2].qs), load_128(b[3].qs));
    out.code[2 * half] = low_nibbles(packed);
    out.code[2 * half + 1] = high_nibbles(packed);
  }
}

// Bit i of qh is the fifth bit of weight i.
template <class Block>
inline void add_fifth_bits(const Block* w, CodeBlocks& out) {
  const __m512i sixteen = _mm512_set1_epi8(16);
#pragma GCC unroll 2
  for (int half = 0; half < 2; half++) {
    const Block* b = w + 4 * half;
    // Words 0, 2, 4, 6 are the first sixteen bits of the blocks, the others the second.
    u64 low = load_word<u32>(b[0].qh) | static_cast<u64>(load_word<u32>(b[1].qh)) << 32;
    u64 high = load_word<u32>(b[2].qh) | static_cast<u64>(load_word<u32>(b[3].qh)) << 32;
    const u64 even = 0x0000ffff0000ffff;
    __mmask64 first = _pext_u64(low, even) | _pext_u64(high, even) << 32;
    __mmask64 second = _pext_u64(low, ~even) | _pext_u64(high, ~even) << 32;
    out.code[2 * half] = _mm512_mask_add_epi8(out.code[2 * half], first, out.code[2 * half], sixteen);
    out.code[2 * half + 1] = _mm512_mask_add_epi8(out.code[2 * half + 1], second, out.code[2 * half + 1], sixteen);
  }
}

// Nibbles as indices of a book of sixteen signed bytes, with 128 added.
template <class Block>
inline void set_looked_up(const Block* w, const void* book, CodeBlocks& out) {
  set_nibbles(w, out);
  const __m512i unsigned_book = _mm512_xor_si512(_mm512_broadcast_i32x4(load_128(book)), _mm512_set1_epi8(-128));
#pragma GCC unroll 4
  for (int k = 0; k < 4; k++) out.code[k] = _mm512_shuffle_epi8(unsigned_book, out.code[k]);
}

inline __m256 times(__m256 values, f32 factor) { return _mm256_mul_ps(values, _mm256_set1_ps(factor)); }

template <class Format, class BlockType>
struct Blocks {
  using Block = BlockType;
  using Activation = ActQ8_32;
  using Turned = TurnedBlocks;
  using Unpacked = CodeBlocks;
  static constexpr i64 kUnitBytes = kUnitBlocks * i64{sizeof(Block)};
  static void turn(const ActQ8_32* x, i64 columns, Turned& out) { turn_blocks(x, columns, out); }
  static void add(const Unpacked& w, const Turned& x, __m512& sum) { add_blocks(w, x, sum); }
  static Unpacked unpack(const std::byte* at, i64 columns) {
    if (columns >= kUnitColumns) return Format::unpack_blocks(reinterpret_cast<const Block*>(at));
    // The end of a row: blocks beyond it must not be read. Their activations are zero.
    Block blocks[kUnitBlocks] = {};
    __builtin_memcpy(blocks, at, static_cast<size_t>(columns / 32) * sizeof(Block));
    return Format::unpack_blocks(blocks);
  }
};

struct Q8_0 : Blocks<Q8_0, BlockQ8_0> {
  static CodeBlocks unpack_blocks(const BlockQ8_0* w) {
    CodeBlocks out;
#pragma GCC unroll 4
    for (int k = 0; k < 4; k++) {
      const BlockQ8_0* b = w + k / 2 * 4;
      const int at = k % 2 * 16;
      __m512i bytes =
          join(load_128(b[0].qs + at), load_128(b[1].qs + at), load_128(b[2].qs + at), load_128(b[3].qs + at));
      out.code[k] = _mm512_xor_si512(bytes, _mm512_set1_epi8(-128));  // 128 added
    }
    out.scale = halves(w, &BlockQ8_0::d);
    out.offset = times(out.scale, 128);
    return out;
  }
};

// Nibbles, with a fifth bit when the block has one. What is subtracted is half the codes' range, or a minimum of the
// block's own.
template <class Block>
struct Nibbles : Blocks<Nibbles<Block>, Block> {
  static CodeBlocks unpack_blocks(const Block* w) {
    constexpr bool fifth_bit = requires(Block b) { b.qh; };
    constexpr bool minimum = requires(Block b) { b.m; };
    CodeBlocks out;
    set_nibbles(w, out);
    if constexpr (fifth_bit) add_fifth_bits(w, out);
    out.scale = halves(w, &Block::d);
    if constexpr (minimum)
      out.offset = times(halves(w, &Block::m), -1);
    else
      out.offset = times(out.scale, fifth_bit ? 16 : 8);
    return out;
  }
};

struct IQ4_NL : Blocks<IQ4_NL, BlockIQ4_NL> {
  static CodeBlocks unpack_blocks(const BlockIQ4_NL* w) {
    CodeBlocks out;
    set_looked_up(w, &kIq4Nl, out);
    out.scale = halves(w, &BlockIQ4_NL::d);
    out.offset = times(out.scale, 128);
    return out;
  }
};

struct MXFP4 : Blocks<MXFP4, BlockMXFP4> {
  // 2^(e - 128); the two smallest are denormal.
  static __m256 scales(const BlockMXFP4* w) {
    __m256i e = _mm256_setr_epi32(w[0].e, w[1].e, w[2].e, w[3].e, w[4].e, w[5].e, w[6].e, w[7].e);
    __m256i normal = _mm256_slli_epi32(_mm256_sub_epi32(e, _mm256_set1_epi32(1)), 23);
    __m256i denormal = _mm256_sllv_epi32(_mm256_set1_epi32(0x00200000), e);
    __mmask8 small = _mm256_cmplt_epi32_mask(e, _mm256_set1_epi32(2));
    return _mm256_castsi256_ps(_mm256_mask_mov_epi32(normal, small, denormal));
  }
  static CodeBlocks unpack_blocks(const BlockMXFP4* w) {
    CodeBlocks out;
    set_looked_up(w, &kMxfp4, out);
    out.scale = scales(w);
    out.offset = times(out.scale, 128);
    return out;
  }
};

}  // namespace

void fill_matmul_block32_avx512(LeafTable& table) {
  auto set = [&table](BlockType type, MatmulLeaf leaf) { table.matmul_q8[static_cast<i64>(type)] = leaf; };
  set(BlockType::Q4_0, multiply_tile<Nibbles<BlockQ4_0>>);
  set(BlockType::Q4_1, multiply_tile<Nibbles<BlockQ4_1>>);
  set(BlockType::Q5_0, multiply_tile<Nibbles<BlockQ5_0>>);
  set(BlockType::Q5_1, multiply_tile<Nibbles<BlockQ5_1>>);
  set(BlockType::Q8_0, multiply_tile<Q8_0>);
  set(BlockType::IQ4_NL, multiply_tile<IQ4_NL>);
  set(BlockType::MXFP4, multiply_tile<MXFP4>);
}

}  // namespace stoker

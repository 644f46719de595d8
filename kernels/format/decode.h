// Weights of every block format as GPU kernels consume them: 32 at a time, eight words of four signed bytes that dp4a
// takes as they are, and integer scales. `w` are the registers of one packed block (packed.h names them).
//
//   weight i of group g = d(w) * scale[i / 16] * (code[i] - kBias) + m(w) * offset[i / 16]
//
// The same integers as kernels/ref/unpack.h, so products are the same too. kBias is what a linear code lacks of being
// signed: taking kBias * (sum of activations) off a product once costs less than taking it off every byte.
// Group numbers are compile-time constants after unrolling; nothing is indexed at run time but the books.
#pragma once

#include "kernels/format/byte_ops.h"
#include "kernels/format/codebooks.h"
#include "kernels/format/decode_books.h"
#include "kernels/format/packed.h"

namespace stoker {

struct WeightGroup {
  u32 code[8];    // weight 4 k + j is byte j of code[k]
  i32 scale[2];   // of weights 0-15 and 16-31; formats with blocks of 32 leave them alone: their scale is 1
  i32 offset[2];  // where kHasOffset; blocks of 32: 1
};

namespace decode {

constexpr u32 kLowNibbles = 0x0f0f0f0fu, kTwoBits = 0x03030303u, kOneBit = 0x01010101u;

HOST_DEVICE u32 byte_of(const u32* words, int i) { return words[i / 4] >> (8 * (i % 4)) & 255u; }
HOST_DEVICE u32 half_of(const u32* words, int i) { return words[i / 2] >> (16 * (i % 2)) & 0xffffu; }
HOST_DEVICE u32 nibble_of(const u32* words, int i) { return words[i / 8] >> (4 * (i % 8)) & 15u; }
HOST_DEVICE i32 half_steps(u32 s) { return static_cast<i32>(2 * s + 1); }

// Bit j of the low four to bit 4 of byte j. The products' bits do not meet.
HOST_DEVICE u32 fifth_bits(u32 bits) { return (bits & 15u) * 0x02040810u & 0x10101010u; }

// 32 nibbles in four words, low halves first.
HOST_DEVICE void nibbles(const u32* qs, WeightGroup& out) {
  UNROLL
  for (int k = 0; k < 4; k++) {
    out.code[k] = qs[k] & kLowNibbles;
    out.code[4 + k] = qs[k] >> 4 & kLowNibbles;
  }
}

// Four bytes from a table of sixteen, t[0] the first four: those of the low four nibbles of q.
HOST_DEVICE u32 look_up(const u32 (&t)[4], u32 q) {
  u32 low = pick_bytes(t[0], t[1], q & 0x7777u), high = pick_bytes(t[2], t[3], q & 0x7777u);
  return pick_bytes(low, high, (q >> 1 & 0x4444u) | 0x3210u);
}

HOST_DEVICE void table_nibbles(const u32* qs, const u32 (&table)[4], WeightGroup& out) {
  UNROLL
  for (int k = 0; k < 4; k++) {
    u32 first = look_up(table, qs[k]), second = look_up(table, qs[k] >> 16);  // low, high, low, high nibble
    out.code[k] = pick_bytes(first, second, 0x6420u);
    out.code[4 + k] = pick_bytes(first, second, 0x7531u);
  }
}

constexpr u32 four_bytes(const std::array<i8, 16>& table, size_t first) {
  u32 word = 0;
  for (size_t j = 0; j < 4; j++) word |= static_cast<u32>(static_cast<u8>(table[first + j])) << (8 * j);
  return word;
}

HOST_DEVICE void iq4_nibbles(const u32* qs, WeightGroup& out) {
  constexpr u32 kTable[4] = {four_bytes(kIq4Nl, 0), four_bytes(kIq4Nl, 4), four_bytes(kIq4Nl, 8),
                             four_bytes(kIq4Nl, 12)};
  table_nibbles(qs, kTable, out);
}

HOST_DEVICE void set_scale(WeightGroup& out, i32 scale) { out.scale[0] = out.scale[1] = scale; }

// The 6-bit scale and min of group g of Q4_K and Q5_K; `s` are the twelve bytes.
HOST_DEVICE void six_bit_scales(const u32* s, int g, WeightGroup& out) {
  u32 scale, min;
  if (g < 4) {
    scale = byte_of(s, g) & 63u;
    min = byte_of(s, 4 + g) & 63u;
  } else {
    scale = (byte_of(s, 4 + g) & 15u) | byte_of(s, g - 4) >> 6 << 4;
    min = byte_of(s, 4 + g) >> 4 | byte_of(s, g) >> 6 << 4;
  }
  set_scale(out, static_cast<i32>(scale));
  out.offset[0] = out.offset[1] = -static_cast<i32>(min);
}

// Eight weights of a ternary book: 8 * entry + 1 or - 1.
HOST_DEVICE void ternary(u32 entry, bool negative_delta, u32* code) {
  constexpr u32 kNegative = 0x0007fff7u, kPositive = 0x000901f9u;  // -9, -1, 7 and -7, 1, 9
  if (!negative_delta) entry |= 0x44444444u;
  code[0] = pick_bytes(kNegative, kPositive, entry);
  code[1] = pick_bytes(kNegative, kPositive, entry >> 16);
}

// Eight weights of an IQ2 book with their signs.
HOST_DEVICE void signed_nibbles(u32 entry, u32 signs, u32* code) {
  constexpr u32 kPlus = 0x002b1908u, kMinus = 0x00d5e7f8u;  // 8, 25, 43 and their negatives
  u32 q = entry | signs;
  code[0] = pick_bytes(kPlus, kMinus, q);
  code[1] = pick_bytes(kPlus, kMinus, q >> 16);
}

// Four magnitudes, negated where the top bit of a byte of `signs` is set. Magnitudes are not zero: no carry.
HOST_DEVICE u32 signed_bytes(u32 magnitudes, u32 signs) {
  u32 mask = pick_bytes(signs, 0, 0xba98u);
  return (magnitudes ^ mask) + (mask & kOneBit);
}

}  // namespace decode

// What all formats say unless they say otherwise.
struct DecodeDefaults {
  static constexpr bool kHasOffset = false;
  static constexpr i32 kBias = 0;
  static constexpr BookRange kBook = {};
  HOST_DEVICE static f32 m(const u32*) { return 0; }
};

// d(w), m(w) and group(w, g, book, out); book points to the format's words (kBook), and is not read without one.
template <class Block>
struct Decode;

// --- blocks of 32 ------------------------------------------------------------------------------------------------

template <>
struct Decode<BlockQ4_0> : DecodeDefaults {
  static constexpr i32 kBias = 8;
  HOST_DEVICE static f32 d(const u32* w) { return half_value(w[4]); }
  HOST_DEVICE static void group(const u32* w, int, const u32*, WeightGroup& out) { decode::nibbles(w, out); }
};

template <>
struct Decode<BlockQ4_1> : DecodeDefaults {
  static constexpr bool kHasOffset = true;
  HOST_DEVICE static f32 d(const u32* w) { return half_value(w[4]); }
  HOST_DEVICE static f32 m(const u32* w) { return half_value(w[4] >> 16); }
  HOST_DEVICE static void group(const u32* w, int, const u32*, WeightGroup& out) { decode::nibbles(w, out); }
};

template <>
struct Decode<BlockQ5_0> : DecodeDefaults {
  static constexpr i32 kBias = 16;
  HOST_DEVICE static f32 d(const u32* w) { return half_value(w[5]); }
  HOST_DEVICE static void group(const u32* w, int, const u32*, WeightGroup& out) {
    decode::nibbles(w, out);
    UNROLL
    for (int k = 0; k < 8; k++) out.code[k] |= decode::fifth_bits(w[4] >> (4 * k));
  }
};

template <>
struct Decode<BlockQ5_1> : DecodeDefaults {
  static constexpr bool kHasOffset = true;
  HOST_DEVICE static f32 d(const u32* w) { return half_value(w[4]); }
  HOST_DEVICE static f32 m(const u32* w) { return half_value(w[4] >> 16); }
  HOST_DEVICE static void group(const u32* w, int, const u32*, WeightGroup& out) {
    decode::nibbles(w, out);
    UNROLL
    for (int k = 0; k < 8; k++) out.code[k] |= decode::fifth_bits(w[5] >> (4 * k));
  }
};

template <>
struct Decode<BlockQ8_0> : DecodeDefaults {
  HOST_DEVICE static f32 d(const u32* w) { return half_value(w[8]); }
  HOST_DEVICE static void group(const u32* w, int, const u32*, WeightGroup& out) {
    UNROLL
    for (int k = 0; k < 8; k++) out.code[k] = w[k];
  }
};

template <>
struct Decode<BlockIQ4_NL> : DecodeDefaults {
  HOST_DEVICE static f32 d(const u32* w) { return half_value(w[4]); }
  HOST_DEVICE static void group(const u32* w, int, const u32*, WeightGroup& out) { decode::iq4_nibbles(w, out); }
};

template <>
struct Decode<BlockMXFP4> : DecodeDefaults {
  HOST_DEVICE static f32 d(const u32* w) { return e8m0_half_to_f32(static_cast<u8>(w[4])); }
  HOST_DEVICE static void group(const u32* w, int, const u32*, WeightGroup& out) {
    constexpr u32 kTable[4] = {decode::four_bytes(kMxfp4, 0), decode::four_bytes(kMxfp4, 4),
                               decode::four_bytes(kMxfp4, 8), decode::four_bytes(kMxfp4, 12)};
    decode::table_nibbles(w, kTable, out);
  }
};

// --- super-blocks with linear codes ------------------------------------------------------------------------------

template <>
struct Decode<BlockQ2_K> : DecodeDefaults {
  static constexpr bool kHasOffset = true;
  HOST_DEVICE static f32 d(const u32* w) { return half_value(w[20]); }
  HOST_DEVICE static f32 m(const u32* w) { return half_value(w[20] >> 16); }
  HOST_DEVICE static void group(const u32* w, int g, const u32*, WeightGroup& out) {
    UNROLL
    for (int k = 0; k < 8; k++) out.code[k] = w[4 + 8 * (g / 4) + k] >> (2 * (g % 4)) & decode::kTwoBits;
    UNROLL
    for (int h = 0; h < 2; h++) {
      u32 both = decode::byte_of(w, 2 * g + h);
      out.scale[h] = static_cast<i32>(both & 15u);
      out.offset[h] = -static_cast<i32>(both >> 4);
    }
  }
};

template <>
struct Decode<BlockQ3_K> : DecodeDefaults {
  static constexpr i32 kBias = 4;
  HOST_DEVICE static f32 d(const u32* w) { return half_value(w[27]); }
  HOST_DEVICE static void group(const u32* w, int g, const u32*, WeightGroup& out) {
    UNROLL
    for (int k = 0; k < 8; k++)
      out.code[k] = (w[8 + 8 * (g / 4) + k] >> (2 * (g % 4)) & decode::kTwoBits) | (w[k] >> g & decode::kOneBit) << 2;
    UNROLL
    for (int h = 0; h < 2; h++) {
      int s = 2 * g + h;
      u32 low = decode::byte_of(w + 24, s % 8) >> (s / 8 * 4) & 15u;
      u32 high = decode::byte_of(w + 24, 8 + s % 4) >> (s / 4 * 2) & 3u;
      out.scale[h] = static_cast<i32>(low | high << 4) - 32;
    }
  }
};

template <>
struct Decode<BlockQ4_K> : DecodeDefaults {
  static constexpr bool kHasOffset = true;
  HOST_DEVICE static f32 d(const u32* w) { return half_value(w[0]); }
  HOST_DEVICE static f32 m(const u32* w) { return half_value(w[0] >> 16); }
  HOST_DEVICE static void group(const u32* w, int g, const u32*, WeightGroup& out) {
    UNROLL
    for (int k = 0; k < 8; k++) out.code[k] = w[4 + 8 * (g / 2) + k] >> (4 * (g % 2)) & decode::kLowNibbles;
    decode::six_bit_scales(w + 1, g, out);
  }
};

template <>
struct Decode<BlockQ5_K> : DecodeDefaults {
  static constexpr bool kHasOffset = true;
  HOST_DEVICE static f32 d(const u32* w) { return half_value(w[0]); }
  HOST_DEVICE static f32 m(const u32* w) { return half_value(w[0] >> 16); }
  HOST_DEVICE static void group(const u32* w, int g, const u32*, WeightGroup& out) {
    UNROLL
    for (int k = 0; k < 8; k++)
      out.code[k] = (w[12 + 8 * (g / 2) + k] >> (4 * (g % 2)) & decode::kLowNibbles) |
                    (w[4 + k] >> g & decode::kOneBit) << 4;
    decode::six_bit_scales(w + 1, g, out);
  }
};

template <>
struct Decode<BlockQ6_K> : DecodeDefaults {
  static constexpr i32 kBias = 32;
  HOST_DEVICE static f32 d(const u32* w) { return half_value(w[52]); }
  HOST_DEVICE static void group(const u32* w, int g, const u32*, WeightGroup& out) {
    int half = g / 4, k4 = g % 4;
    UNROLL
    for (int k = 0; k < 8; k++)
      out.code[k] = (w[16 * half + 8 * (k4 % 2) + k] >> (k4 / 2 * 4) & decode::kLowNibbles) |
                    (w[32 + 8 * half + k] >> (2 * k4) & decode::kTwoBits) << 4;
    UNROLL
    for (int h = 0; h < 2; h++) out.scale[h] = static_cast<i8>(decode::byte_of(w + 48, 2 * g + h));
  }
};

// --- super-blocks with code books --------------------------------------------------------------------------------

template <>
struct Decode<BlockIQ4_XS> : DecodeDefaults {
  HOST_DEVICE static f32 d(const u32* w) { return half_value(w[32]); }
  HOST_DEVICE static void group(const u32* w, int g, const u32*, WeightGroup& out) {
    decode::iq4_nibbles(w + 4 * g, out);
    u32 high = w[32] >> (16 + 2 * g) & 3u;
    decode::set_scale(out, static_cast<i32>(decode::nibble_of(w + 33, g) | high << 4) - 32);
  }
};

template <>
struct Decode<BlockIQ1_S> : DecodeDefaults {
  static constexpr BookRange kBook = kBookIq1;
  HOST_DEVICE static f32 d(const u32* w) { return half_value(w[12]) * 0.125f; }
  HOST_DEVICE static void group(const u32* w, int g, const u32* book, WeightGroup& out) {
    u32 high = decode::half_of(w + 8, g);
    UNROLL
    for (int k = 0; k < 4; k++) {
      u32 index = decode::byte_of(w, 4 * g + k) | (high >> (3 * k) & 7u) << 8;
      decode::ternary(book[index], (high & 0x8000u) != 0, out.code + 2 * k);
    }
    decode::set_scale(out, decode::half_steps(high >> 12 & 7u));
  }
};

template <>
struct Decode<BlockIQ1_M> : DecodeDefaults {
  static constexpr BookRange kBook = kBookIq1;
  HOST_DEVICE static f32 d(const u32* w) {
    u32 low = (w[12] >> 12 & 15u) | (w[12] >> 28) << 4, high = (w[13] >> 12 & 15u) | (w[13] >> 28) << 4;
    return half_value(low | high << 8) * 0.125f;
  }
  HOST_DEVICE static void group(const u32* w, int g, const u32* book, WeightGroup& out) {
    UNROLL
    for (int k = 0; k < 4; k++) {
      u32 high = decode::nibble_of(w + 8, 4 * g + k);
      u32 index = decode::byte_of(w, 4 * g + k) | (high & 7u) << 8;
      decode::ternary(book[index], (high & 8u) != 0, out.code + 2 * k);
    }
    UNROLL
    for (int h = 0; h < 2; h++) {
      int s = 2 * g + h;
      out.scale[h] = decode::half_steps(decode::half_of(w + 12, s / 4) >> (3 * (s % 4)) & 7u);
    }
  }
};

template <>
struct Decode<BlockIQ2_XXS> : DecodeDefaults {
  static constexpr BookRange kBook = kBookIq2Xxs;
  HOST_DEVICE static f32 d(const u32* w) { return half_value(w[16]) * 0.125f; }
  HOST_DEVICE static void group(const u32* w, int g, const u32* book, WeightGroup& out) {
    u32 high = w[2 * g + 1];
    UNROLL
    for (int k = 0; k < 4; k++)
      decode::signed_nibbles(book[kBook.signs + decode::byte_of(w + 2 * g, k)], book[high >> (7 * k) & 127u],
                             out.code + 2 * k);
    decode::set_scale(out, decode::half_steps(high >> 28));
  }
};

template <>
struct Decode<BlockIQ2_XS> : DecodeDefaults {
  static constexpr BookRange kBook = kBookIq2Xs;
  HOST_DEVICE static f32 d(const u32* w) { return half_value(w[18]) * 0.125f; }
  HOST_DEVICE static void group(const u32* w, int g, const u32* book, WeightGroup& out) {
    UNROLL
    for (int k = 0; k < 4; k++) {
      u32 q = decode::half_of(w, 4 * g + k);
      decode::signed_nibbles(book[kBook.signs + (q & 511u)], book[q >> 9], out.code + 2 * k);
    }
    UNROLL
    for (int h = 0; h < 2; h++) out.scale[h] = decode::half_steps(decode::nibble_of(w + 16, 2 * g + h));
  }
};

template <>
struct Decode<BlockIQ2_S> : DecodeDefaults {
  static constexpr BookRange kBook = kBookIq2S;
  HOST_DEVICE static f32 d(const u32* w) { return half_value(w[20]) * 0.125f; }
  HOST_DEVICE static void group(const u32* w, int g, const u32* book, WeightGroup& out) {
    UNROLL
    for (int k = 0; k < 4; k++) {
      u32 index = decode::byte_of(w, 4 * g + k) | (decode::byte_of(w + 16, g) >> (2 * k) & 3u) << 8;
      decode::signed_nibbles(book[kBook.signs + index], book[decode::byte_of(w + 8, 4 * g + k)], out.code + 2 * k);
    }
    UNROLL
    for (int h = 0; h < 2; h++) out.scale[h] = decode::half_steps(decode::nibble_of(w + 18, 2 * g + h));
  }
};

template <>
struct Decode<BlockIQ3_XXS> : DecodeDefaults {
  static constexpr BookRange kBook = kBookIq3Xxs;
  HOST_DEVICE static f32 d(const u32* w) { return half_value(w[24]) * 0.25f; }
  HOST_DEVICE static void group(const u32* w, int g, const u32* book, WeightGroup& out) {
    u32 high = w[16 + g];
    UNROLL
    for (int k = 0; k < 4; k++) {
      u32 signs = book[high >> (7 * k) & 127u];
      const u32* entries = book + kBook.signs;
      out.code[2 * k] = decode::signed_bytes(entries[decode::byte_of(w, 8 * g + 2 * k)], signs);
      out.code[2 * k + 1] = decode::signed_bytes(entries[decode::byte_of(w, 8 * g + 2 * k + 1)], signs << 4);
    }
    decode::set_scale(out, decode::half_steps(high >> 28));
  }
};

template <>
struct Decode<BlockIQ3_S> : DecodeDefaults {
  static constexpr BookRange kBook = kBookIq3S;
  HOST_DEVICE static f32 d(const u32* w) { return half_value(w[27]); }
  HOST_DEVICE static void group(const u32* w, int g, const u32* book, WeightGroup& out) {
    u32 high = decode::byte_of(w + 16, g);
    const u32* entries = book + kBook.signs;
    UNROLL
    for (int k = 0; k < 4; k++) {
      u32 signs = book[decode::byte_of(w + 18, 4 * g + k)];
      u32 first = decode::byte_of(w, 8 * g + 2 * k) | (high >> (2 * k) & 1u) << 8;
      u32 second = decode::byte_of(w, 8 * g + 2 * k + 1) | (high >> (2 * k + 1) & 1u) << 8;
      out.code[2 * k] = decode::signed_bytes(entries[first], signs);
      out.code[2 * k + 1] = decode::signed_bytes(entries[second], signs << 4);
    }
    decode::set_scale(out, decode::half_steps(decode::nibble_of(w + 26, g)));
  }
};

}  // namespace stoker

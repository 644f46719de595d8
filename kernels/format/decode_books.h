// Code books in the form that GPU kernels look them up in: one word per index, small enough for shared memory.
//
// IQ1 and IQ2: eight nibbles, nibble j the digit (0, 1, 2) of weight j. The kernel sets bit 2 of a nibble where a weight
// is negative (IQ2) or its delta positive (IQ1), and pick_bytes() turns four nibbles into four signed bytes at once.
// IQ3: four magnitudes, one per byte. Sign words come before the entries: of IQ2 bit 4 j + 2 says that weight j is
// negative; of IQ3 bit 7 of byte j is the sign of weight j, bit 3 that of weight 4 + j.
#pragma once

#include <array>

#include "kernels/base/types.h"
#include "kernels/format/blocks.h"

namespace stoker {

// Where a format's words are in DecodeBooks: `signs` sign words, then `entries`.
struct BookRange {
  i64 first = 0, signs = 0, entries = 0;
  constexpr i64 words() const { return signs + entries; }
  constexpr i64 end() const { return first + words(); }
};

constexpr BookRange kBookIq1 = {0, 0, 2048};  // IQ1_S and IQ1_M
constexpr BookRange kBookIq2Xxs = {kBookIq1.end(), 128, 256};
constexpr BookRange kBookIq2Xs = {kBookIq2Xxs.end(), 128, 512};
constexpr BookRange kBookIq2S = {kBookIq2Xs.end(), 256, 1024};
constexpr BookRange kBookIq3Xxs = {kBookIq2S.end(), 128, 256};
constexpr BookRange kBookIq3S = {kBookIq3Xxs.end(), 256, 512};

using DecodeBooks = std::array<u32, kBookIq3S.end()>;

// Made of codebooks.h at the first call. Any thread.
const DecodeBooks& decode_books();

}  // namespace stoker

// The code books of the IQ formats: facts of the formats, the same in every file.
#pragma once

#include <array>
#include <bit>

#include "kernels/base/types.h"

namespace stoker {

// Magnitudes of 8 (IQ2, IQ1) or 4 (IQ3) consecutive weights; weight j in byte j. The IQ1 book (also IQ1_M's)
// has signed bytes -1, 0, 1.
extern const std::array<u64, 256> kGridIq2Xxs;
extern const std::array<u64, 512> kGridIq2Xs;
extern const std::array<u64, 1024> kGridIq2S;
extern const std::array<u64, 2048> kGridIq1S;
extern const std::array<u32, 256> kGridIq3Xxs;
extern const std::array<u32, 512> kGridIq3S;

// The same books for look-ups of bytes in vector registers, [plane][entry], aligned to 64 bytes. Of the books with
// 8 weights per entry, plane p holds the digits of weights 4p .. 4p + 3, two bits each and the first weight lowest;
// digit c is the c-th smallest value of the book. Of those with 4, plane p holds kPlaneBias + weight p: kPlaneBias +-
// the weight are both unsigned.
constexpr u32 kPlaneBias = 64;
template <size_t kPlanes, size_t kCount>
using BookPlanes = std::array<std::array<u8, kCount>, kPlanes>;
extern const BookPlanes<2, 256> kPlanesIq2Xxs;
extern const BookPlanes<2, 512> kPlanesIq2Xs;
extern const BookPlanes<2, 1024> kPlanesIq2S;
extern const BookPlanes<4, 256> kPlanesIq3Xxs;
extern const BookPlanes<4, 512> kPlanesIq3S;

constexpr f32 kIq1Delta = 0.125f;

// The IQ1 book as 8 * (weight + 1): unsigned bytes in units of the delta.
extern const std::array<u64, 2048> kEighthsIq1S;

// IQ4_NL and IQ4_XS.
inline constexpr std::array<i8, 16> kIq4Nl = {-127, -104, -83, -65, -49, -35, -22, -10,
                                              1,    13,   25,  38,  53,  69,  89,  113};

// MXFP4: E2M1 numbers doubled, so that they are integers.
inline constexpr std::array<i8, 16> kMxfp4 = {0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12};

// The sign byte of a 7-bit sign index: the number of negative weights of 8 is even, so bit 7 is the parity of
// the rest.
constexpr u8 sign_byte(u32 index) { return static_cast<u8>(index | (std::popcount(index) & 1u) << 7); }

inline constexpr std::array<u8, 128> kSignBytes = [] {
  std::array<u8, 128> table{};
  for (u32 i = 0; i < 128; i++) table[i] = sign_byte(i);
  return table;
}();

}  // namespace stoker

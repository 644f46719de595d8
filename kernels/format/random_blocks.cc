#include "kernels/format/random_blocks.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <cstddef>
#include <cstring>
#include <optional>

#include "kernels/base/check.h"
#include "kernels/format/blocks.h"
#include "kernels/format/codebooks.h"
#include "kernels/format/f16.h"

namespace stoker {

namespace {

// Moments of a uniform random code low .. low + n - 1 (n a power of two, all its bits random).
constexpr f64 mean(f64 low, f64 n) { return low + (n - 1) / 2; }
constexpr f64 square(f64 low, f64 n) { return (n * n - 1) / 12 + mean(low, n) * mean(low, n); }

// Of scale * q - (ratio) * min, where scale and min are alike and ratio = E[q] makes the mean 0.
constexpr f64 with_min(f64 scales, f64 codes) {
  f64 ratio = mean(0, codes);
  f64 m = mean(0, scales);
  return square(0, scales) * square(0, codes) + ratio * ratio * square(0, scales) - 2 * ratio * ratio * m * m;
}

constexpr f64 kFineScales = 85.25;  // E[(s + 0.5)^2] of a 4-bit s
constexpr f64 kOddScales4 = 341;    // E[(2 s + 1)^2] of a 4-bit s
constexpr f64 kOddScales3 = 85;     // the same of a 3-bit s

// Mean square of the entries of a code book whose words hold one entry per byte.
template <class Word, size_t n>
f64 book_square(const std::array<Word, n>& book) {
  f64 sum = 0;
  for (Word word : book)
    for (size_t j = 0; j < sizeof(Word); j++) {
      f64 entry = static_cast<i8>(word >> (8 * j) & 0xff);
      sum += entry * entry;
    }
  return sum / static_cast<f64>(n * sizeof(Word));
}

template <size_t n>
f64 list_square(const std::array<i8, n>& list) {
  f64 sum = 0;
  for (i8 entry : list) sum += static_cast<f64>(entry) * entry;
  return sum / static_cast<f64>(n);
}

// Variance of a weight whose block scale is 1 and whose other bits are random.
f64 unit_variance(BlockType type) {
  switch (type) {
    case BlockType::Q4_0:
      return square(-8, 16);
    case BlockType::Q4_1:
      return square(-7.5, 16);
    case BlockType::Q5_0:
      return square(-16, 32);
    case BlockType::Q5_1:
      return square(-15.5, 32);
    case BlockType::Q8_0:
      return square(-128, 256);
    case BlockType::Q2_K:
      return with_min(16, 4);
    case BlockType::Q3_K:
      return square(-32, 64) * square(-4, 8);
    case BlockType::Q4_K:
      return with_min(64, 16);
    case BlockType::Q5_K:
      return with_min(64, 32);
    case BlockType::Q6_K:
      return square(-128, 256) * square(-32, 64);
    case BlockType::IQ2_XXS:
      return kFineScales / 16 * book_square(kGridIq2Xxs);
    case BlockType::IQ2_XS:
      return kFineScales / 16 * book_square(kGridIq2Xs);
    case BlockType::IQ2_S:
      return kFineScales / 16 * book_square(kGridIq2S);
    case BlockType::IQ3_XXS:
      return kFineScales / 4 * book_square(kGridIq3Xxs);
    case BlockType::IQ3_S:
      return kOddScales4 * book_square(kGridIq3S);
    case BlockType::IQ4_NL:
      return list_square(kIq4Nl);
    case BlockType::IQ4_XS:
      return square(-32, 64) * list_square(kIq4Nl);
    case BlockType::IQ1_S:
    case BlockType::IQ1_M:
      return kOddScales3 * (book_square(kGridIq1S) + f64{kIq1Delta} * kIq1Delta);
    case BlockType::MXFP4:
      return list_square(kMxfp4);
    case BlockType::F32:
    case BlockType::F16:
    case BlockType::BF16:
    case BlockType::I8:  // no weights
      break;
  }
  return 1;
}

// Where a block has its f16 scale, and the second one that centres the codes: second = ratio * first.
struct ScalePlace {
  size_t first;
  std::optional<size_t> second;
  f32 ratio = 0;
};

std::optional<ScalePlace> scale_place(BlockType type) {
  switch (type) {
    case BlockType::Q4_1:
      return ScalePlace{offsetof(BlockQ4_1, d), offsetof(BlockQ4_1, m), -7.5f};
    case BlockType::Q5_1:
      return ScalePlace{offsetof(BlockQ5_1, d), offsetof(BlockQ5_1, m), -15.5f};
    case BlockType::Q2_K:
      return ScalePlace{offsetof(BlockQ2_K, d), offsetof(BlockQ2_K, dmin), 1.5f};
    case BlockType::Q4_K:
      return ScalePlace{offsetof(BlockQ4_K, d), offsetof(BlockQ4_K, dmin), 7.5f};
    case BlockType::Q5_K:
      return ScalePlace{offsetof(BlockQ5_K, d), offsetof(BlockQ5_K, dmin), 15.5f};
    case BlockType::Q3_K:
      return ScalePlace{offsetof(BlockQ3_K, d), {}};
    case BlockType::Q6_K:
      return ScalePlace{offsetof(BlockQ6_K, d), {}};
    case BlockType::IQ1_M:
    case BlockType::MXFP4:
    case BlockType::F32:
    case BlockType::F16:
    case BlockType::BF16:
      return std::nullopt;
    default:
      return ScalePlace{0, {}};  // all others begin with it
  }
}

void put_u16(std::byte* to, u16 value) { std::memcpy(to, &value, sizeof value); }

void fill_bits(std::byte* out, i64 bytes, Rng& rng) {
  for (i64 at = 0; at < bytes; at += 8) {
    u64 bits = rng.next();
    std::memcpy(out + at, &bits, static_cast<size_t>(std::min<i64>(8, bytes - at)));
  }
}

// The f16 scale lies in the top nibbles of four u16, the lowest nibble first.
void set_iq1_m_scale(std::byte* block, f32 d) {
  BlockIQ1_M b;
  std::memcpy(&b, block, sizeof b);
  u16 half = f32_to_f16(d);
  for (int i = 0; i < 4; i++)
    b.scales[i] = static_cast<u16>((b.scales[i] & 0x0fff) | (half >> (4 * i) & 0xf) << 12);
  std::memcpy(block, &b, sizeof b);
}

// A scale is a power of two: of the two nearest, each is taken so often that the mean square is right.
void set_mxfp4_scale(std::byte* block, f64 d, Rng& rng) {
  i64 exponent = static_cast<i64>(std::floor(std::log2(d)));
  f64 low = std::exp2(static_cast<f64>(exponent));
  f64 upper_share = (d * d / (low * low) - 1) / 3;  // share * 4 + (1 - share) = (d / low)^2
  if (rng.uniform() < upper_share) exponent++;
  *block = static_cast<std::byte>(std::clamp<i64>(exponent + 128, 0, 254));  // e8m0_half(e) = 2^(e - 128)
}

// Q8_0's quantiser never makes -128, and kernels may rely on that.
void clear_lowest_code(std::byte* block) {
  std::byte* codes = block + offsetof(BlockQ8_0, qs);
  for (size_t i = 0; i < 32; i++)
    if (codes[i] == std::byte{0x80}) codes[i] = std::byte{0x81};
}

void fill_floats(BlockType type, i64 count, f32 deviation, Rng& rng, std::byte* out) {
  f64 width = deviation * std::sqrt(12.0);  // of a uniform distribution
  for (i64 i = 0; i < count; i++) {
    f32 x = static_cast<f32>((rng.uniform() - 0.5) * width);
    if (type == BlockType::F32)
      std::memcpy(out + i * 4, &x, 4);
    else
      put_u16(out + i * 2, type == BlockType::F16 ? f32_to_f16(x) : f32_to_bf16(x));
  }
}

}  // namespace

void fill_random_blocks(BlockType type, i64 count, f32 deviation, Rng& rng, std::byte* out) {
  const BlockTypeInfo& block = info(type);
  if (block.block_weights == 1) return fill_floats(type, count, deviation, rng, out);
  std::optional<ScalePlace> place = scale_place(type);
  CHECK(place || type == BlockType::IQ1_M || type == BlockType::MXFP4);
  fill_bits(out, count * block.block_bytes, rng);
  f64 scale = deviation / std::sqrt(unit_variance(type));
  for (i64 i = 0; i < count; i++) {
    std::byte* at = out + i * block.block_bytes;
    // Scales differ between blocks as in real files: by up to a quarter (whose square adds 1/48 to the
    // variance).
    f64 d = scale * (0.75 + 0.5 * rng.uniform()) / std::sqrt(1 + 1.0 / 48);
    if (type == BlockType::IQ1_M) set_iq1_m_scale(at, static_cast<f32>(d));
    if (type == BlockType::MXFP4) set_mxfp4_scale(at, scale, rng);
    if (type == BlockType::Q8_0) clear_lowest_code(at);
    if (!place) continue;
    put_u16(at + place->first, f32_to_f16(static_cast<f32>(d)));
    if (place->second) put_u16(at + *place->second, f32_to_f16(static_cast<f32>(d * place->ratio)));
  }
}

}  // namespace stoker

// Activations to 8 bits: the largest magnitude of a block becomes 127, ties round to even. A block of zeros has scale 0;
// one that is not finite has a scale that is not finite either, so that the damage stays visible.
#include <algorithm>
#include <bit>
#include <cmath>

#include "kernels/format/f16.h"
#include "kernels/ref/ref.h"

namespace stoker::ref {

namespace {

// Largest magnitude. Taken of the bits without sign, which are ordered like finite floats with infinity and NaN above
// them: a comparison of floats would lose a NaN again at the next element.
f32 largest(const f32* x, i64 count) {
  u32 result = 0;
  for (i64 i = 0; i < count; i++) result = std::max(result, std::bit_cast<u32>(x[i]) & 0x7fffffffu);
  return std::bit_cast<f32>(result);
}

void quantize_block(const f32* x, i64 count, f32& d, i8* q) {
  f32 max = largest(x, count);
  d = max / 127.0f;
  bool usable = max > 0 && std::isfinite(max);
  f32 inverse = usable ? 127.0f / max : 0.0f;
  // Magnitudes below about 4e-37 overflow the inverse; they are zero for every purpose.
  if (!std::isfinite(inverse)) inverse = 0.0f;
  for (i64 i = 0; i < count; i++) q[i] = usable ? static_cast<i8>(std::nearbyint(x[i] * inverse)) : i8{0};
}

void quantize_q8_32(const f32* x, ActQ8_32* out, i64 cols) {
  for (i64 b = 0; b < cols / 32; b++) {
    quantize_block(x + 32 * b, 32, out[b].d, out[b].q);
    out[b].sum = 0;
    for (i8 q : out[b].q) out[b].sum += q;
  }
}

void quantize_q8_256(const f32* x, ActQ8_256* out, i64 cols) {
  for (i64 b = 0; b < cols / 256; b++) {
    quantize_block(x + 256 * b, 256, out[b].d, out[b].q);
    for (i64 g = 0; g < 16; g++) {
      i32 sum = 0;
      for (i64 i = 16 * g; i < 16 * g + 16; i++) sum += out[b].q[i];
      out[b].sums[g] = static_cast<i16>(sum);
    }
  }
}

// The smallest f16 that is at least x, which is not negative; an infinity when there is none.
u16 f16_above(f32 x) {
  u16 half = f32_to_f16(x);
  return f16_to_f32(half) < x ? static_cast<u16>(half + 1) : half;
}

void quantize_q8_0(const f32* x, BlockQ8_0* out, i64 count) {
  for (i64 b = 0; b < count / 32; b++) {
    out[b].d = f16_above(largest(x + 32 * b, 32) / 127.0f);
    f32 d = f16_to_f32(out[b].d);
    bool usable = d > 0 && std::isfinite(d);
    for (i64 i = 0; i < 32; i++) out[b].qs[i] = usable ? static_cast<i8>(std::nearbyint(x[32 * b + i] / d)) : i8{0};
  }
}

}  // namespace

void fill_quantize(LeafTable& table) {
  table.quantize_q8_32 = quantize_q8_32;
  table.quantize_q8_256 = quantize_q8_256;
  table.quantize_q8_0 = quantize_q8_0;
}

}  // namespace stoker::ref

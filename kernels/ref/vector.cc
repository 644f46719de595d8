// Twins of the element-wise leaves and of the sums. Sums run in double, so faster orders stay close to them.
#include <cmath>

#include "kernels/format/f16.h"
#include "kernels/ref/ref.h"

namespace stoker::ref {

namespace {

void rms_norm(const f32* x, const f32* weight, f32* y, i64 cols, f32 epsilon) {
  f64 squares = 0;
  for (i64 i = 0; i < cols; i++) squares += static_cast<f64>(x[i]) * static_cast<f64>(x[i]);
  f32 factor = static_cast<f32>(1.0 / std::sqrt(squares / static_cast<f64>(cols) + static_cast<f64>(epsilon)));
  for (i64 i = 0; i < cols; i++) y[i] = x[i] * factor * weight[i];
}

void silu_mul(const f32* gate, const f32* up, f32* y, i64 count) {
  for (i64 i = 0; i < count; i++) y[i] = gate[i] / (1.0f + std::exp(-gate[i])) * up[i];
}

void add(f32* y, const f32* x, i64 count) {
  for (i64 i = 0; i < count; i++) y[i] += x[i];
}

void add_scaled(f32* y, const f32* x, f32 a, i64 count) {
  for (i64 i = 0; i < count; i++) y[i] += a * x[i];
}

void scale(f32* y, f32 a, i64 count) {
  for (i64 i = 0; i < count; i++) y[i] *= a;
}

f32 dot(const f32* a, const f32* b, i64 count) {
  f64 sum = 0;
  for (i64 i = 0; i < count; i++) sum += static_cast<f64>(a[i]) * static_cast<f64>(b[i]);
  return static_cast<f32>(sum);
}

void to_f16(const f32* x, u16* y, i64 count) {
  for (i64 i = 0; i < count; i++) y[i] = f32_to_f16(x[i]);
}

void from_f16(const u16* x, f32* y, i64 count) {
  for (i64 i = 0; i < count; i++) y[i] = f16_to_f32(x[i]);
}

}  // namespace

void fill_vector(LeafTable& table) {
  table.rms_norm = rms_norm;
  table.silu_mul = silu_mul;
  table.add = add;
  table.add_scaled = add_scaled;
  table.scale = scale;
  table.dot = dot;
  table.to_f16 = to_f16;
  table.from_f16 = from_f16;
}

}  // namespace stoker::ref

namespace stoker {

void fill_ref(LeafTable& table) {
  ref::fill_attention(table);
  ref::fill_dequantize(table);
  ref::fill_matmul_f32(table);
  ref::fill_matmul_q8(table);
  ref::fill_quantize(table);
  ref::fill_vector(table);
}

}  // namespace stoker

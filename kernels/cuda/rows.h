// What is done to rows of activations between the matrices: quantising, norms, rotation, sums, the cache. Each body says
// how it is launched; all take any number of blocks and go on in steps of the grid. Numbers are rounded as the twins do
// it, so that all but exp, sin, cos and the order of a norm's sum is equal bit for bit.
#pragma once

#include <cmath>

#include "kernels/cuda/gpu.h"
#include "kernels/format/byte_ops.h"
#include "kernels/ops.h"

namespace stoker::cuda {

constexpr int kRowThreads = 256;
constexpr int kRowWarps = kRowThreads / kWarp;

HOST_DEVICE u32 float_bits(f32 x) {
#ifdef __CUDA_ARCH__
  return __float_as_uint(x);
#else
  return std::bit_cast<u32>(x);
#endif
}
HOST_DEVICE f32 float_of_bits(u32 bits) {
#ifdef __CUDA_ARCH__
  return __uint_as_float(bits);
#else
  return std::bit_cast<f32>(bits);
#endif
}
HOST_DEVICE u16 half_bits(f32 x) {
#ifdef __CUDA_ARCH__
  return __half_as_ushort(__float2half_rn(x));
#else
  return f32_to_f16(x);
#endif
}
HOST_DEVICE i32 nearest(f32 x) {  // ties to even
#ifdef __CUDA_ARCH__
  return __float2int_rn(x);
#else
  return static_cast<i32>(std::nearbyint(x));
#endif
}
HOST_DEVICE f32 silu(f32 x) { return x / (1.0f + expf(-x)); }
HOST_DEVICE bool finite(f32 x) { return (float_bits(x) & 0x7f800000u) != 0x7f800000u; }

// The largest over `lanes` (a power of two) neighbouring lanes, of bits without sign.
template <class Machine>
HOST_DEVICE u32 largest_of(const Machine& m, u32 bits, int lanes) {
  for (int step = 1; step < lanes; step *= 2) {
    const u32 other = static_cast<u32>(m.from_lane_xor(static_cast<i32>(bits), step));
    bits = other > bits ? other : bits;
  }
  return bits;
}

// How a block of values is scaled to 8 bits (kernels/ref/quantize.cc).
struct EightBit {
  f32 d, inverse;
  HOST_DEVICE explicit EightBit(u32 largest_bits) {
    const f32 max = float_of_bits(largest_bits);
    d = max / 127.0f;
    inverse = max > 0 && finite(max) ? 127.0f / max : 0.0f;
    if (!finite(inverse)) inverse = 0.0f;
  }
  HOST_DEVICE i32 operator()(f32 x) const { return inverse != 0.0f ? nearest(rounded_product(x, inverse)) : 0; }
};

// To the rows of activation_rows.h, at out + row * out_stride_bytes. A warp takes 256 values, a lane 8 of them.
template <class Machine>
HOST_DEVICE void quantize_rows(const Machine& m, const QuantizeArgs& a, i64 out_stride_bytes) {
  const int lane = m.thread() % kWarp;
  const i64 chunks = (a.cols + 255) / 256;
  const bool wide = a.form == ActivationForm::Q8_256;
  for (i64 i = m.block() * kRowWarps + m.thread() / kWarp; i < a.rows * chunks; i += m.blocks() * kRowWarps) {
    const i64 row = i / chunks, col = i % chunks * 256 + 8 * lane;
    const bool mine = col < a.cols;
    const f32* x = a.x + row * a.x_stride + col;
    f32 value[8];
    u32 largest = 0;
    UNROLL
    for (int k = 0; k < 8; k++) {
      value[k] = mine ? x[k] : 0.0f;
      const u32 bits = float_bits(value[k]) & 0x7fffffffu;
      largest = bits > largest ? bits : largest;
    }
    const EightBit scale(largest_of(m, largest, wide ? 32 : 4));
    u32 q[2] = {0, 0};
    i32 sum = 0;
    UNROLL
    for (int k = 0; k < 8; k++) {
      const i32 code = scale(value[k]);
      sum += code;
      q[k / 4] |= (static_cast<u32>(code) & 255u) << (8 * (k % 4));
    }
    sum += m.from_lane_xor(sum, 1);  // of 16
    std::byte* out = static_cast<std::byte*>(a.out) + row * out_stride_bytes;
    i32 sum_32 = sum + m.from_lane_xor(sum, 2);
    if (!mine) continue;
    reinterpret_cast<u32*>(out + col)[0] = q[0];
    reinterpret_cast<u32*>(out + col)[1] = q[1];
    if (wide) {
      if (lane == 0) reinterpret_cast<f32*>(out + a.cols)[col / 256] = scale.d;
      if (lane % 2 == 0) reinterpret_cast<i16*>(out + a.cols + a.cols / 256 * 4)[col / 16] = static_cast<i16>(sum);
    } else if (lane % 4 == 0) {
      reinterpret_cast<f32*>(out + a.cols)[col / 32] = scale.d;
      reinterpret_cast<i32*>(out + a.cols + a.cols / 32 * 4)[col / 32] = sum_32;
    }
  }
}

// Sum over a block of kRowThreads; every thread gets the same bits. `scratch`: kRowWarps floats of shared memory.
template <class Machine>
HOST_DEVICE f32 block_sum(const Machine& m, f32 value, f32* scratch) {
  value = warp_sum(m, value);
  if (m.thread() % kWarp == 0) scratch[m.thread() / kWarp] = value;
  m.sync();
  f32 total = 0;
  for (int w = 0; w < kRowWarps; w++) total += scratch[w];
  m.sync();
  return total;
}

// A block per row; kRowWarps floats of shared memory.
template <class Machine>
HOST_DEVICE void rms_norm_rows(const Machine& m, const RmsNormArgs& a) {
  for (i64 row = m.block(); row < a.rows; row += m.blocks()) {
    const f32* x = a.x + row * a.x_stride;
    f32 squares = 0;
    for (i64 i = m.thread(); i < a.cols; i += m.threads()) squares += x[i] * x[i];
    squares = block_sum(m, squares, m.template shared<f32>(0));
    const f32 factor = 1.0f / sqrtf(squares / static_cast<f32>(a.cols) + a.epsilon);
    f32* y = a.y + row * a.y_stride;
    for (i64 i = m.thread(); i < a.cols; i += m.threads())
      y[i] = rounded_product(rounded_product(x[i], factor), a.weight[i]);
  }
}

// Heads of a row that a thread turns: it waits for the memory once for each, while an angle's sine and cosine in f64 are the
// slowest that a gaming card does, and would be most of a prompt's work with fewer.
constexpr i64 kRopeHeads = 8;
HOST_DEVICE i64 rope_threads(const RopeArgs& a) { return a.rows * div_up(a.heads, kRopeHeads) * (a.dim / 2); }

// A thread per pair of a row and kRopeHeads heads.
template <class Machine>
HOST_DEVICE void rope_rows(const Machine& m, const RopeArgs& a) {
  const i64 pairs = a.dim / 2, groups = div_up(a.heads, kRopeHeads), count = rope_threads(a);
  for (i64 i = m.block() * m.threads() + m.thread(); i < count; i += m.blocks() * m.threads()) {
    const i64 row = i / pairs / groups, first = i / pairs % groups * kRopeHeads, pair = i % pairs;
    const i64 last = first + kRopeHeads < a.heads ? first + kRopeHeads : a.heads;
    const f64 angle = static_cast<f64>(a.positions[row]) * static_cast<f64>(a.frequencies[pair]);
    const f32 c = static_cast<f32>(cos(angle)), s = static_cast<f32>(sin(angle));
    for (i64 h = first; h < last; h++) {
      f32* at = a.x + row * a.row_stride + h * a.head_stride + 2 * pair;
      const f32 x = at[0], y = at[1];
      at[0] = rounded_sum(rounded_product(x, c), -rounded_product(y, s));
      at[1] = rounded_sum(rounded_product(x, s), rounded_product(y, c));
    }
  }
}

// A thread per element: a token's ranks in their order, then the shared expert.
template <class Machine>
HOST_DEVICE void combine_rows(const Machine& m, const CombineArgs& a) {
  for (i64 i = m.block() * m.threads() + m.thread(); i < a.tokens * a.hidden; i += m.blocks() * m.threads()) {
    const i64 t = i / a.hidden, col = i % a.hidden;
    f32 y = a.residual[i];
    for (i64 k = 0; k < a.top_k; k++) {
      const i64 row = t * a.top_k + k;
      y = rounded_sum(y, rounded_product(a.weights[row], a.rows[row * a.hidden + col]));
    }
    a.residual[i] = a.shared != nullptr ? rounded_sum(y, a.shared[i]) : y;
  }
}

template <class Machine>
HOST_DEVICE void add_rows(const Machine& m, f32* y, const f32* x, i64 count) {
  for (i64 i = m.block() * m.threads() + m.thread(); i < count; i += m.blocks() * m.threads())
    y[i] = rounded_sum(y[i], x[i]);
}

// Smallest f16 at or above x, which is not negative.
HOST_DEVICE u16 half_above(f32 x) {
  const u16 half = half_bits(x);
  return half_value(half) < x ? static_cast<u16>(half + 1) : half;
}

// A warp takes 32 values, a lane one. `count`: rows * cols, for Q8_0 a multiple of 32.
template <class Machine>
HOST_DEVICE void store_latent_rows(const Machine& m, const StoreLatentsArgs& a) {
  const int lane = m.thread() % kWarp;
  const i64 count = a.rows * a.cols, blocks = (count + 31) / 32;
  for (i64 b = m.block() * kRowWarps + m.thread() / kWarp; b < blocks; b += m.blocks() * kRowWarps) {
    const i64 i = 32 * b + lane;
    const bool mine = i < count;
    const f32 x = mine ? a.x[i] : 0.0f;
    if (a.type == CacheType::Q8_0) {
      const u32 largest = largest_of(m, float_bits(x) & 0x7fffffffu, 32);
      const u16 half = half_above(float_of_bits(largest) / 127.0f);
      const f32 d = half_value(half);
      BlockQ8_0* out = static_cast<BlockQ8_0*>(a.out) + b;
      if (lane == 0) out->d = half;
      out->qs[lane] = d > 0 && finite(d) ? static_cast<i8>(nearest(x / d)) : i8{0};
    } else if (mine && a.type == CacheType::F16) {
      static_cast<u16*>(a.out)[i] = half_bits(x);
    } else if (mine) {
      static_cast<f32*>(a.out)[i] = x;
    }
  }
}

struct SiluArgs {
  f32* gate;  // [count], becomes silu(gate) * up
  const f32* up;
  i64 count;
};

template <class Machine>
HOST_DEVICE void silu_rows(const Machine& m, const SiluArgs& a) {
  for (i64 i = m.block() * m.threads() + m.thread(); i < a.count; i += m.blocks() * m.threads())
    a.gate[i] = silu(a.gate[i]) * a.up[i];
}

struct ArgmaxArgs {
  const f32* logits;  // [rows, cols]
  i64 rows, cols;
  i32* best;  // [rows]: the lowest index of the largest; 0 when there is no number in the row
};

// A block per row; 2 * kRowThreads words of shared memory.
template <class Machine>
HOST_DEVICE void argmax_rows(const Machine& m, const ArgmaxArgs& a) {
  f32* values = m.template shared<f32>(0);
  i32* indices = m.template shared<i32>(kRowThreads * 4);
  for (i64 row = m.block(); row < a.rows; row += m.blocks()) {
    f32 best = -INFINITY;
    i32 index = -1;
    for (i64 i = m.thread(); i < a.cols; i += m.threads()) {
      const f32 x = a.logits[row * a.cols + i];
      if (x > best || (index < 0 && x == best)) {
        best = x;
        index = static_cast<i32>(i);
      }
    }
    values[m.thread()] = best;
    indices[m.thread()] = index;
    m.sync();
    if (m.thread() == 0) {
      for (int t = 1; t < m.threads(); t++) {
        if (indices[t] < 0) continue;
        if (index < 0 || values[t] > best || (values[t] == best && indices[t] < index)) {
          best = values[t];
          index = indices[t];
        }
      }
      a.best[row] = index < 0 ? 0 : index;
    }
    m.sync();
  }
}

}  // namespace stoker::cuda

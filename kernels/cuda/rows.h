// What is done to rows of activations between the matrices: quantising, norms, sums. Each body says
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
// Of a block that norms a row: there is only this one while a token is made, and the more of it wait for the memory at once,
// the sooner it is done.
constexpr int kNormThreads = 1024;

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

// 256 values of a row, a lane's 8 at `col`, to the row of activation_rows.h at `out`. `mine`: the lane's are within `cols`; all
// lanes of a warp come here.
template <class Machine>
HOST_DEVICE void quantize_chunk(const Machine& m, const f32 (&value)[8], bool mine, i64 col, i64 cols, bool wide,
                                std::byte* out) {
  const int lane = m.thread() % kWarp;
  u32 largest = 0;
  UNROLL
  for (int k = 0; k < 8; k++) {
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
  i32 sum_32 = sum + m.from_lane_xor(sum, 2);
  if (!mine) return;
  reinterpret_cast<u32*>(out + col)[0] = q[0];
  reinterpret_cast<u32*>(out + col)[1] = q[1];
  if (wide) {
    if (lane == 0) reinterpret_cast<f32*>(out + cols)[col / 256] = scale.d;
    if (lane % 2 == 0) reinterpret_cast<i16*>(out + cols + cols / 256 * 4)[col / 16] = static_cast<i16>(sum);
  } else if (lane % 4 == 0) {
    reinterpret_cast<f32*>(out + cols)[col / 32] = scale.d;
    reinterpret_cast<i32*>(out + cols + cols / 32 * 4)[col / 32] = sum_32;
  }
}

// To the rows of activation_rows.h, at out + row * out_stride_bytes. A warp takes 256 values, a lane 8 of them.
template <class Machine>
HOST_DEVICE void quantize_rows(const Machine& m, const QuantizeArgs& a, i64 out_stride_bytes) {
  const int lane = m.thread() % kWarp;
  const i64 chunks = (a.cols + 255) / 256;
  for (i64 i = m.block() * kRowWarps + m.thread() / kWarp; i < a.rows * chunks; i += m.blocks() * kRowWarps) {
    const i64 row = i / chunks, col = i % chunks * 256 + 8 * lane;
    const bool mine = col < a.cols;
    const f32* x = a.x + row * a.x_stride + col;
    f32 value[8];
    UNROLL
    for (int k = 0; k < 8; k++) value[k] = mine ? x[k] : 0.0f;
    quantize_chunk(m, value, mine, col, a.cols, a.form == ActivationForm::Q8_256,
                   static_cast<std::byte*>(a.out) + row * out_stride_bytes);
  }
}

// Sum over a block; every thread gets the same bits. `scratch`: a float of shared memory for each warp.
template <class Machine>
HOST_DEVICE f32 block_sum(const Machine& m, f32 value, f32* scratch) {
  value = warp_sum(m, value);
  if (m.thread() % kWarp == 0) scratch[m.thread() / kWarp] = value;
  m.sync();
  f32 total = 0;
  for (int w = 0; w < m.threads() / kWarp; w++) total += scratch[w];
  m.sync();
  return total;
}

// What a row is multiplied with to be normed, by a block; a float of shared memory for each warp. With `residual` the row is
// added to that first, and all threads see the sums.
template <class Machine>
HOST_DEVICE f32 norm_factor(const Machine& m, const f32* x, f32* residual, i64 cols, f32 epsilon) {
  f32 squares = 0;
  for (i64 i = m.thread(); i < cols; i += m.threads()) {
    f32 value = x[i];
    if (residual != nullptr) residual[i] = value = rounded_sum(residual[i], value);
    squares += value * value;
  }
  squares = block_sum(m, squares, m.template shared<f32>(0));
  return 1.0f / sqrtf(squares / static_cast<f32>(cols) + epsilon);
}

// A block per row, of any number of warps; a float of shared memory for each of them. Rows of the 8-bit forms are so many bytes
// apart.
template <class Machine>
HOST_DEVICE void rms_norm_rows(const Machine& m, const RmsNormArgs& a, i64 q8_32_stride, i64 q8_256_stride) {
  const int lane = m.thread() % kWarp, warp = m.thread() / kWarp;
  const bool quantised = a.y_q8_32 != nullptr || a.y_q8_256 != nullptr;
  for (i64 row = m.block(); row < a.rows; row += m.blocks()) {
    const f32* x = a.x + row * a.x_stride;
    f32* residual = a.residual != nullptr ? a.residual + row * a.x_stride : nullptr;
    const f32 factor = norm_factor(m, x, residual, a.cols, a.epsilon);
    if (residual != nullptr) x = residual;
    f32* y = a.y + row * a.y_stride;
    if (!quantised) {
      for (i64 i = m.thread(); i < a.cols; i += m.threads())
        y[i] = rounded_product(rounded_product(x[i], factor), a.weight[i]);
      continue;
    }
    for (i64 chunk = warp; chunk < div_up(a.cols, 256); chunk += m.threads() / kWarp) {
      const i64 col = chunk * 256 + 8 * lane;
      const bool mine = col < a.cols;
      f32 value[8];
      UNROLL
      for (int k = 0; k < 8; k++) {
        value[k] = mine ? rounded_product(rounded_product(x[col + k], factor), a.weight[col + k]) : 0.0f;
        if (mine) y[col + k] = value[k];
      }
      if (a.y_q8_32 != nullptr)
        quantize_chunk(m, value, mine, col, a.cols, false, static_cast<std::byte*>(a.y_q8_32) + row * q8_32_stride);
      if (a.y_q8_256 != nullptr)
        quantize_chunk(m, value, mine, col, a.cols, true, static_cast<std::byte*>(a.y_q8_256) + row * q8_256_stride);
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

// A row of 8-bit activations on a card: the numbers of ActQ8_32 or ActQ8_256 (activation.h) in as many bytes, each kind
// together, so that the values can be loaded 16 bytes at a time:
//
//   i8 q[cols], f32 d[blocks], then i32 sum[blocks] (Q8_32) or i16 sums[cols / 16] (Q8_256)
//
// Rows begin at multiples of kDeviceRowAlignment.
#pragma once

#include "kernels/base/host_device.h"
#include "kernels/base/types.h"
#include "kernels/format/activation.h"

namespace stoker::cuda {

// Bytes from one row to the next.
inline i64 card_row_bytes(ActivationForm form, i64 cols) { return round_up(activation_row_bytes(form, cols), kDeviceRowAlignment); }

struct ActivationRow {
  const std::byte* at;
  i32 cols;

  HOST_DEVICE const std::byte* q(i64 col) const { return at + col; }
  HOST_DEVICE f32 d(i64 block) const { return reinterpret_cast<const f32*>(at + cols)[block]; }
  HOST_DEVICE i32 sum_32(i64 block) const {
    return reinterpret_cast<const i32*>(at + cols + cols / 32 * 4)[block];
  }
  // Of the values 32 g .. 32 g + 15 (low half of the word) and 32 g + 16 .. 32 g + 31.
  HOST_DEVICE u32 sums_16(i64 g) const { return reinterpret_cast<const u32*>(at + cols + cols / 256 * 4)[g]; }
};

}  // namespace stoker::cuda

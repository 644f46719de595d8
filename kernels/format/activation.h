// The forms in which a row of activations meets weights. 8-bit forms are private to stoker (never in a file).
#pragma once

#include "kernels/base/types.h"
#include "kernels/format/block_type.h"

namespace stoker {

enum class ActivationForm { F32, Q8_32, Q8_256 };

// Sums are integers of the 8-bit values, so they cannot overflow the way f16 block sums do on DeepSeek activations.
struct ActQ8_32 {
  f32 d;      // value = d * q
  i32 sum;    // sum of q
  i8 q[32];   // -127 .. 127
};
static_assert(sizeof(ActQ8_32) == 40);

struct ActQ8_256 {
  f32 d;
  i8 q[256];
  i16 sums[16];  // sum of each 16 q
};
static_assert(sizeof(ActQ8_256) == 292);

// Bytes of one row of `cols` activations.
i64 activation_row_bytes(ActivationForm form, i64 cols);
// Devices may begin rows at multiples of this.
constexpr i64 kDeviceRowAlignment = 16;

// The form in which `type` wants its activations: F32 for float weights and in exact arithmetic, Q8_32 for formats
// of 32-weight blocks, Q8_256 for super-blocks.
ActivationForm weight_input(BlockType type, bool exact);

}  // namespace stoker

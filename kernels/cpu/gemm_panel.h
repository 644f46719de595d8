// What a block of weights becomes before it meets many tokens: bytes in the order of the columns, scales where the
// instructions want them. Both instruction levels use the same panels.
#pragma once

#include "kernels/base/types.h"

namespace stoker {

// A super-block of 256. What `codes` are (unsigned, or signed bytes), and what `factors` and `m` are for, is the
// format's kind; see gemm_block256_avx2.cc.
struct alignas(64) Panel256 {
  u8 codes[256];
  i16 scales[8][16];  // of each 32 columns: the scale at each sum of two neighbours
  i16 factors[16];    // for the sums of the activations per 16
  f32 d, m;
};

}  // namespace stoker

// What a layer costs the cores beside the bytes of its weights: how fast they multiply with a KV cache, and what they lose when
// they have slept.
#pragma once

#include "kernels/base/types.h"

namespace stoker {

struct LayerProbe {
  int threads = 0;    // 0: one per physical core
  f64 seconds = .3;   // of each figure
};

// GFLOP/s (1e9 multiplications and additions) of one token's attention over a KV cache as long as a chat, V3's shape.
f64 measure_attention(const LayerProbe& probe);

// Microseconds that a product takes longer when the cores have waited some milliseconds before it, as they do for a read.
f64 measure_wake_us(const LayerProbe& probe);

// Both run in threads of their own and leave the caller's pinning alone.

}  // namespace stoker

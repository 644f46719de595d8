// Which device is home of which layer: it keeps the weights of the layer that every row passes, and computes with them.
#pragma once

#include <span>
#include <vector>

#include "kernels/base/types.h"

namespace stoker {

// [layers] an index into `vram_bytes`, or -1 for the CPU. `layer_bytes` is what a layer would take of its home; 0: it has
// nothing for one. Each device gets neighbouring layers, in proportion to its memory, as far as that reaches.
std::vector<i32> home_devices(std::span<const i64> layer_bytes, std::span<const i64> vram_bytes);

}  // namespace stoker

// Which device is home of which layer: it keeps what every row passes of the layer, and computes with that.
#pragma once

#include <span>
#include <vector>

#include "kernels/base/types.h"

namespace stoker {

// [layers] an index into `vram_bytes`, or -1 for the CPU. `layer_bytes` is what a layer would take of its home; 0: it has
// nothing for one. Each device gets neighbouring layers, in proportion to its memory, as far as that reaches.
std::vector<i32> home_devices(std::span<const i64> layer_bytes, std::span<const i64> vram_bytes);

struct LayerBytes {
  i64 attention = 0;  // weights and KV cache; 0: it stays where the CPU is
  i64 ffn = 0;        // dense, or shared experts
};
struct LayerHome {
  i32 device = -1;         // or none
  bool attention = false;  // that this is there too

  bool operator==(const LayerHome&) const = default;
};
// Whole layers first. Of those for which there is no room, the FFNs.
std::vector<LayerHome> layer_homes(std::span<const LayerBytes> layers, std::span<const i64> vram_bytes);

}  // namespace stoker

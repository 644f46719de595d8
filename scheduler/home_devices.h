// Which device is home of what every row passes: it keeps that, and computes with it. One rule for the engine, which
// allocates so, and for planner and simulator, which foretell it. Pure.
//
// The head comes first: each of its bytes is read for every token, all of them cost one crossing of the link, and it has no
// cache that lies empty until a context has grown. Then whole layers, attention and FFN, because rows that are there anyway
// cross no link for the FFN's sake; then the FFNs of other layers. Experts get what is left: a token wants only some of them.
#pragma once

#include <span>
#include <vector>

#include "kernels/base/types.h"

namespace stoker {

// [layers] an index into `vram_bytes`, or -1 for the CPU. `layer_bytes` is what a layer would take of its home; 0: it has
// nothing for one. Each device gets neighbouring layers, in proportion to its memory, as far as that reaches.
std::vector<i32> home_devices(std::span<const i64> layer_bytes, std::span<const i64> vram_bytes);

struct LayerBytes {
  i64 attention = 0;  // weights; 0: it stays where the CPU is
  i64 cache = 0;      // KV, where attention is
  i64 ffn = 0;        // dense, or shared experts
  i64 router = 0;     // where the FFN is

  i64 without_attention() const { return ffn + router; }
  i64 whole() const { return attention + cache + ffn + router; }
};
struct LayerHome {
  i32 device = -1;         // or none
  bool attention = false;  // that this is there too

  bool operator==(const LayerHome&) const = default;
};
// Whole layers first. Of those for which there is no room, the FFNs.
std::vector<LayerHome> layer_homes(std::span<const LayerBytes> layers, std::span<const i64> vram_bytes);

// Of the output head, [rows, hidden]: the vocabulary's rows that each device computes, one device after the other, in
// proportion to memory; all 0 when there is no room for the whole. Parts are rows of whole tiles of a card's order.
constexpr i64 kHeadTileRows = 32;
std::vector<i64> head_rows(i64 rows, i64 row_bytes, std::span<const i64> vram_bytes);
// What a part takes of its device, at most.
i64 head_part_bytes(i64 rows, i64 row_bytes);

struct ResidentBytes {
  std::vector<LayerBytes> layers;
  i64 head_rows = 0, head_row_bytes = 0;
};
struct Homes {
  std::vector<LayerHome> layers;
  std::vector<i64> head_rows;   // [devices]
  std::vector<i64> left_bytes;  // [devices] for experts
};
// Without devices.
Homes all_on_cpu(i64 layers);
Homes place_resident(const ResidentBytes& resident, std::span<const i64> vram_bytes);

// Of `resident`, what has this device for its home: weights are there alone, routers and the KV cache in RAM too.
struct HomeBytes {
  i64 weights = 0, routers = 0, cache = 0;
  i64 all() const { return weights + routers + cache; }
};
HomeBytes bytes_at_home(const ResidentBytes& resident, const Homes& homes, i32 device);

}  // namespace stoker

// A model without a file: the experts' table that a GGUF or a pack of this shape would have, and what a token costs
// besides its routed experts.
#pragma once

#include <algorithm>

#include "kernels/format/block_type.h"
#include "scheduler/home_devices.h"
#include "scheduler/model_file/expert_table.h"

namespace stoker {

struct SimShape {
  i64 dense_layers = 0, moe_layers = 0;
  i64 experts = 0, top_k = 0;
  i64 hidden = 0, expert_ffn = 0;
  BlockType wide = BlockType::Q4_K;  // gate and up
  BlockType down = BlockType::Q4_K;
  bool packed = false;  // gate | up | down of an expert in one piece, else stacked per matrix
};

// Throws Error when rows are no multiple of a format's blocks.
ExpertTable sim_expert_table(const SimShape& shape);

// What every token passes. Layers of a kind are alike.
struct SimResident {
  i64 attention_bytes = 0;  // of a layer, weights alone
  i64 dense_ffn_bytes = 0;  // of one without experts
  i64 router_bytes = 0;     // of one with experts; it is where the shared experts are
  i64 gate_copy_bytes = 0;  // what looking a layer ahead reads: the router in 8 bits
  i64 shared_bytes = 0;     // the shared experts of one with experts
  i64 head_rows = 0, head_row_bytes = 0;
  i64 kv_bytes = 0;                  // the KV cache, of all layers alike
  i64 attention_flops = 0;           // of a layer, over that cache
  i64 half_heads_bytes = 0;          // queries and results of half of a layer's heads
  bool heads_shared = false;         // half of them are another GPU's, where a GPU attends
  BlockType type = BlockType::Q8_0;  // of nearly all weights
  i64 hidden_bytes = 0;              // that cross from CPU to GPU and back, each time
  i64 dense_layers = 0, moe_layers = 0;

  i64 layers() const { return dense_layers + moe_layers; }
  i64 kv_layer_bytes() const { return kv_bytes / std::max<i64>(1, layers()); }
  i64 head_bytes() const { return head_rows * head_row_bytes; }
  i64 weight_bytes() const {
    return layers() * attention_bytes + dense_layers * dense_ffn_bytes + moe_layers * (router_bytes + shared_bytes) + head_bytes();
  }
  i64 total_bytes() const { return weight_bytes() + kv_bytes; }
  // What has a home, which place_resident() chooses.
  ResidentBytes homeless() const;
};

// Of these bytes, those on GPUs.
HomeBytes bytes_on_gpus(const SimResident& resident, const Homes& homes);
// What of them takes RAM: no weights that are on GPUs, but all routers and KV cache.
i64 bytes_in_ram(const SimResident& resident, const Homes& homes);

}  // namespace stoker

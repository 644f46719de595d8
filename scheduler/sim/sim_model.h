// A model without a file: the experts' table that a GGUF or a pack of this shape would have, and what a token costs
// besides its routed experts.
#pragma once

#include <algorithm>

#include "kernels/format/block_type.h"
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

// Bytes that every token reads, by when.
struct SimResident {
  i64 dense_layer_bytes = 0;  // attention, its KV cache and the FFN of a layer without experts
  i64 moe_layer_bytes = 0;    // attention, its KV cache and the router of one with experts
  i64 gate_copy_bytes = 0;    // what looking a layer ahead reads: the router in 8 bits
  i64 shared_bytes = 0;       // its shared experts
  i64 head_bytes = 0;
  i64 kv_bytes = 0;  // the KV cache's share of all of the above
  i64 attention_flops = 0;  // of a layer, over that cache
  BlockType type = BlockType::Q8_0;  // of nearly all of it
  i64 hidden_bytes = 0;              // that cross from GPU to CPU and back per layer with experts
  i64 dense_layers = 0, moe_layers = 0;

  i64 kv_layer_bytes() const { return kv_bytes / std::max<i64>(1, dense_layers + moe_layers); }
  i64 total_bytes() const {
    return dense_layers * dense_layer_bytes + moe_layers * (moe_layer_bytes + shared_bytes) + head_bytes;
  }
};

}  // namespace stoker

#include "scheduler/sim/sim_model.h"

#include "kernels/base/error.h"

namespace stoker {

namespace {

constexpr i64 kPackAlignment = 4096;  // of a pack's records
constexpr i64 kGgufAlignment = 32;    // of a tensor's data

i64 matrix_bytes(BlockType type, i64 cols, i64 rows, const char* which) {
  i64 block = info(type).block_weights;
  if (cols % block != 0)
    fail("the rows of the experts' {} matrices have {} weights, no multiple of the {} of {}: choose another format",
         which, cols, block, info(type).name);
  return row_bytes(type, cols) * rows;
}

void pack_layer(ExpertLayer& layer, i64 experts, i64& at) {
  i64 bytes = 0;
  for (const Extent& extent : layer.base) bytes += extent.bytes;
  for (i64 e = 0; e < experts; e++, at += round_up(bytes, kPackAlignment)) layer.packed.push_back({0, at});
  i64 offset = layer.packed[0].offset;
  for (Extent& extent : layer.base) {
    extent.offset = offset;
    offset += extent.bytes;
  }
}

void stack_layer(ExpertLayer& layer, i64 experts, i64& at) {
  for (size_t m = 0; m < layer.base.size(); m++) {
    layer.base[m].offset = at;
    layer.stride_bytes[m] = layer.base[m].bytes;
    at = round_up(at + experts * layer.base[m].bytes, kGgufAlignment);
  }
}

}  // namespace

ExpertTable sim_expert_table(const SimShape& s) {
  i64 wide = matrix_bytes(s.wide, s.hidden, s.expert_ffn, "gate and up");
  i64 down = matrix_bytes(s.down, s.expert_ffn, s.hidden, "down");
  std::vector<ExpertLayer> layers;
  i64 at = kPackAlignment;  // after a header
  for (i64 l = 0; l < s.moe_layers; l++) {
    ExpertLayer layer{.layer = LayerId(s.dense_layers + l),
                      .base = {Extent{.bytes = wide, .type = s.wide}, Extent{.bytes = wide, .type = s.wide},
                               Extent{.bytes = down, .type = s.down}}};
    s.packed ? pack_layer(layer, s.experts, at) : stack_layer(layer, s.experts, at);
    layers.push_back(std::move(layer));
  }
  return ExpertTable(std::move(layers), s.experts, s.top_k, {at});
}

ResidentBytes SimResident::homeless() const {
  ResidentBytes bytes{.layers = {}, .head_rows = head_rows, .head_row_bytes = head_row_bytes};
  for (i64 l = 0; l < layers(); l++)
    bytes.layers.push_back({.attention = attention_bytes,
                            .cache = kv_layer_bytes(),
                            .ffn = l < dense_layers ? dense_ffn_bytes : shared_bytes,
                            .router = l < dense_layers ? 0 : router_bytes});
  return bytes;
}

HomeBytes bytes_on_gpus(const SimResident& resident, const Homes& homes) {
  ResidentBytes all = resident.homeless();
  HomeBytes bytes;
  for (size_t d = 0; d < homes.head_rows.size(); d++) {
    HomeBytes there = bytes_at_home(all, homes, static_cast<i32>(d));
    bytes.weights += there.weights;
    bytes.routers += there.routers;
    bytes.cache += there.cache;
  }
  return bytes;
}

i64 bytes_in_ram(const SimResident& resident, const Homes& homes) {
  return resident.total_bytes() - bytes_on_gpus(resident, homes).weights;
}

}  // namespace stoker

#include "scheduler/home_devices.h"

#include <algorithm>
#include <numeric>

namespace stoker {

std::vector<i32> home_devices(std::span<const i64> layer_bytes, std::span<const i64> vram_bytes) {
  std::vector<i32> homes(layer_bytes.size(), -1);
  if (vram_bytes.empty()) return homes;
  auto sum = [](std::span<const i64> bytes) { return static_cast<f64>(std::accumulate(bytes.begin(), bytes.end(), i64{0})); };
  f64 all_layers = sum(layer_bytes), all_vram = sum(vram_bytes), layers_before = 0, vram_up_to = static_cast<f64>(vram_bytes[0]);
  std::vector<i64> left(vram_bytes.begin(), vram_bytes.end());
  size_t device = 0;
  for (size_t l = 0; l < layer_bytes.size(); l++) {
    if (layer_bytes[l] == 0) continue;
    f64 middle = layers_before + static_cast<f64>(layer_bytes[l]) / 2;
    layers_before += static_cast<f64>(layer_bytes[l]);
    while (device + 1 < left.size() && middle * all_vram > vram_up_to * all_layers)
      vram_up_to += static_cast<f64>(vram_bytes[++device]);
    if (layer_bytes[l] > left[device]) continue;
    left[device] -= layer_bytes[l];
    homes[l] = static_cast<i32>(device);
  }
  return homes;
}

std::vector<LayerHome> layer_homes(std::span<const LayerBytes> layers, std::span<const i64> vram_bytes) {
  std::vector<LayerHome> homes(layers.size());
  std::vector<i64> bytes(layers.size()), left(vram_bytes.begin(), vram_bytes.end());
  for (bool attention : {true, false}) {
    for (size_t l = 0; l < layers.size(); l++) {
      bool wanted = homes[l].device < 0 && (!attention || layers[l].attention > 0);
      bytes[l] = !wanted ? 0 : attention ? layers[l].whole() : layers[l].without_attention();
    }
    std::vector<i32> found = home_devices(bytes, left);
    for (size_t l = 0; l < layers.size(); l++) {
      if (found[l] < 0) continue;
      homes[l] = {.device = found[l], .attention = attention};
      left[static_cast<size_t>(found[l])] -= bytes[l];
    }
  }
  return homes;
}

i64 head_part_bytes(i64 rows, i64 row_bytes) {
  constexpr i64 kAlignment = 256;  // of what lies behind it on a device
  return round_up(round_up(rows, kHeadTileRows) * row_bytes, kAlignment);
}

std::vector<i64> head_rows(i64 rows, i64 row_bytes, std::span<const i64> vram_bytes) {
  std::vector<i64> parts(vram_bytes.size());
  f64 all = 0;
  for (i64 bytes : vram_bytes) all += static_cast<f64>(bytes);
  if (rows == 0 || all == 0) return parts;
  i64 left = rows;
  for (size_t d = 0; d < parts.size(); d++) {
    parts[d] = round_down(static_cast<i64>(static_cast<f64>(rows) * static_cast<f64>(vram_bytes[d]) / all), kHeadTileRows);
    left -= parts[d];
  }
  parts[static_cast<size_t>(std::max_element(vram_bytes.begin(), vram_bytes.end()) - vram_bytes.begin())] += left;
  for (size_t d = 0; d < parts.size(); d++)
    if (head_part_bytes(parts[d], row_bytes) > vram_bytes[d]) return std::vector<i64>(parts.size());
  return parts;
}

Homes all_on_cpu(i64 layers) {
  return {.layers = std::vector<LayerHome>(static_cast<size_t>(layers)), .head_rows = {}, .left_bytes = {}};
}

Homes place_resident(const ResidentBytes& resident, std::span<const i64> vram_bytes) {
  Homes homes;
  homes.left_bytes.assign(vram_bytes.begin(), vram_bytes.end());
  homes.head_rows = head_rows(resident.head_rows, resident.head_row_bytes, homes.left_bytes);
  for (size_t d = 0; d < homes.head_rows.size(); d++)
    homes.left_bytes[d] -= head_part_bytes(homes.head_rows[d], resident.head_row_bytes);
  homes.layers = layer_homes(resident.layers, homes.left_bytes);
  for (size_t l = 0; l < homes.layers.size(); l++) {
    const LayerHome& home = homes.layers[l];
    if (home.device < 0) continue;
    homes.left_bytes[static_cast<size_t>(home.device)] -=
        home.attention ? resident.layers[l].whole() : resident.layers[l].without_attention();
  }
  return homes;
}

HomeBytes bytes_at_home(const ResidentBytes& resident, const Homes& homes, i32 device) {
  HomeBytes bytes{.weights = homes.head_rows[static_cast<size_t>(device)] * resident.head_row_bytes};
  for (size_t l = 0; l < homes.layers.size(); l++) {
    const LayerHome& home = homes.layers[l];
    if (home.device != device) continue;
    bytes.weights += resident.layers[l].ffn + (home.attention ? resident.layers[l].attention : 0);
    bytes.routers += resident.layers[l].router;
    if (home.attention) bytes.cache += resident.layers[l].cache;
  }
  return bytes;
}

}  // namespace stoker

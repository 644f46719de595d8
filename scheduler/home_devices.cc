#include "scheduler/home_devices.h"

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
      bytes[l] = wanted ? layers[l].ffn + (attention ? layers[l].attention : 0) : 0;
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

}  // namespace stoker

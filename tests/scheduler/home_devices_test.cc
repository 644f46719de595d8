#include "scheduler/home_devices.h"

#include <doctest/doctest.h>

#include <numeric>

namespace stoker {

TEST_CASE("neighbouring layers share a home, in proportion to the devices' memory") {
  std::vector<i64> layers(12, 10);
  CHECK(home_devices(layers, std::vector<i64>{400, 200}) == std::vector<i32>{0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1});
  CHECK(home_devices(layers, std::vector<i64>{0, 200}) == std::vector<i32>(12, 1));
}

TEST_CASE("what does not fit, and what there is nothing of, is the CPU's") {
  CHECK(home_devices(std::vector<i64>{10, 0, 10, 10}, std::vector<i64>{25}) == std::vector<i32>{0, -1, 0, -1});
  CHECK(home_devices(std::vector<i64>{10, 10}, std::vector<i64>{0, 0}) == std::vector<i32>{-1, -1});
  CHECK(home_devices(std::vector<i64>{10, 10}, {}) == std::vector<i32>{-1, -1});
}

TEST_CASE("no device is given more than it has") {
  for (i64 first = 0; first < 60; first += 7)
    for (i64 second = 0; second < 60; second += 5) {
      std::vector<i64> layers = {9, 3, 3, 14, 3, 3, 3}, vram = {first, second}, used = {0, 0};
      std::vector<i32> homes = home_devices(layers, vram);
      for (size_t l = 0; l < layers.size(); l++)
        if (homes[l] >= 0) used[static_cast<size_t>(homes[l])] += layers[l];
      CHECK(used[0] <= first);
      CHECK(used[1] <= second);
    }
}

TEST_CASE("a device keeps whole layers while they fit, then FFNs alone") {
  std::vector<LayerBytes> layers(4, {.attention = 10, .ffn = 5});
  using Homes = std::vector<LayerHome>;
  CHECK(layer_homes(layers, std::vector<i64>{30, 30}) == Homes{{0, true}, {0, true}, {1, true}, {1, true}});
  CHECK(layer_homes(layers, std::vector<i64>{43}) == Homes{{0, true}, {0, true}, {0, false}, {0, false}});
  CHECK(layer_homes(layers, std::vector<i64>{7}) == Homes{{0, false}, {}, {}, {}});
  CHECK(layer_homes(layers, {}) == Homes(4));
  layers[1].attention = layers[2].ffn = 0;  // devices cannot do its attention; it has no FFN
  CHECK(layer_homes(layers, std::vector<i64>{45}) == Homes{{0, true}, {0, false}, {0, true}, {0, true}});
}

}  // namespace stoker

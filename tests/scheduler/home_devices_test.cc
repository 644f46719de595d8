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

TEST_CASE("the output head goes first, in parts by memory, and only as a whole; layers and experts get what it leaves") {
  using Rows = std::vector<i64>;
  CHECK(head_rows(1000, 10, std::vector<i64>{20000, 10000}) == Rows{680, 320});
  CHECK(head_rows(1000, 10, std::vector<i64>{0, 20000}) == Rows{0, 1000});
  CHECK(head_rows(1000, 10, std::vector<i64>{4000, 4000}) == Rows{0, 0});
  CHECK(head_rows(1000, 10, {}) == Rows{});
  CHECK(head_rows(0, 10, std::vector<i64>{4000}) == Rows{0});

  ResidentBytes resident{.layers = {{.attention = 4000, .ffn = 1000}, {.attention = 4000, .ffn = 1000}},
                         .head_rows = 1000,
                         .head_row_bytes = 10};
  Homes homes = place_resident(resident, std::vector<i64>{17000});
  CHECK(homes.head_rows == Rows{1000});
  CHECK(homes.layers == std::vector<LayerHome>{{0, true}, {0, false}});
  CHECK(homes.left_bytes == Rows{17000 - head_part_bytes(1000, 10) - 6000});
  homes = place_resident(resident, std::vector<i64>{9000});
  CHECK(homes.head_rows == Rows{0});
  CHECK(homes.layers == std::vector<LayerHome>{{0, true}, {0, false}});
}

TEST_CASE("what is at home on a device are its layers' weights, its rows of the head, and the caches of its attention") {
  ResidentBytes resident{.layers = {{.attention = 4000, .cache = 50, .ffn = 1000, .router = 7}, {.attention = 4000, .cache = 50, .ffn = 1000}},
                         .head_rows = 1000,
                         .head_row_bytes = 10};
  Homes homes{.layers = {{0, true}, {1, false}}, .head_rows = {320, 680}, .left_bytes = {}};
  CHECK(bytes_at_home(resident, homes, 0).weights == 4000 + 1000 + 3200);
  CHECK(bytes_at_home(resident, homes, 0).cache == 50);
  CHECK(bytes_at_home(resident, homes, 0).routers == 7);
  CHECK(bytes_at_home(resident, homes, 1).weights == 1000 + 6800);
  CHECK(bytes_at_home(resident, homes, 1).all() == 1000 + 6800);
}

TEST_CASE("whatever the budgets, parts of the head add up and no device is given more than it has") {
  for (i64 first = 0; first < 9000; first += 700)
    for (i64 second = 0; second < 9000; second += 300) {
      std::vector<i64> vram = {first, second, 50};
      Homes homes = place_resident({.layers = {{.attention = 900, .ffn = 200}, {.attention = 0, .ffn = 300}},
                                    .head_rows = 517,
                                    .head_row_bytes = 10}, vram);
      for (i64 left : homes.left_bytes) CHECK(left >= 0);
      i64 rows = homes.head_rows[0] + homes.head_rows[1] + homes.head_rows[2];
      CHECK((rows == 0 || rows == 517));
      if (first + second > 12000) CHECK(rows == 517);
    }
}

}  // namespace stoker

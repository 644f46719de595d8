#include "tools/device_option.h"

#include <doctest/doctest.h>

using namespace stoker;

namespace {

std::string problem(std::string_view text) {
  try {
    parse_device_choice(text);
  } catch (const Error& e) {
    return e.what();
  }
  return "";
}

}  // namespace

TEST_CASE("devices are named by kind and number") {
  CHECK(parse_device_choice("auto").kind == DeviceChoice::Kind::automatic);
  CHECK(parse_device_choice("cpu").kind == DeviceChoice::Kind::cpu);
  CHECK(parse_device_choice("cuda:0,0,1").cards == std::vector<int>{0, 0, 1});
  DeviceChoice host = parse_device_choice(
      "host:2,vram=64MiB,link=13GB/s,compute=900GB/s,layout=packed,unpinned=refused,delay-us=20,seed=7,lose-at=1:40,fail-copy=3,"
      "fail-allocation=1:2");
  REQUIRE(host.host.size() == 2);
  HostDeviceOptions first{.vram_bytes = 64 * kMiB,
                          .link_gb_per_second = 13,
                          .compute_gb_per_second = 900,
                          .delay_us_max = 20,
                          .seed = 7,
                          .packed = true,
                          .only_pinned = true,
                          .fail_copy = 3};
  CHECK(host.host[0] == first);
  HostDeviceOptions second = first;
  second.seed = 8;
  second.fail_copy = 0;
  second.fail_allocation = 2;
  second.lose_at = 40;
  CHECK(host.host[1] == second);
}

TEST_CASE("what cannot be a device is told with what could") {
  for (std::string_view text :
       {"", "gpu", "cuda", "cuda:", "cuda:x", "cuda:-1", "cuda:0,", "host", "host:", "host:0", "host:65", "host:1,", "host:1,vram",
        "host:1,vram=1", "host:1,link=13", "host:1,link=13GB", "host:1,lose-at=1:4", "host:1,lose-at=", "host:1,speed=1", "host:1,layout=", "host:1,layout=row", "host:1,unpinned=1",
        "host:1,seed=99999999999999999999"}) {
    CAPTURE(text);
    CHECK(problem(text).starts_with("--device"));
  }
  CHECK(problem("host:1,link=13").find("must be a speed, such as 13GB/s") != std::string::npos);
}

TEST_CASE("budgets of devices are a list of sizes") {
  CHECK(parse_vram("").empty());
  CHECK(parse_vram("24GiB") == std::vector<i64>{24 * kGiB});
  CHECK(parse_vram("22G,512M") == std::vector<i64>{22 * kGiB, 512 * kMiB});
  CHECK_THROWS_AS(parse_vram("22"), Error);
  CHECK_THROWS_AS(parse_vram("22G,"), Error);
}

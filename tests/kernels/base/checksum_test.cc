#include "kernels/base/checksum.h"

#include <doctest/doctest.h>

#include <vector>

using namespace stoker;

// The algorithm's own test value: pack files must stay readable with any build and on any CPU.
TEST_CASE("the checksum is XXH3 with 64 bits") {
  CHECK(checksum({}) == 0x2d06800538d394c2u);
}

TEST_CASE("data in parts has the checksum of the whole, and every flipped bit changes it") {
  std::vector<std::byte> data(100'003);
  for (size_t i = 0; i < data.size(); i++) data[i] = static_cast<std::byte>(i * 2654435761u >> 13);
  u64 whole = checksum(data);
  Checksummer parts;
  for (int round = 0; round < 2; round++) {
    size_t at = 0;
    for (size_t n : {1u, 4096u, 0u, 70'001u}) {
      parts.add(std::span(data).subspan(at, n));
      at += n;
    }
    parts.add(std::span(data).subspan(at));
    CHECK(parts.take() == whole);
  }
  for (size_t byte : {0u, 50'000u, 100'002u}) {
    data[byte] ^= std::byte{1};
    CHECK(checksum(data) != whole);
    data[byte] ^= std::byte{1};
  }
}

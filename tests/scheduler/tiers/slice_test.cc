#include "scheduler/tiers/slice.h"

#include <doctest/doctest.h>

using namespace stoker;

namespace {

// One layer of four experts.
ExpertTable table(std::array<Extent, kExpertMatrices> base, std::array<i64, kExpertMatrices> stride,
                  std::vector<ExpertPlace> packed = {}) {
  ExpertLayer layer{.layer = LayerId(3), .base = base, .stride_bytes = stride, .packed = packed};
  return ExpertTable({layer}, 4, 2, {1 << 30, 1 << 30});
}

void check_range(const ExpertReads::Range& range, i32 file, i64 offset, i64 bytes, i64 at_slot) {
  CHECK(range.file == file);
  CHECK(range.offset == offset);
  CHECK(range.bytes == bytes);
  CHECK(range.at_slot == at_slot);
}

}  // namespace

TEST_CASE("matrices that lie apart are read apart, each from border to border") {
  ExpertTable t = table({Extent{0, 4096 + 32, 5000}, {0, 90000, 5000}, {1, 8192, 4096}}, {5000, 5000, 4096});
  ExpertReads reads = expert_reads(t, LayerId(3), ExpertId(1), 4096);
  REQUIRE(reads.count == 3);
  check_range(reads.ranges[0], 0, 8192, 8192, 0);  // 9128 to 14128
  check_range(reads.ranges[1], 0, 94208, 8192, 8192);  // 95000 to 100000
  check_range(reads.ranges[2], 1, 12288, 4096, 16384);
  CHECK(reads.at_slot(ExpertMatrix::gate) == 9128 - 8192);
  CHECK(reads.at_slot(ExpertMatrix::up) == 8192 + 95000 - 94208);
  CHECK(reads.at_slot(ExpertMatrix::down) == 16384);
  CHECK(reads.slot_bytes == 20480);
}

TEST_CASE("gate and up of a fused tensor are one read") {
  ExpertTable t = table({Extent{0, 4128, 5000}, {0, 9128, 5000}, {0, 81920, 5000}}, {10000, 10000, 5000});
  ExpertReads reads = expert_reads(t, LayerId(3), ExpertId(0), 4096);
  REQUIRE(reads.count == 2);
  check_range(reads.ranges[0], 0, 4096, 12288, 0);
  check_range(reads.ranges[1], 0, 81920, 8192, 12288);
  CHECK(reads.at_slot(ExpertMatrix::gate) == 32);
  CHECK(reads.at_slot(ExpertMatrix::up) == 5032);
  CHECK(reads.at_slot(ExpertMatrix::down) == 12288);
}

TEST_CASE("the end of one tensor beside the beginning of the next is one read too, in one file only") {
  std::array<Extent, 3> base = {Extent{0, 0, 4096}, {1, 4096, 4096}, {1, 8192, 4096}};
  ExpertTable t = table(base, {4096, 4096, 4096});
  CHECK(expert_reads(t, LayerId(3), ExpertId(0), 4096).count == 2);
}

TEST_CASE("a packed expert is one read without anything before it") {
  std::array<Extent, 3> base = {Extent{0, 4096, 5000}, {0, 9096, 5000}, {0, 14096, 100}};
  ExpertTable t = table(base, {}, {{0, 4096}, {1, 4096}, {0, 16384}, {1, 16384}});
  ExpertReads reads = expert_reads(t, LayerId(3), ExpertId(3), 4096);
  REQUIRE(reads.count == 1);
  check_range(reads.ranges[0], 1, 16384, 12288, 0);
  CHECK(reads.at_slot(ExpertMatrix::gate) == 0);
  CHECK(reads.at_slot(ExpertMatrix::up) == 5000);
  CHECK(reads.at_slot(ExpertMatrix::down) == 10000);
  CHECK(reads.slot_bytes == 12288);
}

// The virtual drive and the memory that it shares with the cores, against arithmetic.
#include "scheduler/sim/sim_disk.h"

#include <doctest/doctest.h>

#include <vector>

#include "scheduler/sim/sim_dram.h"

namespace stoker {

namespace {

constexpr i64 kPiece = 1'000'000;  // at 1 GB/s a millisecond

struct Drive {
  explicit Drive(SimDiskLimits limits) : disk(clock, {i64{1} << 40}, limits) {}

  void submit(i64 pieces, ReadPriority priority = ReadPriority::demand, u64 first_tag = 0) {
    for (i64 i = 0; i < pieces; i++) {
      ReadPiece piece{.tag = first_tag + static_cast<u64>(i), .priority = priority, .bytes = kPiece};
      REQUIRE(disk.submit({&piece, 1}) == 1);
    }
  }
  // Everything that lands, in order.
  std::vector<ReadDone> drain() {
    std::vector<ReadDone> all;
    std::vector<ReadDone> some(7);
    while (disk.wait(1'000'000'000)) {
      i64 n = disk.poll(some);
      all.insert(all.end(), some.begin(), some.begin() + n);
    }
    return all;
  }

  VirtualClock clock;
  SimDisk disk;
};

}  // namespace

TEST_CASE("a full queue runs at the drive's bandwidth") {
  Drive d({.gb_per_second = 4, .latency_ns = 100'000, .depth = 8, .capacity = 200});
  d.submit(200);
  std::vector<ReadDone> done = d.drain();
  REQUIRE(done.size() == 200);
  // The first byte comes after the latency; then nothing but bandwidth.
  CHECK(done.back().finished_ns == 100'000 + 200 * kPiece / 4);
  for (size_t i = 1; i < done.size(); i++) CHECK(done[i].finished_ns - done[i - 1].finished_ns == kPiece / 4);
}

TEST_CASE("one request at a time pays the latency each time") {
  Drive d({.gb_per_second = 4, .latency_ns = 100'000, .depth = 1, .capacity = 10});
  d.submit(10);
  CHECK(d.drain().back().finished_ns == 10 * (100'000 + kPiece / 4));
}

TEST_CASE("an idle drive saves nothing up") {
  Drive d({.gb_per_second = 1, .latency_ns = 0, .depth = 4, .capacity = 10});
  d.submit(1);
  d.drain();
  d.clock.advance_to(5'000'000'000);
  d.submit(1);
  CHECK(d.drain().back().finished_ns == 5'001'000'000);
}

TEST_CASE("demand goes before background that has not begun") {
  Drive d({.gb_per_second = 1, .latency_ns = 0, .depth = 1, .capacity = 20});
  d.submit(5, ReadPriority::background);
  d.submit(2, ReadPriority::demand, 100);
  std::vector<u64> order;
  for (const ReadDone& done : d.drain()) order.push_back(done.tag);
  CHECK(order == std::vector<u64>{0, 100, 101, 1, 2, 3, 4});
}

TEST_CASE("what the drive has not begun can be promoted or had back, by whose it is") {
  Drive d({.gb_per_second = 1, .latency_ns = 0, .depth = 4, .capacity = 20});
  constexpr u64 kOne = u64{1} << 32, kTwo = u64{2} << 32;
  d.submit(2, ReadPriority::predicted, kOne);  // the first is with the drive
  d.submit(2, ReadPriority::predicted, kTwo);
  CHECK(d.disk.promote(ReadPriority::predicted, 2) == 2);
  d.disk.recall(ReadPriority::predicted, 1);
  std::vector<ReadDone> done = d.drain();
  REQUIRE(done.size() == 4);
  CHECK(done[0].tag == kOne + 1);
  CHECK(done[0].error == kRecalled);
  CHECK(done[1].tag == kOne);
  CHECK(done[2].tag == kTwo);
  CHECK(done[2].priority == ReadPriority::demand);
  CHECK(done[3].finished_ns == 3 * kPiece);
  CHECK(d.disk.submit(std::vector<ReadPiece>(20, ReadPiece{.bytes = kPiece})) == 20);
}

TEST_CASE("no more is taken than the capacity, and waiting ends in time") {
  Drive d({.gb_per_second = 1, .latency_ns = 0, .depth = 1, .capacity = 3});
  std::vector<ReadPiece> pieces(5, ReadPiece{.bytes = kPiece});
  CHECK(d.disk.submit(pieces) == 3);
  CHECK_FALSE(d.disk.wait(400'000));
  CHECK(d.clock.now_ns() == 400'000);
  CHECK(d.disk.wait(900'000));
  CHECK(d.clock.now_ns() == 1'000'000);
}

TEST_CASE("what the drive writes is missing to the cores") {
  Drive d({.gb_per_second = 10, .latency_ns = 0, .depth = 200, .capacity = 200});
  SimCopier no_links(d.clock, {});
  SimDram dram(d.clock, d.disk, no_links, 50, 10);
  dram.read(50'000'000, {1000});
  CHECK(d.clock.now_ns() == 1'000'000);  // alone: 50 GB/s
  d.submit(100);                         // the drive is busy for 10 ms
  dram.read(40'000'000, {1000});
  CHECK(d.clock.now_ns() == 2'000'000);  // 40 GB/s are left
  dram.read(9 * 40'000'000 + 50'000'000, {1000});
  CHECK(d.clock.now_ns() == 12'000'000);  // 9 ms beside the drive, one alone
  dram.read(20'000'000, {20});
  CHECK(d.clock.now_ns() == 13'000'000);  // the cores are slower than the memory
  d.submit(100);
  dram.read(20'000'000, {20});
  CHECK(d.clock.now_ns() == 14'000'000);  // and do not mind the drive
}

TEST_CASE("where cores and memory wait for each other, the memory's part of the time grows with the drive") {
  Drive d({.gb_per_second = 10, .latency_ns = 0, .depth = 200, .capacity = 200});
  SimCopier no_links(d.clock, {});
  SimDram dram(d.clock, d.disk, no_links, 50, 10);
  SimKernel kernel{.most = 40, .streamed = 20};  // of each nanosecond half computes and half waits
  dram.read(20'000'000, kernel);
  CHECK(d.clock.now_ns() == 1'000'000);
  d.submit(100);
  dram.read(20'000'000, kernel);
  CHECK(d.clock.now_ns() == 2'125'000);
}

}  // namespace stoker

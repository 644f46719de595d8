#include "kernels/base/threads.h"

#include "kernels/base/error.h"
#include "kernels/base/own_thread.h"
#include "kernels/base/work_ranges.h"

#include <doctest/doctest.h>

#include <array>
#include <atomic>
#include <thread>
#include <vector>

using namespace stoker;

TEST_CASE("every index of a range is visited once, whatever the number of workers") {
  for (int workers : {1, 2, 3, 7}) {
    WorkerPool pool({.workers = workers});
    for (i64 count : {0, 1, 5, 64, 1000}) {
      std::vector<std::atomic<int>> seen(static_cast<size_t>(count));
      pool.for_ranges(count, 8, [&](i64 begin, i64 end) {
        CHECK(begin % 8 == 0);
        for (i64 i = begin; i < end; i++) seen[static_cast<size_t>(i)]++;
      });
      pool.for_each(count, [&](i64 i, int worker) {
        if (worker < 0 || worker >= workers) return;
        seen[static_cast<size_t>(i)]++;
      });
      for (auto& n : seen) CHECK(n == 2);
    }
  }
}

TEST_CASE("a pool survives many short regions and sleeps between them") {
  WorkerPool pool({.workers = 3});
  std::atomic<i64> sum{0};
  for (int i = 0; i < 5000; i++) pool.for_each(10, [&](i64 index, int) { sum += index; });
  CHECK(sum == 5000 * 45);
}

TEST_CASE("a region runs on the caller and at most once on every other worker") {
  WorkerPool pool({.workers = 4});
  for (int i = 0; i < 2000; i++) {
    std::array<std::atomic<int>, 4> entered{};
    pool.run([&](int worker) { entered[static_cast<size_t>(worker)]++; });
    CHECK(entered[0] == 1);
    for (auto& times : entered) CHECK(times <= 1);
  }
}

TEST_CASE("all workers take part in a region that lasts") {
  WorkerPool pool({.workers = 3});
  std::atomic<int> present{0};
  pool.run([&](int) {
    present++;
    while (present < 3) std::this_thread::yield();  // would never end if a worker stayed away
  });
  CHECK(present == 3);
}

TEST_CASE("work on a thread of its own has ended when the call returns, and throws here") {
  std::thread::id there;
  on_own_thread([&] { there = std::this_thread::get_id(); });
  CHECK(there != std::thread::id());
  CHECK(there != std::this_thread::get_id());
  CHECK_THROWS_WITH_AS(on_own_thread([] { fail("told there"); }), "told there", Error);
}

TEST_CASE("a worker that holds a piece does not keep the others from the rest of its range") {
  WorkRanges ranges(10, 2);
  CHECK(ranges.take(1) == 5);
  std::vector<i64> others;
  for (i64 i = ranges.take(0); i >= 0; i = ranges.take(0)) others.push_back(i);
  CHECK(others == std::vector<i64>{0, 1, 2, 3, 4, 6, 7, 8, 9});
  CHECK(ranges.take(1) == -1);
}

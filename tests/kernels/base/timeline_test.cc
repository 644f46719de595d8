#include "kernels/base/timeline.h"

#include <doctest/doctest.h>

#include "kernels/base/stats.h"
#include "tests/support/hand_clock.h"

namespace stoker {

TEST_CASE("a lane's use counts overlapping spans once, clipped to the window, and no waiting") {
  Timeline timeline;
  i32 cpu = timeline.lane("CPU"), link = timeline.lane("link");
  CHECK(timeline.lane("CPU") == cpu);
  timeline.add({0, 30, "copy", link});
  timeline.add({20, 50, "copy", link});
  timeline.add({10, 20, "copy", link});
  timeline.add({45, 45, "nothing", link});
  timeline.add({0, 90, "disk_wait", cpu, false});
  timeline.add({90, 200, "experts", cpu});
  std::vector<Timeline::LaneUse> use = timeline.use(10, 110);
  REQUIRE(use.size() == 2);
  CHECK(use[0].lane == "CPU");
  CHECK(use[0].busy_ns == 20);
  CHECK(use[1].busy_ns == 40);
  CHECK(use[1].window_ns == 100);
}

TEST_CASE("of more spans than there is room for the latest remain, and a window begins with what is left") {
  Timeline timeline(3);
  i32 lane = timeline.lane("SSD");
  for (i64 i = 0; i < 5; i++) timeline.add({i * 10, i * 10 + 5, "read", lane});
  std::vector<Timeline::Span> spans = timeline.spans();
  REQUIRE(spans.size() == 3);
  CHECK(spans.front().begin_ns == 20);
  CHECK(spans.back().begin_ns == 40);
  Timeline::LaneUse use = timeline.use(0, 50).front();
  CHECK(use.window_ns == 25);
  CHECK(use.busy_ns == 10);
}

TEST_CASE("a timer's stages become spans of its lane") {
  test::HandClock clock;
  Timeline timeline;
  StageTimer timer(clock);
  timer.record(timeline, "CPU");
  timer.start(Stage::attention);
  for (Stage next : {Stage::device_wait, Stage::experts, Stage::experts}) {
    clock.ns += 10;
    timer.enter(next);
  }
  timer.stop();
  std::vector<Timeline::Span> spans = timeline.spans();
  REQUIRE(spans.size() == 3);
  CHECK(std::string_view(spans[0].what) == "attention");
  CHECK_FALSE(spans[1].busy);
  CHECK(timeline.use(0, 30).front().busy_ns == 20);
}

}  // namespace stoker

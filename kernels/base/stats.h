// Where the time of a token goes. Every timer and counter the program reports is listed here; only these are measured.
#pragma once

#include <array>
#include <string_view>

#include "kernels/base/clock.h"
#include "kernels/base/timeline.h"
#include "kernels/base/types.h"

namespace stoker {

enum class Stage {
  attention,  // norms, projections, attention itself, KV cache
  experts,    // computing routed experts on the CPU
  device_wait,  // nothing to compute: devices still do
  disk_wait,  // nothing to compute: an expert is still being read
  rest,       // router, shared and dense FFN, embedding, output head, sampling
};
constexpr i64 kStages = 5;

constexpr const char* name(Stage stage) {
  constexpr std::array<const char*, kStages> names = {"attention", "experts", "device_wait", "disk_wait", "rest"};
  return names[static_cast<size_t>(stage)];
}

constexpr bool is_wait(Stage stage) { return stage == Stage::device_wait || stage == Stage::disk_wait; }

// Time per stage. One owner thread; stages do not nest: switching charges the time since the last switch.
class StageTimer {
 public:
  explicit StageTimer(const Clock& clock) : clock_(clock) {}
  // Stages become spans of a lane; waiting is not being busy. The timeline must outlive the timer.
  void record(Timeline& timeline, std::string_view lane) {
    timeline_ = &timeline;
    lane_ = timeline.lane(lane);
  }

  void start(Stage stage) {
    stage_ = stage;
    since_ns_ = clock_.now_ns();
  }
  // Charges the running stage and goes on with the next.
  void enter(Stage stage) {
    i64 now = clock_.now_ns();
    ns_[static_cast<size_t>(stage_)] += now - since_ns_;
    if (timeline_ != nullptr) timeline_->add({since_ns_, now, name(stage_), lane_, !is_wait(stage_)});
    since_ns_ = now;
    stage_ = stage;
  }
  void stop() { enter(stage_); }

  Stage stage() const { return stage_; }  // the running one
  i64 ns(Stage stage) const { return ns_[static_cast<size_t>(stage)]; }
  std::array<i64, kStages> all_ns() const { return ns_; }
  i64 total_ns() const {
    i64 total = 0;
    for (i64 ns : ns_) total += ns;
    return total;
  }

 private:
  const Clock& clock_;
  std::array<i64, kStages> ns_{};
  Timeline* timeline_ = nullptr;  // or none
  i32 lane_ = 0;
  Stage stage_ = Stage::rest;
  i64 since_ns_ = 0;
};

}  // namespace stoker

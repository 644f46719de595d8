// Timeline: which resource was busy when, for a chart and for the idle share of each. A lane is a resource: the cores, a
// device, one direction of its link, the disk. Who has no timeline records nothing and reads no clock for it.
//
// Spans are kept in a ring: of a long run the latest remain.
#pragma once

#include <mutex>
#include <string>
#include <string_view>
#include <vector>

#include "kernels/base/types.h"

namespace stoker {

class Timeline {
 public:
  static constexpr i64 kMostSpans = i64{1} << 19;  // some hundred tokens of a model of 60 layers on two devices

  struct Span {
    i64 begin_ns = 0, end_ns = 0;  // on the steady clock
    const char* what = "";         // static text: "attention", "copy"
    i32 lane = 0;
    bool busy = true;  // else: the lane waits, and says for what
  };
  struct LaneUse {
    std::string lane;
    i64 busy_ns = 0;    // with at least one busy span
    i64 window_ns = 0;  // of so much time, or less when older spans are gone
  };

  explicit Timeline(i64 most_spans = kMostSpans);

  // The lane of this name; a new one is placed behind those that are there. Any thread, as all that follows.
  i32 lane(std::string_view name);
  // Nothing when the span is empty.
  void add(const Span& span);

  std::vector<std::string> lanes() const;
  std::vector<Span> spans() const;  // oldest first
  // What each lane did between two moments.
  std::vector<LaneUse> use(i64 from_ns, i64 to_ns) const;

 private:
  mutable std::mutex mutex_;
  std::vector<std::string> lanes_;
  std::vector<Span> spans_;  // a ring, first at next_ once it is full
  size_t next_ = 0;
  bool full_ = false;
};

}  // namespace stoker

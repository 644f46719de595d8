#include "kernels/base/timeline.h"

#include <algorithm>

namespace stoker {

Timeline::Timeline(i64 most_spans) : spans_(static_cast<size_t>(most_spans)) {}

i32 Timeline::lane(std::string_view name) {
  std::lock_guard lock(mutex_);
  auto found = std::find(lanes_.begin(), lanes_.end(), name);
  if (found == lanes_.end()) found = lanes_.emplace(lanes_.end(), name);
  return static_cast<i32>(found - lanes_.begin());
}

void Timeline::add(const Span& span) {
  if (span.end_ns <= span.begin_ns) return;
  std::lock_guard lock(mutex_);
  spans_[next_++] = span;
  full_ |= next_ == spans_.size();
  next_ %= spans_.size();
}

std::vector<std::string> Timeline::lanes() const {
  std::lock_guard lock(mutex_);
  return lanes_;
}

std::vector<Timeline::Span> Timeline::spans() const {
  std::lock_guard lock(mutex_);
  auto next = spans_.begin() + static_cast<std::ptrdiff_t>(next_);
  std::vector<Span> ordered(full_ ? next : spans_.end(), spans_.end());
  ordered.insert(ordered.end(), spans_.begin(), next);
  return ordered;
}

std::vector<Timeline::LaneUse> Timeline::use(i64 from_ns, i64 to_ns) const {
  std::vector<Span> all = spans();
  // Added when they ended, so before the oldest one's end others may be missing.
  if (static_cast<i64>(all.size()) == static_cast<i64>(spans_.size())) from_ns = std::max(from_ns, all.front().end_ns);
  std::sort(all.begin(), all.end(), [](const Span& a, const Span& b) { return a.begin_ns < b.begin_ns; });
  std::vector<LaneUse> uses;
  for (std::string& name : lanes()) uses.push_back({std::move(name), 0, std::max<i64>(0, to_ns - from_ns)});
  std::vector<i64> counted_to(uses.size(), from_ns);
  for (const Span& span : all) {
    size_t lane = static_cast<size_t>(span.lane);
    i64 begin = std::max(span.begin_ns, counted_to[lane]), end = std::min(span.end_ns, to_ns);
    if (!span.busy || end <= begin) continue;
    uses[lane].busy_ns += end - begin;
    counted_to[lane] = end;
  }
  return uses;
}

}  // namespace stoker

#include "scheduler/sim/sim_copier.h"

#include <cmath>
#include <limits>

#include "kernels/base/check.h"

namespace stoker {

SimCopier::SimCopier(VirtualClock& clock, std::vector<Link> links)
    : clock_(clock), links_(std::move(links)), lanes_(links_.size() * static_cast<size_t>(kCopyDirections)) {
  for (const Link& link : links_) CHECK(link.gb_per_second > 0);
}

i64 SimCopier::submit(std::span<const Copy> copies) {
  for (const Copy& copy : copies) {
    Lane& l = lanes_[lane(copy.device, copy.direction)];
    f64 ns = static_cast<f64>(copy.bytes()) / links_[static_cast<size_t>(copy.device)].gb_per_second;
    l.free_ns = std::max(l.free_ns, clock_.now_ns()) + std::llround(ns);
    l.busy_ns += std::llround(ns);
    l.flights.push_back({copy.tag, l.free_ns});
  }
  return static_cast<i64>(copies.size());
}

i64 SimCopier::poll(std::span<CopyDone> done) {
  size_t n = 0;
  for (Lane& l : lanes_) {
    while (n < done.size() && !l.flights.empty() && l.flights.front().finish_ns <= clock_.now_ns()) {
      done[n++] = {l.flights.front().tag, CopyError::none};
      l.flights.pop_front();
    }
  }
  return static_cast<i64>(n);
}

i64 SimCopier::next_finish_ns() const {
  i64 next = std::numeric_limits<i64>::max();
  for (const Lane& l : lanes_)
    if (!l.flights.empty()) next = std::min(next, l.flights.front().finish_ns);
  return next;
}

bool SimCopier::wait(i64 timeout_ns) {
  i64 limit = clock_.now_ns() + timeout_ns, next = next_finish_ns();
  clock_.advance_to(std::min(limit, next));
  return next <= limit;
}

// Lanes have no gaps once submitted: each is busy until its last copy has landed.
SimCopier::Activity SimCopier::activity() const {
  Activity activity{0, std::numeric_limits<i64>::max()};
  for (size_t i = 0; i < lanes_.size(); i++) {
    if (lanes_[i].free_ns <= clock_.now_ns()) continue;
    activity.gb_per_second += links_[i / kCopyDirections].gb_per_second;
    activity.until_ns = std::min(activity.until_ns, lanes_[i].free_ns);
  }
  return activity;
}

}  // namespace stoker

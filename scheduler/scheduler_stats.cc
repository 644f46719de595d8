#include "scheduler/scheduler_stats.h"

#include <algorithm>

namespace stoker {

namespace {

constexpr i64 SchedulerStats::*kCounts[] = {
    &SchedulerStats::requests,
    &SchedulerStats::hits,
    &SchedulerStats::misses,
    &SchedulerStats::hit_bytes,
    &SchedulerStats::device_hits,
    &SchedulerStats::bytes_read,
    &SchedulerStats::disk_busy_ns,
    &SchedulerStats::wait_ns,
    &SchedulerStats::evictions,
    &SchedulerStats::predicted_bytes,
    &SchedulerStats::useful_bytes,
    &SchedulerStats::filled_bytes,
    &SchedulerStats::ahead_bytes,
    &SchedulerStats::ahead_useful_bytes,
    &SchedulerStats::predicted_hits,
    &SchedulerStats::upgrades,
    &SchedulerStats::promotions,
    &SchedulerStats::uploaded_bytes,
    &SchedulerStats::downloaded_bytes,
    &SchedulerStats::failed_exchanges,
};
static_assert(sizeof(kCounts) / sizeof(kCounts[0]) * sizeof(i64) == sizeof(SchedulerStats), "a count is missing");

}  // namespace

SchedulerStats& operator+=(SchedulerStats& a, const SchedulerStats& b) {
  for (auto count : kCounts) a.*count += b.*count;
  return a;
}

SchedulerStats operator-(const SchedulerStats& a, const SchedulerStats& b) {
  SchedulerStats difference;
  for (auto count : kCounts) difference.*count = a.*count - b.*count;
  return difference;
}

f64 useful_share(const SchedulerStats& stats) {
  if (stats.predicted_bytes == 0) return 0;
  return std::min(1.0, static_cast<f64>(stats.useful_bytes) / static_cast<f64>(stats.predicted_bytes));
}

}  // namespace stoker

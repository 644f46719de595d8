// SchedulerStats: what the scheduler has counted. It only grows; what happened between two moments is their difference.
#pragma once

#include "kernels/base/types.h"

namespace stoker {

struct SchedulerStats {
  i64 requests = 0;  // (layer, expert) needs, one per acquire and expert
  i64 hits = 0;      // in RAM when asked for; else a miss, also when its read was under way already
  i64 misses = 0;
  i64 hit_bytes = 0;     // of experts that were in RAM when asked for
  i64 device_hits = 0;   // in a device's memory: neither hit nor miss
  i64 bytes_read = 0;    // from disk, alignment included
  i64 disk_busy_ns = 0;  // time with at least one read in flight
  i64 wait_ns = 0;       // time in Lease::wait with nothing to compute
  i64 evictions = 0;
  i64 predicted_bytes = 0;  // of experts read because of a hint
  i64 useful_bytes = 0;     // of these, that were wanted before they lost their slot
  i64 filled_bytes = 0;     // of experts read because a slot was empty
  i64 ahead_bytes = 0;         // of experts read ahead of a piece of a prompt
  i64 ahead_useful_bytes = 0;  // of these, that were wanted before they lost their slot
  i64 predicted_hits = 0;   // hits that a hint, or reading ahead, had brought and nobody had wanted before
  i64 upgrades = 0;         // misses whose predicted read was under way
  i64 promotions = 0;       // experts that went to a device
  i64 uploaded_bytes = 0;   // of these
  i64 downloaded_bytes = 0; // of those that came back for them
  i64 failed_exchanges = 0; // by an error, or because RAM needed the slot
};

SchedulerStats& operator+=(SchedulerStats& a, const SchedulerStats& b);
SchedulerStats operator-(const SchedulerStats& a, const SchedulerStats& b);

// What of the predicted bytes was wanted. At most 1, also of a difference: what landed before it may be used in it.
f64 useful_share(const SchedulerStats& stats);

}  // namespace stoker

// Probe: measures what the machine can do, with the code that will do it. The disk for now.
#pragma once

#include <string>

#include "scheduler/plan.h"
#include "scheduler/tiers/open_reader.h"

namespace stoker {

struct DiskProbe {
  std::string path;
  i64 request_bytes = 8 * kMiB;  // one expert; read at random places of the file, split into pieces
  i64 piece_bytes = Plan{}.piece_bytes;
  i64 depth = Plan{}.ring_depth;
  f64 seconds = 5;
  u64 seed = 1;
  IoPath io = IoPath::automatic;
  bool one_at_a_time = false;  // the next request begins when the last has ended, as one missing expert after the other does
};

struct DiskMeasure {
  i64 bytes = 0;          // that landed
  i64 request_bytes = 0;  // rounded up to the alignment
  f64 seconds = 0;
  std::string how;  // Reader::describe()

  f64 gb_per_second() const { return static_cast<f64>(bytes) / seconds * 1e-9; }
  f64 requests_per_second() const {
    return static_cast<f64>(bytes) / static_cast<f64>(request_bytes) / seconds;
  }
};

// Keeps the queue full for `seconds`, or one request under way. Throws Error when the file is smaller than one request, or a read
// fails.
DiskMeasure measure_disk(const DiskProbe& probe);

}  // namespace stoker

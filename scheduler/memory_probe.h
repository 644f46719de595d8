// How fast this machine's cores can read memory: the roof of decode. The best of several plain read loops, because which
// one a machine likes best differs (vector width, number of streams, prefetching).
#pragma once

#include <string>
#include <vector>

#include "kernels/base/types.h"

namespace stoker {

struct MemoryProbe {
  i64 bytes = 512 * kMiB;  // read per round; far more than the caches hold
  int threads = 0;         // 0: one per physical core
  int rounds = 6;          // of each loop; the best counts
};

struct MemoryMeasure {
  struct Loop {
    std::string name;  // "avx2, 4 streams"
    f64 gb_per_second;
  };
  std::vector<Loop> loops;  // those that this CPU can run
  int threads = 0;

  const Loop& best() const;
};

// Runs in threads of its own and leaves the caller's pinning alone. Throws Error when there is not enough memory.
MemoryMeasure measure_memory(const MemoryProbe& probe);

}  // namespace stoker

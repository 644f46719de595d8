// How fast this machine's cores get through weights of each format: one token's product with a matrix that stays in their
// caches, so that memory does not hold them up, or with one that does not fit there.
#pragma once

#include <array>
#include <vector>

#include "kernels/device/stream.h"
#include "kernels/format/block_type.h"

namespace stoker {

struct KernelProbe {
  int threads = 0;  // 0: one per physical core
  IsaLevel level = best_isa_level();
  f64 seconds = .05;  // of each format
  i64 bytes = 0;      // of the matrix; 0: what stays in the cores' own caches
  std::vector<BlockType> formats = {};  // that are measured; none: all
};

// GB/s of weights (1e9 bytes) by format; 0 where there is no such format, or it is not asked for. In caches the median of many
// products; out of memory the mean, because what neighbours take of the memory now and then they take from a run too.
using KernelSpeeds = std::array<f64, kBlockTypeLimit>;

// Runs in threads of its own and leaves the caller's pinning alone.
KernelSpeeds measure_kernels(const KernelProbe& probe);

}  // namespace stoker

// How one expert gets from its file into its slot. Direct reads start and end on alignment borders, matrices do
// not: a range covers one matrix from border to border. Matrices that follow each other in the file (gate and
// up of a fused tensor, all three of a packed expert) share a range, so that they are one read.
#pragma once

#include <array>

#include "scheduler/model_file/expert_table.h"

namespace stoker {

struct ExpertReads {
  struct Range {
    i32 file = 0;
    i64 offset = 0;   // in the file, aligned
    i64 bytes = 0;    // aligned; may reach past the end of the file
    i64 at_slot = 0;  // where it lands, from the beginning of the slot, aligned
  };
  std::array<Range, kExpertMatrices> ranges;
  i64 count = 0;                                    // ranges in use
  std::array<i64, kExpertMatrices> matrix_at_slot;  // where each matrix begins within the slot
  i64 slot_bytes = 0;                               // room that the ranges take

  i64 at_slot(ExpertMatrix matrix) const { return matrix_at_slot[static_cast<size_t>(matrix)]; }
};

// `alignment` is a power of two. Any thread.
ExpertReads expert_reads(const ExpertTable& table, LayerId layer, ExpertId expert, i64 alignment);

}  // namespace stoker

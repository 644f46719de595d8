#include "scheduler/tiers/slice.h"

namespace stoker {

ExpertReads expert_reads(const ExpertTable& table, LayerId layer, ExpertId expert, i64 alignment) {
  ExpertReads reads;
  i32 file = -1;
  i64 end = 0;  // of the matrix before, in that file
  for (i64 m = 0; m < kExpertMatrices; m++) {
    Extent extent = table.extent(layer, expert, static_cast<ExpertMatrix>(m));
    if (extent.file != file || extent.offset != end)
      reads.ranges[static_cast<size_t>(reads.count++)] = {
          .file = extent.file, .offset = round_down(extent.offset, alignment), .at_slot = reads.slot_bytes};
    ExpertReads::Range& range = reads.ranges[static_cast<size_t>(reads.count - 1)];
    file = extent.file;
    end = extent.offset + extent.bytes;
    range.bytes = round_up(end, alignment) - range.offset;
    reads.matrix_at_slot[static_cast<size_t>(m)] = range.at_slot + extent.offset - range.offset;
    reads.slot_bytes = range.at_slot + range.bytes;
  }
  return reads;
}

}  // namespace stoker

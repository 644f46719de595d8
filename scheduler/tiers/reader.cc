#include "scheduler/tiers/reader.h"

#include "kernels/base/checksum.h"

namespace stoker {

bool completes(const ReadPiece& piece, i32 error) {
  if (piece.check == nullptr || error != 0) return false;
  return piece.check->pieces_left.fetch_sub(1, std::memory_order_acq_rel) == 1;
}

i32 compare(const ReadCheck& check) {
  std::span data(check.data, static_cast<size_t>(check.bytes));
  return checksum(data) == check.expected ? 0 : kChecksumMismatch;
}

}  // namespace stoker

// Slab: the slots that experts are read into. One arena of huge pages, cut into slots of the plan's classes.
//
// A page of the arena exists once it has been written to, which for 100 GB takes tens of seconds: a thread of
// the slab faults the arena in piece by piece while work starts, and slots become usable as their pieces
// exist. A piece is a whole number of slots and at most kPieceBytes (or one slot), so that it can be
// registered with the kernel, which takes 1 GiB at a time, and no slot crosses a border. When the machine
// refuses memory the arena stays as large as it got. Pieces can be given back, the last ones first.
//
// Owner: the scheduler's thread calls everything; only fault_in and on_piece are called from the growing
// thread.
#pragma once

#include <functional>
#include <memory>

#include "kernels/base/ids.h"
#include "scheduler/plan.h"

namespace stoker {

struct SlabOptions {
  static constexpr i64 kPieceBytes = 256 * kMiB;

  // Backs a range with memory now; false when the machine has none left. Default: fault_in of kernels/base.
  std::function<bool(std::byte* data, i64 bytes)> fault_in = nullptr;
  // Told of every piece that exists, before its slots can be taken; possibly from another thread. And of
  // every piece that is about to go, from the slab's destructor.
  std::function<void(std::byte* data, i64 bytes)> on_piece = nullptr;
  std::function<void(std::byte* data, i64 bytes)> on_piece_gone = nullptr;
  // Slots per class without which no work is possible; they are faulted in by the constructor.
  i64 minimum_slots = 1;
  i64 piece_bytes = kPieceBytes;
  bool background = true;  // false: all of the arena exists when the constructor returns
};

class Slab {
 public:
  // Throws Error when not even the minimum can be had.
  Slab(const Plan& plan, SlabOptions options);
  ~Slab();
  Slab(const Slab&) = delete;
  Slab& operator=(const Slab&) = delete;

  // A free slot of the class, or none.
  SlotId take(i64 slot_class);
  void give_back(SlotId slot);

  // Slots of the plan, usable or not: ids are [0, planned_slots()).
  i64 planned_slots() const;
  i64 slot_class(SlotId slot) const;
  std::byte* data(SlotId slot) const;

  // Makes slots usable whose memory has come into existence since the last call; true when there were some.
  bool collect();
  i64 usable_slots(i64 slot_class) const;
  i64 free_slots(i64 slot_class) const;  // of these
  bool growing() const;  // false: collect() has seen all there will be
  // What exists and, while it grows, what is planned beside it.
  i64 expected_slots() const;
  i64 expected_bytes() const;
  // Ends it, as if the machine refused the rest. Waits for the piece that is under way.
  void stop_growing();

  // The way back, piece by piece, of an arena that no longer grows.
  struct Range {
    SlotId first;
    i64 count = 0;
  };
  // The slots that would go next; none: only the minimum is left.
  Range last_piece() const;
  // They go, all free: they are not usable any more, their memory is the machine's. Bytes of it.
  i64 drop_last_piece();
  // Blocks until collect() would find something or the arena stops growing, or for `timeout_ns`.
  void wait_growth(i64 timeout_ns) const;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace stoker

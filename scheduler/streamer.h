// Streamer: carries out fetch commands. Each expert is one to three ranges of a file (tiers/slice.h), each
// range is read in pieces of plan.piece_bytes, so that one expert alone keeps the drive's queue full. Demand goes before
// predictions, these before background, and that before reads for spare slots;
// within a priority the expert that was asked for first is completed first, since it can be computed with
// while the next one lands.
//
// Predicted reads may turn out useless, so only a few milliseconds' worth of them is given to the reader, and of that
// what the drive does in 2 ms may be with the kernel: all else can still be had back, and a demand overtakes it. Of spare
// ones, for which nobody will wait soon, it is half a millisecond.
//
// Owner: the scheduler's thread. Nothing is allocated after construction except the text of a failure.
#pragma once

#include <array>
#include <memory>
#include <vector>

#include "kernels/base/clock.h"
#include "kernels/base/error.h"
#include "kernels/base/ids.h"
#include "kernels/base/timeline.h"
#include "scheduler/model_file/expert_table.h"
#include "scheduler/plan.h"
#include "scheduler/tiers/reader.h"

namespace stoker {

struct ExpertReads;

struct Fetch {
  LayerId layer;
  ExpertId expert;
  SlotId slot;  // at most one fetch per slot at a time
  std::byte* to = nullptr;  // the slot's memory
  ReadPriority priority = ReadPriority::demand;
};

struct FetchDone {
  LayerId layer;
  ExpertId expert;
  SlotId slot;
  Status status;
  i64 bytes_read = 0;
};

class Streamer {
 public:
  // All must outlive the streamer. Throws Error when the reader's alignment does not suit the plan's.
  Streamer(const ExpertTable& table, const Plan& plan, Reader& reader, const Clock& clock, i64 slots);

  // From now on the times with a piece in flight are spans of a lane. The timeline must outlive the streamer.
  void record(Timeline& timeline, std::string_view lane) {
    timeline_ = &timeline;
    lane_ = timeline.lane(lane);
  }

  void start(const Fetch& fetch);
  // Forgets the fetch of this slot if no byte of it has been asked for yet; false when it must be waited for.
  bool cancel(SlotId slot);
  // Nobody will want this fetch: what the drive has not been asked for is not read. If that is any of it, the fetch fails.
  void abandon(SlotId slot);
  // Somebody waits for this fetch now: what is left of it goes with demand. Returns whether a byte of it had been
  // asked for already.
  bool upgrade(SlotId slot);
  // While far, as many predicted pieces are given to the reader as half its queue holds, instead of what the drive does in
  // some milliseconds: for predictions that are nearly certain, of one who computes for long between two calls of pump().
  void set_far(bool far) { far_ = far; }
  // Takes results from the reader and hands it as many pieces as it accepts. Never blocks.
  void pump();
  // The next fetch that has ended, in good or bad; false when there is none.
  bool next(FetchDone& done);
  // Blocks until pump() would find a result, or for `timeout_ns`. False on timeout, also when nothing is
  // under way.
  bool wait(i64 timeout_ns);

  i64 under_way() const { return under_way_; }  // fetches started and not yet given out by next()
  // Bytes that the drive reads in the longest time between two calls of pump(), as far as is known.
  i64 window_bytes() const { return window_pieces_ * piece_bytes_; }
  i64 bytes_read() const { return bytes_read_; }
  // Time with at least one piece in flight, up to the last landing that pump() has seen.
  i64 busy_ns() const { return busy_ns_; }

 private:
  static constexpr i32 kNone = -1;
  struct Transfer {
    Fetch fetch;
    i64 range = 0;  // the next piece: range and offset within it
    i64 offset = 0;
    i64 ranges = 0;  // of this expert
    i64 in_flight = 0;       // pieces
    i64 bytes_read = 0;      // or being read
    bool checked = false;    // its bytes are compared with a checksum
    bool submitted = false;  // at least one piece has been
    i32 error = 0;           // first failure and where
    i32 error_range = 0;
    i64 error_offset = 0;
    i32 next = kNone, previous = kNone;  // in its queue
  };
  struct Queue {
    i32 first = kNone, last = kNone;
  };

  void push(Queue& queue, i32 index);
  void remove(Queue& queue, i32 index);
  Queue& queue_of(const Transfer& transfer) { return queues_[static_cast<size_t>(transfer.fetch.priority)]; }
  bool may_submit(size_t priority) const;
  void measure_bandwidth();
  void limit(ReadPriority priority, i64 depth);
  void take_results();
  void take_back(Transfer& transfer, u64 tag);
  void hand_out();
  size_t index_of(const Fetch& fetch) const;
  bool needs_check(const Fetch& fetch) const;
  void prepare_check(const Fetch& fetch, const ExpertReads& reads);
  bool make_piece(i32 index, ReadPiece& piece);
  bool exhausted(const Transfer& t) const { return t.range == t.ranges || t.error != 0; }
  void end_if_complete(i32 index);
  Status status_of(const Transfer& transfer) const;

  const ExpertTable& table_;
  const Plan& plan_;
  Reader& reader_;
  const Clock& clock_;
  i64 piece_bytes_;
  std::vector<Transfer> transfers_;      // [slots]
  // When the file has checksums, else none. An expert is compared the first time it lands: the cost of every time
  // would be a share of the memory's speed.
  std::unique_ptr<ReadCheck[]> checks_;  // [slots]
  std::vector<bool> proven_;             // [moe layers * experts]: has been compared
  Queue queues_[kReadPriorities];        // transfers with pieces left to submit
  std::vector<i32> ended_;               // slots, oldest first; read from ended_head_
  size_t ended_head_ = 0;
  std::vector<ReadPiece> batch_;
  std::vector<ReadDone> results_;
  i64 under_way_ = 0;
  i64 pieces_in_flight_ = 0;
  std::array<i64, kReadPriorities> in_flight_{};  // of these
  i64 window_pieces_ = 1;                         // with the reader at most, of a priority that is held back
  bool far_ = false;                              // but for predictions while far
  std::array<i64, kReadPriorities> depths_{};     // with the kernel at most, as the reader was told
  i64 bytes_read_ = 0;
  i64 busy_ns_ = 0;
  i64 busy_from_ns_ = 0;   // while pieces are in flight: since when
  i64 busy_since_ns_ = 0;  // the same, but for what busy_ns_ has already
  Timeline* timeline_ = nullptr;  // or none
  i32 lane_ = 0;
};

}  // namespace stoker

// ReadQueue: carries pieces from a reader's owner to its I/O threads, and results back. Everything is
// allocated when it is made. One lock: a piece is a megabyte, so it is taken some ten thousand times per
// second at most.
#pragma once

#include <array>
#include <condition_variable>
#include <mutex>
#include <span>
#include <vector>

#include "kernels/base/types.h"
#include "scheduler/tiers/reader.h"

namespace stoker {

class ReadQueue {
 public:
  explicit ReadQueue(i64 capacity);

  // --- owner
  i64 capacity() const { return capacity_; }
  i64 submit(std::span<const ReadPiece> pieces);  // see Reader
  i64 poll(std::span<ReadDone> done);
  bool wait(i64 timeout_ns);
  void limit(ReadPriority priority, i64 pieces);  // see Reader
  i64 promote(ReadPriority from, u32 owner);
  void recall(ReadPriority from, u32 owner);
  void stop();  // take() gives nothing and take_blocking() returns false from now on

  // --- I/O threads
  // Next piece, by priority. False when there is none that may start.
  bool take(ReadPiece& piece);
  // The same, sleeping until there is one. False after stop().
  bool take_blocking(ReadPiece& piece);
  void finish(std::span<const ReadDone> done);

 private:
  // First in, first out; never more than capacity_ entries.
  template <class T>
  struct Ring {
    std::vector<T> entries;
    i64 head = 0, count = 0;
    void push(const T& value);
    T pop();
  };
  template <class Move>
  i64 take_out(ReadPriority from, u32 owner, Move move);
  bool may_start(size_t priority) const;
  bool any_may_start() const;
  bool pop_piece(ReadPiece& piece);

  i64 capacity_;
  std::mutex mutex_;
  std::condition_variable pieces_arrived_, done_arrived_;
  std::array<Ring<ReadPiece>, kReadPriorities> pieces_;
  Ring<ReadDone> done_;
  i64 outstanding_ = 0;  // submitted, not yet polled
  // [priorities] of those that are held back
  std::array<i64, kReadPriorities> limits_;
  std::array<i64, kReadPriorities> out_{};  // taken, not yet finished
  bool stopped_ = false;
};

}  // namespace stoker

#include "scheduler/tiers/read_queue.h"

#include <algorithm>
#include <chrono>

#include "kernels/base/check.h"

namespace stoker {

template <class T>
void ReadQueue::Ring<T>::push(const T& value) {
  i64 size = static_cast<i64>(entries.size());
  CHECK(count < size);
  entries[static_cast<size_t>((head + count) % size)] = value;
  count++;
}

template <class T>
T ReadQueue::Ring<T>::pop() {
  CHECK(count > 0);
  T value = entries[static_cast<size_t>(head)];
  head = (head + 1) % static_cast<i64>(entries.size());
  count--;
  return value;
}

ReadQueue::ReadQueue(i64 capacity) : capacity_(capacity) {
  limits_.fill(1);
  for (auto& ring : pieces_) ring.entries.resize(static_cast<size_t>(capacity));
  done_.entries.resize(static_cast<size_t>(capacity));
}

i64 ReadQueue::submit(std::span<const ReadPiece> pieces) {
  i64 taken = 0;
  {
    std::lock_guard lock(mutex_);
    taken = std::min(static_cast<i64>(pieces.size()), capacity_ - outstanding_);
    for (const ReadPiece& piece : pieces.first(static_cast<size_t>(taken)))
      pieces_[static_cast<size_t>(piece.priority)].push(piece);
    outstanding_ += taken;
  }
  if (taken == 1) pieces_arrived_.notify_one();
  if (taken > 1) pieces_arrived_.notify_all();
  return taken;
}

i64 ReadQueue::poll(std::span<ReadDone> done) {
  std::lock_guard lock(mutex_);
  i64 n = std::min(static_cast<i64>(done.size()), done_.count);
  for (ReadDone& d : done.first(static_cast<size_t>(n))) d = done_.pop();
  outstanding_ -= n;
  return n;
}

bool ReadQueue::wait(i64 timeout_ns) {
  std::unique_lock lock(mutex_);
  return done_arrived_.wait_for(lock, std::chrono::nanoseconds(timeout_ns),
                                [this] { return done_.count > 0; });
}

void ReadQueue::limit(ReadPriority priority, i64 pieces) {
  CHECK(pieces > 0 && is_held_back(priority));
  {
    std::lock_guard lock(mutex_);
    limits_[static_cast<size_t>(priority)] = pieces;
  }
  pieces_arrived_.notify_all();
}

// Calls `move` for each of the owner's pieces, first to last, and leaves the others as they are.
template <class Move>
i64 ReadQueue::take_out(ReadPriority from, u32 owner, Move move) {
  Ring<ReadPiece>& ring = pieces_[static_cast<size_t>(from)];
  i64 before = ring.count, taken = 0;
  for (i64 i = 0; i < before; i++) {
    ReadPiece piece = ring.pop();
    if (owner_of(piece.tag) != owner) {
      ring.push(piece);
      continue;
    }
    move(piece);
    taken++;
  }
  return taken;
}

i64 ReadQueue::promote(ReadPriority from, u32 owner) {
  CHECK(from != ReadPriority::demand);
  i64 moved = 0;
  {
    std::lock_guard lock(mutex_);
    moved = take_out(from, owner, [this](ReadPiece& piece) {
      piece.priority = ReadPriority::demand;
      pieces_[static_cast<size_t>(ReadPriority::demand)].push(piece);
    });
  }
  if (moved > 0) pieces_arrived_.notify_all();
  return moved;
}

void ReadQueue::recall(ReadPriority from, u32 owner) {
  std::lock_guard lock(mutex_);
  take_out(from, owner, [this](const ReadPiece& piece) {
    done_.push({.tag = piece.tag, .error = kRecalled, .priority = piece.priority});
  });
}

void ReadQueue::stop() {
  {
    std::lock_guard lock(mutex_);
    stopped_ = true;
  }
  pieces_arrived_.notify_all();
}

bool ReadQueue::may_start(size_t priority) const {
  bool full = is_held_back(static_cast<ReadPriority>(priority)) && out_[priority] >= limits_[priority];
  return pieces_[priority].count > 0 && !full;
}

bool ReadQueue::any_may_start() const {
  for (size_t p = 0; p < pieces_.size(); p++)
    if (may_start(p)) return true;
  return false;
}

bool ReadQueue::pop_piece(ReadPiece& piece) {
  if (stopped_) return false;
  for (size_t p = 0; p < pieces_.size(); p++) {
    if (!may_start(p)) continue;
    piece = pieces_[p].pop();
    out_[p]++;
    return true;
  }
  return false;
}

bool ReadQueue::take(ReadPiece& piece) {
  std::lock_guard lock(mutex_);
  return pop_piece(piece);
}

bool ReadQueue::take_blocking(ReadPiece& piece) {
  std::unique_lock lock(mutex_);
  pieces_arrived_.wait(lock, [this] { return stopped_ || any_may_start(); });
  return pop_piece(piece);
}

void ReadQueue::finish(std::span<const ReadDone> done) {
  if (done.empty()) return;
  bool held_back = false;
  {
    std::lock_guard lock(mutex_);
    for (const ReadDone& d : done) {
      done_.push(d);
      out_[static_cast<size_t>(d.priority)]--;
      held_back |= is_held_back(d.priority);
    }
  }
  if (held_back) pieces_arrived_.notify_all();  // others may start now
  done_arrived_.notify_one();
}

}  // namespace stoker

#include "tests/scheduler/fake_reader.h"

#include <doctest/doctest.h>

#include <algorithm>
#include <cerrno>

#include "tests/scheduler/pattern_file.h"

namespace stoker::test {

i64 FakeReader::submit(std::span<const ReadPiece> pieces) {
  run();
  i64 taken = queue_.submit(pieces);
  history.insert(history.end(), pieces.begin(), pieces.begin() + static_cast<std::ptrdiff_t>(taken));
  start(clock_.now_ns());
  return taken;
}

i64 FakeReader::promote(ReadPriority from, u32 owner) {
  run();
  i64 moved = queue_.promote(from, owner);
  start(clock_.now_ns());
  return moved;
}

void FakeReader::recall(ReadPriority from, u32 owner) {
  run();
  queue_.recall(from, owner);
}

// The drive takes what it may.
void FakeReader::start(i64 at_ns) {
  ReadPiece p;
  while (in_flight() < depth() && queue_.take(p)) {
    bool aligned =
        (p.offset | p.bytes | static_cast<i64>(reinterpret_cast<u64>(p.to))) % options_.alignment == 0;
    REQUIRE(aligned);
    bool fits = p.bytes > 0 && p.bytes <= options_.max_piece_bytes && p.offset < file_bytes(p.file);
    REQUIRE(fits);
    bool apart = std::all_of(flights_.begin(), flights_.end(), [&](const Flight& f) {
      return p.to + p.bytes <= f.piece.to || f.piece.to + f.piece.bytes <= p.to;
    });
    REQUIRE(apart);
    i64 delay = options_.longest_ns > 0 ? 1 + rng_.below(options_.longest_ns) : 0;
    i32 error = rng_.uniform() < options_.failure_rate ? ENXIO : 0;
    if (p.file == fail_file_ && p.offset <= fail_offset_ && fail_offset_ < p.offset + p.bytes) {
      error = EIO;
      fail_file_ = -1;
    }
    i64 due = at_ns + delay;
    busy_ns_ += std::max<i64>(0, due - std::max(at_ns, busy_until_ns_));
    busy_until_ns_ = std::max(busy_until_ns_, due);
    flights_.push_back({p, due, error});
    begun.push_back(p);
  }
}

// What is due lands, each at its time, and lets the drive take more.
void FakeReader::run() {
  for (;;) {
    auto next = std::min_element(flights_.begin(), flights_.end(), [](const Flight& a, const Flight& b) { return a.due_ns < b.due_ns; });
    if (next == flights_.end() || next->due_ns > clock_.now_ns()) return;
    Flight landed = *next;
    flights_.erase(next);
    deliver(landed);
    ReadDone done{landed.piece.tag, landed.error, landed.due_ns, landed.piece.priority};
    if (completes(landed.piece, landed.error)) done.error = compare(*landed.piece.check);
    queue_.finish({&done, 1});
    start(landed.due_ns);
  }
}

i64 FakeReader::poll(std::span<ReadDone> done) {
  run();
  return queue_.poll(done);
}

bool FakeReader::wait(i64 timeout_ns) {
  run();
  if (queue_.wait(0)) return true;
  i64 due = clock_.now_ns() + timeout_ns;
  for (const Flight& f : flights_) due = std::min(due, f.due_ns);
  clock_.set(due);
  run();
  return queue_.wait(0);
}

void FakeReader::add_memory(std::byte*, i64 bytes) { memory_bytes_ += bytes; }

void FakeReader::remove_memory(std::byte* data, i64 bytes) {
  memory_bytes_ -= bytes;
  for (const Flight& f : flights_) {
    bool apart = f.piece.to + f.piece.bytes <= data || data + bytes <= f.piece.to;
    CHECK(apart);
  }
}

void FakeReader::deliver(const Flight& flight) {
  const ReadPiece& p = flight.piece;
  if (flight.error != 0) {
    failures_++;
    std::fill_n(p.to, p.bytes, std::byte{0xee});
    return;
  }
  i64 bytes = std::min(p.bytes, file_bytes(p.file) - p.offset);
  fill_pattern(p.to, static_cast<u64>(p.file), p.offset, bytes);
}

}  // namespace stoker::test

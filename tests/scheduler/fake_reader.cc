#include "tests/scheduler/fake_reader.h"

#include <doctest/doctest.h>

#include <algorithm>
#include <cerrno>

#include "tests/scheduler/pattern_file.h"

namespace stoker::test {

i64 FakeReader::submit(std::span<const ReadPiece> pieces) {
  i64 taken = std::min(static_cast<i64>(pieces.size()), options_.capacity - in_flight());
  for (const ReadPiece& p : pieces.first(static_cast<size_t>(taken))) {
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
    i64 now = clock_.now_ns(), due = now + delay;
    busy_ns_ += std::max<i64>(0, due - std::max(now, busy_until_ns_));
    busy_until_ns_ = std::max(busy_until_ns_, due);
    flights_.push_back({p, due, error});
    history.push_back(p);
  }
  return taken;
}

i64 FakeReader::poll(std::span<ReadDone> done) {
  i64 n = 0;
  for (size_t i = 0; i < flights_.size() && n < static_cast<i64>(done.size());) {
    if (flights_[i].due_ns > clock_.now_ns()) {
      i++;
      continue;
    }
    deliver(flights_[i]);
    i32 error = flights_[i].error;
    if (completes(flights_[i].piece, error)) error = compare(*flights_[i].piece.check);
    done[static_cast<size_t>(n++)] = {flights_[i].piece.tag, error, flights_[i].due_ns,
                                       flights_[i].piece.priority};
    flights_.erase(flights_.begin() + static_cast<std::ptrdiff_t>(i));
  }
  return n;
}

bool FakeReader::wait(i64 timeout_ns) {
  i64 due = clock_.now_ns() + timeout_ns;
  bool any = false;
  for (const Flight& f : flights_) {
    any |= f.due_ns <= due;
    due = std::min(due, f.due_ns);
  }
  clock_.set(due);
  return any;
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

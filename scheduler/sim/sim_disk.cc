#include "scheduler/sim/sim_disk.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <iterator>
#include <limits>

#include "kernels/base/check.h"

namespace stoker {

SimDisk::SimDisk(VirtualClock& clock, std::vector<i64> file_bytes, const SimDiskLimits& limits)
    : clock_(clock), file_bytes_(std::move(file_bytes)), limits_(limits) {
  CHECK(limits.gb_per_second > 0 && limits.depth > 0 && limits.capacity >= limits.depth);
  held_limits_.fill(1);
}

std::string SimDisk::file_name(i32 file) const { return fmt::format("simulated file {}", file); }

std::string SimDisk::describe() const {
  return fmt::format("simulated, {:.1f} GB/s, {} us", limits_.gb_per_second, limits_.latency_ns / 1000);
}

i64 SimDisk::submit(std::span<const ReadPiece> pieces) {
  run_until(clock_.now_ns());
  i64 taken = std::min(static_cast<i64>(pieces.size()), limits_.capacity - outstanding_);
  for (const ReadPiece& piece : pieces.first(static_cast<size_t>(taken))) {
    CHECK(piece.bytes <= limits_.max_piece_bytes);
    queues_[static_cast<size_t>(piece.priority)].push_back(piece);
  }
  outstanding_ += taken;
  issue(clock_.now_ns());
  return taken;
}

// What is not with the drive.
std::vector<ReadPiece> SimDisk::take_out(ReadPriority from, u32 owner) {
  run_until(clock_.now_ns());
  std::vector<ReadPiece> taken;
  std::deque<ReadPiece>& queue = queues_[static_cast<size_t>(from)];
  auto mine = [owner](const ReadPiece& piece) { return owner_of(piece.tag) == owner; };
  std::copy_if(queue.begin(), queue.end(), std::back_inserter(taken), mine);
  std::erase_if(queue, mine);
  return taken;
}

i64 SimDisk::promote(ReadPriority from, u32 owner) {
  std::vector<ReadPiece> taken = take_out(from, owner);
  for (ReadPiece& piece : taken) {
    piece.priority = ReadPriority::demand;
    queues_[static_cast<size_t>(ReadPriority::demand)].push_back(piece);
  }
  issue(clock_.now_ns());
  return static_cast<i64>(taken.size());
}

void SimDisk::recall(ReadPriority from, u32 owner) {
  for (const ReadPiece& piece : take_out(from, owner))
    done_.push_back({.tag = piece.tag, .error = kRecalled, .priority = piece.priority});
}

i64 SimDisk::poll(std::span<ReadDone> done) {
  run_until(clock_.now_ns());
  i64 n = std::min(static_cast<i64>(done.size()), static_cast<i64>(done_.size()));
  for (i64 i = 0; i < n; i++) {
    done[static_cast<size_t>(i)] = done_.front();
    done_.pop_front();
  }
  outstanding_ -= n;
  return n;
}

bool SimDisk::wait(i64 timeout_ns) {
  i64 limit = clock_.now_ns() + timeout_ns;
  run_until(clock_.now_ns());
  if (done_.empty()) clock_.advance_to(flights_.empty() ? limit : std::min(limit, flights_.front().finish_ns));
  run_until(clock_.now_ns());
  return !done_.empty();
}

SimDisk::Activity SimDisk::activity() {
  i64 now = clock_.now_ns();
  run_until(now);
  if (flights_.empty()) return {false, std::numeric_limits<i64>::max()};
  const Flight& next = flights_.front();
  return now < next.start_ns ? Activity{false, next.start_ns} : Activity{true, next.finish_ns};
}

// Everything that has landed by then; each landing lets the drive take another request at that moment.
void SimDisk::run_until(i64 ns) {
  while (!flights_.empty() && flights_.front().finish_ns <= ns) {
    Flight landed = flights_.front();
    flights_.pop_front();
    out_[static_cast<size_t>(landed.priority)]--;
    done_.push_back({.tag = landed.tag, .error = 0, .finished_ns = landed.finish_ns, .priority = landed.priority});
    issue(landed.finish_ns);
  }
}

void SimDisk::issue(i64 at_ns) {
  for (std::deque<ReadPiece>& queue : queues_) {
    while (!queue.empty() && static_cast<i64>(flights_.size()) < limits_.depth) {
      const ReadPiece& piece = queue.front();
      size_t p = static_cast<size_t>(piece.priority);
      if (is_held_back(piece.priority) && out_[p] >= held_limits_[p]) break;
      out_[p]++;
      i64 start = std::max(drive_free_ns_, at_ns + limits_.latency_ns);
      drive_free_ns_ = start + std::llround(static_cast<f64>(piece.bytes) / limits_.gb_per_second);
      flights_.push_back({piece.tag, piece.priority, start, drive_free_ns_});
      queue.pop_front();
    }
  }
}

}  // namespace stoker

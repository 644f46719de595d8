#include "tests/scheduler/fake_copier.h"

#include <doctest/doctest.h>

#include <algorithm>
#include <cstring>

#include "scheduler/tiers/vram.h"

namespace stoker::test {

namespace {

constexpr std::byte kGarbage{0xee};

bool apart(const std::byte* a, i64 a_bytes, const std::byte* b, i64 b_bytes) { return a + a_bytes <= b || b + b_bytes <= a; }
bool apart(i64 a, i64 a_bytes, i64 b, i64 b_bytes) { return a + a_bytes <= b || b + b_bytes <= a; }

}  // namespace

FakeCopier::FakeCopier(Options options, VirtualClock& clock) : options_(options), clock_(clock), rng_(options.seed) {
  for (i64 bytes : options_.arena_bytes)
    devices_.emplace_back().memory.assign(static_cast<size_t>(bytes), kGarbage);
}

i64 FakeCopier::submit(std::span<const Copy> copies) {
  i64 taken = std::min(static_cast<i64>(copies.size()), options_.capacity - in_flight());
  for (const Copy& copy : copies.first(static_cast<size_t>(taken))) {
    check(copy);
    Device& device = devices_[static_cast<size_t>(copy.device)];
    i64& free = device.free_ns[static_cast<size_t>(copy.direction)];
    free = std::max(free, clock_.now_ns()) + (options_.longest_ns > 0 ? 1 + rng_.below(options_.longest_ns) : 0);
    flights_.push_back({copy, free, rng_.uniform() < options_.failure_rate});
  }
  most_in_flight_ = std::max(most_in_flight_, in_flight());
  return taken;
}

// What two copies share may only be read by both.
void FakeCopier::check(const Copy& copy) const {
  bool up = copy.direction == CopyDirection::upload;
  for (const CopyPart& part : copy.parts) {
    bool fits = part.bytes > 0 && part.at_device >= 0 && part.at_device + part.bytes <= arena_bytes(copy.device);
    REQUIRE(fits);
    REQUIRE(part.at_device % kVramAlignment == 0);
    auto piece = memory_.upper_bound(part.host);
    REQUIRE(piece != memory_.begin());
    --piece;
    REQUIRE(part.host + part.bytes <= piece->first + piece->second);
    for (const Flight& f : flights_) {
      bool other_up = f.copy.direction == CopyDirection::upload;
      for (const CopyPart& other : f.copy.parts) {
        bool same_device = f.copy.device == copy.device && (up || other_up);
        if (same_device) REQUIRE(apart(part.at_device, part.bytes, other.at_device, other.bytes));
        if (!up || !other_up) REQUIRE(apart(part.host, part.bytes, other.host, other.bytes));
      }
    }
  }
}

i64 FakeCopier::poll(std::span<CopyDone> done) {
  i64 n = 0;
  for (size_t i = 0; i < flights_.size() && n < static_cast<i64>(done.size());) {
    if (flights_[i].due_ns > clock_.now_ns()) {
      i++;
      continue;
    }
    done[static_cast<size_t>(n++)] = {flights_[i].copy.tag, carry_out(flights_[i])};
    flights_.erase(flights_.begin() + static_cast<std::ptrdiff_t>(i));
  }
  return n;
}

CopyError FakeCopier::carry_out(const Flight& flight) {
  const Copy& copy = flight.copy;
  Device& device = devices_[static_cast<size_t>(copy.device)];
  failures_ += flight.fails || device.lost;
  for (const CopyPart& part : copy.parts) {
    std::byte* there = device.memory.data() + part.at_device;
    std::byte* to = copy.direction == CopyDirection::upload ? there : part.host;
    const std::byte* from = copy.direction == CopyDirection::upload ? part.host : there;
    if (flight.fails || device.lost)
      std::fill_n(to, part.bytes, kGarbage);
    else
      std::memcpy(to, from, static_cast<size_t>(part.bytes));
  }
  if (device.lost) return CopyError::device_lost;
  return flight.fails ? CopyError::failed : CopyError::none;
}

bool FakeCopier::wait(i64 timeout_ns) {
  i64 due = clock_.now_ns() + timeout_ns;
  bool any = false;
  for (const Flight& f : flights_) {
    any |= f.due_ns <= due;
    due = std::min(due, f.due_ns);
  }
  clock_.set(due);
  return any;
}

void FakeCopier::remove_memory(std::byte* data, i64 bytes) {
  auto piece = memory_.find(data);
  bool known = piece != memory_.end() && piece->second == bytes;
  REQUIRE(known);
  memory_.erase(piece);
}

void FakeCopier::lose(i64 device) {
  Device& d = devices_[static_cast<size_t>(device)];
  d.lost = true;
  std::fill(d.memory.begin(), d.memory.end(), kGarbage);
}

}  // namespace stoker::test

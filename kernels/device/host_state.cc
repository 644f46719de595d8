#include "kernels/device/host_state.h"

#include <algorithm>
#include <iterator>

#include "kernels/base/check.h"
#include "kernels/base/clock.h"

namespace stoker {

ModelledSpeed::Turn ModelledSpeed::reserve(i64 bytes) {
  i64 now = steady_clock().now_ns();
  if (gb_per_second_ <= 0) return {now, now};
  std::lock_guard lock(mutex_);
  i64 begin_ns = std::max(free_at_ns_, now);
  free_at_ns_ = begin_ns + static_cast<i64>(static_cast<f64>(bytes) / gb_per_second_);
  return {begin_ns, free_at_ns_};
}

bool PinnedRanges::add(const void* begin, i64 bytes, bool mapped) {
  std::lock_guard lock(mutex_);
  return ranges_.emplace(reinterpret_cast<u64>(begin), Range{bytes, mapped}).second;
}

void PinnedRanges::remove(const void* begin) {
  std::lock_guard lock(mutex_);
  ranges_.erase(reinterpret_cast<u64>(begin));
}

const std::pair<const u64, PinnedRanges::Range>* PinnedRanges::range_before(u64 address) const {
  auto above = ranges_.upper_bound(address);
  return above == ranges_.begin() ? nullptr : &*std::prev(above);
}

bool PinnedRanges::is_mapped(DevicePtr memory) const {
  std::lock_guard lock(mutex_);
  const auto* found = range_before(memory.address);
  return found != nullptr && found->second.mapped && memory.address < found->first + static_cast<u64>(found->second.bytes);
}

PinnedRanges::Cover PinnedRanges::cover(const void* begin, i64 bytes) const {
  std::lock_guard lock(mutex_);
  u64 address = reinterpret_cast<u64>(begin);
  const auto* found = range_before(address);
  u64 end = found == nullptr ? 0 : found->first + static_cast<u64>(found->second.bytes);
  if (address >= end) return Cover::none;
  return address + static_cast<u64>(bytes) <= end ? Cover::all : Cover::part;
}

HostDeviceState::HostDeviceState(const HostDeviceOptions& wanted, const std::string& name)
    : options(wanted),
      id(name),
      memory(wanted.vram_bytes),
      up(wanted.link_gb_per_second),
      down(wanted.link_gb_per_second),
      compute(wanted.compute_gb_per_second) {}

Status HostDeviceState::status() const {
  return lost_.load() ? Status::failure(fmt::format("{}: the device is lost", id)) : Status();
}

HostFault HostDeviceState::next_fault(bool is_copy) {
  if (++operations_ == options.lose_at) return HostFault::lost;
  return is_copy && ++copies_ == options.fail_copy ? HostFault::copy : HostFault::none;
}

HostFault HostDeviceState::next_fault(const void* host, i64 bytes) {
  HostFault fault = next_fault(true);
  PinnedRanges::Cover cover = pinned.cover(host, bytes);
  bool refused = cover == PinnedRanges::Cover::part || (cover == PinnedRanges::Cover::none && options.only_pinned);
  return fault == HostFault::none && refused ? HostFault::pinning : fault;
}

std::byte* HostDeviceState::real(DevicePtr address) const {
  if (memory.owns(address)) return memory.real(address);
  CHECK(pinned.is_mapped(address));
  return address.as<std::byte>();
}

}  // namespace stoker

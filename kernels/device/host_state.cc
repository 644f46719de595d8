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

bool PinnedRanges::is_mapped(DevicePtr memory) const {
  std::lock_guard lock(mutex_);
  auto above = ranges_.upper_bound(memory.address);
  if (above == ranges_.begin()) return false;
  const auto& [begin, range] = *std::prev(above);
  return range.mapped && memory.address < begin + static_cast<u64>(range.bytes);
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

std::byte* HostDeviceState::real(DevicePtr address) const {
  if (memory.owns(address)) return memory.real(address);
  CHECK(pinned.is_mapped(address));
  return address.as<std::byte>();
}

}  // namespace stoker

#include "scheduler/tiers/device_copier.h"

#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <thread>

#include "kernels/base/clock.h"

namespace stoker {

DeviceCopier::DeviceCopier(const std::vector<Arena>& arenas) {
  for (const Arena& arena : arenas) {
    devices_.push_back({.arena = arena.memory, .lanes = {}});
    for (Lane& lane : devices_.back().lanes) {
      lane.stream = arena.device->make_stream();
      lane.tags.resize(kCapacity);
      for (i64 i = 0; i < kCapacity; i++) lane.events.push_back(arena.device->make_event());
    }
  }
}

i64 DeviceCopier::submit(std::span<const Copy> copies) {
  i64 n = std::min(kCapacity - under_way_, static_cast<i64>(copies.size()));
  for (const Copy& copy : copies.first(static_cast<size_t>(n))) post(copy);
  under_way_ += n;
  return n;
}

// What does not get as far as its stream is answered by the event behind it all the same.
void DeviceCopier::post(const Copy& copy) {
  PerDevice& device = devices_[static_cast<size_t>(copy.device)];
  Lane& lane = device.lanes[static_cast<size_t>(copy.direction)];
  for (const CopyPart& part : copy.parts) {
    if (device.lost) break;
    DevicePtr at = device.arena->data() + part.at_device;
    Status status = copy.direction == CopyDirection::upload ? lane.stream->copy_to_device(at, part.host, part.bytes)
                                                            : lane.stream->copy_to_host(part.host, at, part.bytes);
    device.lost |= !status.ok();
  }
  size_t place = lane.at(lane.count++);
  lane.tags[place] = copy.tag;
  device.lost |= !lane.stream->record(*lane.events[place]).ok();
}

i64 DeviceCopier::poll(std::span<CopyDone> done) {
  size_t n = 0;
  for (PerDevice& device : devices_)
    for (Lane& lane : device.lanes)
      for (; n < done.size() && lane.count > 0 && lane.events[lane.at(0)]->done(); lane.count--) {
        device.lost |= !lane.events[lane.at(0)]->wait().ok();
        done[n++] = {lane.tags[lane.at(0)], device.lost ? CopyError::device_lost : CopyError::none};
        lane.first++;
      }
  under_way_ -= static_cast<i64>(n);
  return static_cast<i64>(n);
}

bool DeviceCopier::any_ended() {
  for (PerDevice& device : devices_)
    for (Lane& lane : device.lanes)
      if (lane.count > 0 && lane.events[lane.at(0)]->done()) return true;
  return false;
}

// Devices can be waited for one at a time only, and it is not known which will be first. Rarely called: nobody waits for a
// copy on the path of a token.
bool DeviceCopier::wait(i64 timeout_ns) {
  i64 end_ns = steady_clock().now_ns() + timeout_ns;
  while (!any_ended()) {
    if (steady_clock().now_ns() >= end_ns) return false;
    std::this_thread::sleep_for(std::chrono::microseconds(50));
  }
  return true;
}

std::string DeviceCopier::describe() const {
  return fmt::format("two copy streams on each of {} devices", devices());
}

}  // namespace stoker

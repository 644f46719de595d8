#include "scheduler/tiers/device_copier.h"

#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <thread>

#include "kernels/base/clock.h"
#include "kernels/base/log.h"

namespace stoker {

DeviceCopier::DeviceCopier(const std::vector<Arena>& arenas) {
  for (const Arena& arena : arenas) {
    devices_.push_back({.arena = arena, .lanes = {}});
    for (Lane& lane : devices_.back().lanes) {
      if (arena.order != nullptr) lane.staging = DeviceBuffer(*arena.device, arena.staging_bytes, "copies of experts");
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
  for (size_t m = 0; m < copy.parts.size() && !device.lost; m++) device.lost = !post_matrix(device, lane, copy, m).ok();
  size_t place = lane.at(lane.count++);
  lane.tags[place] = copy.tag;
  device.lost |= !lane.stream->record(*lane.events[place]).ok();
}

Status DeviceCopier::post_matrix(PerDevice& device, Lane& lane, const Copy& copy, size_t matrix) {
  const CopyPart& part = copy.parts[matrix];
  DevicePtr slot = device.arena.memory->data() + part.at_device;
  DeviceOrder* order = device.arena.order;
  bool ordered = order != nullptr && order->differs(copy.layer, matrix);
  DevicePtr there = ordered ? lane.staging.data() : slot;
  if (copy.direction == CopyDirection::upload) {
    Status status = lane.stream->copy_to_device(there, part.host, part.bytes);
    return status.ok() && ordered ? order->to_device_order(*lane.stream, copy.layer, matrix, there, slot) : status;
  }
  Status status = ordered ? order->to_file_order(*lane.stream, copy.layer, matrix, slot, there) : Status();
  return status.ok() ? lane.stream->copy_to_host(part.host, there, part.bytes) : status;
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

void DeviceCopier::add_memory(std::byte* data, i64 bytes) {
  for (PerDevice& device : devices_) {
    Status status = device.arena.device->pin_host(data, bytes, false);
    if (!status.ok() && !told_.exchange(true))
      log_warning("{}: experts are copied to and from memory that is not pinned, which is slower", status.message());
  }
}

void DeviceCopier::remove_memory(std::byte* data, i64) {
  for (PerDevice& device : devices_) device.arena.device->unpin_host(data);
}

std::string DeviceCopier::describe() const {
  return fmt::format("two copy streams on each of {} devices", devices());
}

}  // namespace stoker

#include "runtime/engine_devices.h"

#include <algorithm>

#include "runtime/home_devices.h"
#include "runtime/settle_devices.h"
#include "scheduler/tiers/vram.h"

namespace stoker {

namespace {

// Left free of what a card has, for what its driver takes as it goes.
constexpr i64 kCardMargin = 512 * kMiB;

}  // namespace

EngineDevices::EngineDevices(const DeviceChoice& choice, const DeviceLane::Limits& limits, const ExpertTable& table)
    : choice_(settle_devices(choice).choice), limits_(limits), table_(table), devices_(open_devices(choice_)) {
  if (choice_.kind == DeviceChoice::Kind::cuda && limits.exact)
    fail("--exact: CUDA cards have no exact arithmetic; use --device cpu with it");
}

// What a copier takes of a device's memory.
i64 EngineDevices::staging_bytes(const Device& device) const {
  if (device_ops(device).pack == nullptr) return 0;
  return kCopyDirections * round_up(EnginePacking::largest_matrix_bytes(table_), kVramAlignment);
}

std::vector<DeviceRequest> EngineDevices::requests(const std::vector<i64>& vram_bytes,
                                                   std::span<const LayerWeights> shapes) {
  if (vram_bytes.size() > 1 && vram_bytes.size() != devices_.size())
    fail("--vram names {} sizes for {} devices: give one for each, or one for all", vram_bytes.size(), devices_.size());
  if (!vram_bytes.empty() && devices_.empty()) fail("--vram: there is no device (--device)");
  std::vector<DeviceRequest> requests;
  for (size_t i = 0; i < devices_.size(); i++) {
    i64 free_bytes = devices_[i]->properties().free_bytes;
    if (i < choice_.cards.size())  // logical devices of one card share it
      free_bytes = (free_bytes - kCardMargin) / std::count(choice_.cards.begin(), choice_.cards.end(), choice_.cards[i]);
    free_bytes -= DeviceLane::bytes_needed(limits_) + staging_bytes(*devices_[i]);
    DeviceRequest request{.vram_bytes = std::max<i64>(0, free_bytes)};
    if (!vram_bytes.empty()) request.vram_bytes = vram_bytes[std::min(i, vram_bytes.size() - 1)];
    if (i < choice_.host.size()) {
      if (choice_.host[i].link_gb_per_second > 0) request.link_gb_per_second = choice_.host[i].link_gb_per_second;
      if (choice_.host[i].compute_gb_per_second > 0) request.gb_per_second = choice_.host[i].compute_gb_per_second;
    }
    requests.push_back(request);
  }
  std::vector<i64> layer_bytes, budgets;
  for (const LayerWeights& layer : shapes) layer_bytes.push_back(DeviceWeights::bytes_needed(layer));
  for (const DeviceRequest& request : requests) budgets.push_back(request.vram_bytes);
  homes_ = home_devices(layer_bytes, budgets);
  for (size_t l = 0; l < homes_.size(); l++)
    if (homes_[l] >= 0) requests[static_cast<size_t>(homes_[l])].vram_bytes -= layer_bytes[l];
  return requests;
}

void EngineDevices::record(Timeline& timeline) {
  for (const std::unique_ptr<Device>& device : devices_) device->record(timeline);
}

void EngineDevices::allocate(const Plan& plan, const Weights& weights, IsaLevel level) {
  std::vector<DeviceCopier::Arena> arenas;
  lanes_.reserve(devices_.size());
  for (size_t i = 0; i < devices_.size(); i++) {
    Device& device = *devices_[i];
    const Ops& ops = device_ops(device);
    auto lane = std::make_unique<DeviceLane>(device, ops, level, limits_);
    lanes_.push_back({.arena = DeviceBuffer(device, plan.device_arena_bytes(i), "experts"),
                      .weights = DeviceWeights(device, weights.layers(), homes_, static_cast<i32>(i)),
                      .lane = std::move(lane)});
    packings_.push_back(nullptr);
    if (ops.pack != nullptr)
      packings_.back() = std::make_unique<EnginePacking>(
          table_, EnginePacking::Shape{.hidden = limits_.hidden, .ffn = limits_.ffn}, ops);
    arenas.push_back({.device = &device,
                      .memory = &lanes_.back().arena,
                      .order = packings_.back().get(),
                      .staging_bytes = EnginePacking::largest_matrix_bytes(table_)});
  }
  if (!devices_.empty()) copier_ = std::make_unique<DeviceCopier>(arenas);
}

i64 EngineDevices::host_bytes() const {
  i64 bytes = 0;
  for (const DeviceArenaLane& lane : lanes_) bytes += lane.lane->host_bytes();
  return bytes;
}

}  // namespace stoker

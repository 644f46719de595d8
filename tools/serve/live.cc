#include "tools/serve/live.h"

#include <algorithm>
#include <cmath>

#include "kernels/base/clock.h"
#include "runtime/engine.h"

namespace stoker {

namespace {

constexpr int kWaitMs = 300;  // for the engine's view; a long prompt's piece takes longer, and the last view is shown

std::string base64(std::string_view bytes) {
  static constexpr char kDigits[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
  std::string text;
  text.reserve((bytes.size() + 2) / 3 * 4);
  for (size_t i = 0; i < bytes.size(); i += 3) {
    u32 group = 0;
    for (size_t k = 0; k < 3; k++)
      group = group << 8 | (i + k < bytes.size() ? static_cast<unsigned char>(bytes[i + k]) : 0u);
    for (size_t k = 0; k < 4; k++) text += i + k > bytes.size() ? '=' : kDigits[group >> (18 - 6 * k) & 63];
  }
  return text;
}

Json map_json(const std::shared_ptr<const ResidencyView>& view) {
  if (!view) return nullptr;
  Json layers = Json::array();
  for (LayerId layer : view->layers) layers.push_back(layer.value);
  return {{"layers", std::move(layers)}, {"experts", view->experts}, {"bytes", base64(residency_bytes(*view))}};
}

Json stages_json(const BatcherStatus& status) {
  Json json = Json::object();
  for (i64 i = 0; i < kStages; i++)
    json[std::string(name(static_cast<Stage>(i)))] = static_cast<f64>(status.stage_ns[static_cast<size_t>(i)]) / 1e9;
  return json;
}

Json experts_json(const SchedulerStats& e) {
  return {{"requests", e.requests},
          {"hits", e.hits + e.device_hits},  // in any memory
          {"misses", e.misses},
          {"evictions", e.evictions},
          {"ram_bytes", e.hit_bytes},
          {"disk_bytes", e.bytes_read},
          {"link_bytes", e.uploaded_bytes + e.downloaded_bytes},
          {"hinted_bytes", e.predicted_bytes},
          {"useful_bytes", e.useful_bytes},
          {"disk_busy_seconds", static_cast<f64>(e.disk_busy_ns) / 1e9}};
}

Json slots_json(const BatcherStatus& status) {
  Json all = Json::array();
  for (const BatcherStatus::Slot& slot : status.slots)
    all.push_back(!slot.busy ? "free" : slot.prompting ? "prompt" : "answer");
  return all;
}

// null: not measured.
Json limits_json(const MachineLimits& limits) {
  auto known = [](f64 limit) { return limit > 0 ? Json(limit) : Json(nullptr); };
  return {{"disk", known(limits.disk)}, {"dram", known(limits.dram)}, {"link", known(limits.link)}};
}

}  // namespace

MachineLimits machine_limits(const Service& service) {
  MachineLimits limits;
  if (const std::optional<SimMachine>& machine = service.machine()) {
    limits.disk = machine->ssd_gb_per_second * 1e9;
    limits.dram = machine->dram_gb_per_second * 1e9;
    for (const SimGpu& gpu : machine->gpus) limits.link += 2 * gpu.link_gb_per_second * 1e9;
  }
  const std::vector<HostDeviceOptions>& devices = service.engine().options().devices.host;
  bool told = !devices.empty();
  for (const HostDeviceOptions& device : devices) told = told && device.link_gb_per_second > 0;
  if (!told) return limits;
  limits.link = 0;
  for (const HostDeviceOptions& device : devices) limits.link += 2 * device.link_gb_per_second * 1e9;
  return limits;
}

std::string residency_bytes(const ResidencyView& view) {
  std::string bytes;
  bytes.reserve(view.tiers.size());
  for (size_t i = 0; i < view.tiers.size(); i++) {
    u32 age = view.passes_since_use[i];
    f64 heat = age == ResidencyView::kNeverUsed ? 0 : std::max(0.0, 63 - 5 * std::log2(1.0 + age));
    bytes += static_cast<char>(static_cast<u32>(view.tiers[i]) << 6 | static_cast<u32>(heat));
  }
  return bytes;
}

Json live_json(const Service& service) {
  std::shared_ptr<const ResidencyView> view = service.batcher().residency(kWaitMs);
  BatcherStatus status = service.batcher().status();
  const EngineFootprint& footprint = status.footprint;
  i64 devices = 0, vram_bytes = 0, vram_slots = 0;
  for (const DeviceFootprint& device : footprint.devices) {
    devices += device.lost ? 0 : 1;
    vram_bytes += device.expert_bytes;
    vram_slots += device.expert_slots;
  }
  return {{"seconds", static_cast<f64>(steady_clock().now_ns()) / 1e9},
          {"model", service.model()},
          {"context", service.engine().options().context},
          {"slots", slots_json(status)},
          {"waiting", status.waiting},
          {"prompt_tokens", status.prompt_rows},
          {"generated_tokens", status.decode_rows},
          {"passes", status.decode_passes},
          {"limits", limits_json(machine_limits(service))},
          {"stage_seconds", stages_json(status)},
          {"experts", experts_json(status.experts)},
          {"warmth", {{"done", status.warmth.done}, {"total", status.warmth.total}}},
          {"prefetch", {{"state", name(status.prefetch)}, {"gain", status.prefetch_gain}}},
          {"memory",
           {{"resident_bytes", footprint.resident_bytes},
            {"kv_bytes", footprint.kv_bytes},
            {"expert_budget_bytes", footprint.expert_budget_bytes},
            {"expert_total_bytes", footprint.expert_total_bytes},
            {"expert_slots", footprint.expert_slots},
            {"devices", devices},
            {"vram_bytes", vram_bytes},
            {"vram_slots", vram_slots},
            {"expert_total", footprint.expert_total},
            {"all_fit", service.engine().plan().all_resident && footprint.expert_slots + vram_slots >= footprint.expert_total}}},
          {"map", map_json(view)}};
}

}  // namespace stoker

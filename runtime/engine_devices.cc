#include "runtime/engine_devices.h"

#include <algorithm>
#include <new>

#include "kernels/base/log.h"
#include "runtime/settle_devices.h"
#include "scheduler/machine.h"
#include "scheduler/tiers/vram.h"

namespace stoker {

namespace {

// Left free of what a card has, for what its driver takes as it goes.
constexpr i64 kCardMargin = 512 * kMiB;

}  // namespace

EngineDevices::EngineDevices(const DeviceChoice& choice, const Hparams& hparams, const DeviceAttention::Limits& limits,
                             i64 split_heads, const ExpertTable& table)
    : choice_(settle_devices(choice).choice),
      hparams_(hparams),
      attention_limits_(limits),
      lane_limits_{.rows = limits.rows, .exact = limits.exact},
      head_limits_{.rows = limits.rows, .hidden = hparams.hidden, .vocab = hparams.vocab, .exact = limits.exact},
      table_(table),
      devices_(open_devices(choice_)),
      split_heads_(split_heads) {
  if (choice_.kind == DeviceChoice::Kind::cuda && limits.exact)
    fail("--exact: CUDA cards have no exact arithmetic; use --device cpu with it");
}

// All devices are of one kind.
bool EngineDevices::attends() const {
  return !devices_.empty() && DeviceAttention::possible(device_ops(*devices_.front()), hparams_, attention_limits_);
}

// What computing takes of a device's memory.
i64 EngineDevices::scratch_bytes(const Device& device) const {
  i64 attention = attends() ? DeviceAttention::bytes_needed(device_ops(device), hparams_, attention_limits_) : 0;
  return DeviceLane::bytes_needed(hparams_, lane_limits_) + DeviceHead::bytes_needed(head_limits_) + attention;
}

// What a copier takes of a device's memory.
i64 EngineDevices::staging_bytes(const Device& device) const {
  if (device_ops(device).pack == nullptr) return 0;
  return kCopyDirections * round_up(EnginePacking::largest_matrix_bytes(table_), kVramAlignment);
}

std::vector<DeviceRequest> EngineDevices::requests(const std::vector<i64>& vram_bytes,
                                                   const WeightPlaces& shapes) {
  if (vram_bytes.size() > 1 && vram_bytes.size() != devices_.size())
    fail("--vram names {} sizes for {} devices: give one for each, or one for all", vram_bytes.size(), devices_.size());
  if (!vram_bytes.empty() && devices_.empty()) fail("--vram: there is no device (--device)");
  std::vector<DeviceRequest> requests;
  i64 in_use = 0;
  for (size_t i = 0; i < devices_.size(); i++) {
    i64 free_bytes = devices_[i]->properties().free_bytes;
    if (i < choice_.cards.size())  // logical devices of one card share it
      free_bytes = (free_bytes - kCardMargin) / std::count(choice_.cards.begin(), choice_.cards.end(), choice_.cards[i]);
    const i64 computing = scratch_bytes(*devices_[i]) + staging_bytes(*devices_[i]);
    free_bytes -= computing;
    DeviceRequest request{.vram_bytes = std::max<i64>(0, free_bytes)};
    if (!vram_bytes.empty()) request.vram_bytes = vram_bytes[std::min(i, vram_bytes.size() - 1)];
    if (i < choice_.host.size()) {
      if (choice_.host[i].link_gb_per_second > 0) request.link_gb_per_second = choice_.host[i].link_gb_per_second;
      if (choice_.host[i].compute_gb_per_second > 0) request.gb_per_second = choice_.host[i].compute_gb_per_second;
    }
    requests.push_back(request);
    in_use += computing + request.vram_bytes;
  }
  give_homes(shapes, requests);
  // Memory that experts leave empty is never touched.
  for (const DeviceRequest& request : requests) in_use -= std::max<i64>(0, request.vram_bytes - table_.total_bytes());
  host_device_bytes_ = choice_.host.empty() ? 0 : in_use;
  return requests;
}

// Takes what has its home there from what devices have.
void EngineDevices::give_homes(const WeightPlaces& shapes, std::vector<DeviceRequest>& requests) {
  const Matrix& head = shapes.head.front().weights;
  ResidentBytes resident{.layers = {}, .head_rows = head.rows, .head_row_bytes = row_bytes(head.type, head.cols)};
  std::vector<i64> budgets;
  i64 cache = DeviceAttention::cache_bytes_needed(hparams_, attention_limits_);
  for (const LayerWeights& layer : shapes.layers)
    resident.layers.push_back({.attention = attends() ? DeviceWeights::attention_bytes(layer) : 0,
                               .cache = cache,
                               .ffn = DeviceWeights::ffn_bytes(layer)});
  for (const DeviceRequest& request : requests) budgets.push_back(request.vram_bytes);
  homes_ = place_resident(resident, budgets);
  share_heads();
  for (size_t d = 0; d < requests.size(); d++) requests[d].vram_bytes = homes_.left_bytes[d];
}

i64 EngineDevices::attention_layers(size_t device) const {
  return std::count(homes_.layers.begin(), homes_.layers.end(), LayerHome{.device = static_cast<i32>(device), .attention = true});
}

// Where contexts may be so long: with the next device, if a copy of the cache leaves experts at least as much there.
void EngineDevices::share_heads() {
  helpers_.assign(devices_.size(), -1);
  if (devices_.size() < 2 || split_heads_ == 0 || attention_limits_.context < split_heads_) return;
  for (size_t d = 0; d < devices_.size(); d++) {
    const size_t helper = (d + 1) % devices_.size();
    if (attention_layers(d) == 0) continue;
    const i64 bytes = DeviceHeads::bytes_needed(device_ops(*devices_[helper]), hparams_, attention_limits_, attention_layers(d));
    if (bytes > homes_.left_bytes[helper] / 2) continue;
    homes_.left_bytes[helper] -= bytes;
    helpers_[d] = static_cast<i32>(helper);
  }
}

i64 EngineDevices::shared_layers(size_t device) const {
  i64 layers = 0;
  for (size_t d = 0; d < helpers_.size(); d++)
    if (helpers_[d] == static_cast<i32>(device)) layers += attention_layers(d);
  return layers;
}

i64 EngineDevices::shared_bytes(size_t device) const {
  i64 bytes = 0;
  for (size_t d = 0; d < helpers_.size(); d++)
    if (helpers_[d] == static_cast<i32>(device)) bytes += lanes_[d].heads->bytes();
  return bytes;
}

void EngineDevices::record(Timeline& timeline) {
  for (const std::unique_ptr<Device>& device : devices_) device->record(timeline);
}

void EngineDevices::allocate(const Plan& plan, const Weights& weights, IsaLevel level,
                             const ReadProgress& progress) {
  std::vector<DeviceCopier::Arena> arenas;
  lanes_.reserve(devices_.size());
  restored_.resize(devices_.size());
  made_room_.resize(devices_.size());
  for (size_t i = 0; i < devices_.size(); i++) {
    Device& device = *devices_[i];
    const Ops& ops = device_ops(device);
    auto lane = std::make_unique<DeviceLane>(device, ops, level, hparams_, lane_limits_);
    lanes_.push_back({.arena = DeviceBuffer(device, plan.device_arena_bytes(i), "experts"),
                      .weights = DeviceWeights(device, weights, homes_, static_cast<i32>(i), progress),
                      .lane = std::move(lane),
                      .heads = nullptr,
                      .attention = nullptr,
                      .head = nullptr});
    DeviceLayers& there = lanes_.back();
    if (there.arena.bytes() == 0 && there.weights.bytes() == 0)
      log_warning("{}: nothing fits beside the {} MiB that computing takes there, so it has no part; a smaller -b takes less",
                  device.properties().id, (scratch_bytes(device) + staging_bytes(device)) / kMiB);
    if (there.weights.attention_layers() > 0)
      there.attention = std::make_unique<DeviceAttention>(device, ops, level, hparams_, attention_limits_, there.weights);
    if (there.weights.head() != nullptr)
      there.head = std::make_unique<DeviceHead>(device, ops, level, head_limits_, there.weights);
    packings_.push_back(nullptr);
    if (ops.pack != nullptr)
      packings_.back() = std::make_unique<EnginePacking>(
          table_, EnginePacking::Shape{.hidden = hparams_.hidden, .ffn = hparams_.expert_ffn}, ops);
    arenas.push_back({.device = &device,
                      .memory = &lanes_.back().arena,
                      .order = packings_.back().get(),
                      .staging_bytes = EnginePacking::largest_matrix_bytes(table_)});
  }
  for (size_t d = 0; d < lanes_.size(); d++) {
    if (helpers_[d] < 0) continue;
    Device& helper = *devices_[static_cast<size_t>(helpers_[d])];
    lanes_[d].heads = std::make_unique<DeviceHeads>(helper, *devices_[d], device_ops(helper), level, hparams_, attention_limits_,
                                                    attention_layers(d), split_heads_);
    lanes_[d].attention->share_heads(*lanes_[d].heads);
  }
  if (!devices_.empty()) copier_ = std::make_unique<DeviceCopier>(arenas);
}

Status EngineDevices::restore_lost(Weights& weights, Scheduler& scheduler, const std::atomic<bool>* interrupt) {
  for (size_t d = 0; d < lanes_.size(); d++) {
    if (!lanes_[d].lane->failed() || restored_[d]) continue;
    Status status = restore(d, weights, scheduler, interrupt);
    if (!status.ok())
      return Status::failure(
          fmt::format("{} is lost, and the weights that only it had cannot be read into RAM: {}", id(d), status.message()));
    restored_[d] = true;
  }
  return {};
}

// As much as experts must leave. Once: what that does not help, more of it would not.
void EngineDevices::make_room(size_t device, i64 bytes, Scheduler& scheduler) {
  const i64 missing = bytes + kFaultReserve - read_machine().available_bytes;
  if (missing <= 0 || made_room_[device]) return;
  made_room_[device] = true;
  const i64 given = scheduler.give_up_memory(missing);
  log_warning("{:.1f} MiB of the memory for experts make room", static_cast<f64>(given) / kMiB);
}

Status EngineDevices::restore(size_t device, Weights& weights, Scheduler& scheduler, const std::atomic<bool>* interrupt) {
  const i64 bytes = weights.bytes_of(static_cast<i32>(device));
  if (bytes == 0) return {};
  const std::string size = fmt::format("{:.1f} MiB", static_cast<f64>(bytes) / kMiB);
  log_warning("{} is lost: {} of weights that only it had are read into RAM", id(device), size);
  make_room(device, bytes, scheduler);
  const std::string none_left = fmt::format("the machine has no {} left; a smaller --ram leaves more", size);
  try {
    Buffer memory(bytes, "them");
    if (!fault_in_if_available(memory.data(), memory.bytes())) return Status::failure(none_left);
    return weights.restore(static_cast<i32>(device), std::move(memory), [&](i64) { return interrupt == nullptr || !interrupt->load(); });
  } catch (const Error& e) {
    return Status::failure(e.what());
  } catch (const std::bad_alloc&) {  // what reading them takes beside their place
    return Status::failure(none_left);
  }
}

i64 EngineDevices::host_bytes() const {
  i64 bytes = 0;
  for (const DeviceLayers& d : lanes_)
    bytes += d.lane->host_bytes() + (d.attention ? d.attention->host_bytes() : 0) + (d.head ? d.head->host_bytes() : 0);
  return bytes;
}

}  // namespace stoker

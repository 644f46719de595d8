#include "scheduler/sim/simulator.h"

#include <cmath>

#include "kernels/base/error.h"
#include "scheduler/sim/bounds.h"
#include "scheduler/tiers/slab.h"

namespace stoker {

namespace {

constexpr i64 kGpuWorkspace = 2 * kGiB;  // per GPU: its context and buffers

// Address space alone: nothing is ever written into the slots.
SlabOptions without_memory() {
  SlabOptions options;
  options.fault_in = [](std::byte*, i64) { return true; };
  options.background = false;
  return options;
}

SimDiskLimits disk_limits(const SimMachine& machine, const Plan& plan) {
  return {.gb_per_second = machine.ssd_gb_per_second,
          .latency_ns = std::llround(machine.ssd_latency_us * 1e3),
          .depth = plan.ring_depth,
          .capacity = 4 * plan.ring_depth,
          .max_piece_bytes = plan.piece_bytes,
          .alignment = plan.alignment};
}

std::vector<SimCopier::Link> links_of(const SimMachine& machine, const Plan& plan) {
  std::vector<SimCopier::Link> links;
  for (size_t d = 0; d < plan.devices.size(); d++)
    links.push_back({machine.gpus[d].link_gb_per_second, plan.device_arena_bytes(d)});
  return links;
}

void must_succeed(const Status& status) {
  if (!status.ok()) fail("the simulated drive has failed: {}", status.message());
}

}  // namespace

SimTotals operator-(const SimTotals& a, const SimTotals& b) {
  return {.tokens = a.tokens - b.tokens,
          .total_ns = a.total_ns - b.total_ns,
          .resident_ns = a.resident_ns - b.resident_ns,
          .expert_ns = a.expert_ns - b.expert_ns,
          .wait_ns = a.wait_ns - b.wait_ns,
          .gpu_wait_ns = a.gpu_wait_ns - b.gpu_wait_ns,
          .rest_ns = a.rest_ns - b.rest_ns,
          .look_ns = a.look_ns - b.look_ns,
          .expert_bytes = a.expert_bytes - b.expert_bytes,
          .device_bytes = a.device_bytes - b.device_bytes,
          .stats = a.stats - b.stats};
}

bool fits_vram(const SimMachine& machine, const SimResident& resident) {
  i64 workspace = static_cast<i64>(machine.gpus.size()) * kGpuWorkspace;
  return !machine.gpus.empty() && resident.total_bytes() + workspace <= machine.vram_bytes();
}

std::vector<i64> expert_vram(const SimMachine& machine, const SimResident& resident) {
  f64 all = 0, taken = fits_vram(machine, resident) ? static_cast<f64>(resident.total_bytes()) : 0;
  std::vector<i64> bytes;
  for (const SimGpu& gpu : machine.gpus) {
    bytes.push_back(std::max<i64>(0, gpu.vram_bytes - kGpuWorkspace));
    all += static_cast<f64>(bytes.back());
  }
  for (i64& b : bytes) b = all > 0 ? static_cast<i64>(static_cast<f64>(b) * (1 - taken / all)) : 0;
  return bytes;
}

Simulator::Simulator(const SimMachine& machine, const ExpertTable& table, const Plan& plan, const SimResident& resident,
                     std::unique_ptr<ResidencyPolicy> policy)
    : machine_(machine),
      table_(table),
      resident_(resident),
      on_gpu_(fits_vram(machine, resident)),
      disk_(clock_, table.file_bytes(), disk_limits(machine, plan)),
      copier_(clock_, links_of(machine, plan)),
      dram_(clock_, disk_, copier_, machine.dram_gb_per_second, machine.ssd_gb_per_second),
      scheduler_(table, plan, std::move(policy), disk_, clock_, without_memory(), &copier_),
      gpu_busy_until_(machine.gpus.size()),
      gpu_expert_ns_(machine.gpus.size()) {}

// The gates' time passes, and their rankings are emulated.
class Simulator::Gates final : public GateRankings {
 public:
  Gates(Simulator& simulator, EmulatedLookahead& rankings) : simulator_(simulator), rankings_(rankings) {}

  void set_token(i64 token) { token_ = token; }
  void begin(LayerId target, i64 distance, i64) override {
    layer_ = simulator_.table_.moe_index(target);
    distance_ = distance;
    simulator_.read_resident(simulator_.resident_.gate_copy_bytes, simulator_.totals_.look_ns);
  }
  std::span<const RankedExpert> rank(i64, i64) override { return rankings_.ranking(token_, layer_, distance_); }

 private:
  Simulator& simulator_;
  EmulatedLookahead& rankings_;
  i64 token_ = 0, layer_ = 0, distance_ = 0;
};

Simulator::~Simulator() = default;

void Simulator::look_ahead(const Forecaster::Options& options, EmulatedLookahead& gates, const GovernorOptions& prefetch) {
  forecaster_.emplace(scheduler_, options);
  gates_ = std::make_unique<Gates>(*this, gates);
  scheduler_.set_prefetch(prefetch);
}

void Simulator::preload() {
  must_succeed(scheduler_.preload(nullptr, nullptr));
  before_ = scheduler_.stats();
}

void Simulator::run_token(const RoutingRecord& record, i64 token) {
  i64 begin = clock_.now_ns();
  if (gates_) gates_->set_token(token);
  for (i64 l = 0; l < resident_.dense_layers; l++) {
    scheduler_.tend();
    attend(resident_.dense_layer_bytes);
    if (forecaster_) forecaster_->look(LayerId(l), 1, *gates_);
    pass_overhead(false);
  }
  for (i64 l = 0; l < table_.moe_layers(); l++) run_moe_layer(l, record.layer(token, l));
  read_resident(resident_.head_bytes, totals_.resident_ns);
  totals_.tokens++;
  totals_.total_ns += clock_.now_ns() - begin;
  for (i64 d = 0; d < copier_.devices(); d++) scheduler_.finish_epoch(d, scheduler_.epoch());
  scheduler_.end_pass(1, clock_.now_ns() - begin, true);
  totals_.stats = scheduler_.stats() - before_;
}

void Simulator::run_moe_layer(i64 moe_layer, std::span<const RoutedExpert> routes) {
  scheduler_.tend();
  attend(resident_.moe_layer_bytes);
  requests_.clear();
  for (const RoutedExpert& route : routes) requests_.push_back({route.expert, 1, route.gate_weight});
  Scheduler::Lease lease =
      scheduler_.acquire(table_.layers()[static_cast<size_t>(moe_layer)].layer, requests_);
  start_gpus(moe_layer, lease.on_devices());
  if (!on_gpu_) read_resident(resident_.shared_bytes, totals_.resident_ns);
  if (forecaster_) look(moe_layer, routes);
  while (lease.pending() > 0) {
    ready_.clear();
    i64 begin = clock_.now_ns();
    must_succeed(lease.wait(ready_));
    i64 waited_ns = clock_.now_ns() - begin;
    totals_.wait_ns += waited_ns;
    if (waited_ns > 0) rest(machine_.wake_us * 1e3);
    compute(moe_layer);
    for (const ReadyExpert& expert : ready_) lease.release(expert);
  }
  join_gpus();
  pass_overhead(on_gpu_ || !lease.on_devices().empty());
}

// Layers are at home on the GPUs by turns.
size_t Simulator::home(i64 layer) const { return static_cast<size_t>(layer) % machine_.gpus.size(); }

// Each does its experts one after the other, and the layer's home the shared one before.
void Simulator::start_gpus(i64 moe_layer, std::span<const DeviceExpert> experts) {
  for (i64& until : gpu_busy_until_) until = clock_.now_ns();
  if (on_gpu_) {
    size_t gpu = home(moe_layer);
    gpu_busy_until_[gpu] += std::llround(static_cast<f64>(resident_.shared_bytes) / machine_.gpus[gpu].gb_per_second);
  }
  i64 bytes = table_.expert_bytes(table_.layers()[static_cast<size_t>(moe_layer)].layer);
  for (const DeviceExpert& expert : experts) {
    size_t gpu = static_cast<size_t>(expert.device);
    i64 ns = std::llround(static_cast<f64>(bytes) / machine_.gpus[gpu].expert_gb_per_second);
    gpu_busy_until_[gpu] += ns;
    gpu_expert_ns_[gpu] += ns;
    totals_.expert_bytes += bytes;
    totals_.device_bytes += bytes;
  }
}

void Simulator::join_gpus() {
  i64 begin = clock_.now_ns();
  for (i64 until : gpu_busy_until_) clock_.advance_to(until);
  totals_.gpu_wait_ns += clock_.now_ns() - begin;
}

Simulator::Gpu Simulator::gpu(i64 index) const {
  return {.experts = scheduler_.experts_on_device(index),
          .expert_ns = gpu_expert_ns_[static_cast<size_t>(index)],
          .upload_ns = copier_.busy_ns(index, CopyDirection::upload),
          .download_ns = copier_.busy_ns(index, CopyDirection::download)};
}

void Simulator::look(i64 moe_layer, std::span<const RoutedExpert> routes) {
  ids_.clear();
  weights_.clear();
  for (const RoutedExpert& route : routes) {
    ids_.push_back(route.expert.value);
    weights_.push_back(route.gate_weight);
  }
  LayerId layer = table_.layers()[static_cast<size_t>(moe_layer)].layer;
  forecaster_->observe(layer, ids_, weights_, 1);
  forecaster_->look(layer, 1, *gates_);
}

void Simulator::compute(i64 moe_layer) {
  i64 begin = clock_.now_ns();
  for (size_t i = 0; i < ready_.size(); i++) {
    for (const Extent& matrix : table_.layers()[static_cast<size_t>(moe_layer)].base) {
      dram_.read(matrix.bytes, kernel(matrix.type));
      totals_.expert_bytes += matrix.bytes;
    }
  }
  totals_.expert_ns += clock_.now_ns() - begin;
}

// A layer's weights are on one GPU: others wait.
void Simulator::read_resident(i64 bytes, i64& spent_ns) {
  i64 begin = clock_.now_ns();
  if (on_gpu_)
    clock_.advance(std::llround(static_cast<f64>(bytes) / machine_.gpus[0].gb_per_second));
  else
    dram_.read(bytes, kernel(resident_.type));
  spent_ns += clock_.now_ns() - begin;
}

// What a layer begins with. The cores multiply while they go through the KV cache, so its bytes are no work of their own.
void Simulator::attend(i64 layer_bytes) {
  bool multiplies = !on_gpu_ && machine_.attention_gflops > 0;
  if (multiplies) {
    i64 ns = attention_ns(machine_, resident_);
    clock_.advance(ns);
    totals_.resident_ns += ns;
  }
  read_resident(layer_bytes - (multiplies ? resident_.kv_layer_bytes() : 0), totals_.resident_ns);
}

void Simulator::pass_overhead(bool crosses_link) {
  f64 ns = machine_.layer_overhead_us * 1e3;
  if (crosses_link) ns += static_cast<f64>(resident_.hidden_bytes) / machine_.gpus[0].link_gb_per_second;
  rest(ns);
}

void Simulator::rest(f64 ns) {
  clock_.advance(std::llround(ns));
  totals_.rest_ns += std::llround(ns);
}

}  // namespace stoker

#include "scheduler/sim/simulator.h"

#include <cmath>

#include "kernels/base/error.h"
#include "scheduler/sim/bounds.h"
#include "scheduler/tiers/slab.h"

namespace stoker {

namespace {

constexpr i64 kGpuWorkspace = 2 * kGiB;  // per GPU: its context and buffers
// That a GPU multiplies while it reads weights once. Estimated: 40 TFLOP/s and two bytes of Q8_0, or five of IQ2_XXS, per ns.
constexpr i64 kGpuTokens = 16;
constexpr i64 kUnlimitedNs = 1'000'000'000;  // of a link, per token

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

f64 on_gpu_ns(i64 bytes, f64 gb_per_second, i64 tokens) {
  return static_cast<f64>(bytes * div_up(tokens, kGpuTokens)) / gb_per_second;
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

std::vector<i64> usable_vram(const SimMachine& machine) {
  std::vector<i64> bytes;
  for (const SimGpu& gpu : machine.gpus) bytes.push_back(std::max<i64>(0, gpu.vram_bytes - kGpuWorkspace));
  return bytes;
}

Simulator::Simulator(const SimMachine& machine, const ExpertTable& table, const Plan& plan, const SimResident& resident,
                     const Homes& homes, std::unique_ptr<ResidencyPolicy> policy)
    : machine_(machine),
      table_(table),
      resident_(resident),
      homes_(homes),
      disk_(clock_, table.file_bytes(), disk_limits(machine, plan)),
      copier_(clock_, links_of(machine, plan)),
      dram_(clock_, disk_, copier_, machine.dram_gb_per_second, machine.ssd_gb_per_second),
      scheduler_(table, plan, std::move(policy), disk_, clock_, without_memory(), &copier_),
      gpu_busy_until_(machine.gpus.size()),
      gpu_expert_ns_(machine.gpus.size()),
      by_expert_(static_cast<size_t>(table.experts_per_layer())) {}

// The gates' time passes, and their rankings are emulated.
class Simulator::Gates final : public GateRankings {
 public:
  Gates(Simulator& simulator, EmulatedLookahead& rankings) : simulator_(simulator), rankings_(rankings) {}

  void set_token(i64 token) { token_ = token; }
  void begin(LayerId target, i64 distance, i64) override {
    layer_ = simulator_.table_.moe_index(target);
    distance_ = distance;
    simulator_.read_on_cores(simulator_.resident_.gate_copy_bytes, simulator_.totals_.look_ns);
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

void Simulator::foresee(Future& future) {
  future_ = &future;
  scheduler_.set_prefetch({.mode = PrefetchMode::on, .threshold = 1, .farthest = table_.moe_layers()});
  scheduler_.set_placement({.factor = 1, .margin = future.move(), .piece_margin = future.move(), .dwell_tokens = 0,
                            .allowance_ns = kUnlimitedNs, .all_of_ram = true});
}

void Simulator::preload() {
  must_succeed(scheduler_.preload(nullptr, nullptr));
  before_ = scheduler_.stats();
}

void Simulator::run_token(const RoutingRecord& record, i64 token) {
  if (gates_) gates_->set_token(gate_token_++);
  run_pass(record, token, 1);
}

void Simulator::run_piece(const RoutingRecord& record, i64 first, i64 tokens) { run_pass(record, first, tokens); }

void Simulator::run_pass(const RoutingRecord& record, i64 first, i64 tokens) {
  i64 begin = clock_.now_ns();
  rows_ = tokens;
  const bool piece = !Forecaster::handles(tokens);
  if (future_ && tokens == 1 && revealed_ != first)
    for (i64 l = 0; l < table_.moe_layers(); l++) reveal(record, first, l);
  if (piece) scheduler_.begin_piece(tokens);
  for (i64 l = 0; l < resident_.dense_layers; l++) {
    scheduler_.tend();
    attend(l);
    cross_link(home(l).device);
    if (forecaster_ && rows_ == 1) forecaster_->look_before_ffn(LayerId(l), 1, *gates_);
    read_resident(home(l).device, resident_.dense_ffn_bytes);
    if (forecaster_ && rows_ == 1) forecaster_->look(LayerId(l), 1, *gates_);
    rest(machine_.layer_overhead_us * 1e3);
  }
  for (i64 l = 0; l < table_.moe_layers(); l++) {
    run_moe_layer(record, first, l);
    if (!piece) continue;
    finish_epoch();
    scheduler_.end_piece_layer(table_.layers()[static_cast<size_t>(l)].layer, tokens);
  }
  scheduler_.end_piece();
  rows_ = 1;  // that wants logits
  output_head();
  totals_.tokens += tokens;
  totals_.total_ns += clock_.now_ns() - begin;
  finish_epoch();
  scheduler_.end_pass(tokens, clock_.now_ns() - begin, tokens == 1);
  totals_.stats = scheduler_.stats() - before_;
}

// All GPUs have been waited for.
void Simulator::finish_epoch() {
  for (i64 d = 0; d < copier_.devices(); d++) scheduler_.finish_epoch(d, scheduler_.epoch());
}

// Each expert that some token wants, once.
void Simulator::count_requests(const RoutingRecord& record, i64 first, i64 moe_layer) {
  for (size_t e = 0; e < by_expert_.size(); e++) by_expert_[e] = {ExpertId(static_cast<i32>(e)), 0, 0};
  for (i64 token = first; token < first + rows_; token++) {
    for (const RoutedExpert& route : record.layer(token, moe_layer)) {
      ExpertRequest& request = by_expert_[static_cast<size_t>(route.expert.value)];
      request.tokens++;
      request.gate_weight += route.gate_weight;
    }
  }
  requests_.clear();
  for (const ExpertRequest& request : by_expert_)
    if (request.tokens > 0) requests_.push_back(request);
}

void Simulator::run_moe_layer(const RoutingRecord& record, i64 first, i64 moe_layer) {
  scheduler_.tend();
  const i64 layer = resident_.dense_layers + moe_layer;
  attend(layer);
  read_resident(home(layer).device, resident_.router_bytes);
  count_requests(record, first, moe_layer);
  if (future_) future_->pass(moe_layer, first, rows_);
  Scheduler::Lease lease =
      scheduler_.acquire(table_.layers()[static_cast<size_t>(moe_layer)].layer, requests_);
  start_gpus(moe_layer, lease.on_devices());
  if (home(layer).device < 0) read_on_cores(resident_.shared_bytes, totals_.resident_ns);
  if (forecaster_ && rows_ == 1) look(moe_layer, record.layer(first, moe_layer));
  if (future_ && rows_ == 1) reveal(record, first + 1, moe_layer);
  while (lease.pending() > 0) {
    ready_.clear();
    i64 begin = clock_.now_ns();
    must_succeed(lease.wait(ready_));
    i64 waited_ns = clock_.now_ns() - begin;
    totals_.wait_ns += waited_ns;
    if (waited_ns > 0) rest(machine_.wake_us * 1e3);
    for (const ReadyExpert& expert : ready_) {
      compute(moe_layer, requests_[static_cast<size_t>(expert.request)].tokens);
      lease.release(expert);
    }
  }
  join_gpus();
  rest(machine_.layer_overhead_us * 1e3);
  cross_link(home(layer).device >= 0 ? home(layer).device : lease.on_devices().empty() ? -1 : lease.on_devices().front().device);
}

// What the layer will want next.
void Simulator::reveal(const RoutingRecord& record, i64 token, i64 moe_layer) {
  if (token == record.tokens()) return;
  revealed_ = token;
  hint_.clear();
  for (const RoutedExpert& route : record.layer(token, moe_layer)) hint_.push_back({route.expert, 1});
  scheduler_.hint(table_.layers()[static_cast<size_t>(moe_layer)].layer, hint_);
}

// Each does its experts one after the other, and the layer's home the shared one before.
void Simulator::start_gpus(i64 moe_layer, std::span<const DeviceExpert> experts) {
  for (i64& until : gpu_busy_until_) until = clock_.now_ns();
  if (i32 device = home(resident_.dense_layers + moe_layer).device; device >= 0) {
    size_t gpu = static_cast<size_t>(device);
    gpu_busy_until_[gpu] += std::llround(on_gpu_ns(resident_.shared_bytes, machine_.gpus[gpu].gb_per_second, rows_));
  }
  i64 bytes = table_.expert_bytes(table_.layers()[static_cast<size_t>(moe_layer)].layer);
  for (const DeviceExpert& expert : experts) {
    size_t gpu = static_cast<size_t>(expert.device);
    i64 tokens = requests_[static_cast<size_t>(expert.request)].tokens;
    i64 ns = std::llround(on_gpu_ns(bytes, machine_.gpus[gpu].expert_gb_per_second, tokens));
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

// One expert.
void Simulator::compute(i64 moe_layer, i64 tokens) {
  i64 begin = clock_.now_ns();
  for (const Extent& matrix : table_.layers()[static_cast<size_t>(moe_layer)].base) {
    multiply(matrix.bytes, kernel(matrix.type), tokens);
    totals_.expert_bytes += matrix.bytes;
  }
  totals_.expert_ns += clock_.now_ns() - begin;
}

void Simulator::read_on_cores(i64 bytes, i64& spent_ns) {
  i64 begin = clock_.now_ns();
  multiply(bytes, kernel(resident_.type), rows_);
  spent_ns += clock_.now_ns() - begin;
}

void Simulator::multiply(i64 bytes, const SimKernel& with, i64 tokens) {
  i64 begin = clock_.now_ns();
  dram_.read(bytes, with);
  if (tokens > 1) clock_.advance_to(begin + std::llround(static_cast<f64>(bytes * tokens) / with.most));
}

// A layer's weights are on one GPU: others wait.
void Simulator::read_resident(i32 device, i64 bytes) {
  if (device < 0) return read_on_cores(bytes, totals_.resident_ns);
  i64 ns = std::llround(on_gpu_ns(bytes, machine_.gpus[static_cast<size_t>(device)].gb_per_second, rows_));
  clock_.advance(ns);
  totals_.resident_ns += ns;
}

// What a layer begins with. The cores multiply while they go through the KV cache, so its bytes are no work of their own.
void Simulator::attend(i64 layer) {
  if (home(layer).attention) {
    cross_link(home(layer).device);
    read_resident(home(layer).device, resident_.attention_bytes);
    const SimGpu& gpu = machine_.gpus[static_cast<size_t>(home(layer).device)];
    i64 times = gpu.attention_tflops > 0 ? rows_ : div_up(rows_, kGpuTokens);  // multiplications, or reads, of one row
    i64 ns = std::llround(attention_ns(machine_, resident_, gpu) * static_cast<f64>(times));
    clock_.advance(ns);
    totals_.resident_ns += ns;
    return;
  }
  bool multiplies = machine_.attention_gflops > 0;
  if (multiplies) {
    i64 ns = rows_ * attention_ns(machine_, resident_);
    clock_.advance(ns);
    totals_.resident_ns += ns;
  }
  read_on_cores(resident_.attention_bytes + (multiplies ? 0 : resident_.kv_layer_bytes()), totals_.resident_ns);
}

// The GPUs' parts at the same time.
void Simulator::output_head() {
  i64 on_cores = resident_.head_rows;
  for (i64 rows : homes_.head_rows) on_cores -= rows;
  read_on_cores(on_cores * resident_.head_row_bytes, totals_.resident_ns);
  i64 ns = std::llround(head_ns(machine_, resident_, homes_));
  clock_.advance(ns);
  totals_.resident_ns += ns;
}

// There and back, if there is a GPU.
void Simulator::cross_link(i32 device) {
  if (device >= 0) rest(static_cast<f64>(rows_ * resident_.hidden_bytes) / machine_.gpus[static_cast<size_t>(device)].link_gb_per_second);
}

void Simulator::rest(f64 ns) {
  clock_.advance(std::llround(ns));
  totals_.rest_ns += std::llround(ns);
}

}  // namespace stoker

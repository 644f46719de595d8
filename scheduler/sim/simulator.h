// Simulator: decodes tokens on a virtual machine. Scheduler, policy and streamer are the real ones; clock, drive, links,
// memory and arithmetic are speeds. One token at a time, or a piece of a prompt, the way runtime/forward.cc goes through the
// layers: attention on the layer's home or the cores, the router where the layer is at home or on the cores; then GPUs get their
// experts and, where the layer is at home, the shared one; the cores compute the others meanwhile; then they meet.
//
// Many tokens take as long as reading the weights once or as multiplying, whichever is longer. The cores multiply as fast as
// with one token and weights in their caches, GPUs sixteen tokens while they read: real products of many tokens are faster
// on the cores, so a prompt here is slower than it would be. Each row's attention is that of the context's last position.
#pragma once

#include <memory>
#include <optional>
#include <vector>

#include "scheduler/forecaster.h"
#include "scheduler/policy/residency_policy.h"
#include "scheduler/scheduler.h"
#include "scheduler/sim/future.h"
#include "scheduler/sim/routing_source.h"
#include "scheduler/sim/sim_copier.h"
#include "scheduler/sim/sim_disk.h"
#include "scheduler/sim/sim_dram.h"
#include "scheduler/sim/sim_machine.h"
#include "scheduler/sim/sim_model.h"

namespace stoker {

// Everything since the beginning; the difference of two is a phase.
struct SimTotals {
  i64 tokens = 0;
  i64 total_ns = 0;
  i64 resident_ns = 0;  // attention, router, shared and dense FFN, head
  i64 expert_ns = 0;    // computing routed experts
  i64 wait_ns = 0;      // nothing to compute: an expert is still being read
  i64 gpu_wait_ns = 0;  // nothing to compute: a GPU is still at it
  i64 rest_ns = 0;      // overhead per layer, waking, links
  i64 look_ns = 0;      // gates of coming layers
  i64 expert_bytes = 0; // of routed experts computed with, wherever
  i64 device_bytes = 0; // of these, on GPUs
  SchedulerStats stats;
};
SimTotals operator-(const SimTotals& a, const SimTotals& b);

class Simulator {
 public:
  // `table` must outlive it. `homes` are of the machine's GPUs, the plan's devices in the same order; none need have a plan.
  Simulator(const SimMachine& machine, const ExpertTable& table, const Plan& plan, const SimResident& resident, const Homes& homes,
            std::unique_ptr<ResidencyPolicy> policy);
  ~Simulator();

  // From now on coming layers' experts are guessed, as the engine does. `gates`, recorded with the routing, must outlive
  // this.
  void look_ahead(const Forecaster::Options& options, EmulatedLookahead& gates, const GovernorOptions& prefetch);
  // From now on the next token's experts are known for nothing, and read in the order in which they are wanted; exchanges go
  // by worth alone. `future` is of the record that will be run, and must outlive this. Before anything is run.
  void foresee(Future& future);
  // Reads all experts that have a free slot, as the engine does for models that fit. Its time is not counted.
  void preload();
  // Slots that are empty are filled from now on, as the engine does for models that do not fit.
  void fill_empty_slots() { scheduler_.fill_empty_slots(); }
  // The token's routes, one after the other in `record`.
  void run_token(const RoutingRecord& record, i64 token);
  // A piece of a prompt: so many tokens of the record, in one pass.
  void run_piece(const RoutingRecord& record, i64 first, i64 tokens);
  const SimTotals& totals() const { return totals_; }
  const Governor& governor() const { return scheduler_.governor(); }
  const Predictor* predictor() const { return forecaster_ ? &forecaster_->predictor() : nullptr; }
  struct Gpu {
    i64 experts = 0;                // in its memory now
    i64 expert_ns = 0;              // computing them, since the beginning
    i64 upload_ns = 0, download_ns = 0;  // copying, likewise
  };
  Gpu gpu(i64 index) const;

 private:
  class Gates;
  void run_pass(const RoutingRecord& record, i64 first, i64 tokens);
  void finish_epoch();
  void run_moe_layer(const RoutingRecord& record, i64 first, i64 moe_layer);
  void count_requests(const RoutingRecord& record, i64 first, i64 moe_layer);
  void reveal(const RoutingRecord& record, i64 token, i64 moe_layer);
  void look(i64 moe_layer, std::span<const RoutedExpert> routes);
  const LayerHome& home(i64 layer) const { return homes_.layers[static_cast<size_t>(layer)]; }
  void start_gpus(i64 moe_layer, std::span<const DeviceExpert> experts);
  void join_gpus();
  void read_on_cores(i64 bytes, i64& spent_ns);
  void read_resident(i32 device, i64 bytes);
  void attend(i64 layer);
  void output_head();
  void cross_link(i32 device);
  void rest(f64 ns);
  SimKernel kernel(BlockType type) const { return {machine_.kernel_speed(type), machine_.streamed_speed(type)}; }
  void compute(i64 moe_layer, i64 tokens);
  void multiply(i64 bytes, const SimKernel& with, i64 tokens);

  SimMachine machine_;
  const ExpertTable& table_;
  SimResident resident_;
  Homes homes_;
  VirtualClock clock_;
  SimDisk disk_;
  SimCopier copier_;
  SimDram dram_;
  Scheduler scheduler_;
  std::optional<Forecaster> forecaster_;
  std::unique_ptr<Gates> gates_;
  Future* future_ = nullptr;       // or none
  i64 revealed_ = -1;              // the last token that was
  SimTotals totals_;
  SchedulerStats before_;  // the preload's
  std::vector<i64> gpu_busy_until_;  // [GPUs]
  std::vector<i64> gpu_expert_ns_;   // [GPUs]
  i64 rows_ = 1;        // of the pass
  i64 gate_token_ = 0;  // tokens that gates have been asked about
  std::vector<ExpertRequest> requests_;
  std::vector<ExpertRequest> by_expert_;  // [experts] scratch
  std::vector<ReadyExpert> ready_;
  std::vector<ExpertExpectation> hint_;
  std::vector<i32> ids_;       // [top_k] of the layer
  std::vector<f32> weights_;   // [top_k]
};

// What each GPU has beside a workspace.
std::vector<i64> usable_vram(const SimMachine& machine);

}  // namespace stoker

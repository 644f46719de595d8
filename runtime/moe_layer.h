// MoeLayer: router, routed experts, shared experts, and their sum. The same code for one token and for a prompt chunk:
// every expert that some token wants is leased once and applied to all its tokens ("expert-major"). Experts that are
// in memory are computed while the others are read; each writes its own rows, and rows are added in rank order at the
// end, so that the order in which reads land never shows in the result.
// Owner: the engine thread.
#pragma once

#include <algorithm>

#include "kernels/base/stats.h"
#include "runtime/activation_rows.h"
#include "runtime/device_layers.h"
#include "runtime/hparams.h"
#include "runtime/lookahead.h"
#include "runtime/pass_breaks.h"
#include "runtime/router.h"
#include "runtime/weights.h"
#include "scheduler/scheduler.h"

namespace stoker {

class MoeLayer {
 public:
  struct Limits {
    i64 rows = 0;
    bool exact = false;
  };
  static i64 bytes_needed(const Hparams& hparams, const Limits& limits);
  // `lanes`: of the plan's devices, in order; they compute the experts that the scheduler has there, and what every row
  // passes of the layers whose home they are.
  MoeLayer(const Ops& ops, const Hparams& hparams, const Limits& limits, Scheduler& scheduler, Router& router,
           Lookahead* lookahead = nullptr, std::span<DeviceLayers> lanes = {});

  // x [rows, hidden] += ffn(norm(x)), for a layer with experts or a dense one. `normed` is [rows, hidden] of scratch.
  // Failure: an expert could not be read, a device is lost, which the scheduler then knows, or it was interrupted; x is
  // undefined.
  Status run(Stream& stream, LayerId layer, const LayerWeights& w, i64 rows, f32* x, f32* normed, StageTimer& timer,
             PassBreaks& breaks);

  // Who attends to rows in a layer's home writes here what the gate there has chosen, before run().
  ExpertChoice& choice() { return choice_; }
  // Whether the home, which has attended, computes the layer's FFN already.
  bool begun() const;

 private:
  // Which rows want an expert, in row order.
  struct Demand {
    ExpertId expert;
    i64 first = 0;  // into the grouped row lists
    i64 tokens = 0;
  };

  // The pass that is under way.
  struct Pass {
    Stream& stream;
    LayerId layer;
    const LayerWeights& w;
    i64 rows;
    StageTimer& timer;
    PassBreaks& breaks;
  };

  // What predictions of the next layers begin with.
  struct Ahead {
    const f32* x;        // [rows, hidden], the residual stream
    const f32* shared;   // [rows, hidden], or none
    DeviceLane* home;    // computes the latter; none: the CPU has
    bool looked;
  };

  Status dense(const Pass& pass, const f32* x);
  Status routed(const Pass& pass, const f32* x, bool shared, DeviceLane* home);
  Status compute_as_they_land(const Pass& pass, Scheduler::Lease& lease, Ahead& ahead);
  size_t end_of_part(const Pass& pass, size_t begin) const;
  DeviceLane* post_to_home(LayerId layer, i64 rows);
  void take_choice(StageTimer& timer);
  void post_to_devices(LayerId layer, i64 rows, std::span<const DeviceExpert> experts);
  Status finish_devices();
  void resident_ffn(Stream& stream, const LayerWeights& w, i64 rows, f32* out);
  void group_by_expert(i64 rows);
  void note_tiers(LayerId layer, i64 rows);
  void look_ahead(const Pass& pass, Ahead& ahead);
  size_t compute_some(const Pass& pass, std::span<const ReadyExpert> ready);
  // Of rows that want an expert, in one region: what the scratch holds.
  i64 region_tokens() const { return std::max(limits_.rows, h_.top_k); }
  ExpertWork work_for(LayerId layer, const ReadyExpert& ready) const;
  void gated_ffn(Stream& stream, std::span<const ExpertWork> work, i64 ffn, f32* out);

  const Ops& ops_;
  const Hparams& h_;
  Limits limits_;
  Scheduler& scheduler_;
  Router& router_;
  Lookahead* lookahead_;  // or none
  ActivationRows inputs_;
  const f32* input_ = nullptr;  // [rows, hidden], the normed rows of this layer

  Buffer expert_rows_;  // [rows * top_k, hidden]
  Buffer shared_rows_;  // [rows, hidden]
  Buffer scratch_;
  ExpertChoice choice_;
  std::vector<ExpertTier> tiers_;                // [rows, top_k] where they were; only when the router asks
  std::vector<i64> first_of_expert_;             // [experts + 1]
  std::vector<i32> grouped_rows_, grouped_out_;  // [rows * top_k], by expert
  std::vector<i32> all_rows_;                    // 0 .. rows - 1
  std::vector<Demand> demands_;
  std::vector<ExpertRequest> requests_;          // of demands_, in their order
  size_t part_begin_ = 0;                        // the lease's first request
  std::vector<ReadyExpert> ready_;
  std::vector<ExpertWork> work_;
  std::span<DeviceLayers> lanes_;
  std::vector<DeviceWork> device_work_;
};

}  // namespace stoker

// Forward: one pass of a batch of rows through the whole model. Owner: the engine thread.
#pragma once

#include <algorithm>
#include <atomic>
#include <functional>
#include <span>
#include <vector>

#include "kernels/base/error.h"
#include "kernels/base/ids.h"
#include "kernels/base/stats.h"
#include "runtime/attention_layer.h"
#include "runtime/batch_row.h"
#include "runtime/moe_layer.h"
#include "runtime/router.h"
#include "runtime/weights.h"

namespace stoker {

class Forward {
 public:
  struct Limits {
    i64 rows = 0;
    i64 sequences = 1;
    i64 context = 0;
    bool exact = false;
  };
  // Of a batch of `rows`, most that are generated.
  static i64 generated_rows(i64 rows, i64 sequences) { return std::min(rows, sequences * BatchRow::kGeneratedRows); }

  // What it allocates for rows, with so many workers.
  static i64 bytes_needed(const Ops& ops, const Hparams& hparams, const Limits& limits, int workers);

  // Everything passed must outlive it. All scratch is allocated here; run() allocates nothing.
  Forward(const Ops& ops, Stream& stream, const Hparams& hparams, const Weights& weights, Scheduler& scheduler,
          Router& router, const Limits& limits, Lookahead* lookahead = nullptr, std::span<DeviceLayers> devices = {});

  // See Engine::forward and PassBreaks. `caches` [sequences].
  Status run(std::span<const BatchRow> rows, std::span<KvCache* const> caches, std::span<f32> logits,
             StageTimer& timer, const std::atomic<bool>* interrupt, const std::function<void()>& between = {});

  i64 scratch_bytes() const;

 private:
  Status attend(LayerId layer, i64 rows, StageTimer& timer, PassBreaks& breaks);
  void split_into_runs(std::span<const BatchRow> rows, std::span<KvCache* const> caches);
  void embed(std::span<const BatchRow> rows);
  void finish_epoch();
  Status output_head(std::span<const BatchRow> rows, std::span<f32> logits, StageTimer& timer);
  Status finish_heads(f32* logits);
  bool rest_of_head(f32* logits);

  const Ops& ops_;
  Stream& stream_;
  const Hparams& h_;
  const Weights& weights_;
  Router& router_;
  Scheduler& scheduler_;
  std::span<DeviceLayers> devices_;
  Limits limits_;
  Buffer x_, normed_;  // [rows, hidden]
  Buffer attention_memory_;
  ActivationRows head_inputs_;
  AttentionLayer attention_;
  MoeLayer moe_;
  std::vector<SequenceRun> runs_;
  std::vector<i32> positions_;  // [rows]
};

}  // namespace stoker

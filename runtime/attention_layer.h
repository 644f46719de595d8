// AttentionLayer: multi-head latent attention of one layer over ragged rows (DeepSeek-V2, arXiv 2405.04434, section
// 2.1). Generated rows attend in latent space, where the cache is read once for all heads; rows of a prompt rebuild
// keys and values, which costs fewer multiplications per pair of positions when there are many.
// Owner: the engine thread.
#pragma once

#include <span>

#include "runtime/activation_rows.h"
#include "runtime/batch_row.h"
#include "runtime/hparams.h"
#include "runtime/kv_cache.h"
#include "runtime/pass_breaks.h"
#include "runtime/weights.h"

namespace stoker {

// Consecutive rows of the batch that are consecutive positions of one sequence and have one role.
struct SequenceRun {
  KvCache* cache = nullptr;
  i64 first_row = 0;
  i64 rows = 0;
  i64 position = 0;  // of the first row
  RowRole role = RowRole::prompt;

  bool is_prompt() const { return role == RowRole::prompt; }
};

class AttentionLayer {
 public:
  struct Limits {
    i64 rows = 0;            // most rows in a batch
    i64 generated_rows = 0;  // most of them that are generated
    i64 context = 0;         // most positions of a sequence
    int workers = 1;
    bool exact = false;
  };
  AttentionLayer(const Ops& ops, const Hparams& hparams, const Limits& limits);

  // x [rows, hidden] += attention(norm(x)). The runs' keys and values are written to their caches. `rows`, `runs` and
  // `positions` [rows] describe the same batch; `normed` is [rows, hidden] of scratch.
  struct Batch {
    std::span<const SequenceRun> runs;
    const i32* positions;
    i64 rows;
  };
  // False: it was interrupted, x and what the caches have of these rows are undefined.
  bool run(Stream& stream, LayerId layer, const LayerWeights& w, const Batch& batch, f32* x, f32* normed,
           PassBreaks& breaks);

  i64 scratch_bytes() const;

 private:
  bool project(Stream& stream, const LayerWeights& w, const Batch& batch, const f32* normed, PassBreaks& breaks);
  void rotate(Stream& stream, const Batch& batch);
  void store(Stream& stream, LayerId layer, const Batch& batch);
  bool attend_prompt(Stream& stream, LayerId layer, const LayerWeights& w, const SequenceRun& run, PassBreaks& breaks);
  PromptAttentionArgs prompt_args(LayerId layer, const LayerWeights& w, const SequenceRun& run, i64 first_head, i64 heads);
  void attend_generated(Stream& stream, LayerId layer, const LayerWeights& w, std::span<const SequenceRun> runs);
  // y(t, h) = w(h) x(t, h); x is [tokens, heads, w.cols] with head rows `x_stride` apart.
  void multiply_heads(Stream& stream, const Matrix& w, i64 head_bytes, const f32* x, i64 x_stride, i64 tokens, f32* y);

  const Ops& ops_;
  const Hparams& h_;
  Limits limits_;
  ActivationRows inputs_;
  Buffer q_a_, q_, kv_, out_;     // [rows, q_lora], [rows, heads, nope + rope], [rows, latent + rope], [rows, heads, v]
  Buffer q_latent_, context_;     // [generated rows, heads, latent]
  Buffer scratch_;
  std::vector<LatentAttentionArgs::Query> queries_;
};

}  // namespace stoker

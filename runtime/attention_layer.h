// AttentionLayer: multi-head latent attention of one layer over ragged rows (DeepSeek-V2, arXiv 2405.04434, section
// 2.1). Generated rows attend in latent space, where the cache is read once for all heads; rows of a prompt rebuild
// keys and values, which costs fewer multiplications per pair of positions when there are many.
//
// It is the same on the CPU and on a device: what it is given lies where the ops compute, and on a device has been posted
// when run() returns. Owner: the engine thread.
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
  SequenceId sequence;
  i64 first_row = 0;
  i64 rows = 0;
  i64 position = 0;  // of the first row
  RowRole role = RowRole::prompt;
  std::byte* latents = nullptr;  // of the layer at hand, row 0 of the sequence's cache

  bool is_prompt() const { return role == RowRole::prompt; }
};

// Who computes the last heads of rows that are generated, beside who computes the others (device_heads.h).
class OtherHeads {
 public:
  struct Row {
    const SequenceRun* run;  // whose cache has the row's own latent, once what was posted before has run
    i64 length;              // positions it attends to, its own included
    const f32* q;            // [heads, nope + rope] of these heads
    const f32* q_latent;     // [heads, latent]
  };
  virtual ~OtherHeads() = default;

  // How many they are for a row that attends to so many positions; 0: none.
  virtual i64 heads(i64 length) const = 0;
  // Begins with those of a row when what has been posted to `home` until now has run. One row at a time.
  virtual void post(Stream& home, const Row& row) = 0;
  // Waits, and posts to `home` that they come to `out` [heads, latent]. False: they do not, `home` is to compute them.
  virtual bool take(Stream& home, f32* out) = 0;
};

class AttentionLayer {
 public:
  struct Limits {
    i64 rows = 0;            // most rows in a batch
    i64 generated_rows = 0;  // most of them that are generated
    i64 context = 0;         // most positions of a sequence
    int workers = 1;         // that share a prompt's heads
    bool exact = false;
    i64 op_scratch_bytes = 0;  // what both forms of attention need
  };
  static i64 bytes_needed(const Ops& ops, const Hparams& hparams, const Limits& limits);
  // `memory`: bytes_needed(), at a multiple of 64; `frequencies`: the model's. Both must outlive it.
  AttentionLayer(const Ops& ops, const Hparams& hparams, const Limits& limits, std::byte* memory, const f32* frequencies);
  // From the next run() on. It must outlive this.
  void share_heads(OtherHeads* others) { others_ = others; }

  // change [rows, hidden] = attention(norm(x)), what is to be added to x [rows, hidden]. The runs' keys and values are written
  // to their caches. `rows`, `runs` and `positions` [rows] describe the same batch.
  struct Batch {
    std::span<const SequenceRun> runs;
    const i32* positions;
    i64 rows;
  };
  // False: it was interrupted, `change` and what the caches have of these rows are undefined.
  bool run(Stream& stream, const LayerWeights& w, const Batch& batch, const f32* x, f32* change, PassBreaks& breaks);

 private:
  // Everything it computes on the way: [rows, q_lora], [rows, heads, nope + rope], [rows, latent + rope],
  // [rows, heads, v], twice [generated rows, heads, latent], and the ops' own.
  struct Memory {
    f32 *q_a = nullptr, *q = nullptr, *kv = nullptr, *out = nullptr, *q_latent = nullptr, *context = nullptr;
    std::byte *inputs = nullptr, *head_inputs = nullptr, *scratch = nullptr;
    i64 bytes = 0;  // all together
  };
  static Memory carve(const Ops& ops, const Hparams& h, const Limits& limits, std::byte* memory);

  bool project(Stream& stream, const LayerWeights& w, const Batch& batch, const f32* x, f32* normed, PassBreaks& breaks);
  void rotate_and_store(Stream& stream, const LayerWeights& w, const Batch& batch);
  bool attend_prompt(Stream& stream, const LayerWeights& w, const SequenceRun& run, PassBreaks& breaks);
  PromptAttentionArgs prompt_args(const LayerWeights& w, const SequenceRun& run, i64 first_head, i64 heads);
  void attend_generated(Stream& stream, const LayerWeights& w, std::span<const SequenceRun> runs);
  bool shares_heads(std::span<const SequenceRun> runs) const;
  void attend_shared(Stream& stream, const SequenceRun& run, i64 row, const LatentAttentionArgs& all);
  // Of rows that heads multiply.
  ActivationForm head_form(const Matrix& w) const;
  // y(t, h) = w(h) x(t, h); x, the rows of head_inputs_, is [tokens, heads, w.cols].
  void multiply_heads(Stream& stream, const Matrix& w, i64 head_bytes, i64 tokens, f32* y);

  const Ops& ops_;
  const Hparams& h_;
  Limits limits_;
  const f32* frequencies_;  // [rope / 2]
  Memory memory_;
  ActivationRows inputs_, head_inputs_;
  OtherHeads* others_ = nullptr;  // or none
  // Of the run() at hand, posted ops look at them.
  std::vector<LatentAttentionArgs::Query> queries_;
  std::vector<AttentionRowsArgs::Run> kept_;
};

}  // namespace stoker

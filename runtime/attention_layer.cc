#include "runtime/attention_layer.h"

#include <algorithm>

#include "kernels/base/check.h"

namespace stoker {

namespace {

i64 f32_bytes(i64 count) { return count * i64{sizeof(f32)}; }
f32* floats(const Buffer& buffer) { return reinterpret_cast<f32*>(buffer.data()); }

i64 widest_input(const Hparams& h) {
  return std::max({h.hidden, h.q_lora, h.heads * h.v});
}

i64 attention_scratch(const Hparams& h, const AttentionLayer::Limits& limits) {
  return std::max(
      latent_attention_scratch_bytes(limits.workers, limits.generated_rows, h.heads, h.latent, h.rope, limits.context),
      prompt_attention_scratch_bytes(limits.workers, limits.rows, h.nope, h.rope, h.latent, h.v));
}

}  // namespace

AttentionLayer::AttentionLayer(const Ops& ops, const Hparams& hparams, const Limits& limits)
    : ops_(ops),
      h_(hparams),
      limits_(limits),
      inputs_(ops, limits.rows * widest_input(hparams)),
      q_a_(f32_bytes(limits.rows * hparams.q_lora), "attention queries"),
      q_(f32_bytes(limits.rows * hparams.heads * hparams.key()), "attention queries"),
      kv_(f32_bytes(limits.rows * hparams.cache_row()), "attention keys"),
      out_(f32_bytes(limits.rows * hparams.heads * hparams.v), "attention output"),
      q_latent_(f32_bytes(limits.generated_rows * hparams.heads * hparams.latent), "attention queries"),
      context_(f32_bytes(limits.generated_rows * hparams.heads * hparams.latent), "attention output"),
      scratch_(attention_scratch(hparams, limits), "attention scratch") {
  queries_.reserve(static_cast<size_t>(limits.generated_rows));
}

i64 AttentionLayer::scratch_bytes() const {
  return q_a_.bytes() + q_.bytes() + kv_.bytes() + out_.bytes() + q_latent_.bytes() + context_.bytes() +
         scratch_.bytes();
}

bool AttentionLayer::run(Stream& stream, LayerId layer, const LayerWeights& w, const Batch& batch, f32* x,
                         f32* normed, PassBreaks& breaks) {
  DCHECK(batch.rows <= limits_.rows);
  ops_.rms_norm(stream, {.x = x,
                         .weight = w.attention_norm,
                         .y = normed,
                         .rows = batch.rows,
                         .cols = h_.hidden,
                         .x_stride = h_.hidden,
                         .y_stride = h_.hidden,
                         .epsilon = h_.rms_epsilon});
  if (!project(stream, w, batch, normed, breaks)) return false;
  rotate(stream, batch);
  store(stream, layer, batch);

  for (size_t i = 0; i < batch.runs.size();) {
    if (batch.runs[i].is_prompt()) {
      if (!attend_prompt(stream, layer, w, batch.runs[i++], breaks)) return false;
      continue;
    }
    size_t end = i;
    while (end < batch.runs.size() && !batch.runs[end].is_prompt()) end++;
    attend_generated(stream, layer, w, batch.runs.subspan(i, end - i));
    i = end;
  }

  inputs_.set(floats(out_), batch.rows, h_.heads * h_.v);
  inputs_.multiply(stream, w.attention_output, limits_.exact, normed, h_.hidden);
  ops_.add(stream, x, normed, batch.rows * h_.hidden);
  return true;
}

bool AttentionLayer::project(Stream& stream, const LayerWeights& w, const Batch& batch, const f32* normed,
                             PassBreaks& breaks) {
  i64 rows = batch.rows;
  inputs_.set(normed, rows, h_.hidden);
  inputs_.multiply(stream, w.kv_a, limits_.exact, floats(kv_), h_.cache_row());
  // Only the latent part is normed: the rotated key shares its row but is used as it is.
  ops_.rms_norm(stream, {.x = floats(kv_),
                         .weight = w.kv_a_norm,
                         .y = floats(kv_),
                         .rows = rows,
                         .cols = h_.latent,
                         .x_stride = h_.cache_row(),
                         .y_stride = h_.cache_row(),
                         .epsilon = h_.rms_epsilon});
  if (h_.q_lora > 0) {
    inputs_.multiply(stream, w.q_a, limits_.exact, floats(q_a_), h_.q_lora);
    ops_.rms_norm(stream, {.x = floats(q_a_),
                           .weight = w.q_a_norm,
                           .y = floats(q_a_),
                           .rows = rows,
                           .cols = h_.q_lora,
                           .x_stride = h_.q_lora,
                           .y_stride = h_.q_lora,
                           .epsilon = h_.rms_epsilon});
    inputs_.set(floats(q_a_), rows, h_.q_lora);
    if (!breaks.pause()) return false;
  }
  inputs_.multiply(stream, w.q, limits_.exact, floats(q_), h_.heads * h_.key());
  return breaks.pause();
}

void AttentionLayer::rotate(Stream& stream, const Batch& batch) {
  RopeArgs key{.x = floats(kv_) + h_.latent,
               .rows = batch.rows,
               .heads = 1,
               .row_stride = h_.cache_row(),
               .head_stride = 0,
               .dim = h_.rope,
               .positions = batch.positions,
               .frequencies = h_.rope_frequencies.data()};
  ops_.rope(stream, key);
  RopeArgs query = key;
  query.x = floats(q_) + h_.nope;
  query.heads = h_.heads;
  query.row_stride = h_.heads * h_.key();
  query.head_stride = h_.key();
  ops_.rope(stream, query);
}

void AttentionLayer::store(Stream& stream, LayerId layer, const Batch& batch) {
  for (const SequenceRun& run : batch.runs) {
    ops_.store_latents(stream, {.x = floats(kv_) + run.first_row * h_.cache_row(),
                                .type = run.cache->type(),
                                .out = run.cache->row(layer, run.position),
                                .rows = run.rows,
                                .cols = h_.cache_row()});
  }
}

// A few heads at a time where others wait: a worker takes a head, so as many as there are workers lose nothing.
bool AttentionLayer::attend_prompt(Stream& stream, LayerId layer, const LayerWeights& w, const SequenceRun& run,
                                   PassBreaks& breaks) {
  i64 step = breaks.wanted() ? limits_.workers : h_.heads;
  for (i64 first = 0; first < h_.heads; first += step) {
    ops_.prompt_attention(stream, prompt_args(layer, w, run, first, std::min(step, h_.heads - first)));
    if (!breaks.pause()) return false;
  }
  return true;
}

PromptAttentionArgs AttentionLayer::prompt_args(LayerId layer, const LayerWeights& w, const SequenceRun& run,
                                                i64 first_head, i64 heads) {
  return {.q = floats(q_) + run.first_row * h_.heads * h_.key(),
          .cache = run.cache->row(layer, 0),
          .cache_type = run.cache->type(),
          .first = run.position,
          .tokens = run.rows,
          .k_b = w.k_b,
          .k_b_head_stride_bytes = w.k_b_head_bytes,
          .v_b = w.v_b,
          .v_b_head_stride_bytes = w.v_b_head_bytes,
          .out = floats(out_) + run.first_row * h_.heads * h_.v,
          .heads = h_.heads,
          .nope = h_.nope,
          .rope = h_.rope,
          .latent = h_.latent,
          .v = h_.v,
          .scale = h_.attention_scale,
          .first_head = first_head,
          .some_heads = heads,
          .scratch = scratch_.data(),
          .scratch_bytes = scratch_.bytes()};
}

void AttentionLayer::attend_generated(Stream& stream, LayerId layer, const LayerWeights& w,
                                   std::span<const SequenceRun> runs) {
  i64 first = runs.front().first_row;
  queries_.clear();
  for (const SequenceRun& run : runs)
    for (i64 i = 0; i < run.rows; i++) queries_.push_back({run.cache->row(layer, 0), run.position + i + 1});
  i64 tokens = static_cast<i64>(queries_.size());
  DCHECK(tokens <= limits_.generated_rows);

  const f32* q = floats(q_) + first * h_.heads * h_.key();
  multiply_heads(stream, w.k_b, w.k_b_head_bytes, q, h_.key(), tokens, floats(q_latent_));
  ops_.latent_attention(stream, {.cache_type = runs.front().cache->type(),
                                 .queries = queries_,
                                 .q_latent = floats(q_latent_),
                                 .q_rope = q + h_.nope,
                                 .q_rope_token_stride = h_.heads * h_.key(),
                                 .q_rope_head_stride = h_.key(),
                                 .out = floats(context_),
                                 .heads = h_.heads,
                                 .latent = h_.latent,
                                 .rope = h_.rope,
                                 .scale = h_.attention_scale,
                                 .scratch = scratch_.data(),
                                 .scratch_bytes = scratch_.bytes()});
  multiply_heads(stream, w.v_b, w.v_b_head_bytes, floats(context_), h_.latent, tokens,
                 floats(out_) + first * h_.heads * h_.v);
}

void AttentionLayer::multiply_heads(Stream& stream, const Matrix& w, i64 head_bytes, const f32* x, i64 x_stride,
                                    i64 tokens, f32* y) {
  // Floats in either mode: prompts rebuild keys and values in floats, and generated rows must see what they see.
  ops_.head_matmul(stream, {.weights = w,
                            .head_stride_bytes = head_bytes,
                            .heads = h_.heads,
                            .x = {x, ActivationForm::F32, x_stride * i64{sizeof(f32)}},
                            .tokens = tokens,
                            .y = y,
                            .y_token_stride = h_.heads * w.rows,
                            .y_head_stride = w.rows});
}

}  // namespace stoker

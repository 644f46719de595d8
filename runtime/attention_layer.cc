#include "runtime/attention_layer.h"

#include <algorithm>
#include <utility>

#include "kernels/base/check.h"

namespace stoker {

namespace {

constexpr i64 kAlignment = 64;
constexpr i64 kHeadsBetweenReads = 4;  // of a worker

i64 widest_input(const Hparams& h) { return std::max({h.hidden, h.q_lora, h.heads * h.v}); }

// Where matrices in blocks take 8-bit rows alone, those of heads do as well.
i64 head_values(const Ops& ops, const Hparams& h, const AttentionLayer::Limits& limits) {
  return ops.multiplies_floats ? 0 : limits.generated_rows * h.heads * std::max(h.nope, h.latent);
}
i64 head_rows(const Ops& ops, const Hparams& h, const AttentionLayer::Limits& limits) {
  return ops.multiplies_floats ? 0 : limits.generated_rows * h.heads;
}

}  // namespace

AttentionLayer::Memory AttentionLayer::carve(const Ops& ops, const Hparams& h, const Limits& l, std::byte* memory) {
  Memory m;
  auto take = [&](i64 bytes) {
    i64 at = std::exchange(m.bytes, m.bytes + round_up(bytes, kAlignment));
    return memory == nullptr ? nullptr : memory + at;
  };
  auto floats = [&](i64 count) { return reinterpret_cast<f32*>(take(count * i64{sizeof(f32)})); };
  m.q_a = floats(l.rows * h.q_lora);
  m.q = floats(l.rows * h.heads * h.key());
  m.kv = floats(l.rows * h.cache_row());
  m.out = floats(l.rows * h.heads * h.v);
  m.q_latent = floats(l.generated_rows * h.heads * h.latent);
  m.context = floats(l.generated_rows * h.heads * h.latent);
  m.inputs = take(ActivationRows::bytes_needed(l.rows * widest_input(h), l.rows));
  m.head_inputs = take(ActivationRows::bytes_needed(head_values(ops, h, l), head_rows(ops, h, l)));
  m.scratch = take(l.op_scratch_bytes);
  return m;
}

i64 AttentionLayer::bytes_needed(const Ops& ops, const Hparams& hparams, const Limits& limits) {
  return carve(ops, hparams, limits, nullptr).bytes;
}

AttentionLayer::AttentionLayer(const Ops& ops, const Hparams& hparams, const Limits& limits, std::byte* memory,
                               const f32* frequencies)
    : ops_(ops),
      h_(hparams),
      limits_(limits),
      frequencies_(frequencies),
      memory_(carve(ops, hparams, limits, memory)),
      inputs_(ops, limits.rows * widest_input(hparams), limits.rows, memory_.inputs),
      head_inputs_(ops, head_values(ops, hparams, limits), head_rows(ops, hparams, limits), memory_.head_inputs) {
  queries_.reserve(static_cast<size_t>(limits.generated_rows));
  kept_.reserve(static_cast<size_t>(limits.rows));
}

bool AttentionLayer::run(Stream& stream, const LayerWeights& w, const Batch& batch, const f32* x, f32* change,
                         PassBreaks& breaks) {
  DCHECK(batch.rows <= limits_.rows);
  queries_.clear();
  if (!project(stream, w, batch, x, change, breaks)) return false;
  rotate_and_store(stream, w, batch);

  for (size_t i = 0; i < batch.runs.size();) {
    if (batch.runs[i].is_prompt()) {
      if (!attend_prompt(stream, w, batch.runs[i++], breaks)) return false;
      continue;
    }
    size_t end = i;
    while (end < batch.runs.size() && !batch.runs[end].is_prompt()) end++;
    attend_generated(stream, w, batch.runs.subspan(i, end - i));
    i = end;
  }

  inputs_.set(memory_.out, batch.rows, h_.heads * h_.v);
  inputs_.multiply(stream, w.attention_output, limits_.exact, change, h_.hidden);
  return true;
}

bool AttentionLayer::project(Stream& stream, const LayerWeights& w, const Batch& batch, const f32* x, f32* normed,
                             PassBreaks& breaks) {
  i64 rows = batch.rows;
  inputs_.set_normed(stream,
                     {.x = x,
                      .weight = w.attention_norm,
                      .y = normed,
                      .rows = rows,
                      .cols = h_.hidden,
                      .x_stride = h_.hidden,
                      .y_stride = h_.hidden,
                      .epsilon = h_.rms_epsilon},
                     {w.kv_a.type, h_.q_lora > 0 ? w.q_a.type : w.q.type}, limits_.exact);
  inputs_.multiply(stream, w.kv_a, limits_.exact, memory_.kv, h_.cache_row());
  if (h_.q_lora > 0) {
    inputs_.multiply(stream, w.q_a, limits_.exact, memory_.q_a, h_.q_lora);
    inputs_.set_normed(stream,
                       {.x = memory_.q_a,
                        .weight = w.q_a_norm,
                        .y = memory_.q_a,
                        .rows = rows,
                        .cols = h_.q_lora,
                        .x_stride = h_.q_lora,
                        .y_stride = h_.q_lora,
                        .epsilon = h_.rms_epsilon},
                       {w.q.type}, limits_.exact);
    if (!breaks.pause()) return false;
  }
  inputs_.multiply(stream, w.q, limits_.exact, memory_.q, h_.heads * h_.key());
  return breaks.pause();
}

void AttentionLayer::rotate_and_store(Stream& stream, const LayerWeights& w, const Batch& batch) {
  const CacheType type = batch.runs.front().cache->type();
  kept_.clear();
  for (const SequenceRun& run : batch.runs)
    kept_.push_back({run.latents + cache_bytes(type, run.position * h_.cache_row()), run.first_row, run.rows});
  ops_.attention_rows(stream, {.kv = memory_.kv,
                               .kv_weight = w.kv_a_norm,
                               .epsilon = h_.rms_epsilon,
                               .q = memory_.q,
                               .rows = batch.rows,
                               .heads = h_.heads,
                               .nope = h_.nope,
                               .rope = h_.rope,
                               .latent = h_.latent,
                               .positions = batch.positions,
                               .frequencies = frequencies_,
                               .cache_type = type,
                               .runs = kept_});
}

// A few heads at a time where others wait, or reads: a worker takes a head, so as many as there are workers lose nothing.
bool AttentionLayer::attend_prompt(Stream& stream, const LayerWeights& w, const SequenceRun& run,
                                   PassBreaks& breaks) {
  i64 step = breaks.wanted() ? limits_.workers : breaks.reads() ? kHeadsBetweenReads * limits_.workers : h_.heads;
  for (i64 first = 0; first < h_.heads; first += step) {
    ops_.prompt_attention(stream, prompt_args(w, run, first, std::min(step, h_.heads - first)));
    if (!breaks.pause()) return false;
  }
  return true;
}

PromptAttentionArgs AttentionLayer::prompt_args(const LayerWeights& w, const SequenceRun& run,
                                                i64 first_head, i64 heads) {
  return {.q = memory_.q + run.first_row * h_.heads * h_.key(),
          .cache = run.latents,
          .cache_type = run.cache->type(),
          .first = run.position,
          .tokens = run.rows,
          .k_b = w.k_b,
          .k_b_head_stride_bytes = w.k_b_head_bytes,
          .v_b = w.v_b,
          .v_b_head_stride_bytes = w.v_b_head_bytes,
          .out = memory_.out + run.first_row * h_.heads * h_.v,
          .heads = h_.heads,
          .nope = h_.nope,
          .rope = h_.rope,
          .latent = h_.latent,
          .v = h_.v,
          .scale = h_.attention_scale,
          .first_head = first_head,
          .some_heads = heads == h_.heads ? 0 : heads,
          .scratch = memory_.scratch,
          .scratch_bytes = limits_.op_scratch_bytes};
}

void AttentionLayer::attend_generated(Stream& stream, const LayerWeights& w,
                                   std::span<const SequenceRun> runs) {
  i64 first = runs.front().first_row;
  size_t before = queries_.size();
  for (const SequenceRun& run : runs)
    for (i64 i = 0; i < run.rows; i++) queries_.push_back({run.latents, run.position + i + 1});
  i64 tokens = static_cast<i64>(queries_.size() - before);
  DCHECK(static_cast<i64>(queries_.size()) <= limits_.generated_rows);

  const f32* q = memory_.q + first * h_.heads * h_.key();
  head_inputs_.set(q, tokens * h_.heads, h_.nope, h_.key());
  multiply_heads(stream, w.k_b, w.k_b_head_bytes, tokens, memory_.q_latent);
  head_inputs_.set(memory_.context, tokens * h_.heads, h_.latent);
  LatentAttentionArgs all{.cache_type = runs.front().cache->type(),
                          .queries = std::span(queries_).subspan(before),
                          .q_latent = memory_.q_latent,
                          .q_rope = q + h_.nope,
                          .q_rope_token_stride = h_.heads * h_.key(),
                          .q_rope_head_stride = h_.key(),
                          .out = memory_.context,
                          .heads = h_.heads,
                          .latent = h_.latent,
                          .rope = h_.rope,
                          .scale = h_.attention_scale,
                          .scratch = memory_.scratch,
                          .scratch_bytes = limits_.op_scratch_bytes};
  if (shares_heads(runs)) {
    i64 row = 0;
    for (const SequenceRun& run : runs)
      for (i64 i = 0; i < run.rows; i++) attend_shared(stream, run, row++, all);
  } else {
    all.out_form = head_form(w.v_b);
    all.out_quantized = head_inputs_.made_with(all.out_form);
    ops_.latent_attention(stream, all);
  }
  multiply_heads(stream, w.v_b, w.v_b_head_bytes, tokens, memory_.out + first * h_.heads * h_.v);
}

bool AttentionLayer::shares_heads(std::span<const SequenceRun> runs) const {
  return others_ != nullptr && std::any_of(runs.begin(), runs.end(), [&](const SequenceRun& run) {
           return others_->heads(run.position + run.rows) > 0;
         });
}

// One of the rows of `all`: its first heads here, the last ones by others at the same time.
void AttentionLayer::attend_shared(Stream& stream, const SequenceRun& run, i64 row, const LatentAttentionArgs& all) {
  const i64 length = all.queries[static_cast<size_t>(row)].length, others = others_->heads(length);
  auto some = [&](i64 first, i64 heads) {
    LatentAttentionArgs args = all;
    args.queries = all.queries.subspan(static_cast<size_t>(row), 1);
    args.q_latent += (row * h_.heads + first) * h_.latent;
    args.q_rope += row * all.q_rope_token_stride + first * all.q_rope_head_stride;
    args.out += (row * h_.heads + first) * h_.latent;
    args.heads = heads;
    return args;
  };
  const i64 here = h_.heads - others;
  const LatentAttentionArgs theirs = some(here, others);
  if (others > 0) others_->post(stream, {&run, length, theirs.q_rope - h_.nope, theirs.q_latent});
  ops_.latent_attention(stream, some(0, here));
  if (others > 0 && !others_->take(stream, theirs.out)) ops_.latent_attention(stream, theirs);
}

// Floats in either mode, where the ops know how: prompts rebuild keys and values in floats, and generated rows must see what they
// see.
ActivationForm AttentionLayer::head_form(const Matrix& w) const {
  return ops_.multiplies_floats ? ActivationForm::F32 : weight_input(w.type, limits_.exact);
}

void AttentionLayer::multiply_heads(Stream& stream, const Matrix& w, i64 head_bytes, i64 tokens, f32* y) {
  ops_.head_matmul(stream, {.weights = w,
                            .head_stride_bytes = head_bytes,
                            .heads = h_.heads,
                            .x = head_inputs_.as(stream, head_form(w)),
                            .tokens = tokens,
                            .y = y,
                            .y_token_stride = h_.heads * w.rows,
                            .y_head_stride = w.rows});
}

}  // namespace stoker

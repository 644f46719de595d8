#include <algorithm>

#include "kernels/base/check.h"
#include "kernels/base/error.h"
#include "kernels/cuda/op_parts.h"
#include "kernels/cuda/products.h"

namespace stoker::cuda {

namespace {

// Floats that the result of a part takes.
i64 part_floats(i64 heads, i64 latent) { return heads * (latent + 2); }
i64 part_count(i64 length) { return div_up(length, attention_part_positions(length)); }
// Of a context of any length up to this one: a longer one may have fewer parts.
i64 most_parts(i64 context) { return std::min(kQueryParts, div_up(context, kPartPositions)); }

struct Queries {
  const f32* latent;
  const f32* rope;
  i64 rope_query_stride, rope_head_stride;
};

// [queries, heads, latent], and in an 8-bit form if there is one.
struct Results {
  f32* floats;
  void* quantized = nullptr;
  ActivationForm form = ActivationForm::F32;
};

struct Shape {
  CacheType type;
  i64 heads, latent, rope;
  f32 scale;
};

// Posts parts, as many at once as scratch and a launch have room for.
class Attention {
 public:
  Attention(const Target& target, const Shape& shape, const Queries& queries, f32* scratch, i64 scratch_floats,
            const Results& out)
      : target_(target), shape_(shape), queries_(queries), out_(out) {
    if (shape.type == CacheType::F32)
      fail("CUDA has no exact arithmetic: a cache of f32 cannot be used; use --device cpu with --exact");
    if (shape.latent > kAttentionMaxLatent)
      fail("CUDA attention is for latents of at most {} values, not {}", kAttentionMaxLatent, shape.latent);
    room_ = std::min(kAttentionMaxParts, scratch_floats / part_floats(shape.heads, shape.latent));
    partial_ = scratch;
    best_ = partial_ + room_ * shape.heads * shape.latent;
    sum_ = best_ + room_ * shape.heads;
  }

  void add(i32 query, const void* cache, i64 length) {
    if (part_count(length) > room_) fail("scratch for CUDA attention over {} positions is too small", length);
    if (count_ + part_count(length) > room_) launch();
    const i64 size = attention_part_positions(length);
    for (i64 begin = 0; begin < length; begin += size)
      parts_.at[count_++] = {static_cast<const std::byte*>(cache), query, static_cast<i32>(begin),
                             static_cast<i32>(std::min(length, begin + size))};
  }

  void launch() {
    if (count_ == 0) return;
    const AttentionArgs args{.cache_type = shape_.type,
                             .parts = count_,
                             .q_latent = queries_.latent,
                             .q_rope = queries_.rope,
                             .q_rope_query_stride = queries_.rope_query_stride,
                             .q_rope_head_stride = queries_.rope_head_stride,
                             .heads = shape_.heads,
                             .latent = shape_.latent,
                             .rope = shape_.rope,
                             .scale = shape_.scale,
                             .partial = partial_,
                             .best = best_,
                             .sum = sum_};
    const MergeArgs merge{.partial = partial_,
                          .best = best_,
                          .sum = sum_,
                          .parts = count_,
                          .heads = shape_.heads,
                          .latent = shape_.latent,
                          .out = out_.floats,
                          .out_quantized = out_.quantized,
                          .out_form = out_.form,
                          .out_stride_bytes = out_.quantized != nullptr ? card_row_bytes(out_.form, shape_.latent) : 0};
    if (!start_latent_attention(args, parts_, merge, target_.card, target_.stream))
      fail("cache rows of {} values do not fit into this card's shared memory", shape_.latent + shape_.rope);
    count_ = 0;
  }

 private:
  const Target& target_;
  Shape shape_;
  Queries queries_;
  Results out_;
  f32 *partial_, *best_, *sum_;
  i64 room_, count_ = 0;
  AttentionParts parts_;
};

// One matrix per head times each token's vector of the head, whatever the matrices' format.
struct HeadProduct {
  Matrix weights;  // of head 0
  i64 head_stride_bytes, heads, tokens;
  const f32* x;  // row t * heads + h at x + row * x_stride
  i64 x_stride;
  std::byte* quantised;  // [tokens * heads] rows of card_row_bytes()
  f32* y;                // [tokens, heads, rows]
};

i64 quantised_bytes(BlockType type, i64 cols) {
  return has_blocks(type) ? card_row_bytes(weight_input(type, false), cols) : 0;
}

void multiply_heads(const Target& target, const HeadProduct& p) {
  const Matrix& w = p.weights;
  const void* x = p.x;
  i64 stride = p.x_stride * i64{sizeof(f32)};
  if (has_blocks(w.type)) {
    stride = quantised_bytes(w.type, w.cols);
    x = p.quantised;
    start_quantize({p.x, p.tokens * p.heads, w.cols, p.x_stride, weight_input(w.type, false), p.quantised}, stride,
                   target.card, target.stream);
  }
  multiply(target, {.type = w.type,
                    .matrices = {.first = static_cast<const std::byte*>(w.data),
                                 .matrix_stride_bytes = p.head_stride_bytes,
                                 .matrices = p.heads,
                                 .tokens = p.tokens,
                                 .y_matrix_stride = w.rows},
                    .rows = w.rows,
                    .cols = w.cols,
                    .x = x,
                    .x_stride_bytes = stride,
                    .y = p.y,
                    .y_stride = p.heads * w.rows});
}

// Tokens of a prompt that are to fit into its scratch at a time; more in short contexts.
constexpr i64 kPromptTokens = 8;

}  // namespace

// The 8-bit rows of a head are at most as long as its floats.
i64 attention_scratch_bytes(const AttentionShape& s) {
  if (s.cache == CacheType::F32 || s.latent > kAttentionMaxLatent) return 0;
  const i64 query = most_parts(s.context) * part_floats(s.heads, s.latent);
  const i64 generated = std::min(kAttentionMaxParts * part_floats(s.heads, s.latent), s.generated * query);
  const i64 token = query + s.heads * (2 * s.latent + std::max(s.nope, s.latent) + kDeviceRowAlignment);
  return std::max(generated, std::min(s.rows, kPromptTokens) * token) * i64{sizeof(f32)};
}

// As many runs in a launch as it takes along.
void attention_rows_op(Stream& stream, const AttentionRowsArgs& a) {
  const Target target = target_of(stream);
  for (size_t begin = 0; begin < a.runs.size(); begin += kLaunchRuns) {
    const auto some = a.runs.subspan(begin, std::min<size_t>(kLaunchRuns, a.runs.size() - begin));
    const i64 first = some.front().first_row;
    AttentionRuns runs{};
    runs.count = static_cast<i64>(some.size());
    for (size_t i = 0; i < some.size(); i++) runs.at[i] = {some[i].cache, some[i].first_row - first, some[i].rows};
    AttentionRowsArgs rows = a;
    rows.kv += first * (a.latent + a.rope);
    rows.q += first * a.heads * (a.nope + a.rope);
    rows.positions += first;
    rows.rows = some.back().first_row + some.back().rows - first;
    start_attention_rows(rows, runs, target.card, target.stream);
  }
}

void latent_attention_op(Stream& stream, const LatentAttentionArgs& a) {
  const Target target = target_of(stream);
  Attention attention(target, {a.cache_type, a.heads, a.latent, a.rope, a.scale},
                      {a.q_latent, a.q_rope, a.q_rope_token_stride, a.q_rope_head_stride},
                      reinterpret_cast<f32*>(a.scratch), a.scratch_bytes / i64{sizeof(f32)},
                      {a.out, a.out_quantized, a.out_form});
  i32 query = 0;
  for (const LatentAttentionArgs::Query& q : a.queries) attention.add(query++, q.cache, q.length);
  attention.launch();
}

void prompt_attention(Stream& stream, const PromptAttentionArgs& a) {
  CHECK(a.some_heads == 0);
  const Target target = target_of(stream);
  const i64 key = a.nope + a.rope;
  // Of a token: absorbed queries and their results, the 8-bit rows of the wider of both products, and its parts.
  const i64 absorbed = a.heads * a.latent;
  const i64 row = round_up(std::max(quantised_bytes(a.k_b.type, a.nope), quantised_bytes(a.v_b.type, a.latent)), 16);
  const i64 parts = part_count(a.first + a.tokens) * part_floats(a.heads, a.latent) * i64{sizeof(f32)};
  const i64 token_bytes = 2 * absorbed * i64{sizeof(f32)} + a.heads * row + parts;
  const i64 batch = std::min(a.tokens, a.scratch_bytes / token_bytes);
  if (batch == 0) fail("scratch for CUDA attention over {} positions is too small", a.first + a.tokens);
  std::byte* quantised = a.scratch;
  f32* queries = reinterpret_cast<f32*>(quantised + batch * a.heads * row);
  f32* sums = queries + batch * absorbed;
  f32* partial = sums + batch * absorbed;
  for (i64 first = 0; first < a.tokens; first += batch) {
    const i64 tokens = std::min(batch, a.tokens - first);
    const f32* q = a.q + first * a.heads * key;
    multiply_heads(target, {a.k_b, a.k_b_head_stride_bytes, a.heads, tokens, q, key, quantised, queries});
    Attention attention(target, {a.cache_type, a.heads, a.latent, a.rope, a.scale},
                        {queries, q + a.nope, a.heads * key, key}, partial, batch * parts / i64{sizeof(f32)}, {sums});
    for (i64 t = 0; t < tokens; t++) attention.add(static_cast<i32>(t), a.cache, a.first + first + t + 1);
    attention.launch();
    multiply_heads(target, {a.v_b, a.v_b_head_stride_bytes, a.heads, tokens, sums, a.latent, quantised,
                            a.out + first * a.heads * a.v});
  }
}

}  // namespace stoker::cuda

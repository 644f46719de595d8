// Decompressed causal attention of a prompt chunk. A worker takes a head at a time. It goes over the
// positions in blocks: the head's keys and values of a block are rebuilt from the latents, then all of the
// chunk's queries meet them, a tile of queries at a time, with an online softmax (Milakov and Gimelshein,
// arXiv 1805.02867). Per pair of positions this costs nope + rope + v multiplications instead of the absorbed
// form's 2 latent + rope; rebuilding costs latent * (nope + v) per position and head, once per chunk.
//
// Blocks begin at multiples of their size, so a position's result does not depend on where its chunk begins
// or ends.
#include <algorithm>
#include <limits>

#include "kernels/base/check.h"
#include "kernels/cpu/cpu_ops.h"
#include "kernels/cpu/latent_rows.h"
#include "kernels/cpu/leaf.h"
#include "kernels/device/stream.h"

namespace stoker {

static constexpr i64 kBlock = 192;   // positions; their keys and values (192 KiB in V3) stay in L2
static constexpr i64 kQueries = 64;  // that share a pass over the keys and values

namespace {

// A worker's scratch in floats; every piece starts at a cache line. A chunk of `tokens` queries.
struct Layout {
  i64 projections;  // [latent, nope + v]: k_b | v_b transposed
  i64 v_b;          // [v, latent], as the file has it
  i64 latents;      // [kBlock, latent + rope]
  i64 keys_values;  // [kBlock, nope + v]
  i64 queries;      // tiles of [nope + rope, kQueries]
  i64 scores;       // [kBlock, kQueries]
  i64 sums;         // [tokens, v]: weighted values
  i64 stats;        // [tokens]: largest score, or sum of exponentials; [kQueries]: shrink

  Layout(i64 tokens, i64 nope, i64 rope, i64 latent, i64 v) {
    auto lines = [](i64 floats) { return round_up(floats, 16); };
    tokens = round_up(tokens, kQueries);
    projections = lines(latent * (nope + v));
    v_b = lines(v * latent);
    latents = lines(kBlock * (latent + rope));
    keys_values = lines(kBlock * (nope + v));
    queries = lines(tokens * (nope + rope));
    scores = kBlock * kQueries;
    sums = lines(tokens * v);
    stats = tokens;
  }
  i64 floats() const {
    return projections + v_b + latents + keys_values + queries + scores + sums + 2 * stats + kQueries;
  }
};

}  // namespace

i64 prompt_attention_scratch_bytes(int workers, i64 max_tokens, i64 nope, i64 rope, i64 latent, i64 v) {
  return workers * Layout(max_tokens, nope, rope, latent, v).floats() * i64{sizeof(f32)};
}

namespace cpu {

namespace {

class PromptAttention {
 public:
  PromptAttention(Stream& stream, const PromptAttentionArgs& args)
      : stream_(stream),
        leaves_(leaf_table(stream.level())),
        a_(args),
        length_(a_.first + a_.tokens),
        row_(a_.latent + a_.rope),
        key_(a_.nope + a_.rope),
        key_value_(a_.nope + a_.v),
        layout_(a_.tokens, a_.nope, a_.rope, a_.latent, a_.v) {
    CHECK(a_.first_head + a_.some_heads <= a_.heads);
    CHECK(stream.workers().size() * layout_.floats() * i64{sizeof(f32)} <= a_.scratch_bytes);
  }

  void run() {
    i64 heads = a_.some_heads > 0 ? a_.some_heads : a_.heads;
    stream_.workers().for_each(heads, [&](i64 head, int worker) {
      run_head(a_.first_head + head, carve(reinterpret_cast<f32*>(a_.scratch) + worker * layout_.floats()));
    });
  }

 private:
  // See Layout for the shapes.
  struct Scratch {
    f32 *projections, *v_b, *latents, *keys_values, *queries, *scores, *sums, *best, *sum, *shrink;
  };

  Scratch carve(f32* at) const {
    auto take = [&](i64 count) {
      f32* result = at;
      at += count;
      return result;
    };
    Scratch s;
    s.projections = take(layout_.projections);
    s.v_b = take(layout_.v_b);
    s.latents = take(layout_.latents);
    s.keys_values = take(layout_.keys_values);
    s.queries = take(layout_.queries);
    s.scores = take(layout_.scores);
    s.sums = take(layout_.sums);
    s.best = take(layout_.stats);
    s.sum = take(layout_.stats);
    s.shrink = take(kQueries);
    return s;
  }

  void run_head(i64 head, const Scratch& s) const {
    place_projections(head, s);
    place_queries(head, s);
    std::fill(s.best, s.best + a_.tokens, -std::numeric_limits<f32>::infinity());
    std::fill(s.sum, s.sum + a_.tokens, 0.0f);
    for (i64 begin = 0; begin < length_; begin += kBlock) {
      i64 count = std::min(kBlock, length_ - begin);
      const f32* latents = latent_rows(leaves_, a_.cache, a_.cache_type, row_, begin, count, s.latents);
      rebuild(latents, count, s);
      // Queries before the block's first position see nothing of it.
      i64 first = std::max<i64>(0, begin - a_.first) / kQueries * kQueries;
      for (i64 t = first; t < a_.tokens; t += kQueries)
        attend(t, std::min(kQueries, a_.tokens - t), begin, count, latents, s);
    }
    for (i64 t = 0; t < a_.tokens; t++) {
      f32* out = a_.out + (t * a_.heads + head) * a_.v;
      std::copy(s.sums + t * a_.v, s.sums + (t + 1) * a_.v, out);
      leaves_.scale(out, 1.0f / s.sum[t], a_.v);
    }
  }

  void place_projections(i64 head, const Scratch& s) const {
    auto weights = [head](const Matrix& m, i64 head_bytes, i64 row) {
      return static_cast<const std::byte*>(m.data) + head * head_bytes + row * row_bytes(m.type, m.cols);
    };
    for (i64 r = 0; r < a_.latent; r++)
      leaves_.dequantize[static_cast<i64>(a_.k_b.type)](weights(a_.k_b, a_.k_b_head_stride_bytes, r),
                                                        s.projections + r * key_value_, a_.nope);
    leaves_.dequantize[static_cast<i64>(a_.v_b.type)](weights(a_.v_b, a_.v_b_head_stride_bytes, 0), s.v_b,
                                                      a_.v * a_.latent);
    leaves_.transpose({.from = s.v_b,
                       .from_stride = a_.latent,
                       .rows = a_.v,
                       .cols = a_.latent,
                       .factor = 1.0f,
                       .to = s.projections + a_.nope,
                       .to_stride = key_value_});
  }

  f32* queries(i64 token, const Scratch& s) const {
    return s.queries + token * key_;
  }  // of a tile's first token

  void place_queries(i64 head, const Scratch& s) const {
    for (i64 t = 0; t < a_.tokens; t += kQueries)
      leaves_.transpose({.from = a_.q + (t * a_.heads + head) * key_,
                         .from_stride = a_.heads * key_,
                         .rows = std::min(kQueries, a_.tokens - t),
                         .cols = key_,
                         .factor = a_.scale,
                         .to = queries(t, s),
                         .to_stride = kQueries});
  }

  // [k_b^T latent | v_b latent] of `count` positions.
  void rebuild(const f32* latents, i64 count, const Scratch& s) const {
    leaves_.product({.w = latents,
                     .w_output_stride = row_,
                     .w_row_stride = 1,
                     .x = s.projections,
                     .x_stride = key_value_,
                     .y = s.keys_values,
                     .y_stride = key_value_,
                     .outputs = count,
                     .rows = a_.latent,
                     .cols = key_value_,
                     .accumulate = false});
  }

  // `queries` queries from `token` on, a tile's first, meet the positions [begin, begin + count).
  void attend(i64 token, i64 queries, i64 begin, i64 count, const f32* latents, const Scratch& s) const {
    // What the last query sees; the others' scores beyond their own position get weight zero.
    count = std::min(count, a_.first + token + queries - begin);
    score(token, queries, count, latents, s);
    for (i64 q = 0; q < queries; q++)
      for (i64 p = std::max<i64>(0, a_.first + token + q + 1 - begin); p < count; p++)
        s.scores[p * kQueries + q] = -std::numeric_limits<f32>::infinity();
    leaves_.softmax_columns({.scores = s.scores,
                             .stride = kQueries,
                             .rows = count,
                             .cols = queries,
                             .best = s.best + token,
                             .sum = s.sum + token,
                             .shrink = s.shrink});
    for (i64 q = 0; q < queries; q++)
      if (begin > 0 && s.shrink[q] != 1.0f) leaves_.scale(s.sums + (token + q) * a_.v, s.shrink[q], a_.v);
    leaves_.product({.w = s.scores,
                     .w_output_stride = 1,
                     .w_row_stride = kQueries,
                     .x = s.keys_values + a_.nope,
                     .x_stride = key_value_,
                     .y = s.sums + token * a_.v,
                     .y_stride = a_.v,
                     .outputs = queries,
                     .rows = count,
                     .cols = a_.v,
                     .accumulate = begin > 0});
  }

  // scores[p][q] = scale * (key . query), the rotated part of the key as the cache has it.
  void score(i64 token, i64 queries, i64 count, const f32* latents, const Scratch& s) const {
    Product product{.w = s.keys_values,
                    .w_output_stride = key_value_,
                    .w_row_stride = 1,
                    .x = this->queries(token, s),
                    .x_stride = kQueries,
                    .y = s.scores,
                    .y_stride = kQueries,
                    .outputs = count,
                    .rows = a_.nope,
                    .cols = queries,
                    .accumulate = false};
    leaves_.product(product);
    product.w = latents + a_.latent;
    product.w_output_stride = row_;
    product.x += a_.nope * kQueries;
    product.rows = a_.rope;
    product.accumulate = true;
    leaves_.product(product);
  }

  Stream& stream_;
  const LeafTable& leaves_;
  const PromptAttentionArgs& a_;
  i64 length_, row_, key_, key_value_;
  Layout layout_;
};

}  // namespace

void prompt_attention(Stream& stream, const PromptAttentionArgs& args) {
  PromptAttention(stream, args).run();
}

}  // namespace cpu
}  // namespace stoker

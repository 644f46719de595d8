// Absorbed attention of single tokens over the latent cache.
//
// The context is cut into parts, each part goes by in tiles of positions: a tile is read and turned into
// floats once for all heads, multiplied with the queries, weighed by an online softmax (Milakov and
// Gimelshein, arXiv 1805.02867) and added to the sums of latents. The parts of a token are merged in order.
// Parts depend on the context's length alone, and heads do not meet, so that work may be split over heads as
// the number of threads suggests: the result does not depend on it.
//
// A position costs 2 (2 latent + rope) flops per head and latent + rope cached values once: with V3's 128
// heads 240 flops per byte of f16. Multiplication is what binds, never memory.
#include <algorithm>
#include <array>
#include <cmath>
#include <limits>

#include "kernels/base/check.h"
#include "kernels/cpu/cpu_ops.h"
#include "kernels/cpu/latent_rows.h"
#include "kernels/cpu/leaf.h"
#include "kernels/device/stream.h"

namespace stoker {

namespace {

constexpr i64 kTile = 96;            // positions; their floats (216 KiB in V3) stay in L2
constexpr i64 kPartPositions = 384;  // at least: a part's result is as large as 450 of V3's positions
constexpr i64 kMaxParts = 48;        // of a token, and in flight together: divides well among 2 to 24 cores
constexpr i64 kPanel = 64;           // heads whose scores are computed together
constexpr i64 kLanes = 16;           // heads are padded to whole vectors

i64 part_positions(i64 length) {
  return std::max(kPartPositions, round_up(div_up(length, kMaxParts), kTile));
}
i64 part_count(i64 length) { return div_up(length, part_positions(length)); }

// Scratch in floats; every piece starts at a cache line.
struct Layout {
  i64 tile, scores, shrink;  // of each worker
  i64 query;                 // of each token
  i64 partial, stats;        // of each part: sums of latents; largest scores and sums of exponentials

  Layout(i64 heads, i64 latent, i64 rope) {
    i64 padded = round_up(heads, kLanes);
    tile = kTile * round_up(latent + rope, kLanes);
    scores = kTile * kPanel;
    shrink = kPanel;
    query = padded * (latent + rope);
    partial = round_up(heads * latent, kLanes);
    stats = 2 * padded;
  }
  i64 worker() const { return tile + scores + shrink; }
};

}  // namespace

i64 latent_attention_scratch_bytes(int workers, i64 tokens, i64 heads, i64 latent, i64 rope, i64 max_length) {
  Layout layout(heads, latent, rope);
  i64 parts = std::min(kMaxParts, tokens * div_up(max_length, kPartPositions));
  i64 floats = workers * layout.worker() + std::min(kMaxParts, tokens) * layout.query +
               parts * (layout.partial + layout.stats);
  return floats * i64{sizeof(f32)};
}

namespace cpu {

namespace {

class LatentAttention {
 public:
  LatentAttention(Stream& stream, const LatentAttentionArgs& args)
      : stream_(stream),
        leaves_(leaf_table(stream.level())),
        a_(args),
        row_(a_.latent + a_.rope),
        padded_(round_up(a_.heads, kLanes)),
        layout_(a_.heads, a_.latent, a_.rope) {
    i64 longest = 1;
    for (const LatentAttentionArgs::Query& q : a_.queries) longest = std::max(longest, q.length);
    CHECK(latent_attention_scratch_bytes(stream.workers().size(), token_count(), a_.heads, a_.latent, a_.rope,
                                         longest) <= a_.scratch_bytes);
  }

  void run() {
    for (i64 first = 0; first < token_count();) first = run_pass(first);
  }

 private:
  // A part of one token's context.
  struct Part {
    i64 token, begin, end;
  };

  i64 token_count() const { return static_cast<i64>(a_.queries.size()); }

  // As many tokens from `first` on as have kMaxParts parts together; returns the first one that is left.
  i64 run_pass(i64 first) {
    first_token_ = first;
    parts_ = 0;
    i64 last = first;
    for (; last < token_count(); last++) {
      i64 length = a_.queries[static_cast<size_t>(last)].length, size = part_positions(length);
      if (last > first && parts_ + part_count(length) > kMaxParts) break;
      first_part_[static_cast<size_t>(last - first)] = parts_;
      for (i64 begin = 0; begin < length; begin += size)
        part_[static_cast<size_t>(parts_++)] = {last, begin, std::min(length, begin + size)};
    }
    carve(last - first);
    stream_.workers().for_ranges((last - first) * padded_, kLanes, [&](i64 begin, i64 end) {
      for (i64 i = begin; i < end; i += kLanes) place_queries(first + i / padded_, i % padded_);
    });
    i64 heads = heads_per_task();
    i64 groups = div_up(padded_, heads);
    stream_.workers().for_each(parts_ * groups, [&](i64 i, int worker) {
      i64 head = i % groups * heads;
      attend_part(i / groups, head, std::min(padded_, head + heads), worker);
    });
    stream_.workers().for_ranges((last - first) * a_.heads, 4, [&](i64 begin, i64 end) {
      for (i64 i = begin; i < end; i++) merge(first + i / a_.heads, i % a_.heads);
    });
    return last;
  }

  void carve(i64 tokens) {
    workers_ = reinterpret_cast<f32*>(a_.scratch);
    queries_ = workers_ + stream_.workers().size() * layout_.worker();
    stats_ = queries_ + tokens * layout_.query;
    partials_ = stats_ + parts_ * layout_.stats;
  }

  // All heads, so that a tile is read once, unless that leaves workers idle.
  i64 heads_per_task() const {
    i64 heads = padded_ > kPanel ? round_up(padded_, kPanel) : padded_;
    while (heads > kLanes && parts_ * div_up(padded_, heads) < 3 * stream_.workers().size())
      heads = round_up(heads / 2, heads > kPanel ? kPanel : kLanes);
    return heads;
  }

  // Queries as columns: panels [latent + rope, up to kPanel heads].
  struct Panel {
    f32* at;
    i64 stride;
  };
  Panel query_panel(i64 token, i64 head) const {
    i64 first = head / kPanel * kPanel, width = std::min(kPanel, padded_ - first);
    return {queries_ + (token - first_token_) * layout_.query + first * row_ + (head - first), width};
  }

  // kLanes heads from `head` on.
  void place_queries(i64 token, i64 head) const {
    Panel to = query_panel(token, head);
    i64 real = std::min(kLanes, a_.heads - head);
    Transpose t{.from = a_.q_latent + (token * a_.heads + head) * a_.latent,
                .from_stride = a_.latent,
                .rows = real,
                .cols = a_.latent,
                .factor = a_.scale,
                .to = to.at,
                .to_stride = to.stride};
    leaves_.transpose(t);
    t.from = a_.q_rope + token * a_.q_rope_token_stride + head * a_.q_rope_head_stride;
    t.from_stride = a_.q_rope_head_stride;
    t.cols = a_.rope;
    t.to += a_.latent * to.stride;
    leaves_.transpose(t);
    if (real < kLanes)
      for (i64 i = 0; i < row_; i++)
        std::fill(to.at + i * to.stride + real, to.at + i * to.stride + kLanes, 0.0f);
  }

  f32* partial(i64 part, i64 head) const { return partials_ + part * layout_.partial + head * a_.latent; }
  f32* best(i64 part) const { return stats_ + part * layout_.stats; }
  f32* sum(i64 part) const { return best(part) + padded_; }

  // Heads [first, last) over one part; those beyond the real ones have queries of zero and no result.
  void attend_part(i64 index, i64 first, i64 last, int worker) const {
    const Part& part = part_[static_cast<size_t>(index)];
    const LatentAttentionArgs::Query& query = a_.queries[static_cast<size_t>(part.token)];
    std::fill(best(index) + first, best(index) + last, -std::numeric_limits<f32>::infinity());
    std::fill(sum(index) + first, sum(index) + last, 0.0f);
    f32* tile = workers_ + worker * layout_.worker();
    for (i64 begin = part.begin; begin < part.end; begin += kTile) {
      i64 count = std::min(kTile, part.end - begin);
      const f32* rows = latent_rows(leaves_, query.cache, a_.cache_type, row_, begin, count, tile);
      for (i64 head = first; head < last; head += kPanel)
        attend_tile(index, head, std::min(kPanel, last - head), rows, begin, count, tile + layout_.tile);
    }
  }

  // `heads` heads, all in one panel, over `count` rows of floats, those of the positions from `begin` on.
  void attend_tile(i64 index, i64 head, i64 heads, const f32* rows, i64 begin, i64 count, f32* scores) const {
    const Part& part = part_[static_cast<size_t>(index)];
    Panel query = query_panel(part.token, head);
    leaves_.product({.w = rows,
                     .w_output_stride = row_,
                     .w_row_stride = 1,
                     .x = query.at,
                     .x_stride = query.stride,
                     .y = scores,
                     .y_stride = kPanel,
                     .outputs = count,
                     .rows = row_,
                     .cols = heads,
                     .accumulate = false});
    f32* shrink = scores + layout_.scores;
    leaves_.softmax_columns({.scores = scores,
                             .stride = kPanel,
                             .rows = count,
                             .cols = heads,
                             .best = best(index) + head,
                             .sum = sum(index) + head,
                             .shrink = shrink});
    i64 real = std::min(heads, a_.heads - head);
    bool first = begin == part.begin;
    for (i64 h = 0; h < real; h++)
      if (!first && shrink[h] != 1.0f) leaves_.scale(partial(index, head + h), shrink[h], a_.latent);
    leaves_.product({.w = scores,
                     .w_output_stride = 1,
                     .w_row_stride = kPanel,
                     .x = rows,
                     .x_stride = row_,
                     .y = partial(index, head),
                     .y_stride = a_.latent,
                     .outputs = real,
                     .rows = count,
                     .cols = a_.latent,
                     .accumulate = !first});
  }

  void merge(i64 token, i64 head) const {
    i64 first = first_part_[static_cast<size_t>(token - first_token_)];
    i64 last = first + part_count(a_.queries[static_cast<size_t>(token)].length);
    f32 largest = -std::numeric_limits<f32>::infinity();
    for (i64 i = first; i < last; i++) largest = std::max(largest, best(i)[head]);
    f32* out = a_.out + (token * a_.heads + head) * a_.latent;
    std::fill(out, out + a_.latent, 0.0f);
    f32 total = 0;
    for (i64 i = first; i < last; i++) {
      f32 weight = std::exp(best(i)[head] - largest);
      total += weight * sum(i)[head];
      leaves_.add_scaled(out, partial(i, head), weight, a_.latent);
    }
    leaves_.scale(out, 1.0f / total, a_.latent);
  }

  Stream& stream_;
  const LeafTable& leaves_;
  const LatentAttentionArgs& a_;
  i64 row_, padded_;
  Layout layout_;
  // Of the pass.
  i64 first_token_ = 0, parts_ = 0;
  std::array<Part, kMaxParts> part_;
  std::array<i64, kMaxParts> first_part_;  // of each token
  f32* workers_ = nullptr;
  f32* queries_ = nullptr;
  f32* stats_ = nullptr;
  f32* partials_ = nullptr;
};

}  // namespace

void latent_attention(Stream& stream, const LatentAttentionArgs& args) {
  LatentAttention(stream, args).run();
  if (args.out_quantized == nullptr) return;
  const i64 rows = static_cast<i64>(args.queries.size()) * args.heads;
  quantize(stream, {args.out, rows, args.latent, args.latent, args.out_form, args.out_quantized});
}

}  // namespace cpu
}  // namespace stoker

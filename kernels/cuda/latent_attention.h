// Absorbed attention over the latent cache on tensor cores: what kernels/cpu/latent_attention.cc computes, in halves
// with float sums.
//
// The context is cut into parts by its length alone. A block takes 16 or 32 heads over one part: a tile of 32 positions
// is read into shared memory as halves once, where it serves as keys and as values; the scores of the tile pass an
// online softmax (Milakov and Gimelshein, arXiv 1805.02867) and weigh the sums of latents, which stay in registers. A
// second kernel merges a query's parts in order. Nothing is added by more than one thread: results do not depend on
// what runs when, on the grid, or on other queries.
//
// With V3's 128 heads a cached value takes part in 240 multiplications per byte: tensor cores bind, not memory, and a
// tile in shared memory feeds them 30 to 60 flops per byte that comes from L2.
//
// Errors: queries and cache are rounded to f16 (a query after division by its largest element, so that nothing
// overflows), weights to f16 and summed as rounded.
#pragma once

#include <cmath>

#include "kernels/cuda/rows.h"

namespace stoker::cuda {

constexpr int kAttentionThreads = 256;
constexpr int kAttentionWarps = kAttentionThreads / kWarp;
constexpr i64 kAttentionTile = 32;        // positions
constexpr i64 kAttentionMaxLatent = 512;  // 8 warps with 8 columns of 8 sums each
constexpr i64 kAttentionMaxParts = 64;    // of a launch

// Positions of a part, at least, and parts of a query, at most.
constexpr i64 kPartPositions = 384, kQueryParts = 32;
HOST_DEVICE i64 attention_part_positions(i64 length) {
  const i64 even = round_up(div_up(length, kQueryParts), kAttentionTile);
  return even > kPartPositions ? even : kPartPositions;
}

struct AttentionPart {
  const std::byte* cache;  // row 0 of the query's sequence and layer
  i32 query, begin, end;
};

struct AttentionParts {
  AttentionPart at[kAttentionMaxParts];
};

struct AttentionArgs {
  CacheType cache_type;  // F16 or Q8_0
  i64 parts;
  const f32* q_latent;  // [queries, heads, latent]
  const f32* q_rope;    // head h of query t at q_rope + t * q_rope_query_stride + h * q_rope_head_stride
  i64 q_rope_query_stride, q_rope_head_stride;
  i64 heads, latent, rope;
  f32 scale;
  f32* partial;  // [parts, heads, latent]
  f32* best;     // [parts, heads]
  f32* sum;      // [parts, heads]
};

// Shared memory of a block, in bytes from its start.
struct AttentionLayout {
  i64 stride;  // halves of a row: a multiple of 16, and 8 so that rows fall into different banks
  i64 query, tile, scores, weights, best, sum, shrink, factor, bytes;

  HOST_DEVICE AttentionLayout(i64 heads, i64 latent, i64 rope) {
    stride = (latent + rope + 15) / 16 * 16 + 8;
    query = 0;
    tile = query + heads * stride * 2;
    scores = tile + kAttentionTile * stride * 2;
    weights = scores + 2 * 16 * kScoreStride * 4;
    best = weights + heads * kWeightStride * 2;
    sum = best + heads * 4;
    shrink = sum + heads * 4;
    factor = shrink + heads * 4;
    bytes = factor + heads * 4;
  }
  static constexpr i64 kScoreStride = kAttentionTile + 1;
  static constexpr i64 kWeightStride = kAttentionTile + 8;
};

// Values [col, col + 8) of a cache row as halves, zeros beyond its end.
HOST_DEVICE void latent_halves(const std::byte* cache, CacheType type, i64 row, i64 position, i64 col, u16 (&out)[8]) {
  const i64 first = position * row + col;
  if (type == CacheType::F16) {
    const u16* from = reinterpret_cast<const u16*>(cache) + first;
    if (row % 8 == 0 && reinterpret_cast<u64>(cache) % 16 == 0 && col < row) {
      u32 w[4];
      load_16(from, w);
      UNROLL
      for (int i = 0; i < 8; i++) out[i] = static_cast<u16>(w[i / 2] >> (16 * (i % 2)));
    } else {
      UNROLL
      for (int i = 0; i < 8; i++) out[i] = col + i < row ? from[i] : u16{0};
    }
    return;
  }
  const BlockQ8_0* block = reinterpret_cast<const BlockQ8_0*>(cache) + first / 32;
  const bool inside = col < row;  // rows are whole blocks
  const f32 d = inside ? half_value(block->d) : 0.0f;
  UNROLL
  for (int i = 0; i < 8; i++) out[i] = inside ? half_bits(d * static_cast<f32>(block->qs[first % 32 + i])) : u16{0};
}

// kTiles: of 16 heads. Item i of the grid: part i / groups, heads of group i % groups.
template <int kTiles, class Machine>
class LatentAttention {
 public:
  static constexpr int kHeads = 16 * kTiles;

  HOST_DEVICE LatentAttention(const Machine& m, const AttentionArgs& a, const AttentionPart& part, i64 first_head)
      : m_(m), a_(a), part_(part), first_head_(first_head), at_(kHeads, a.latent, a.rope) {}

  HOST_DEVICE void run(i64 part_index) {
    place_queries();
    UNROLL
    for (int t = 0; t < kTiles; t++)
      UNROLL
      for (int n = 0; n < kColumns; n++)
        UNROLL
        for (int i = 0; i < 4; i++) sums_[t][n][i] = 0;
    for (i64 begin = part_.begin; begin < part_.end; begin += kAttentionTile) {
      const i64 count = part_.end - begin < kAttentionTile ? part_.end - begin : kAttentionTile;
      load_tile(begin, count);
      m_.sync();
      score();
      m_.sync();
      weigh(count);
      m_.sync();
      add_latents();
      m_.sync();
    }
    write(part_index);
    m_.sync();
  }

 private:
  static constexpr int kColumns = kAttentionMaxLatent / 8 / kAttentionWarps;  // of 8 sums, of a warp

  HOST_DEVICE int warp() const { return m_.thread() / kWarp; }
  HOST_DEVICE int lane() const { return m_.thread() % kWarp; }
  HOST_DEVICE u16* halves(i64 offset) const { return m_.template shared<u16>(offset); }
  HOST_DEVICE f32* floats(i64 offset) const { return m_.template shared<f32>(offset); }

  HOST_DEVICE f32 query_value(i64 head, i64 col) const {
    if (head >= a_.heads || col >= a_.latent + a_.rope) return 0;
    if (col < a_.latent) return a_.q_latent[(part_.query * a_.heads + head) * a_.latent + col];
    return a_.q_rope[part_.query * a_.q_rope_query_stride + head * a_.q_rope_head_stride + col - a_.latent];
  }

  // A warp per head: divided by its largest element, which goes into the factor of its scores.
  HOST_DEVICE void place_queries() const {
    for (int h = warp(); h < kHeads; h += kAttentionWarps) {
      u32 largest = 0;
      for (i64 c = lane(); c < at_.stride - 8; c += kWarp) {
        const u32 bits = float_bits(query_value(first_head_ + h, c)) & 0x7fffffffu;
        largest = bits > largest ? bits : largest;
      }
      const f32 max = float_of_bits(largest_of(m_, largest, kWarp));
      for (i64 c = lane(); c < at_.stride - 8; c += kWarp)
        halves(at_.query)[h * at_.stride + c] = half_bits(max > 0 ? query_value(first_head_ + h, c) / max : 0.0f);
      if (lane() == 0) {
        floats(at_.factor)[h] = max * a_.scale;
        floats(at_.best)[h] = -INFINITY;
        floats(at_.sum)[h] = 0;
      }
    }
  }

  HOST_DEVICE void load_tile(i64 begin, i64 count) const {
    const i64 row = a_.latent + a_.rope, eights = (at_.stride - 8) / 8;
    for (i64 i = m_.thread(); i < kAttentionTile * eights; i += m_.threads()) {
      const i64 position = i / eights, col = i % eights * 8;
      u16 values[8] = {};
      if (position < count) latent_halves(part_.cache, a_.cache_type, row, begin + position, col, values);
      u32* to = reinterpret_cast<u32*>(halves(at_.tile) + position * at_.stride + col);
      UNROLL
      for (int k = 0; k < 4; k++) to[k] = values[2 * k] | static_cast<u32>(values[2 * k + 1]) << 16;
    }
  }

  // Two neighbouring halves of a matrix in shared memory.
  HOST_DEVICE static u32 pair(const u16* at) { return *reinterpret_cast<const u32*>(at); }

  // a of Machine::multiply(): 16 x 16 halves from `at` on.
  HOST_DEVICE void load_a(const u16* at, i64 stride, u32 (&a)[4]) const {
    const u16* mine = at + lane() / 4 * stride + lane() % 4 * 2;
    a[0] = pair(mine);
    a[1] = pair(mine + 8 * stride);
    a[2] = pair(mine + 8);
    a[3] = pair(mine + 8 * stride + 8);
  }

  // Warps 0-3 and 4-7 have 8 positions each: with 32 heads each four a half of the heads, with 16 a half of the columns.
  HOST_DEVICE void score() const {
    const int slot = warp() / 4, n = warp() % 4;
    const i64 steps = (at_.stride - 8) / 16;
    const i64 first = kTiles == 2 || slot == 0 ? 0 : steps / 2, last = kTiles == 2 || slot == 1 ? steps : steps / 2;
    const u16* heads = halves(at_.query) + (kTiles == 2 ? slot * 16 * at_.stride : 0);
    const u16* positions = halves(at_.tile) + (8 * n + lane() / 4) * at_.stride + lane() % 4 * 2;
    f32 c[4] = {0, 0, 0, 0};
    for (i64 k = 16 * first; k < 16 * last; k += 16) {
      u32 a[4], b[2] = {pair(positions + k), pair(positions + k + 8)};
      load_a(heads + k, at_.stride, a);
      m_.multiply(c, a, b);
    }
    f32* to = floats(at_.scores) + (slot * 16 + lane() / 4) * AttentionLayout::kScoreStride + 8 * n + lane() % 4 * 2;
    to[0] = c[0];
    to[1] = c[1];
    to[8 * AttentionLayout::kScoreStride] = c[2];
    to[8 * AttentionLayout::kScoreStride + 1] = c[3];
  }

  // The softmax: neighbouring threads share a head.
  HOST_DEVICE void weigh(i64 count) const {
    constexpr int kShare = kAttentionThreads / kHeads, kEach = static_cast<int>(kAttentionTile) / kShare;
    const int h = m_.thread() / kShare, first = m_.thread() % kShare * kEach;
    const f32* scores = floats(at_.scores) + h * AttentionLayout::kScoreStride;
    const f32 factor = floats(at_.factor)[h], before = floats(at_.best)[h];
    f32 score[kEach], best = before;
    UNROLL
    for (int i = 0; i < kEach; i++) {
      score[i] = scores[first + i];
      if constexpr (kTiles == 1) score[i] += scores[16 * AttentionLayout::kScoreStride + first + i];
      score[i] = first + i < count ? score[i] * factor : -INFINITY;
      if (score[i] > best) best = score[i];
    }
    for (int bits = 1; bits < kShare; bits *= 2) {
      const f32 other = m_.from_lane_xor(best, bits);
      if (other > best) best = other;
    }
    f32 sum = 0;
    UNROLL
    for (int i = 0; i < kEach; i++) {
      const u16 weight = half_bits(expf(score[i] - best));
      sum += half_value(weight);
      halves(at_.weights)[h * AttentionLayout::kWeightStride + first + i] = weight;
    }
    for (int bits = 1; bits < kShare; bits *= 2) sum += m_.from_lane_xor(sum, bits);
    m_.sync_warp();  // all that share the head have read its best
    if (first != 0) return;
    const f32 shrink = expf(before - best);
    floats(at_.shrink)[h] = shrink;
    floats(at_.sum)[h] = floats(at_.sum)[h] * shrink + sum;
    floats(at_.best)[h] = best;
  }

  // A warp has every eighth column of eight latents.
  HOST_DEVICE void add_latents() {
    UNROLL
    for (int t = 0; t < kTiles; t++) {
      const f32* shrink = floats(at_.shrink) + 16 * t + lane() / 4;
      UNROLL
      for (int n = 0; n < kColumns; n++) {
        sums_[t][n][0] *= shrink[0];
        sums_[t][n][1] *= shrink[0];
        sums_[t][n][2] *= shrink[8];
        sums_[t][n][3] *= shrink[8];
      }
    }
    for (int k = 0; k < kAttentionTile; k += 16) {
      u32 a[kTiles][4];
      UNROLL
      for (int t = 0; t < kTiles; t++)
        load_a(halves(at_.weights) + 16 * t * AttentionLayout::kWeightStride + k, AttentionLayout::kWeightStride, a[t]);
      UNROLL
      for (int n = 0; n < kColumns; n++) {
        const i64 col = 8 * (warp() + kAttentionWarps * n);
        if (col >= a_.latent) continue;
        u32 b[2];
        m_.load_rows(b, halves(at_.tile) + (k + lane() % 16) * at_.stride + col);
        UNROLL
        for (int t = 0; t < kTiles; t++) m_.multiply(sums_[t][n], a[t], b);
      }
    }
  }

  HOST_DEVICE void write(i64 part_index) const {
    UNROLL
    for (int t = 0; t < kTiles; t++)
      UNROLL
      for (int n = 0; n < kColumns; n++)
        UNROLL
        for (int i = 0; i < 4; i++) {
          const i64 head = first_head_ + 16 * t + lane() / 4 + i / 2 * 8;
          const i64 col = 8 * (warp() + kAttentionWarps * n) + lane() % 4 * 2 + i % 2;
          if (head < a_.heads && col < a_.latent)
            a_.partial[(part_index * a_.heads + head) * a_.latent + col] = sums_[t][n][i];
        }
    const i64 head = first_head_ + m_.thread();
    if (m_.thread() < kHeads && head < a_.heads) {
      a_.best[part_index * a_.heads + head] = floats(at_.best)[m_.thread()];
      a_.sum[part_index * a_.heads + head] = floats(at_.sum)[m_.thread()];
    }
  }

  const Machine& m_;
  const AttentionArgs& a_;
  const AttentionPart& part_;
  const i64 first_head_;
  const AttentionLayout at_;
  f32 sums_[kTiles][kColumns][4];
};

HOST_DEVICE i64 attention_groups(i64 heads, int tiles) { return (heads + 16 * tiles - 1) / (16 * tiles); }

// Blocks of kAttentionThreads with AttentionLayout(16 * kTiles, latent, rope).bytes.
template <int kTiles, class Machine>
HOST_DEVICE void latent_attention(const Machine& m, const AttentionArgs& a, const AttentionParts& parts) {
  const i64 groups = attention_groups(a.heads, kTiles);
  for (i64 i = m.block(); i < a.parts * groups; i += m.blocks()) {
    LatentAttention<kTiles, Machine> attention(m, a, parts.at[i / groups], i % groups * 16 * kTiles);
    attention.run(i / groups);
  }
}

struct MergeArgs {
  const f32* partial;  // of AttentionArgs
  const f32* best;
  const f32* sum;
  i64 parts, heads, latent;
  f32* out;  // [queries, heads, latent]
  void* out_quantized;  // the same in an 8-bit form, rows out_stride_bytes apart; or nullptr
  ActivationForm out_form;
  i64 out_stride_bytes;
};

// A block per head of a query; the query's parts lie side by side.
template <class Machine>
HOST_DEVICE void merge_attention(const Machine& m, const MergeArgs& a, const AttentionParts& parts) {
  for (i64 i = m.block(); i < a.parts * a.heads; i += m.blocks()) {
    const i64 first = i / a.heads, head = i % a.heads;
    const i32 query = parts.at[first].query;
    if (first > 0 && parts.at[first - 1].query == query) continue;  // the block of the first part does it
    i64 last = first;
    f32 largest = -INFINITY, total = 0;
    for (; last < a.parts && parts.at[last].query == query; last++) {
      const f32 best = a.best[last * a.heads + head];
      if (best > largest) largest = best;
    }
    for (i64 p = first; p < last; p++)
      total += expf(a.best[p * a.heads + head] - largest) * a.sum[p * a.heads + head];
    for (i64 c = m.thread(); c < a.latent; c += m.threads()) {
      f32 sum = 0;
      for (i64 p = first; p < last; p++)
        sum += expf(a.best[p * a.heads + head] - largest) * a.partial[(p * a.heads + head) * a.latent + c];
      a.out[(query * a.heads + head) * a.latent + c] = sum / total;
    }
    if (a.out_quantized == nullptr) continue;
    m.sync();
    const i64 row = query * a.heads + head;
    for (i64 chunk = m.thread() / kWarp; chunk < div_up(a.latent, 256); chunk += m.threads() / kWarp) {
      const i64 col = 256 * chunk + 8 * (m.thread() % kWarp);
      const bool mine = col < a.latent;
      f32 value[8];
      UNROLL
      for (int k = 0; k < 8; k++) value[k] = mine ? a.out[row * a.latent + col + k] : 0.0f;
      quantize_chunk(m, value, mine, col, a.latent, a.out_form == ActivationForm::Q8_256,
                     static_cast<std::byte*>(a.out_quantized) + row * a.out_stride_bytes);
    }
  }
}

}  // namespace stoker::cuda

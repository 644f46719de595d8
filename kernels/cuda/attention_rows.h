// What attention does with rows between its products, in one launch: a row's latent is normed, its key and the heads' queries
// are rotated, and latent and key go into the cache. Numbers are rounded as the twins do it.
#pragma once

#include "kernels/cuda/rows.h"

namespace stoker::cuda {

// Runs that travel with a launch.
constexpr i64 kLaunchRuns = 64;
struct AttentionRuns {
  AttentionRowsArgs::Run at[kLaunchRuns];
  i64 count;
};

// Heads of a row that a thread turns: it waits for the memory once for each, while an angle's sine and cosine in f64 are the
// slowest that a gaming card does, and would be most of a prompt's work with fewer.
constexpr i64 kRopeHeads = 8;

// Blocks' worth of work of a row: latent and key, then the queries.
HOST_DEVICE i64 attention_row_items(const AttentionRowsArgs& a) {
  return 1 + div_up(div_up(a.heads, kRopeHeads) * (a.rope / 2), kRowThreads);
}

// Turns a pair of some neighbouring heads.
HOST_DEVICE void rotate(f32* x, i64 heads, i64 head_stride, f64 angle) {
  const f32 c = static_cast<f32>(cos(angle)), s = static_cast<f32>(sin(angle));
  for (i64 h = 0; h < heads; h++) {
    f32* at = x + h * head_stride;
    const f32 first = at[0], second = at[1];
    at[0] = rounded_sum(rounded_product(first, c), -rounded_product(second, s));
    at[1] = rounded_sum(rounded_product(first, s), rounded_product(second, c));
  }
}

// Smallest f16 at or above x, which is not negative.
HOST_DEVICE u16 half_above(f32 x) {
  const u16 half = half_bits(x);
  return half_value(half) < x ? static_cast<u16>(half + 1) : half;
}

// A row to the cache, by a block: a warp takes 32 values, a lane one. `count`: for Q8_0 a multiple of 32.
template <class Machine>
HOST_DEVICE void store_row(const Machine& m, const f32* x, i64 count, CacheType type, void* out) {
  const int lane = m.thread() % kWarp;
  for (i64 b = m.thread() / kWarp; b < div_up(count, kWarp); b += kRowWarps) {
    const i64 i = kWarp * b + lane;
    const bool mine = i < count;
    const f32 value = mine ? x[i] : 0.0f;
    if (type == CacheType::Q8_0) {
      const u32 largest = largest_of(m, float_bits(value) & 0x7fffffffu, kWarp);
      const u16 half = half_above(float_of_bits(largest) / 127.0f);
      const f32 d = half_value(half);
      BlockQ8_0* block = static_cast<BlockQ8_0*>(out) + b;
      if (lane == 0) block->d = half;
      block->qs[lane] = d > 0 && finite(d) ? static_cast<i8>(nearest(value / d)) : i8{0};
    } else if (mine && type == CacheType::F16) {
      static_cast<u16*>(out)[i] = half_bits(value);
    } else if (mine) {
      static_cast<f32*>(out)[i] = value;
    }
  }
}

HOST_DEVICE f64 angle(const AttentionRowsArgs& a, i64 row, i64 pair) {
  return static_cast<f64>(a.positions[row]) * static_cast<f64>(a.frequencies[pair]);
}

template <class Machine>
HOST_DEVICE void keep_row(const Machine& m, const AttentionRowsArgs& a, const AttentionRuns& runs, i64 row) {
  const i64 cols = a.latent + a.rope;
  f32* kv = a.kv + row * cols;
  // The key is no part of the norm, so both are done between the same barriers.
  for (i64 pair = m.thread(); pair < a.rope / 2; pair += m.threads())
    rotate(kv + a.latent + 2 * pair, 1, 0, angle(a, row, pair));
  const f32 factor = norm_factor(m, kv, nullptr, a.latent, a.epsilon);
  for (i64 i = m.thread(); i < a.latent; i += m.threads())
    kv[i] = rounded_product(rounded_product(kv[i], factor), a.kv_weight[i]);
  m.sync();
  for (i64 i = 0; i < runs.count; i++) {
    const AttentionRowsArgs::Run& run = runs.at[i];
    if (row < run.first_row || row >= run.first_row + run.rows) continue;
    const i64 at = (row - run.first_row) * cache_bytes(a.cache_type, cols);
    store_row(m, kv, cols, a.cache_type, static_cast<std::byte*>(run.cache) + at);
  }
}

// Blocks of kRowThreads, any number of them; kRowWarps floats of shared memory.
template <class Machine>
HOST_DEVICE void attention_rows(const Machine& m, const AttentionRowsArgs& a, const AttentionRuns& runs) {
  const i64 items = attention_row_items(a), pairs = a.rope / 2, key = a.nope + a.rope;
  for (i64 i = m.block(); i < a.rows * items; i += m.blocks()) {
    const i64 row = i / items, part = i % items - 1;
    if (part < 0) {
      keep_row(m, a, runs, row);
      continue;
    }
    const i64 turn = part * kRowThreads + m.thread(), first = turn / pairs * kRopeHeads, pair = turn % pairs;
    if (first >= a.heads) continue;
    const i64 heads = a.heads - first < kRopeHeads ? a.heads - first : kRopeHeads;
    rotate(a.q + (row * a.heads + first) * key + a.nope + 2 * pair, heads, key, angle(a, row, pair));
  }
}

}  // namespace stoker::cuda

#include "runtime/layer_probe.h"

#include <algorithm>
#include <chrono>
#include <thread>
#include <vector>

#include "kernels/base/buffer.h"
#include "kernels/base/clock.h"
#include "kernels/base/own_thread.h"
#include "kernels/base/rng.h"
#include "kernels/device/stream.h"
#include "kernels/format/random_blocks.h"
#include "kernels/ops.h"
#include "runtime/activation_rows.h"

namespace stoker {

namespace {

constexpr size_t kLeastRuns = 3;
// Attention of V3, over a chat that is not short.
constexpr i64 kHeads = 128, kLatent = 512, kRope = 64, kPositions = 2048;
// One matrix of an expert after the other, out of memory.
constexpr i64 kCols = 2048, kRows = 2048, kMatrices = 16;
constexpr auto kSleep = std::chrono::milliseconds(3);  // an expert's read

f64 median(std::vector<f64> values) {
  std::nth_element(values.begin(), values.begin() + static_cast<i64>(values.size() / 2), values.end());
  return values[values.size() / 2];
}

std::vector<f32> normals(i64 count) {
  Rng rng(1);
  std::vector<f32> values(static_cast<size_t>(count));
  for (f32& v : values) v = static_cast<f32>(rng.normal());
  return values;
}

// body(stream) on a thread that may be pinned.
f64 measure(int threads, f64 (*body)(Stream&, f64), f64 seconds) {
  f64 result = 0;
  on_own_thread([&] {
    WorkerPool workers({.workers = threads});
    Stream stream(workers, best_isa_level());
    result = body(stream, seconds);
  });
  return result;
}

f64 attention(Stream& stream, f64 seconds) {
  constexpr i64 kRow = kLatent + kRope;
  int workers = stream.workers().size();
  Buffer cache(cache_bytes(CacheType::F16, kPositions * kRow), "measuring attention");
  Buffer scratch(latent_attention_scratch_bytes(workers, 1, kHeads, kLatent, kRope, kPositions), "measuring attention");
  std::vector<f32> rows = normals(kPositions * kRow), q = normals(kHeads * kRow), out(static_cast<size_t>(kHeads * kLatent));
  cpu_ops().store_latents(stream, {.x = rows.data(), .type = CacheType::F16, .out = cache.data(), .rows = kPositions, .cols = kRow});
  LatentAttentionArgs::Query query{cache.data(), kPositions};
  LatentAttentionArgs args{.cache_type = CacheType::F16,
                           .queries = {&query, 1},
                           .q_latent = q.data(),
                           .q_rope = q.data() + kHeads * kLatent,
                           .q_rope_token_stride = 0,
                           .q_rope_head_stride = kRope,
                           .out = out.data(),
                           .heads = kHeads,
                           .latent = kLatent,
                           .rope = kRope,
                           .scale = .05f,
                           .scratch = scratch.data(),
                           .scratch_bytes = scratch.bytes()};
  std::vector<f64> ns;
  for (i64 begin = steady_clock().now_ns(), now = begin; ns.size() < kLeastRuns || now - begin < static_cast<i64>(seconds * 1e9);) {
    i64 start = now;
    cpu_ops().latent_attention(stream, args);
    now = steady_clock().now_ns();
    ns.push_back(static_cast<f64>(std::max<i64>(1, now - start)));
  }
  return 2. * kHeads * kPositions * (kRow + kLatent) / median(ns);
}

f64 wake_us(Stream& stream, f64 seconds) {
  i64 row = row_bytes(BlockType::Q8_0, kCols);
  Buffer weights(kMatrices * kRows * row, "measuring how cores wake");
  Rng rng(1);
  fill_random_blocks(BlockType::Q8_0, weights.bytes() / info(BlockType::Q8_0).block_bytes, .02f, rng, weights.data());
  std::vector<f32> x = normals(kCols), y(static_cast<size_t>(kRows));
  ActivationRows input(cpu_ops(), kCols);
  input.set(x.data(), 1, kCols);
  i64 next = 0;
  auto product_us = [&] {
    const std::byte* matrix = weights.data() + next++ % kMatrices * kRows * row;
    i64 start = steady_clock().now_ns();
    input.multiply(stream, {matrix, BlockType::Q8_0, kRows, kCols}, /*exact=*/false, y.data(), kRows);
    return static_cast<f64>(steady_clock().now_ns() - start) * 1e-3;
  };
  std::vector<f64> awake, slept;
  for (i64 begin = steady_clock().now_ns(); slept.size() < kLeastRuns ||
       steady_clock().now_ns() - begin < static_cast<i64>(seconds * 1e9);) {
    std::this_thread::sleep_for(kSleep);
    slept.push_back(product_us());
    product_us();  // what sleeping did to the caches and the clock is past after it
    awake.push_back(product_us());
  }
  return std::max(0., median(slept) - median(awake));
}

}  // namespace

f64 measure_attention(const LayerProbe& probe) { return measure(probe.threads, attention, probe.seconds); }
f64 measure_wake_us(const LayerProbe& probe) { return measure(probe.threads, wake_us, probe.seconds); }

}  // namespace stoker

// Latent attention on an emulated card against sums in double.
#include <doctest/doctest.h>

#include <bit>
#include <cmath>

#include "kernels/cuda/activation_rows.h"
#include "kernels/cuda/latent_attention.h"
#include "kernels/format/f16.h"
#include "tests/kernels/cpu/op_inputs.h"
#include "tests/kernels/cuda/emulated_gpu.h"
#include "tests/support/canary.h"

using namespace stoker;
using namespace stoker::cuda;
using namespace stoker::test;

namespace {

struct Case {
  i64 heads, latent, rope;
  CacheType type;
  std::vector<i64> lengths;
};

struct Cache {
  std::vector<std::byte> bytes;
  std::vector<f32> values;
};

Cache make_cache(const Case& c, i64 length, Rng& rng) {
  const i64 row = c.latent + c.rope;
  WorkerPool pool({.workers = 1, .pin = false});
  Stream stream(pool, IsaLevel::ref);
  const std::vector<f32> x = normals(length * row, 1, rng);
  Cache cache{std::vector<std::byte>(static_cast<size_t>(cache_bytes(c.type, length * row))), x};
  cpu_ops().store_latents(stream, {x.data(), c.type, cache.bytes.data(), length, row});
  if (c.type == CacheType::F16)
    for (f32& v : cache.values) v = f16_to_f32(f32_to_f16(v));
  else
    cpu_ops().dequantize(stream, BlockType::Q8_0, cache.bytes.data(), cache.values.data(), length * row);
  return cache;
}

template <int kTiles>
std::vector<f32> run(const Case& c, const std::vector<Cache>& caches, const std::vector<f32>& q_latent,
                     const std::vector<f32>& q_rope, f32 scale, i64 blocks) {
  AttentionParts parts{};
  i64 count = 0;
  for (size_t q = 0; q < c.lengths.size(); q++) {
    const i64 size = attention_part_positions(c.lengths[q]);
    for (i64 begin = 0; begin < c.lengths[q]; begin += size)
      parts.at[count++] = {caches[q].bytes.data(), static_cast<i32>(q), static_cast<i32>(begin),
                           static_cast<i32>(std::min(c.lengths[q], begin + size))};
  }
  CanaryBuffer<f32> partial(count * c.heads * c.latent), best(count * c.heads), sum(count * c.heads);
  const i64 queries = static_cast<i64>(c.lengths.size());
  CanaryBuffer<f32> out(queries * c.heads * c.latent);
  for (CanaryBuffer<f32>* buffer : {&partial, &best, &sum, &out})
    for (i64 i = 0; i < buffer->count(); i++) buffer->expect_write(i);
  const AttentionArgs args{.cache_type = c.type, .parts = count, .q_latent = q_latent.data(), .q_rope = q_rope.data(),
                           .q_rope_query_stride = c.heads * (c.rope + 3), .q_rope_head_stride = c.rope + 3,
                           .heads = c.heads, .latent = c.latent, .rope = c.rope, .scale = scale,
                           .partial = partial.data(), .best = best.data(), .sum = sum.data()};
  emulate({blocks, kAttentionThreads, AttentionLayout(16 * kTiles, c.latent, c.rope).bytes},
          [&](const EmulatedThread& t) { cuda::latent_attention<kTiles>(t, args, parts); });
  const ActivationForm form = c.latent % 256 == 0 ? ActivationForm::Q8_256 : ActivationForm::Q8_32;
  const bool quantises = c.latent % 32 == 0;
  const i64 stride = quantises ? card_row_bytes(form, c.latent) : 0, rows = queries * c.heads;
  std::vector<std::byte> quantised(static_cast<size_t>(rows * stride)), want_quantised = quantised;
  const MergeArgs merge{.partial = partial.data(), .best = best.data(), .sum = sum.data(), .parts = count, .heads = c.heads,
                        .latent = c.latent, .out = out.data(), .out_quantized = quantises ? quantised.data() : nullptr,
                        .out_form = form, .out_stride_bytes = stride};
  emulate({3, kAttentionThreads, 0}, [&](const EmulatedThread& t) { merge_attention(t, merge, parts); });
  const QuantizeArgs again{out.data(), rows, c.latent, c.latent, form, want_quantised.data()};
  if (quantises)
    emulate({2, kRowThreads, 0}, [&](const EmulatedThread& t) { quantize_rows(t, again, stride); });
  CHECK(quantised == want_quantised);
  for (CanaryBuffer<f32>* buffer : {&partial, &best, &sum, &out})
    CHECK(buffer->first_damaged() == CanaryBuffer<f32>::kNone);
  return {out.data(), out.data() + out.count()};
}

// Largest error of a head's row as a share of its norm.
f64 worst_error(const Case& c, const std::vector<Cache>& caches, const std::vector<f32>& q_latent,
                const std::vector<f32>& q_rope, f32 scale, const std::vector<f32>& got) {
  const i64 row = c.latent + c.rope;
  f64 worst = 0;
  for (size_t q = 0; q < c.lengths.size(); q++)
    for (i64 h = 0; h < c.heads; h++) {
      const i64 head = static_cast<i64>(q) * c.heads + h;
      std::vector<f64> weights, want(static_cast<size_t>(c.latent));
      f64 best = -INFINITY, total = 0;
      for (i64 p = 0; p < c.lengths[q]; p++) {
        f64 score = 0;
        for (i64 i = 0; i < row; i++) {
          const f32 x = i < c.latent ? q_latent[static_cast<size_t>(head * c.latent + i)]
                                     : q_rope[static_cast<size_t>(head * (c.rope + 3) + i - c.latent)];
          score += static_cast<f64>(x) * static_cast<f64>(caches[q].values[static_cast<size_t>(p * row + i)]);
        }
        weights.push_back(score * static_cast<f64>(scale));
        best = std::max(best, weights.back());
      }
      for (f64& w : weights) total += w = std::exp(w - best);
      for (i64 p = 0; p < c.lengths[q]; p++)
        for (i64 i = 0; i < c.latent; i++)
          want[static_cast<size_t>(i)] +=
              weights[static_cast<size_t>(p)] / total * static_cast<f64>(caches[q].values[static_cast<size_t>(p * row + i)]);
      f64 error = 0, size = 0;
      for (i64 i = 0; i < c.latent; i++) {
        const f64 d = static_cast<f64>(got[static_cast<size_t>(head * c.latent + i)]) - want[static_cast<size_t>(i)];
        error += d * d;
        size += want[static_cast<size_t>(i)] * want[static_cast<size_t>(i)];
      }
      worst = std::max(worst, std::sqrt(error / size));
      if (std::isnan(error)) worst = INFINITY;
    }
  return worst;
}

}  // namespace

TEST_CASE("latent attention is right for heads, sizes, cache types and lengths that fill no tile") {
  const std::vector<Case> cases = {
      {3, 32, 16, CacheType::F16, {1}},
      {16, 64, 32, CacheType::F16, {31, 33}},
      {40, 72, 20, CacheType::F16, {70}},                // neither sum nor row a whole tile of columns
      {18, 64, 32, CacheType::Q8_0, {801, 5, 64}},       // several parts
      {5, 512, 64, CacheType::F16, {40}},
      {17, 512, 64, CacheType::Q8_0, {257}},
  };
  for (const Case& c : cases)
    for (bool large : {false, true}) {
      CAPTURE(c.heads);
      CAPTURE(c.latent);
      CAPTURE(large);
      Rng rng(9);
      std::vector<Cache> caches;
      for (i64 length : c.lengths) caches.push_back(make_cache(c, length, rng));
      const i64 rows = static_cast<i64>(c.lengths.size()) * c.heads;
      // Queries beyond f16's range, as DeepSeek's can be, with a scale that makes scores ordinary.
      const f32 size = large ? 1e6f : 1.0f, scale = 2.0f / std::sqrt(static_cast<f32>(c.latent + c.rope)) / size;
      const std::vector<f32> q_latent = normals(rows * c.latent, size, rng);
      const std::vector<f32> q_rope = normals(rows * (c.rope + 3), size, rng);
      const std::vector<f32> one = run<1>(c, caches, q_latent, q_rope, scale, 2);
      const std::vector<f32> two = run<2>(c, caches, q_latent, q_rope, scale, 3);
      // Halves are off by 2^-11 of a value: of a query as a score's share, of a weight, and of Q8_0's products.
      const f64 limit = 6 * 0x1p-11;
      CHECK(worst_error(c, caches, q_latent, q_rope, scale, one) < limit);
      CHECK(worst_error(c, caches, q_latent, q_rope, scale, two) < limit);
      // The grid does not show.
      const std::vector<f32> again = run<2>(c, caches, q_latent, q_rope, scale, 1);
      CHECK(again == two);
    }
}

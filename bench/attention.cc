// bench/attention: speed of the two forms of attention, and what bounds it.
//
// Decode is one token over a long latent cache (absorbed form), prefill a chunk of a prompt after some
// context (decompressed form), one layer each; k_b and v_b are the products of a decoded token with these, from cache or memory
// as the machine's caches have it. Flops are the multiplications and additions that the form's
// definition asks for; GB/s are of the cache, which is read once. Both are set against this machine's peaks,
// measured in the same run; the resource whose share is larger is the one that binds. Rates are of the median; "% best" is
// the fastest run's share of the FMA peak, which was the best of many runs too: where neighbours are busy, these two compare.
#include <CLI/CLI.hpp>
#include <algorithm>
#include <string>
#include <vector>

#include "bench/fma_peak.h"
#include "kernels/base/buffer.h"
#include "kernels/base/clock.h"
#include "kernels/base/error.h"
#include "kernels/base/rng.h"
#include "kernels/format/random_blocks.h"
#include "kernels/ops.h"
#include "scheduler/memory_probe.h"

using namespace stoker;

namespace {

struct Options {
  i64 heads = 128, latent = 512, nope = 128, rope = 64, v = 128;
  std::vector<i64> lengths = {4096, 32768, 131072};
  std::vector<std::string> caches = {"f16", "q8_0"};
  i64 prompt = 512;
  std::vector<i64> depths = {0, 4096};
  std::string weights = "Q8_0", isa;
  int threads = 0;
  i64 repeats = 7;
  u64 roof_bytes = static_cast<u64>(MemoryProbe{}.bytes);
};

struct Peaks {
  f64 gflops, gb_per_second;
};

CacheType cache_type(const std::string& name) {
  return name == "f32" ? CacheType::F32 : name == "q8_0" ? CacheType::Q8_0 : CacheType::F16;
}

void fill_normals(std::span<f32> x, f32 deviation, u64 seed) {
  Rng rng(seed);
  for (f32& value : x) value = deviation * static_cast<f32>(rng.normal());
}

// A latent cache of random rows: some are made and repeated.
Buffer make_cache(Stream& stream, CacheType type, i64 length, i64 row) {
  constexpr i64 kRows = 64;
  std::vector<f32> rows(static_cast<size_t>(kRows * row));
  fill_normals(rows, 1.0f, 1);
  Buffer cache(cache_bytes(type, round_up(length, kRows) * row), "the benchmark's cache");
  for (i64 first = 0; first < length; first += kRows)
    cpu_ops().store_latents(stream, {.x = rows.data(),
                                     .type = type,
                                     .out = cache.data() + cache_bytes(type, first * row),
                                     .rows = kRows,
                                     .cols = row});
  return cache;
}

struct Timing {
  f64 median_ns, best_ns;
};

// After two runs that warm up (workers touch their scratch for the first time).
template <class Body>
Timing time_runs(i64 repeats, Body body) {
  std::vector<f64> ns;
  for (i64 i = -2; i < repeats; i++) {
    i64 start = steady_clock().now_ns();
    body();
    if (i >= 0) ns.push_back(static_cast<f64>(steady_clock().now_ns() - start));
  }
  std::sort(ns.begin(), ns.end());
  return {ns[ns.size() / 2], ns.front()};
}

void print_heading() {
  fmt::print("{:8} {:>5} {:>7} {:>7} {:>10} {:>10} {:>9} {:>7} {:>7} {:>7} {:>8}  binds\n", "form", "cache", "tokens",
             "depth", "ms", "best ms", "GFLOP/s", "% FMA", "% best", "GB/s", "% memory");
}

void print_line(std::string_view form, std::string_view cache, i64 tokens, i64 depth, const Timing& time,
                f64 flops, f64 bytes, const Peaks& peaks) {
  const f64 ns = time.median_ns;
  f64 of_fma = flops / ns / peaks.gflops, of_memory = bytes / ns / peaks.gb_per_second;
  fmt::print("{:8} {:>5} {:7} {:7} {:10.3f} {:10.3f} {:9.1f} {:7.1f} {:7.1f} {:7.2f} {:8.1f}  {}\n", form, cache, tokens,
             depth, ns / 1e6, time.best_ns / 1e6, flops / ns, 100 * of_fma, 100 * flops / time.best_ns / peaks.gflops,
             bytes / ns, 100 * of_memory, of_fma > of_memory ? "FMA" : "memory");
}

void bench_decode(Stream& stream, const Options& o, const std::string& cache_name, i64 length,
                  const Peaks& peaks) {
  CacheType type = cache_type(cache_name);
  Buffer cache = make_cache(stream, type, length, o.latent + o.rope);
  std::vector<f32> q_latent(static_cast<size_t>(o.heads * o.latent)),
      q_rope(static_cast<size_t>(o.heads * o.rope));
  fill_normals(q_latent, 0.3f, 2);
  fill_normals(q_rope, 0.3f, 3);
  std::vector<f32> out(q_latent.size());
  Buffer scratch(
      latent_attention_scratch_bytes(stream.workers().size(), 1, o.heads, o.latent, o.rope, length),
      "scratch");
  LatentAttentionArgs::Query query{cache.data(), length};
  Timing time = time_runs(o.repeats, [&] {
    cpu_ops().latent_attention(stream, {.cache_type = type,
                                        .queries = std::span(&query, 1),
                                        .q_latent = q_latent.data(),
                                        .q_rope = q_rope.data(),
                                        .q_rope_token_stride = o.heads * o.rope,
                                        .q_rope_head_stride = o.rope,
                                        .out = out.data(),
                                        .heads = o.heads,
                                        .latent = o.latent,
                                        .rope = o.rope,
                                        .scale = 0.1f,
                                        .scratch = scratch.data(),
                                        .scratch_bytes = scratch.bytes()});
  });
  f64 flops = 2.0 * static_cast<f64>(length * o.heads * (2 * o.latent + o.rope));
  f64 bytes = static_cast<f64>(cache_bytes(type, length * (o.latent + o.rope)));
  print_line("decode", cache_name, 1, length, time, flops, bytes, peaks);
}

// The format of k_b; where its rows are no whole blocks, what k_b is derived as.
BlockType k_type(const Options& o) {
  const BlockTypeInfo& type = *find_block_type(o.weights);
  return o.nope % type.block_weights == 0 ? type.type : BlockType::F16;
}

// The products of one token with k_b and v_b: they apply to query and result in the absorbed form.
void bench_heads(Stream& stream, const Options& o, bool is_k, const Peaks& peaks) {
  BlockType type = is_k ? k_type(o) : find_block_type(o.weights)->type;
  i64 rows = is_k ? o.latent : o.v, cols = is_k ? o.nope : o.latent;
  i64 head_bytes = rows * row_bytes(type, cols);
  Buffer weights(o.heads * head_bytes, "weights");
  Rng rng(6);
  fill_random_blocks(type, o.heads * rows * cols / info(type).block_weights, 0.05f, rng, weights.data());
  std::vector<f32> x(static_cast<size_t>(o.heads * cols)), y(static_cast<size_t>(o.heads * rows));
  fill_normals(x, 0.3f, 7);
  Timing time = time_runs(o.repeats, [&] {
    cpu_ops().head_matmul(stream, {.weights = {.data = weights.data(), .type = type, .rows = rows, .cols = cols},
                                   .head_stride_bytes = head_bytes,
                                   .heads = o.heads,
                                   .x = {x.data(), ActivationForm::F32, cols * i64{sizeof(f32)}},
                                   .tokens = 1,
                                   .y = y.data(),
                                   .y_token_stride = o.heads * rows,
                                   .y_head_stride = rows});
  });
  print_line(is_k ? "k_b" : "v_b", info(type).name, 1, 0, time, 2.0 * static_cast<f64>(o.heads * rows * cols),
             static_cast<f64>(o.heads * head_bytes), peaks);
}

void bench_prefill(Stream& stream, const Options& o, const std::string& cache_name, i64 depth,
                   const Peaks& peaks) {
  CacheType type = cache_type(cache_name);
  i64 length = depth + o.prompt;
  Buffer cache = make_cache(stream, type, length, o.latent + o.rope);
  BlockType k = k_type(o), v = find_block_type(o.weights)->type;
  Rng rng(4);
  i64 k_bytes = o.latent * row_bytes(k, o.nope), v_bytes = o.v * row_bytes(v, o.latent);
  Buffer k_b(o.heads * k_bytes, "k_b"), v_b(o.heads * v_bytes, "v_b");
  fill_random_blocks(k, o.heads * o.latent * o.nope / info(k).block_weights, 0.05f, rng, k_b.data());
  fill_random_blocks(v, o.heads * o.latent * o.v / info(v).block_weights, 0.05f, rng, v_b.data());
  std::vector<f32> q(static_cast<size_t>(o.prompt * o.heads * (o.nope + o.rope)));
  fill_normals(q, 0.3f, 5);
  std::vector<f32> out(static_cast<size_t>(o.prompt * o.heads * o.v));
  Buffer scratch(
      prompt_attention_scratch_bytes(stream.workers().size(), o.prompt, o.nope, o.rope, o.latent, o.v),
      "scratch");
  Timing time = time_runs(std::min<i64>(o.repeats, 3), [&] {
    cpu_ops().prompt_attention(
        stream, {.q = q.data(),
                 .cache = cache.data(),
                 .cache_type = type,
                 .first = depth,
                 .tokens = o.prompt,
                 .k_b = {.data = k_b.data(), .type = k, .rows = o.latent, .cols = o.nope},
                 .k_b_head_stride_bytes = k_bytes,
                 .v_b = {.data = v_b.data(), .type = v, .rows = o.v, .cols = o.latent},
                 .v_b_head_stride_bytes = v_bytes,
                 .out = out.data(),
                 .heads = o.heads,
                 .nope = o.nope,
                 .rope = o.rope,
                 .latent = o.latent,
                 .v = o.v,
                 .scale = 0.1f,
                 .scratch = scratch.data(),
                 .scratch_bytes = scratch.bytes()});
  });
  f64 pairs = static_cast<f64>(o.prompt * depth) + static_cast<f64>(o.prompt * (o.prompt + 1)) / 2;
  f64 rebuilding = static_cast<f64>(length * o.latent * (o.nope + o.v));
  f64 flops = 2 * static_cast<f64>(o.heads) * (rebuilding + pairs * static_cast<f64>(o.nope + o.rope + o.v));
  print_line("prefill", cache_name, o.prompt, depth, time, flops,
             static_cast<f64>(cache_bytes(type, length * (o.latent + o.rope))), peaks);
}

void run(const Options& o) {
  IsaLevel level = best_isa_level();
  for (IsaLevel l : {IsaLevel::ref, IsaLevel::avx2, IsaLevel::avx512})
    if (name(l) == o.isa) level = l;
  // Before the pool, which pins this thread.
  Peaks peaks{.gflops = 0,
              .gb_per_second = measure_memory({.bytes = static_cast<i64>(o.roof_bytes), .threads = o.threads})
                                   .best()
                                   .gb_per_second};
  WorkerPool workers({.workers = o.threads, .pin = true});
  Stream stream(workers, level);
  peaks.gflops = fma_peak_gflops(stream);
  fmt::print("{} threads, level {}: FMA peak {:.1f} GFLOP/s, memory {:.1f} GB/s\n", workers.size(), name(level),
             peaks.gflops, peaks.gb_per_second);
  print_heading();
  for (bool is_k : {true, false}) bench_heads(stream, o, is_k, peaks);
  for (const std::string& cache : o.caches)
    for (i64 length : o.lengths) bench_decode(stream, o, cache, length, peaks);
  for (const std::string& cache : o.caches)
    for (i64 depth : o.depths) bench_prefill(stream, o, cache, depth, peaks);
}

}  // namespace

int main(int argc, char** argv) {
  CLI::App app{"Measures attention of one layer: decode over a latent cache, prefill of a prompt chunk."};
  Options o;
  app.add_option("--heads", o.heads, "query heads")->capture_default_str();
  app.add_option("--latent", o.latent, "latent values of a cached position")->capture_default_str();
  app.add_option("--rope", o.rope, "rotated values of a cached position")->capture_default_str();
  app.add_option("--nope", o.nope, "values of a head's key that are not rotated")->capture_default_str();
  app.add_option("--v", o.v, "values of a head's value")->capture_default_str();
  app.add_option("--lengths", o.lengths, "positions that decode attends to, such as 4096,32768")
      ->delimiter(',');
  app.add_option("--cache", o.caches, "types of the cache, such as f16,q8_0,f32")
      ->delimiter(',')
      ->check(CLI::IsMember({"f16", "f32", "q8_0"}));
  app.add_option("--prompt", o.prompt, "tokens of a prompt chunk")->capture_default_str();
  app.add_option("--depths", o.depths, "positions before the chunk, such as 0,4096")->delimiter(',');
  app.add_option("--weights", o.weights, "block format of k_b and v_b")->capture_default_str();
  app.add_option("--isa", o.isa, "level to use (default: the best)")
      ->check(CLI::IsMember({"ref", "avx2", "avx512"}));
  app.add_option("--threads", o.threads, "0: one per physical core")->capture_default_str();
  app.add_option("--repeats", o.repeats, "measurements; the median and the best are printed")->capture_default_str();
  app.add_option("--roof-bytes", o.roof_bytes, "memory read to find its roof; far more than the caches hold")
      ->transform(CLI::AsSizeValue(false));
  CLI11_PARSE(app, argc, argv);
  try {
    if (find_block_type(o.weights) == nullptr) fail("--weights {}: no such block format", o.weights);
    run(o);
  } catch (const Error& e) {
    fmt::print(stderr, "bench/attention: {}\n", e.what());
    return 1;
  }
}

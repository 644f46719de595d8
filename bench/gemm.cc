// bench/gemm: speed of the products of a prompt, per block format, against what the cores' FMA units give.
//
// Dense: the `matmul` op, --tokens rows of activations times a matrix of --rows x --cols. With --experts N the
// `expert_ffn` op instead: N experts of --rows inner values, each with its own number of tokens, --tokens on average
// (half of it for the first, up to one and a half times for the last). GFLOP/s count a multiplication and an addition
// per weight and token. The peak is measured: independent chains of 256-bit FMAs on every core, at every level the
// same, so that levels can be compared; integer kernels may be above it.

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cstdio>
#include <cstring>
#include <string>
#include <vector>

#include "bench/fma_peak.h"
#include "kernels/base/buffer.h"
#include "kernels/base/clock.h"
#include "kernels/base/error.h"
#include "kernels/cpu/cpu_ops.h"
#include "tests/kernels/cpu/matmul_cases.h"

using namespace stoker;

namespace {

struct Options {
  std::string format;  // empty: all
  i64 tokens = 256, rows = 1024, cols = 7168, experts = 0, repeats = 5;
  int threads = 0;
  std::string isa;
};

struct Timing {
  f64 median_ns, best_ns, worst_ns;
};

template <class F>
Timing time_runs(i64 repeats, F run) {
  std::vector<f64> ns;
  for (i64 repeat = 0; repeat <= repeats; repeat++) {
    i64 start = steady_clock().now_ns();
    run();
    if (repeat > 0) ns.push_back(static_cast<f64>(steady_clock().now_ns() - start));  // the first one warms up
  }
  std::sort(ns.begin(), ns.end());
  return {ns[ns.size() / 2], ns.front(), ns.back()};
}

u64 hash_of(const std::vector<f32>& y) {
  u64 hash = 14695981039346656037u;  // FNV-1a over the bits
  for (f32 value : y) {
    u32 bits;
    std::memcpy(&bits, &value, sizeof bits);
    hash = (hash ^ bits) * 1099511628211u;
  }
  return hash;
}

// A matrix of a few random rows, repeated, in huge pages as the product has them.
struct Weights {
  Buffer bytes;
  Matrix matrix;

  Weights(BlockType type, i64 rows, i64 cols, u64 seed)
      : bytes(rows * row_bytes(type, cols), "benchmark weights"),
        matrix{.data = bytes.data(), .type = type, .rows = rows, .cols = cols} {
    const i64 few = std::min<i64>(rows, 32), stride = row_bytes(type, cols);
    bool exact = weight_input(type, false) == ActivationForm::F32;
    test::MatmulData data({type, exact, few, cols, 1, test::Fill::random, false}, seed);
    for (i64 row = 0; row < rows; row++)
      std::memcpy(bytes.data() + row * stride, data.tile().w + row % few * stride, static_cast<size_t>(stride));
  }
};

// Small values: an expert's inner values pass through silu and the quantiser.
struct Rows {
  std::vector<f32> floats;
  std::vector<std::byte> quantised;

  Rows(ActivationForm form, i64 rows, i64 cols) : floats(static_cast<size_t>(rows * cols)) {
    for (size_t i = 0; i < floats.size(); i++) floats[i] = static_cast<f32>(i * 2654435761u % 2001) / 1e6f - 1e-3f;
    if (form == ActivationForm::F32) return;
    quantised.resize(static_cast<size_t>(rows * activation_row_bytes(form, cols)));
    const LeafTable& leaves = leaf_table(best_isa_level());
    if (form == ActivationForm::Q8_32)
      leaves.quantize_q8_32(floats.data(), reinterpret_cast<ActQ8_32*>(quantised.data()), rows * cols);
    else
      leaves.quantize_q8_256(floats.data(), reinterpret_cast<ActQ8_256*>(quantised.data()), rows * cols);
  }

  const void* in(ActivationForm form) const {
    return form == ActivationForm::F32 ? static_cast<const void*>(floats.data()) : quantised.data();
  }
};

struct Measured {
  Timing timing;
  f64 flop;
  u64 hash;
};

Measured measure_dense(BlockType type, const Options& o, Stream& stream) {
  Weights weights(type, o.rows, o.cols, 1);
  ActivationForm form = weight_input(type, false);
  Rows x(form, o.tokens, o.cols);
  std::vector<f32> y(static_cast<size_t>(o.tokens * o.rows));
  Timing timing = time_runs(o.repeats, [&] {
    cpu::matmul(stream, {.weights = weights.matrix,
                         .x = {.x = x.in(form), .form = form, .stride_bytes = activation_row_bytes(form, o.cols)},
                         .tokens = o.tokens,
                         .y = y.data(),
                         .y_stride = o.rows});
  });
  return {timing, 2.0 * static_cast<f64>(o.rows) * static_cast<f64>(o.cols) * static_cast<f64>(o.tokens), hash_of(y)};
}

Measured measure_experts(BlockType type, const Options& o, Stream& stream) {
  Weights up(type, o.rows, o.cols, 1), down(type, o.cols, o.rows, 2);
  ActivationForm form = weight_input(type, false);
  Rows x(form, o.tokens, o.cols);
  std::vector<i32> in, out;
  std::vector<ExpertWork> work;
  i64 total = 0;
  for (i64 e = 0; e < o.experts; e++) {
    i64 tokens = std::max<i64>(1, o.tokens / 2 + o.tokens * e / std::max<i64>(1, o.experts - 1));
    work.push_back({.gate = up.matrix,
                    .up = up.matrix,
                    .down = down.matrix,
                    .rows = nullptr,
                    .out_rows = nullptr,
                    .tokens = tokens});
    for (i64 t = 0; t < tokens; t++) {
      in.push_back(static_cast<i32>(t % o.tokens));
      out.push_back(static_cast<i32>(total++));
    }
  }
  i64 first = 0;
  for (ExpertWork& w : work) w.rows = in.data() + first, w.out_rows = out.data() + first, first += w.tokens;
  std::vector<f32> y(static_cast<size_t>(total * o.cols));
  Buffer scratch(expert_scratch_bytes(total, o.rows), "benchmark scratch");
  Timing timing = time_runs(o.repeats, [&] {
    cpu::expert_ffn(stream, {.work = work,
                             .x = x.floats.data(),
                             .x_q8_32 = x.in(form),
                             .x_q8_256 = x.in(form),
                             .hidden = o.cols,
                             .ffn = o.rows,
                             .out = y.data(),
                             .scratch = scratch.data(),
                             .scratch_bytes = scratch.bytes(),
                             .exact = false});
  });
  return {timing, 6.0 * static_cast<f64>(o.rows) * static_cast<f64>(o.cols) * static_cast<f64>(total), hash_of(y)};
}

void run(const Options& o) {
  IsaLevel level = o.isa.empty()    ? best_isa_level()
                   : o.isa == "ref"  ? IsaLevel::ref
                   : o.isa == "avx2" ? IsaLevel::avx2
                                     : IsaLevel::avx512;
  WorkerPool workers({.workers = o.threads, .pin = true});
  Stream stream(workers, level);
  // The peak of AVX2 whatever the level, so that levels compare.
  Stream avx2(workers, std::min(level, IsaLevel::avx2));
  const f64 peak = fma_peak_gflops(avx2);
  fmt::print("{} threads, level {}, {}, {} tokens, {} x {} weights, FMA peak {:.1f} GFLOP/s, median of {}\n",
             workers.size(), name(level), o.experts > 0 ? fmt::format("{} experts", o.experts) : "dense", o.tokens,
             o.rows, o.cols, peak, o.repeats);
  fmt::print("{:8} {:>9} {:>9} {:>6} {:>9} {:>7}  {}\n", "format", "ms",
             "best ms", "+- %", "GFLOP/s", "% peak", "hash");
  for (const BlockTypeInfo& type : all_block_types()) {
    if (!o.format.empty() && type.name != o.format) continue;
    Measured m = o.experts > 0 ? measure_experts(type.type, o, stream) : measure_dense(type.type, o, stream);
    const Timing& t = m.timing;
    fmt::print("{:8} {:9.2f} {:9.2f} {:6.1f} {:9.1f} {:7.1f}  {:016x}\n", type.name, t.median_ns / 1e6,
               t.best_ns / 1e6, 50 * (t.worst_ns - t.best_ns) / t.median_ns, m.flop / t.median_ns,
               100 * m.flop / t.median_ns / peak, m.hash);
    std::fflush(stdout);
  }
}

}  // namespace

int main(int argc, char** argv) {
  CLI::App app{"Times the matrix products of a prompt, dense or expert by expert, and prints GFLOP/s."};
  Options o;
  app.add_option("--format", o.format, "one block format, such as Q4_K (default: all)")
      ->check([](const std::string& s) { return find_block_type(s) != nullptr ? "" : "no such block format: " + s; });
  app.add_option("--tokens", o.tokens, "rows of activations (per expert, on average)")
      ->check(CLI::PositiveNumber)->capture_default_str();
  app.add_option("--rows", o.rows, "rows of the matrix; an expert's inner values")
      ->check(CLI::PositiveNumber)->capture_default_str();
  app.add_option("--cols", o.cols, "columns; an expert's hidden values")
      ->check(CLI::PositiveNumber)->capture_default_str();
  app.add_option("--experts", o.experts, "experts of one expert_ffn; 0: a dense product")
      ->check(CLI::NonNegativeNumber)->capture_default_str();
  app.add_option("--threads", o.threads, "0: one per core")->capture_default_str();
  app.add_option("--repeats", o.repeats, "measurements")->check(CLI::PositiveNumber)->capture_default_str();
  app.add_option("--isa", o.isa, "instruction level (default: the best there is)")
      ->check(CLI::IsMember({"ref", "avx2", "avx512"}));
  CLI11_PARSE(app, argc, argv);
  try {
    if (!o.format.empty()) o.format = find_block_type(o.format)->name;
    for (const BlockTypeInfo& type : all_block_types()) {
      if (!o.format.empty() && type.name != o.format) continue;
      if (o.cols % type.block_weights != 0 || (o.experts > 0 && o.rows % type.block_weights != 0))
        fail("{} has blocks of {} weights: --cols (and --rows of experts) must be multiples", type.name,
             type.block_weights);
    }
    run(o);
  } catch (const Error& e) {
    fmt::print(stderr, "gemm: {}\n", e.what());
    return 1;
  }
  return 0;
}

// Speed of the matrix products, per format and shape: GB/s of weights read, that as a share of what memory gives, and
// weights per clock cycle and core.
//
// The weights are as many matrices of a DeepSeek-V3 expert's shape (2048 rows of 7168, 7168 rows of 2048) as fill --mib,
// multiplied in one region, as a layer's experts are. With one token they come from memory once (choose --mib well
// above the last-level cache), and the roof is what the best plain read loop gets over as many bytes in the same run.
// With many tokens (--tokens 512 --mib 64) arithmetic decides: weights per cycle are then per (token, weight). Cycles
// are those of a chain of dependent additions, one per cycle, timed at the start.
#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cstring>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "kernels/base/buffer.h"
#include "kernels/base/clock.h"
#include "kernels/base/error.h"
#include "scheduler/memory_probe.h"
#include "tests/kernels/cpu/matmul_cases.h"

using namespace stoker;

namespace {

constexpr i64 kMatrixWeights = 2048 * 7168;

struct Options {
  std::vector<std::string> formats;  // empty: all
  std::vector<i64> cols = {7168, 2048};
  std::vector<i64> tokens = {1};
  i64 mib = 512, threads = 0, repeats = 5;
  IsaLevel level = best_isa_level();
  bool floats = false, no_roof = false, json = false;
};

// Clock rate of this core while it works, in GHz: the best of several short runs, because others may use the
// core too.
f64 cycles_per_ns() {
  constexpr i64 kSteps = 2'000'000;
  f64 best = 0;
  u64 step = 3;
  asm volatile("" : "+r"(step));  // a register: some cores add small constants for nothing while they rename
  for (int run = 0; run < 20; run++) {
    u64 value = 1;
    i64 start = steady_clock().now_ns();
    for (i64 i = 0; i < kSteps; i += 8)
#pragma GCC unroll 8
      for (int k = 0; k < 8; k++) {
        value += step;
        asm volatile("" : "+r"(value));  // keeps the chain
      }
    best = std::max(best, static_cast<f64>(kSteps) / static_cast<f64>(steady_clock().now_ns() - start));
  }
  return best;
}

struct Timing {
  f64 median_ns, best_ns, worst_ns;
  u64 hash;
};

u64 hash_of(const std::vector<f32>& y) {
  u64 hash = 14695981039346656037u;  // FNV-1a over the bits
  for (f32 value : y) {
    u32 bits;
    std::memcpy(&bits, &value, sizeof bits);
    hash = (hash ^ bits) * 1099511628211u;
  }
  return hash;
}

// One worker's rows, matrix by matrix: the matrices lie back to back.
void multiply(MatmulLeaf leaf, MatmulTile tile, const std::byte* weights, i64 begin, i64 end, i64 matrix_rows, f32* y) {
  while (begin < end) {
    i64 border = std::min(end, (begin / matrix_rows + 1) * matrix_rows);
    tile.w = weights + begin * tile.w_row_bytes;
    tile.rows = border - begin;
    tile.y = y + begin;
    leaf(tile);
    begin = border;
  }
}

// Few rows are made and repeated, in huge pages as the product has them.
Timing measure(const test::MatmulCase& c, const Options& options, WorkerPool& workers) {
  test::MatmulCase few = c;
  few.rows = std::min<i64>(c.rows, 32);
  test::MatmulData data(few, 1);
  MatmulTile tile = data.tile();
  Buffer weights(c.rows * tile.w_row_bytes, "benchmark weights");
  workers.for_ranges(c.rows, 4, [&](i64 begin, i64 end) {
    for (i64 row = begin; row < end; row++)
      std::memcpy(weights.data() + row * tile.w_row_bytes, tile.w + row % few.rows * tile.w_row_bytes,
                  static_cast<size_t>(tile.w_row_bytes));
  });
  std::vector<f32> y(static_cast<size_t>(c.rows * c.tokens));
  tile.y_stride = c.rows;
  const LeafTable& table = leaf_table(options.level);
  MatmulLeaf leaf = (c.exact ? table.matmul_f32 : table.matmul_q8)[static_cast<i64>(c.type)];

  std::vector<f64> ns;
  for (i64 repeat = 0; repeat <= options.repeats; repeat++) {
    i64 start = steady_clock().now_ns();
    workers.for_ranges(c.rows, 4, [&](i64 begin, i64 end) {
      multiply(leaf, tile, weights.data(), begin, end, kMatrixWeights / c.cols, y.data());
    });
    if (repeat > 0) ns.push_back(static_cast<f64>(steady_clock().now_ns() - start));  // the first one warms up
  }
  std::sort(ns.begin(), ns.end());
  return {ns[ns.size() / 2], ns.front(), ns.back(), hash_of(y)};
}

struct Result {
  test::MatmulCase c;
  Timing t;
  f64 bytes, gb_per_second_best, weights_per_cycle, percent_of_roof;  // the last is 0 without a roof
};

void print_header(const Options& options, const WorkerPool& workers, f64 ghz, const MemoryMeasure::Loop* roof) {
  fmt::print("{} threads at {:.2f} GHz, level {}, {} MiB of weights, median of {}", workers.size(), ghz,
             name(options.level), options.mib, options.repeats);
  if (roof != nullptr) fmt::print(", roof {:.2f} GB/s ({})", roof->gb_per_second, roof->name);
  fmt::print("\n{:8} {:>9} {:>6} {:>8} {:>8} {:>6} {:>7} {:>9} {:>9} {:>13}  {}\n", "format", "shape", "tokens", "ms",
             "best ms", "+- %", "GB/s", "best GB/s", "% of roof", "weights/cycle", "hash");
}

void print_row(const Result& r) {
  const Timing& t = r.t;
  fmt::print("{:8} {:>9} {:6} {:8.2f} {:8.2f} {:6.1f} {:7.2f} {:9.2f} {:>9} {:13.2f}  {:016x}\n", info(r.c.type).name,
             fmt::format("{}x{}", kMatrixWeights / r.c.cols, r.c.cols), r.c.tokens, t.median_ns / 1e6, t.best_ns / 1e6,
             50 * (t.worst_ns - t.best_ns) / t.median_ns, r.bytes / t.median_ns, r.gb_per_second_best,
             r.percent_of_roof > 0 ? fmt::format("{:.1f}", r.percent_of_roof) : "-", r.weights_per_cycle, t.hash);
  std::fflush(stdout);
}

void print_json(const Options& options, const WorkerPool& workers, f64 ghz, const MemoryMeasure::Loop* roof,
                const std::vector<Result>& results) {
  nlohmann::json rows = nlohmann::json::array();
  for (const Result& r : results)
    rows.push_back({{"format", info(r.c.type).name},
                    {"rows", kMatrixWeights / r.c.cols},
                    {"cols", r.c.cols},
                    {"tokens", r.c.tokens},
                    {"median_ns", r.t.median_ns},
                    {"best_ns", r.t.best_ns},
                    {"worst_ns", r.t.worst_ns},
                    {"gb_per_second", r.bytes / r.t.median_ns},
                    {"gb_per_second_best", r.gb_per_second_best},
                    {"weights_per_cycle", r.weights_per_cycle},
                    {"hash", fmt::format("{:016x}", r.t.hash)}});
  nlohmann::json all = {{"threads", workers.size()}, {"ghz", ghz}, {"level", name(options.level)},
                        {"mib", options.mib},        {"results", rows}};
  if (roof != nullptr) {
    all["roof_gb_per_second"] = roof->gb_per_second;
    all["roof_loop"] = roof->name;
  }
  fmt::print("{}\n", all.dump(2));
}

void run(const Options& options) {
  WorkerPool workers({.workers = static_cast<int>(options.threads), .pin = true});
  const f64 ghz = cycles_per_ns();
  MemoryMeasure measured;
  if (!options.no_roof)
    measured = measure_memory({.bytes = options.mib * kMiB, .threads = static_cast<int>(options.threads)});
  const MemoryMeasure::Loop* roof = options.no_roof ? nullptr : &measured.best();
  if (!options.json) print_header(options, workers, ghz, roof);
  std::vector<Result> results;
  for (i64 tokens : options.tokens)
    for (i64 cols : options.cols)
      for (const test::MatmulCase& c : test::matmul_bench_cases(options.mib * kMiB, cols, tokens, options.floats)) {
        auto wanted = [&](const std::string& format) { return format == info(c.type).name; };
        if (!options.formats.empty() && std::none_of(options.formats.begin(), options.formats.end(), wanted)) continue;
        Timing t = measure(c, options, workers);
        f64 bytes = static_cast<f64>(c.rows * row_bytes(c.type, c.cols));
        f64 products = static_cast<f64>(c.rows) * static_cast<f64>(c.cols) * static_cast<f64>(c.tokens);
        f64 share = roof == nullptr ? 0 : 100 * bytes / t.best_ns / roof->gb_per_second;
        results.push_back({c, t, bytes, bytes / t.best_ns, products / (t.best_ns * ghz * workers.size()), share});
        if (!options.json) print_row(results.back());
      }
  if (options.json) print_json(options, workers, ghz, roof, results);
}

}  // namespace

int main(int argc, char** argv) {
  CLI::App app{"Times the matrix products of each block format."};
  Options options;
  std::string isa = std::string(name(options.level));
  app.add_option("--format", options.formats, "block formats, such as Q4_K,IQ1_S; all by default")->delimiter(',');
  app.add_option("--cols", options.cols, "columns of the matrices, multiples of 256 that divide 2048 x 7168")
      ->delimiter(',')
      ->capture_default_str();
  app.add_option("--tokens", options.tokens, "activation rows, such as 1,4")
      ->delimiter(',')
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  app.add_option("--mib", options.mib, "weights per format")->check(CLI::PositiveNumber)->capture_default_str();
  app.add_option("--threads", options.threads, "0: one per physical core")
      ->check(CLI::NonNegativeNumber)
      ->capture_default_str();
  app.add_option("--repeats", options.repeats, "timed runs")->check(CLI::PositiveNumber)->capture_default_str();
  app.add_option("--isa", isa, "instruction level")
      ->check(CLI::IsMember({"ref", "avx2", "avx512"}))
      ->capture_default_str();
  app.add_flag("--float-activations", options.floats, "as --exact has them, in every format");
  app.add_flag("--no-roof", options.no_roof, "do not measure the memory's speed");
  app.add_flag("--json", options.json, "print JSON instead of a table");
  CLI11_PARSE(app, argc, argv);
  try {
    options.level = isa == "ref" ? IsaLevel::ref : isa == "avx2" ? IsaLevel::avx2 : IsaLevel::avx512;
    if (options.level > best_isa_level()) fail("--isa {}: this CPU does not have it", isa);
    for (std::string& format : options.formats) {
      if (find_block_type(format) == nullptr) fail("--format {}: no such block format", format);
      format = info(find_block_type(format)->type).name;
    }
    for (i64 cols : options.cols)
      if (cols < 256 || cols % 256 != 0 || kMatrixWeights % cols != 0)
        fail("--cols {}: must be a multiple of 256 that divides {}", cols, kMatrixWeights);
    run(options);
  } catch (const std::exception& e) {
    fmt::print(stderr, "bench/kernels: {}\n", e.what());
    return 1;
  }
  return 0;
}

// Speed of the matrix products, per format: GB/s of weights read and weights per clock cycle and core.
//
//   kernels [--format NAME] [--tokens N] [--mib N] [--threads N] [--repeats N] [--isa ref|avx2|avx512] [--activations q8|f32]
//
// With one token the weights come from memory once (choose --mib well above the last-level cache), and GB/s
// is to be compared with what the machine's memory gives. With many tokens (--tokens 512) arithmetic decides:
// weights per cycle are then per (token, weight). Cycles are those of a chain of dependent additions, one per
// cycle, timed at the start.
#include <fmt/format.h>

#include <algorithm>
#include <cstring>
#include <string>
#include <vector>

#include "kernels/base/buffer.h"
#include "kernels/base/clock.h"
#include "kernels/base/error.h"
#include "tests/kernels/cpu/matmul_cases.h"

using namespace stoker;

namespace {

struct Options {
  std::string format;  // empty: all
  i64 tokens = 1, mib = 64, threads = 0, repeats = 5;
  IsaLevel level = best_isa_level();
  bool float_activations = false;
};

Options parse(int argc, char** argv) {
  Options options;
  for (int i = 1; i + 1 < argc; i += 2) {
    std::string name = argv[i], value = argv[i + 1];
    if (name == "--format") {
      if (find_block_type(value) == nullptr) fail("--format {}: no such block format", value);
      options.format = info(find_block_type(value)->type).name;
    } else if (name == "--tokens") {
      options.tokens = std::stoll(value);
    } else if (name == "--mib") {
      options.mib = std::stoll(value);
    } else if (name == "--threads") {
      options.threads = std::stoll(value);
    } else if (name == "--repeats") {
      options.repeats = std::stoll(value);
    } else if (name == "--activations") {
      options.float_activations = value == "f32";
    } else if (name == "--isa") {
      options.level = value == "ref" ? IsaLevel::ref : value == "avx2" ? IsaLevel::avx2 : IsaLevel::avx512;
      if (options.level > best_isa_level()) fail("--isa {}: this CPU does not have it", value);
    } else {
      fail("unknown option {}; there are --format --tokens --mib --threads --repeats --isa --activations", name);
    }
  }
  if (argc % 2 == 0) fail("option {} needs a value", argv[argc - 1]);
  if (options.tokens < 1 || options.mib < 1 || options.repeats < 1) fail("sizes start at 1");
  return options;
}

// Clock rate of this core while it works, in GHz: the best of several short runs, because others may use the
// core too.
f64 cycles_per_ns() {
  constexpr i64 kSteps = 2'000'000;
  f64 best = 0;
  for (int run = 0; run < 20; run++) {
    u64 value = 1;
    i64 start = steady_clock().now_ns();
    for (i64 i = 0; i < kSteps; i += 8)
#pragma GCC unroll 8
      for (int k = 0; k < 8; k++) {
        value += 3;
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

// Few rows are made and repeated, in huge pages as the product has them.
Timing measure(const test::MatmulCase& c, const Options& options, WorkerPool& workers) {
  test::MatmulCase few = c;
  few.rows = std::min<i64>(c.rows, 32);
  test::MatmulData data(few, 1);
  MatmulTile tile = data.tile();
  Buffer weights(c.rows * tile.w_row_bytes, "benchmark weights");
  for (i64 row = 0; row < c.rows; row++)
    std::memcpy(weights.data() + row * tile.w_row_bytes, tile.w + row % few.rows * tile.w_row_bytes,
                static_cast<size_t>(tile.w_row_bytes));
  std::vector<f32> y(static_cast<size_t>(c.rows * c.tokens));
  const LeafTable& table = leaf_table(options.level);
  MatmulLeaf leaf = (c.exact ? table.matmul_f32 : table.matmul_q8)[static_cast<i64>(c.type)];

  std::vector<f64> ns;
  for (i64 repeat = 0; repeat <= options.repeats; repeat++) {
    i64 start = steady_clock().now_ns();
    workers.for_ranges(c.rows, 4, [&](i64 begin, i64 end) {
      MatmulTile part = tile;
      part.w = weights.data() + begin * tile.w_row_bytes;
      part.rows = end - begin;
      part.y = y.data() + begin;
      part.y_stride = c.rows;
      leaf(part);
    });
    if (repeat > 0)
      ns.push_back(static_cast<f64>(steady_clock().now_ns() - start));  // the first one warms up
  }
  std::sort(ns.begin(), ns.end());
  return {ns[ns.size() / 2], ns.front(), ns.back(), hash_of(y)};
}

void run(const Options& options) {
  WorkerPool workers({.workers = static_cast<int>(options.threads), .pin = true});
  const f64 ghz = cycles_per_ns();
  fmt::print("{} threads at {:.2f} GHz, level {}, {} MiB of weights, {} tokens, median of {}\n",
             workers.size(), ghz, name(options.level), options.mib, options.tokens, options.repeats);
  fmt::print("{:8} {:>6} {:>8} {:>8} {:>8} {:>8} {:>9} {:>14}  {}\n", "format", "rows", "ms", "best ms",
             "+- %", "GB/s", "best GB/s", "weights/cycle", "hash");
  for (const test::MatmulCase& c : test::matmul_bench_cases(options.mib * kMiB, options.tokens, options.float_activations)) {
    if (!options.format.empty() && info(c.type).name != options.format) continue;
    Timing t = measure(c, options, workers);
    f64 weights = static_cast<f64>(c.rows) * static_cast<f64>(c.cols);
    f64 bytes = static_cast<f64>(c.rows * row_bytes(c.type, c.cols));
    fmt::print("{:8} {:6} {:8.2f} {:8.2f} {:8.1f} {:8.2f} {:9.2f} {:14.2f}  {:016x}\n", info(c.type).name,
               c.rows, t.median_ns / 1e6, t.best_ns / 1e6, 50 * (t.worst_ns - t.best_ns) / t.median_ns,
               bytes / t.median_ns, bytes / t.best_ns,
               weights * static_cast<f64>(c.tokens) / (t.best_ns * ghz * workers.size()), t.hash);
  }
}

}  // namespace

int main(int argc, char** argv) {
  try {
    run(parse(argc, argv));
  } catch (const std::exception& e) {
    fmt::print(stderr, "kernels: {}\n", e.what());
    return 1;
  }
}

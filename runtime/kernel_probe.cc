#include "runtime/kernel_probe.h"

#include <algorithm>
#include <cstring>
#include <vector>

#include "kernels/base/buffer.h"
#include "kernels/base/clock.h"
#include "kernels/base/own_thread.h"
#include "kernels/base/rng.h"
#include "kernels/format/random_blocks.h"
#include "kernels/ops.h"
#include "runtime/activation_rows.h"

namespace stoker {

namespace {

constexpr i64 kCols = 2048;                 // as V3's down matrices
constexpr i64 kBytesPerThread = 384 * kKiB;  // in a core's own cache, and far longer than starting a region takes
constexpr i64 kRowsAtATime = 64;
constexpr i64 kMatrixBytes = 4 * kMiB;  // about one of an expert's: each product begins and ends, as they do in a layer
constexpr i64 kPatternRows = 1024;
constexpr size_t kLeastRuns = 3;  // of what the caches hold

// Random rows, over and over: drawing all of a large matrix would take longer than multiplying with it.
void fill(BlockType type, i64 rows, std::byte* weights) {
  i64 row = row_bytes(type, kCols), pattern = std::min(rows, kPatternRows);
  Rng rng(1);
  fill_random_blocks(type, pattern * row / info(type).block_bytes, .02f, rng, weights);
  for (i64 done = pattern; done < rows; done += pattern)
    std::memcpy(weights + done * row, weights, static_cast<size_t>(std::min(pattern, rows - done) * row));
}

f64 measure(BlockType type, const KernelProbe& probe, Stream& stream, Buffer& weights) {
  i64 row = row_bytes(type, kCols);
  i64 rows = weights.bytes() / row / kRowsAtATime * kRowsAtATime;
  fill(type, rows, weights.data());
  std::vector<f32> x(static_cast<size_t>(kCols)), y(static_cast<size_t>(std::max(kRowsAtATime, kMatrixBytes / row)));
  for (size_t i = 0; i < x.size(); i++) x[i] = static_cast<f32>(i % 17) - 8.f;
  ActivationRows input(cpu_ops(), kCols);
  input.set(x.data(), 1, kCols);

  std::vector<f64> speeds;
  i64 begin = steady_clock().now_ns(), now = begin;
  i64 rows_each = std::min(rows, std::max(kRowsAtATime, kMatrixBytes / row));
  size_t least = probe.bytes > 0 ? 1 : kLeastRuns;
  while (speeds.size() < least || now - begin < static_cast<i64>(probe.seconds * 1e9)) {
    i64 start = now;
    for (i64 done = 0; done < rows; done += rows_each) {
      i64 count = std::min(rows_each, rows - done);
      input.multiply(stream, {weights.data() + done * row, type, count, kCols}, /*exact=*/false, y.data(), count);
    }
    now = steady_clock().now_ns();
    speeds.push_back(static_cast<f64>(rows * row) / static_cast<f64>(std::max<i64>(1, now - start)));
  }
  if (probe.bytes > 0) return static_cast<f64>(rows * row * static_cast<i64>(speeds.size())) / static_cast<f64>(now - begin);
  std::nth_element(speeds.begin(), speeds.begin() + static_cast<i64>(speeds.size() / 2), speeds.end());
  return speeds[speeds.size() / 2];
}

}  // namespace

KernelSpeeds measure_kernels(const KernelProbe& probe) {
  KernelSpeeds speeds{};
  on_own_thread([&] {
    WorkerPool workers({.workers = probe.threads});
    Stream stream(workers, probe.level);
    // The longest rows are those of F32: as many of each format as a round of rows has must fit.
    i64 least = kRowsAtATime * row_bytes(BlockType::F32, kCols);
    Buffer weights(std::max(least, probe.bytes > 0 ? probe.bytes : kBytesPerThread * workers.size()), "measuring kernels");
    auto asked = [&](BlockType type) {
      return probe.formats.empty() || std::find(probe.formats.begin(), probe.formats.end(), type) != probe.formats.end();
    };
    for (const BlockTypeInfo& format : all_block_types())
      if (asked(format.type)) speeds[static_cast<size_t>(format.type)] = measure(format.type, probe, stream, weights);
  });
  return speeds;
}

}  // namespace stoker

#include "runtime/kernel_probe.h"

#include <algorithm>
#include <exception>
#include <thread>
#include <vector>

#include "kernels/base/buffer.h"
#include "kernels/base/clock.h"
#include "kernels/base/rng.h"
#include "kernels/format/random_blocks.h"
#include "kernels/ops.h"
#include "runtime/activation_rows.h"

namespace stoker {

namespace {

constexpr i64 kCols = 2048;                 // as V3's down matrices
constexpr i64 kBytesPerThread = 384 * kKiB;  // in a core's own cache, and far longer than starting a region takes
constexpr i64 kRowsAtATime = 64;

f64 measure(BlockType type, const KernelProbe& probe, Stream& stream) {
  i64 row = row_bytes(type, kCols);
  i64 rows = round_up(kBytesPerThread * stream.workers().size() / row, kRowsAtATime);
  Buffer weights(rows * row, "measuring kernels");
  Rng rng(1);
  fill_random_blocks(type, weights.bytes() / info(type).block_bytes, .02f, rng, weights.data());
  std::vector<f32> x(static_cast<size_t>(kCols)), y(static_cast<size_t>(rows));
  for (size_t i = 0; i < x.size(); i++) x[i] = static_cast<f32>(i % 17) - 8.f;
  ActivationRows input(cpu_ops(), kCols);
  input.set(x.data(), 1, kCols);

  std::vector<f64> speeds;
  i64 begin = steady_clock().now_ns(), now = begin;
  while (speeds.size() < 8 || now - begin < static_cast<i64>(probe.seconds * 1e9)) {
    i64 start = now;
    input.multiply(stream, {weights.data(), type, rows, kCols}, /*exact=*/false, y.data(), rows);
    now = steady_clock().now_ns();
    speeds.push_back(static_cast<f64>(rows * row) / static_cast<f64>(std::max<i64>(1, now - start)));
  }
  std::nth_element(speeds.begin(), speeds.begin() + static_cast<i64>(speeds.size() / 2), speeds.end());
  return speeds[speeds.size() / 2];
}

}  // namespace

KernelSpeeds measure_kernels(const KernelProbe& probe) {
  KernelSpeeds speeds{};
  std::exception_ptr failure;
  std::thread([&] {
    try {
      WorkerPool workers({.workers = probe.threads});
      Stream stream(workers, probe.level);
      for (const BlockTypeInfo& format : all_block_types())
        speeds[static_cast<size_t>(format.type)] = measure(format.type, probe, stream);
    } catch (...) {
      failure = std::current_exception();
    }
  }).join();
  if (failure) std::rethrow_exception(failure);
  return speeds;
}

}  // namespace stoker

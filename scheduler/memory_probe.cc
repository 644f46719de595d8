#include "scheduler/memory_probe.h"

#include <immintrin.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cstring>

#include "kernels/base/buffer.h"
#include "kernels/base/clock.h"
#include "kernels/base/own_thread.h"
#include "kernels/base/threads.h"
#include "kernels/device/stream.h"

namespace stoker {

namespace {

constexpr i64 kPrefetchBytes = 2048;

// Loops read `bytes` (a multiple of 2 KiB) from `p` as kStreams equal parts side by side and return something that
// depends on every bit.
template <int kStreams>
u64 read_plain(const std::byte* p, i64 bytes) {
  u64 sum[kStreams] = {};
  i64 part = bytes / kStreams;
  for (i64 at = 0; at < part; at += 64)
    for (int s = 0; s < kStreams; s++)
      for (i64 i = 0; i < 64; i += 8) {
        u64 word;
        std::memcpy(&word, p + s * part + at + i, sizeof word);
        sum[s] |= word;
      }
  u64 all = 0;
  for (u64 s : sum) all |= s;
  return all;
}

template <int kStreams, bool kPrefetch>
__attribute__((target("avx2"))) u64 read_avx2(const std::byte* p, i64 bytes) {
  __m256i sum[kStreams][2] = {};
  i64 part = bytes / kStreams;
  for (i64 at = 0; at < part; at += 64)
#pragma GCC unroll 4
    for (int s = 0; s < kStreams; s++) {
      const std::byte* from = p + s * part + at;
      if (kPrefetch) _mm_prefetch(reinterpret_cast<const char*>(from) + kPrefetchBytes, _MM_HINT_T0);
      sum[s][0] = _mm256_or_si256(sum[s][0], _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)));
      sum[s][1] = _mm256_or_si256(sum[s][1], _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from + 32)));
    }
  __m256i all = _mm256_setzero_si256();
  for (auto& pair : sum) all = _mm256_or_si256(all, _mm256_or_si256(pair[0], pair[1]));
  return static_cast<u64>(_mm256_extract_epi64(all, 0) | _mm256_extract_epi64(all, 1) | _mm256_extract_epi64(all, 2) |
                          _mm256_extract_epi64(all, 3));
}

template <int kStreams, bool kPrefetch>
__attribute__((target("avx512f"))) u64 read_avx512(const std::byte* p, i64 bytes) {
  __m512i sum[kStreams] = {};
  i64 part = bytes / kStreams;
  for (i64 at = 0; at < part; at += 64)
#pragma GCC unroll 4
    for (int s = 0; s < kStreams; s++) {
      const std::byte* from = p + s * part + at;
      if (kPrefetch) _mm_prefetch(reinterpret_cast<const char*>(from) + kPrefetchBytes, _MM_HINT_T0);
      sum[s] = _mm512_or_si512(sum[s], _mm512_loadu_si512(from));
    }
  __m512i all = _mm512_setzero_si512();
  for (auto& s : sum) all = _mm512_or_si512(all, s);
  u64 words[8], any = 0;
  _mm512_storeu_si512(words, all);
  for (u64 word : words) any |= word;
  return any;
}

struct ReadLoop {
  const char* name;
  IsaLevel needs;
  u64 (*read)(const std::byte* p, i64 bytes);
};
constexpr std::array kLoops = {
    ReadLoop{"plain, 1 stream", IsaLevel::ref, read_plain<1>},
    ReadLoop{"plain, 4 streams", IsaLevel::ref, read_plain<4>},
    ReadLoop{"avx2, 1 stream", IsaLevel::avx2, read_avx2<1, false>},
    ReadLoop{"avx2, 1 stream, prefetch", IsaLevel::avx2, read_avx2<1, true>},
    ReadLoop{"avx2, 2 streams, prefetch", IsaLevel::avx2, read_avx2<2, true>},
    ReadLoop{"avx2, 4 streams", IsaLevel::avx2, read_avx2<4, false>},
    ReadLoop{"avx512, 1 stream", IsaLevel::avx512, read_avx512<1, false>},
    ReadLoop{"avx512, 1 stream, prefetch", IsaLevel::avx512, read_avx512<1, true>},
    ReadLoop{"avx512, 4 streams", IsaLevel::avx512, read_avx512<4, false>},
};

// Best of the rounds, GB/s.
f64 time_loop(const ReadLoop& loop, WorkerPool& workers, const Buffer& memory, i64 pieces, int rounds) {
  i64 piece = memory.bytes() / pieces, best_ns = INT64_MAX;
  std::atomic<u64> seen{0};
  for (int r = 0; r < rounds; r++) {
    i64 start = steady_clock().now_ns();
    workers.for_each(pieces, [&](i64 i, int) { seen |= loop.read(memory.data() + i * piece, piece); });
    best_ns = std::min(best_ns, steady_clock().now_ns() - start);
  }
  return static_cast<f64>(piece * pieces) / static_cast<f64>(best_ns);
}

MemoryMeasure measure(const MemoryProbe& probe) {
  WorkerPool workers({.workers = probe.threads});
  // Pieces as long as the streams of a large matrix; a whole number of lines for every loop.
  i64 pieces = workers.size() * i64{8};
  Buffer memory(std::max<i64>(1, probe.bytes / pieces / 2048) * 2048 * pieces, "measuring memory");
  std::memset(memory.data(), 1, static_cast<size_t>(memory.bytes()));
  MemoryMeasure result;
  result.threads = workers.size();
  for (const ReadLoop& loop : kLoops)
    if (loop.needs <= best_isa_level())
      result.loops.push_back({loop.name, time_loop(loop, workers, memory, pieces, probe.rounds)});
  return result;
}

}  // namespace

const MemoryMeasure::Loop& MemoryMeasure::best() const {
  return *std::max_element(loops.begin(), loops.end(),
                           [](const Loop& a, const Loop& b) { return a.gb_per_second < b.gb_per_second; });
}

MemoryMeasure measure_memory(const MemoryProbe& probe) {
  MemoryMeasure result;
  on_own_thread([&] { result = measure(probe); });
  return result;
}

}  // namespace stoker

#include "bench/fma_peak.h"

#include <immintrin.h>

#include <algorithm>

#include "kernels/base/clock.h"

namespace stoker {

namespace {

constexpr i64 kSteps = 400'000;  // about half a millisecond: short enough that some runs are not disturbed
constexpr int kRuns = 40;

// Independent chains: twice the latency of an FMA (4 cycles) times the units (2), so that all units stay
// busy.
constexpr int kChains = 12;

// The empty asm statements keep each chain in a register, its value unknown to the compiler.

void run_ref() {
  __m128 sum[kChains], factor = _mm_set1_ps(0.5f);
  for (__m128& s : sum) s = _mm_set1_ps(1.0f);
  for (i64 i = 0; i < kSteps; i += kChains)
#pragma GCC unroll 12
    for (__m128& s : sum) {
      s = _mm_add_ps(_mm_mul_ps(s, factor), factor);
      asm volatile("" : "+x"(s));
    }
}

__attribute__((target("avx2,fma"))) void run_avx2() {
  __m256 sum[kChains], factor = _mm256_set1_ps(0.5f);
  for (__m256& s : sum) s = _mm256_set1_ps(1.0f);
  for (i64 i = 0; i < kSteps; i += kChains)
#pragma GCC unroll 12
    for (__m256& s : sum) {
      s = _mm256_fmadd_ps(s, factor, factor);
      asm volatile("" : "+x"(s));
    }
}

__attribute__((target("avx512f"))) void run_avx512() {
  __m512 sum[kChains], factor = _mm512_set1_ps(0.5f);
  for (__m512& s : sum) s = _mm512_set1_ps(1.0f);
  for (i64 i = 0; i < kSteps; i += kChains)
#pragma GCC unroll 12
    for (__m512& s : sum) {
      s = _mm512_fmadd_ps(s, factor, factor);
      asm volatile("" : "+v"(s));
    }
}

}  // namespace

f64 fma_peak_gflops(Stream& stream) {
  void (*body)() = run_ref;
  i64 lanes = 4;
  if (stream.level() == IsaLevel::avx2) body = run_avx2, lanes = 8;
  if (stream.level() == IsaLevel::avx512) body = run_avx512, lanes = 16;
  f64 flops = 2.0 * static_cast<f64>(div_up(kSteps, kChains) * kChains * lanes * stream.workers().size());
  f64 best = 0;
  for (int run = 0; run < kRuns; run++) {
    i64 start = steady_clock().now_ns();
    stream.workers().for_each(stream.workers().size(), [&](i64, int) { body(); });
    best = std::max(best, flops / static_cast<f64>(steady_clock().now_ns() - start));
  }
  return best;
}

}  // namespace stoker

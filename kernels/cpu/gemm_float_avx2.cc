// AVX2 GEMM of float weights with float activations: four tokens and three rows in registers.
#include <immintrin.h>

#include "kernels/cpu/gemm_avx2.h"
#include "kernels/cpu/gemm_float.h"
#include "kernels/cpu/matmul_tile_avx2.h"

namespace stoker {
namespace {

struct Avx2 {
  static constexpr int kLanes = 8, kRows = 3;
  using Vector = __m256;
  static Vector load(const f32* p) { return _mm256_loadu_ps(p); }
  static Vector load_first(const f32* p, i64 count) {
    const __m256i lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    return _mm256_maskload_ps(p, _mm256_cmpgt_epi32(_mm256_set1_epi32(static_cast<int>(count)), lane));
  }
  static void store(f32* p, Vector v) { _mm256_store_ps(p, v); }
  static Vector multiply_add(Vector a, Vector b, Vector c) { return _mm256_fmadd_ps(a, b, c); }
  static f32 total(Vector sum) { return sum_lanes(sum); }
};

struct F16ToFloat {
  static __m256 widen(__m128i words) { return _mm256_cvtph_ps(words); }
};
struct Bf16ToFloat {
  static __m256 widen(__m128i words) {
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(words), 16));
  }
};

template <class Convert>
inline void widen_words(const u16* w, i64 cols, f32* out) {
  i64 i = 0;
  for (; i + 8 <= cols; i += 8) _mm256_store_ps(out + i, Convert::widen(load_128(w + i)));
  if (i == cols) return;
  alignas(16) u16 words[8] = {};  // nothing behind the row may be read
  for (i64 k = 0; k < cols - i; k++) words[k] = w[i + k];
  _mm256_store_ps(out + i, Convert::widen(load_128(words)));
}

struct WeightF32 {
  using Element = f32;
  static void to_floats(const f32* w, i64 cols, f32* out) {
    i64 i = 0;
    for (; i + 8 <= cols; i += 8) _mm256_store_ps(out + i, _mm256_loadu_ps(w + i));
    if (i < cols) _mm256_store_ps(out + i, Avx2::load_first(w + i, cols - i));
  }
};
struct WeightF16 {
  using Element = u16;
  static void to_floats(const u16* w, i64 cols, f32* out) { widen_words<F16ToFloat>(w, cols, out); }
};
struct WeightBF16 {
  using Element = u16;
  static void to_floats(const u16* w, i64 cols, f32* out) { widen_words<Bf16ToFloat>(w, cols, out); }
};

}  // namespace

void fill_gemm_float_avx2(LeafTable& table) {
  auto set = [&table](BlockType type, MatmulLeaf leaf) { table.gemm_f32[static_cast<i64>(type)] = leaf; };
  set(BlockType::F32, gemm_float_tile<Avx2, WeightF32>);
  set(BlockType::F16, gemm_float_tile<Avx2, WeightF16>);
  set(BlockType::BF16, gemm_float_tile<Avx2, WeightBF16>);
}

}  // namespace stoker

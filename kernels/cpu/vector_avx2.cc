// Element-wise leaves, sums, exponentials and 8-bit quantisation with AVX2. The order of a sum depends on its
// length alone: four accumulators of eight lanes, then a fixed tree.
#include <immintrin.h>

#include "kernels/cpu/exp_avx2.h"
#include "kernels/cpu/matmul_avx2.h"

namespace stoker {

namespace {

f32 sum_lanes(__m256 v) {
  __m128 s = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
  s = _mm_add_ps(s, _mm_movehl_ps(s, s));
  s = _mm_add_ss(s, _mm_movehdup_ps(s));
  return _mm_cvtss_f32(s);
}

// The first `count` (< 8) floats, zeros behind them.
__m256i tail_mask(i64 count) {
  return _mm256_cmpgt_epi32(_mm256_set1_epi32(static_cast<i32>(count)),
                            _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}

// e^x, inputs clamped to where the result is a normal float; a NaN stays one.
__m256 exp_ps(__m256 x) {
  // The operand order matters: max and min return the second operand for a NaN.
  return exp_normal(_mm256_min_ps(_mm256_set1_ps(88.3f), _mm256_max_ps(_mm256_set1_ps(-87.3f), x)));
}

f32 dot(const f32* a, const f32* b, i64 count) {
  __m256 s0 = _mm256_setzero_ps(), s1 = s0, s2 = s0, s3 = s0;
  i64 i = 0;
  for (; i + 32 <= count; i += 32) {
    s0 = _mm256_fmadd_ps(_mm256_loadu_ps(a + i), _mm256_loadu_ps(b + i), s0);
    s1 = _mm256_fmadd_ps(_mm256_loadu_ps(a + i + 8), _mm256_loadu_ps(b + i + 8), s1);
    s2 = _mm256_fmadd_ps(_mm256_loadu_ps(a + i + 16), _mm256_loadu_ps(b + i + 16), s2);
    s3 = _mm256_fmadd_ps(_mm256_loadu_ps(a + i + 24), _mm256_loadu_ps(b + i + 24), s3);
  }
  for (; i + 8 <= count; i += 8) s0 = _mm256_fmadd_ps(_mm256_loadu_ps(a + i), _mm256_loadu_ps(b + i), s0);
  if (i < count) {
    __m256i mask = tail_mask(count - i);
    s1 = _mm256_fmadd_ps(_mm256_maskload_ps(a + i, mask), _mm256_maskload_ps(b + i, mask), s1);
  }
  return sum_lanes(_mm256_add_ps(_mm256_add_ps(s0, s1), _mm256_add_ps(s2, s3)));
}

void rms_norm(const f32* x, const f32* weight, f32* y, i64 cols, f32 epsilon) {
  f32 mean = dot(x, x, cols) / static_cast<f32>(cols);
  f32 factor = 1.0f / _mm_cvtss_f32(_mm_sqrt_ss(_mm_set_ss(mean + epsilon)));
  __m256 f = _mm256_set1_ps(factor);
  i64 i = 0;
  for (; i + 8 <= cols; i += 8)
    _mm256_storeu_ps(y + i,
                     _mm256_mul_ps(_mm256_mul_ps(_mm256_loadu_ps(x + i), f), _mm256_loadu_ps(weight + i)));
  for (; i < cols; i++) y[i] = x[i] * factor * weight[i];
}

__m256 silu(__m256 x) {
  __m256 one = _mm256_set1_ps(1.0f);
  return _mm256_div_ps(x, _mm256_add_ps(one, exp_ps(_mm256_sub_ps(_mm256_setzero_ps(), x))));
}

void silu_mul(const f32* gate, const f32* up, f32* y, i64 count) {
  i64 i = 0;
  for (; i + 8 <= count; i += 8)
    _mm256_storeu_ps(y + i, _mm256_mul_ps(silu(_mm256_loadu_ps(gate + i)), _mm256_loadu_ps(up + i)));
  if (i < count) {
    __m256i mask = tail_mask(count - i);
    __m256 value = _mm256_mul_ps(silu(_mm256_maskload_ps(gate + i, mask)), _mm256_maskload_ps(up + i, mask));
    _mm256_maskstore_ps(y + i, mask, value);
  }
}

void add(f32* y, const f32* x, i64 count) {
  i64 i = 0;
  for (; i + 8 <= count; i += 8)
    _mm256_storeu_ps(y + i, _mm256_add_ps(_mm256_loadu_ps(y + i), _mm256_loadu_ps(x + i)));
  for (; i < count; i++) y[i] += x[i];
}

void add_scaled(f32* y, const f32* x, f32 a, i64 count) {
  __m256 factor = _mm256_set1_ps(a);
  i64 i = 0;
  for (; i + 8 <= count; i += 8)
    _mm256_storeu_ps(y + i, _mm256_fmadd_ps(factor, _mm256_loadu_ps(x + i), _mm256_loadu_ps(y + i)));
  if (i < count) {  // fused like the rest, so that an element's value does not depend on its place
    __m256i mask = tail_mask(count - i);
    __m256 value = _mm256_fmadd_ps(factor, _mm256_maskload_ps(x + i, mask), _mm256_maskload_ps(y + i, mask));
    _mm256_maskstore_ps(y + i, mask, value);
  }
}

void scale(f32* y, f32 a, i64 count) {
  __m256 factor = _mm256_set1_ps(a);
  i64 i = 0;
  for (; i + 8 <= count; i += 8) _mm256_storeu_ps(y + i, _mm256_mul_ps(_mm256_loadu_ps(y + i), factor));
  for (; i < count; i++) y[i] *= a;
}

void to_f16(const f32* x, u16* y, i64 count) {
  i64 i = 0;
  for (; i + 8 <= count; i += 8)
    _mm_storeu_si128(reinterpret_cast<__m128i*>(y + i),
                     _mm256_cvtps_ph(_mm256_loadu_ps(x + i), _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
  for (; i < count; i++)
    y[i] = static_cast<u16>(
        _mm_extract_epi16(_mm_cvtps_ph(_mm_set_ss(x[i]), _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC), 0));
}

void from_f16(const u16* x, f32* y, i64 count) {
  i64 i = 0;
  for (; i + 8 <= count; i += 8)
    _mm256_storeu_ps(y + i, _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(x + i))));
  for (; i < count; i++) y[i] = _mm_cvtss_f32(_mm_cvtph_ps(_mm_cvtsi32_si128(x[i])));
}

// Largest magnitude; a NaN among the values makes the result a NaN or an infinity, never a usable number.
f32 largest(const f32* x, i64 count) {
  const __m256 magnitude_bits = _mm256_castsi256_ps(_mm256_set1_epi32(0x7fffffff));
  __m256i max = _mm256_setzero_si256();
  // Magnitudes are ordered like their bits, NaN above infinity.
  for (i64 i = 0; i < count; i += 8) {
    __m256 value = _mm256_and_ps(_mm256_loadu_ps(x + i), magnitude_bits);
    max = _mm256_max_epi32(max, _mm256_castps_si256(value));
  }
  __m128i m = _mm_max_epi32(_mm256_castsi256_si128(max), _mm256_extracti128_si256(max, 1));
  m = _mm_max_epi32(m, _mm_shuffle_epi32(m, 0x4e));
  m = _mm_max_epi32(m, _mm_shuffle_epi32(m, 0xb1));
  return _mm_cvtss_f32(_mm_castsi128_ps(m));
}

bool is_finite(f32 x) { return x - x == 0.0f; }

// 32 floats to 32 bytes.
__m256i round_32(const f32* x, __m256 inverse) {
  __m256i q[4];
  for (i64 k = 0; k < 4; k++) q[k] = _mm256_cvtps_epi32(_mm256_mul_ps(_mm256_loadu_ps(x + 8 * k), inverse));
  __m256i bytes = _mm256_packs_epi16(_mm256_packs_epi32(q[0], q[1]), _mm256_packs_epi32(q[2], q[3]));
  return _mm256_permutevar8x32_epi32(bytes, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
}

f32 inverse_scale(f32 max) {
  if (!(max > 0) || !is_finite(max)) return 0.0f;
  f32 inverse = 127.0f / max;
  return is_finite(inverse) ? inverse : 0.0f;
}

// Sums of the two 16-byte halves.
void sum_halves(__m256i q, i32& low, i32& high) {
  __m256i pairs = _mm256_maddubs_epi16(_mm256_set1_epi8(1), q);
  __m256i fours = _mm256_madd_epi16(pairs, _mm256_set1_epi16(1));
  __m256i s = _mm256_add_epi32(fours, _mm256_shuffle_epi32(fours, 0x4e));
  s = _mm256_add_epi32(s, _mm256_shuffle_epi32(s, 0xb1));
  low = _mm_cvtsi128_si32(_mm256_castsi256_si128(s));
  high = _mm_cvtsi128_si32(_mm256_extracti128_si256(s, 1));
}

void quantize_q8_32(const f32* x, ActQ8_32* out, i64 cols) {
  for (i64 b = 0; b < cols / 32; b++, x += 32) {
    f32 max = largest(x, 32);
    out[b].d = max / 127.0f;
    f32 inverse = inverse_scale(max);
    __m256i q = inverse == 0.0f ? _mm256_setzero_si256() : round_32(x, _mm256_set1_ps(inverse));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(out[b].q), q);
    i32 low, high;
    sum_halves(q, low, high);
    out[b].sum = low + high;
  }
}

void quantize_q8_256(const f32* x, ActQ8_256* out, i64 cols) {
  for (i64 b = 0; b < cols / 256; b++, x += 256) {
    f32 max = largest(x, 256);
    out[b].d = max / 127.0f;
    f32 inverse = inverse_scale(max);
    for (i64 k = 0; k < 8; k++) {
      __m256i q = inverse == 0.0f ? _mm256_setzero_si256() : round_32(x + 32 * k, _mm256_set1_ps(inverse));
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(out[b].q + 32 * k), q);
      i32 low, high;
      sum_halves(q, low, high);
      out[b].sums[2 * k] = static_cast<i16>(low);
      out[b].sums[2 * k + 1] = static_cast<i16>(high);
    }
  }
}

}  // namespace

void fill_vector_avx2(LeafTable& table) {
  table.quantize_q8_32 = quantize_q8_32;
  table.quantize_q8_256 = quantize_q8_256;
  table.rms_norm = rms_norm;
  table.silu_mul = silu_mul;
  table.add = add;
  table.add_scaled = add_scaled;
  table.scale = scale;
  table.dot = dot;
  table.to_f16 = to_f16;
  table.from_f16 = from_f16;
}

}  // namespace stoker

// Decoding of every format with AVX2.
#include "kernels/cpu/float_blocks_avx2.h"
#include "kernels/cpu/matmul_avx2.h"

namespace stoker {
namespace {

template <class Block>
void dequantize(const void* blocks, f32* y, i64 count) {
  const Block* block = static_cast<const Block*>(blocks);
  for (i64 first = 0; first < count; first += Block::kWeights, block++) {
    StoreFloats sink{y + first};
    unpack_steps(*block, sink);
  }
}

void dequantize_f32(const void* blocks, f32* y, i64 count) {
  __builtin_memcpy(y, blocks, static_cast<size_t>(count) * sizeof(f32));
}

void dequantize_f16(const void* blocks, f32* y, i64 count) {
  const u16* x = static_cast<const u16*>(blocks);
  i64 i = 0;
  for (; i + 8 <= count; i += 8) _mm256_storeu_ps(y + i, _mm256_cvtph_ps(load_128(x + i)));
  for (; i < count; i++) y[i] = half_to_float(x[i]);
}

void dequantize_bf16(const void* blocks, f32* y, i64 count) {
  const u16* x = static_cast<const u16*>(blocks);
  i64 i = 0;
  for (; i + 8 <= count; i += 8)
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(y + i),
                        _mm256_slli_epi32(_mm256_cvtepu16_epi32(load_128(x + i)), 16));
  for (; i < count; i++) y[i] = _mm_cvtss_f32(_mm_castsi128_ps(_mm_cvtsi32_si128(x[i] << 16)));
}

}  // namespace

void fill_dequantize_avx2(LeafTable& table) {
  table.dequantize[static_cast<i64>(BlockType::F32)] = dequantize_f32;
  table.dequantize[static_cast<i64>(BlockType::F16)] = dequantize_f16;
  table.dequantize[static_cast<i64>(BlockType::BF16)] = dequantize_bf16;
  for_each_block_format([&table]<class Block>(BlockType type) {
    table.dequantize[static_cast<i64>(type)] = dequantize<Block>;
  });
}

}  // namespace stoker

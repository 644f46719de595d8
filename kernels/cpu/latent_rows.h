// Rows of a latent cache as floats, whatever their type: what both forms of attention read.
#pragma once

#include "kernels/cpu/leaf.h"
#include "kernels/ops.h"

namespace stoker {

// Rows [first, first + count) of `row` values each: in place where they are floats already, else converted into `to`.
inline const f32* latent_rows(const LeafTable& leaves, const void* cache, CacheType type, i64 row, i64 first, i64 count,
                              f32* to) {
  const std::byte* from = static_cast<const std::byte*>(cache) + cache_bytes(type, first * row);
  switch (type) {
    case CacheType::F32: return reinterpret_cast<const f32*>(from);
    case CacheType::F16: leaves.from_f16(reinterpret_cast<const u16*>(from), to, count * row); break;
    case CacheType::Q8_0: leaves.dequantize[static_cast<i64>(BlockType::Q8_0)](from, to, count * row); break;
  }
  return to;
}

}  // namespace stoker

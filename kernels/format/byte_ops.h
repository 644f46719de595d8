// Four bytes in a word: the few instructions that GPU kernels are made of, with the same result on the CPU.
#pragma once

#include "kernels/base/host_device.h"
#include "kernels/base/types.h"
#include "kernels/format/f16.h"

namespace stoker {

// Byte j of the result is byte (nibble j of selector, 0 .. 7) of the eight bytes b:a, a lowest. With bit 3 of the
// nibble set it is eight copies of that byte's top bit. PTX prmt.
HOST_DEVICE u32 pick_bytes(u32 a, u32 b, u32 selector) {
#ifdef __CUDA_ARCH__
  u32 result;
  asm("prmt.b32 %0, %1, %2, %3;" : "=r"(result) : "r"(a), "r"(b), "r"(selector));
  return result;
#else
  const u64 bytes = static_cast<u64>(b) << 32 | a;
  u32 result = 0;
  for (u32 j = 0; j < 4; j++) {
    u32 nibble = selector >> (4 * j) & 15u;
    u32 byte = static_cast<u32>(bytes >> (8 * (nibble & 7u))) & 255u;
    if ((nibble & 8u) != 0) byte = (byte & 128u) != 0 ? 255u : 0u;
    result |= byte << (8 * j);
  }
  return result;
#endif
}

// sum + the dot product of four signed bytes each.
HOST_DEVICE i32 dot4(u32 a, u32 b, i32 sum) {
#ifdef __CUDA_ARCH__
  return __dp4a(static_cast<int>(a), static_cast<int>(b), sum);
#else
  for (u32 j = 0; j < 4; j++) sum += static_cast<i8>(a >> (8 * j)) * static_cast<i8>(b >> (8 * j));
  return sum;
#endif
}

HOST_DEVICE f32 half_value(u32 bits) {  // of the low 16 bits
#ifdef __CUDA_ARCH__
  f32 result;
  asm("cvt.f32.f16 %0, %1;" : "=f"(result) : "h"(static_cast<u16>(bits)));
  return result;
#else
  return f16_to_f32(static_cast<u16>(bits));
#endif
}

// a * b and a + b, never fused into one rounding.
HOST_DEVICE f32 rounded_product(f32 a, f32 b) {
#ifdef __CUDA_ARCH__
  return __fmul_rn(a, b);
#else
  return a * b;
#endif
}
HOST_DEVICE f32 rounded_sum(f32 a, f32 b) {
#ifdef __CUDA_ARCH__
  return __fadd_rn(a, b);
#else
  return a + b;
#endif
}

}  // namespace stoker

// What a kernel body may ask of the thread that runs it. Bodies are templates over a machine: Gpu in the .cu files, and
// in the tests a CPU that plays the threads of a block in turn, so that whole kernels are tested without a card.
#pragma once

#ifdef __CUDACC__
#include <cuda_fp16.h>
#endif

#include "kernels/base/host_device.h"
#include "kernels/base/types.h"

namespace stoker::cuda {

constexpr int kWarp = 32;

// Every method is for the card alone; on the CPU it is compiled, never called.
struct Gpu {
  std::byte* shared_memory;  // of the block, aligned to 16

  HOST_DEVICE int thread() const {
#ifdef __CUDA_ARCH__
    return static_cast<int>(threadIdx.x);
#else
    return 0;
#endif
  }
  HOST_DEVICE int threads() const {
#ifdef __CUDA_ARCH__
    return static_cast<int>(blockDim.x);
#else
    return 1;
#endif
  }
  HOST_DEVICE i64 block() const {
#ifdef __CUDA_ARCH__
    return static_cast<i64>(blockIdx.x);
#else
    return 0;
#endif
  }
  HOST_DEVICE i64 blocks() const {
#ifdef __CUDA_ARCH__
    return static_cast<i64>(gridDim.x);
#else
    return 1;
#endif
  }
  // All threads of the block have come here, and see what the others wrote.
  HOST_DEVICE void sync() const {
#ifdef __CUDA_ARCH__
    __syncthreads();
#endif
  }
  // The same for the warp's lanes alone. Values that lanes hand each other do not order what they do with memory.
  HOST_DEVICE void sync_warp() const {
#ifdef __CUDA_ARCH__
    __syncwarp();
#endif
  }
  // Whoever, on the host too, sees what this thread writes from now on sees what it has written before, and what others had when
  // it met them in sync().
  HOST_DEVICE void fence_host() const {
#ifdef __CUDA_ARCH__
    __threadfence_system();
#endif
  }
  // A word that the host watches.
  HOST_DEVICE void publish([[maybe_unused]] u32* word, [[maybe_unused]] u32 value) const {
#ifdef __CUDA_ARCH__
    *static_cast<volatile u32*>(word) = value;
#endif
  }
  // The value of the lane whose number differs in `bits`. All lanes of a warp ask together.
  HOST_DEVICE f32 from_lane_xor([[maybe_unused]] f32 value, [[maybe_unused]] int bits) const {
#ifdef __CUDA_ARCH__
    return __shfl_xor_sync(0xffffffffu, value, bits);
#else
    return 0;
#endif
  }
  HOST_DEVICE i32 from_lane_xor([[maybe_unused]] i32 value, [[maybe_unused]] int bits) const {
#ifdef __CUDA_ARCH__
    return __shfl_xor_sync(0xffffffffu, value, bits);
#else
    return 0;
#endif
  }
  // c += a * b of 16 x 16 and 16 x 8 halves, spread over a warp as PTX's mma.m16n8k16 says: with r = lane / 4 and
  // k = lane % 4 * 2, a holds (r, k), (r + 8, k), (r, k + 8), (r + 8, k + 8) and the next column each, b holds (k, r),
  // (k + 8, r) and the next row, c holds (r, k), (r, k + 1), (r + 8, k), (r + 8, k + 1).
  HOST_DEVICE void multiply([[maybe_unused]] f32 (&c)[4], [[maybe_unused]] const u32 (&a)[4],
                            [[maybe_unused]] const u32 (&b)[2]) const {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#elif defined(__CUDA_ARCH__)
    for (int half = 0; half < 2; half++)  // Turing has half the depth
      asm volatile("mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5}, {%6}, {%0, %1, %2, %3};"
          : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
          : "r"(a[2 * half]), "r"(a[2 * half + 1]), "r"(b[half]));
#endif
  }
  // b for multiply() from 16 rows of 8 halves in shared memory, row k at the address that lane k gives (PTX's
  // ldmatrix.x2.trans; the addresses of lanes 16 .. 31 are not read).
  HOST_DEVICE void load_rows([[maybe_unused]] u32 (&b)[2], [[maybe_unused]] const u16* row) const {
#ifdef __CUDA_ARCH__
    u32 address = static_cast<u32>(__cvta_generic_to_shared(row));
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0, %1}, [%2];"
        : "=r"(b[0]), "=r"(b[1]) : "r"(address) : "memory");
#endif
  }
  template <class T>
  HOST_DEVICE T* shared(i64 offset_bytes) const {
    return reinterpret_cast<T*>(shared_memory + offset_bytes);
  }
};

// Sum over a warp; every lane gets the same bits.
template <class Machine>
HOST_DEVICE f32 warp_sum(const Machine& m, f32 value) {
  UNROLL
  for (int bits = kWarp / 2; bits > 0; bits /= 2) value += m.from_lane_xor(value, bits);
  return value;
}

// 16 aligned bytes that no kernel writes while this one runs.
HOST_DEVICE void load_16(const void* from, u32* w) {
#ifdef __CUDA_ARCH__
  const uint4 v = __ldg(static_cast<const uint4*>(from));
  w[0] = v.x;
  w[1] = v.y;
  w[2] = v.z;
  w[3] = v.w;
#else
  require_aligned(from, 16);
  for (int i = 0; i < 4; i++) w[i] = static_cast<const u32*>(from)[i];
#endif
}

}  // namespace stoker::cuda

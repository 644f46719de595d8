// Code that the CPU and a GPU both run: the CPU to test it bit for bit.
#pragma once

#include "kernels/base/types.h"

#ifdef __CUDACC__
#define HOST_DEVICE __host__ __device__ __forceinline__
#define UNROLL _Pragma("unroll")  // registers cannot be indexed at run time
#else
#define HOST_DEVICE inline
#define UNROLL
#endif

namespace stoker {

[[noreturn]] void check_failed(const char* condition, const char* file, int line);  // check.h

// A card cannot read or write several bytes at once at an address that is no multiple of them. Nor may the CPU that plays one.
HOST_DEVICE void require_aligned([[maybe_unused]] const void* at, [[maybe_unused]] u64 bytes) {
#ifndef __CUDA_ARCH__
  if (reinterpret_cast<u64>(at) % bytes != 0) check_failed("the address is aligned as a card wants it", __FILE__, __LINE__);
#endif
}

}  // namespace stoker

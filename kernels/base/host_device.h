// Code that the CPU and a GPU both run: the CPU to test it bit for bit.
#pragma once

#ifdef __CUDACC__
#define HOST_DEVICE __host__ __device__ __forceinline__
#define UNROLL _Pragma("unroll")  // registers cannot be indexed at run time
#else
#define HOST_DEVICE inline
#define UNROLL
#endif

#pragma once

#if defined(__CUDACC__)
#define STRATCORE_HOST_DEVICE __host__ __device__
#else
#define STRATCORE_HOST_DEVICE
#endif

// Before a loop of few, known rounds whose arrays must live in registers.
#if defined(__CUDACC__) || defined(__clang__)
#define STRATCORE_UNROLL _Pragma("unroll")
#else
#define STRATCORE_UNROLL _Pragma("GCC unroll 64")
#endif

// Visible outside libstratcore.so; everything else is hidden.
#define STRATCORE_API __attribute__((visibility("default")))

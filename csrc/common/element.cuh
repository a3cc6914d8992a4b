#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>
#include <type_traits>

#include "element.h"

// Elements of any stored type as numbers on the device, four at a time.
namespace stratcore {

// What is computed with: double for double, else float.
template <class S>
using Computed = std::conditional_t<std::is_same_v<S, double>, double, float>;

__device__ inline double number(double value) { return value; }
__device__ inline float number(float value) { return value; }
__device__ inline float number(__nv_bfloat16 value) { return __bfloat162float(value); }
__device__ inline float number(__half value) { return __half2float(value); }

template <class S>
__device__ inline S stored(Computed<S> value) {
  if constexpr (std::is_same_v<S, __nv_bfloat16>) {
    return __float2bfloat16(value);
  } else if constexpr (std::is_same_v<S, __half>) {
    return __float2half(value);
  } else {
    return value;
  }
}

constexpr int kQuad = 4;  // elements a lane loads at once

// Whether rows of `dim` elements from `data` on can be read four elements at a time.
template <class S>
inline bool quads_aligned(const void* data, int64_t dim) {
  return dim % kQuad == 0 &&
         reinterpret_cast<uintptr_t>(data) % (sizeof(S) * kQuad > 16 ? 16 : sizeof(S) * kQuad) == 0;
}

template <class S>
struct alignas(sizeof(S) * kQuad > 16 ? 16 : sizeof(S) * kQuad) Quad {
  S element[kQuad];
};

// Elements [at, at + 4) of a row of `dim`; those beyond the row are 0. `aligned` is the same for all threads.
template <class S>
__device__ inline Quad<S> load_quad(const S* row, int64_t at, int64_t dim, bool aligned) {
  Quad<S> quad;
  if (aligned && at < dim) return *reinterpret_cast<const Quad<S>*>(row + at);
#pragma unroll
  for (int i = 0; i < kQuad; ++i) quad.element[i] = at + i < dim ? row[at + i] : stored<S>(Computed<S>(0));
  return quad;
}

template <class S>
__device__ inline void store_quad(S* row, int64_t at, int64_t dim, bool aligned,
                                  const Computed<S> (&value)[kQuad]) {
  Quad<S> quad;
#pragma unroll
  for (int i = 0; i < kQuad; ++i) quad.element[i] = stored<S>(value[i]);
  if (aligned && at < dim) {
    *reinterpret_cast<Quad<S>*>(row + at) = quad;
    return;
  }
#pragma unroll
  for (int i = 0; i < kQuad; ++i) {
    if (at + i < dim) row[at + i] = quad.element[i];
  }
}

// Adds to four neighbors in memory, in any order among threads.
template <class T>
__device__ inline void add_quad(T* row, int64_t at, int64_t dim, bool aligned, const T (&value)[kQuad]) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  if constexpr (std::is_same_v<T, float>) {
    if (aligned && at < dim) {
      atomicAdd(reinterpret_cast<float4*>(row + at), make_float4(value[0], value[1], value[2], value[3]));
      return;
    }
  }
#endif
#pragma unroll
  for (int i = 0; i < kQuad; ++i) {
    if (at + i < dim) atomicAdd(row + at + i, value[i]);
  }
}

}  // namespace stratcore

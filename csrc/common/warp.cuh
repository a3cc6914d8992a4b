#pragma once

#include "macros.h"

// Sums over lanes of a warp.
namespace stratcore {

constexpr unsigned kFullWarp = 0xffffffffu;
constexpr int kWarp = 32;

// The total over L neighboring lanes, in each of them.
template <int L, class T>
__device__ __forceinline__ T sum_over(T value) {
#pragma unroll
  for (int offset = L / 2; offset; offset /= 2) value += __shfl_xor_sync(kFullWarp, value, offset);
  return value;
}

// Totals over L lanes of N numbers a lane, spread over the lanes: lane l ends with those from base on,
// `count` of them, in values[0 .. count). A transposing butterfly: N + N/2 + .. shuffles in place of N log2
// L.
template <int N, int L, class T>
__device__ __forceinline__ void reduce_scatter(T (&values)[N], int lane, int& base, int& count) {
  if constexpr (L > 1) {
    constexpr int kHalf = (N + 1) / 2, kOffset = L / 2;
    const bool upper = lane & kOffset;
    T kept[kHalf];
#pragma unroll
    for (int i = 0; i < kHalf; ++i) {
      const T low = values[i], high = kHalf + i < N ? values[kHalf + i < N ? kHalf + i : 0] : T(0);
      kept[i] = (upper ? high : low) + __shfl_xor_sync(kFullWarp, upper ? low : high, kOffset);
    }
    base += upper ? kHalf : 0;
    count = upper ? max(count - kHalf, 0) : min(count, kHalf);
    reduce_scatter<kHalf, L / 2>(kept, lane, base, count);
#pragma unroll
    for (int i = 0; i < kHalf; ++i) values[i] = kept[i];
  }
}

// Most numbers that a lane ends with.
template <int N, int L>
STRATCORE_HOST_DEVICE constexpr int scattered() {
  return L > 1 ? scattered<(N + 1) / 2, (L > 1 ? L / 2 : 1)>() : N;
}

}  // namespace stratcore

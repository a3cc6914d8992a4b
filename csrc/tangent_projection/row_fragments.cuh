#pragma once

#include "nearest_tile.cuh"
#include "rows.cuh"

// Rows in registers for wgmma, and exact products with what is held there. Legend as in tangent_projection.h.
//
// Lane l holds of rows l / 4 and l / 4 + 8 of its warp's 16 the runs l % 4 of every 64 bytes: a product does
// not mind the order of its columns.
namespace stratcore::tangent_projection {

// Rows l / 4 + 8 r of a warp, lane l: halves of float16 [step][2 t + r] as wgmma wants them, multiplied with
// a power of two, and what the rounding left of them (16-bit rows: nothing that counts).
template <class S, int Steps>
struct Fragments {
  static constexpr bool kSplit = sizeof(S) == 4;
  uint32_t high[Steps][4], low[kSplit ? Steps : 1][4];
  float scale[2], length[2], lost[2];  // the power of two, lengths of the multiplied row and of its low part

  __device__ float inverse_scale(int r) const {
    return __uint_as_float((254u << 23) - __float_as_uint(scale[r]));
  }
};

// A lane's columns of a row: runs from `first` on, every 4 kRun columns; `count` of them lie in the row.
template <class S, int Steps>
struct Lane {
  static constexpr int kTotal = Steps * kQuad / kRun<S>, kStride = 4 * kRun<S>;
  int first, count;

  __device__ Lane(int quarter, int dim)
      : first(quarter * kRun<S>), count((dim - quarter * kRun<S> + kStride - 1) / kStride) {}
};

template <class S, int Steps>
__device__ __forceinline__ void load_runs(const unsigned char* row, const Lane<S, Steps>& lane,
                                          uint4 (&run)[Lane<S, Steps>::kTotal]) {
#pragma unroll
  for (int i = 0; i < Lane<S, Steps>::kTotal; ++i) {
    const int at = (lane.first + i * Lane<S, Steps>::kStride) * int(sizeof(S));
    run[i] = i < lane.count ? *reinterpret_cast<const uint4*>(row + at) : uint4{};
  }
}

// Element i of runs as loaded.
template <class S>
__device__ __forceinline__ float element_of(const uint4* run, int i) {
  const uint4& bits = run[i / kRun<S>];
  return number(reinterpret_cast<const S*>(&bits)[i % kRun<S>]);
}

// Has the compiler convert runs anew instead of keeping what it has made of them, for want of registers.
template <int N>
__device__ __forceinline__ void forget(uint4 (&run)[N]) {
#pragma unroll
  for (int i = 0; i < N; ++i)
    asm volatile("" : "+r"(run[i].x), "+r"(run[i].y), "+r"(run[i].z), "+r"(run[i].w)::"memory");
}

// The power of two, by its exponent as float32 holds it, that brings `largest` into [2^14, 2^15).
__device__ __forceinline__ uint32_t exponent_into_half(float largest) {
  return largest < INFINITY ? min(268 - (__float_as_uint(largest) >> 23), 253u) : 127u;
}

// The lengths of a row, multiplied and not; the latter is returned. Calls `once_read` when all of it is
// there.
template <class S, int Steps, class Then>
__device__ __forceinline__ float measure_row(uint4 (&run)[Lane<S, Steps>::kTotal], int r,
                                             Fragments<S, Steps>& out, const Then& once_read) {
  float largest = 0, squares = 0;
  forget(run);
#pragma unroll
  for (int i = 0; i < Steps * kQuad; ++i) largest = fmaxf(largest, fabsf(element_of<S>(run, i)));
  largest = fmaxf(largest, __shfl_xor_sync(kFullWarp, largest, 1));
  largest = fmaxf(largest, __shfl_xor_sync(kFullWarp, largest, 2));
  once_read();
  const uint32_t exponent = exponent_into_half(largest);
  out.scale[r] = __uint_as_float(exponent << 23);
  forget(run);
#pragma unroll
  for (int i = 0; i < Steps * kQuad; ++i) {
    const float value = element_of<S>(run, i) * out.scale[r];
    squares += value * value;
  }
  out.length[r] = sqrtf(sum_over<4>(squares));
  return out.length[r] * out.inverse_scale(r);
}

template <class S, int Steps>
__device__ __forceinline__ void write_unit(uint4 (&run)[Lane<S, Steps>::kTotal], float inverse,
                                           const Lane<S, Steps>& lane, S* y) {
  forget(run);
#pragma unroll
  for (int i = 0; i < Lane<S, Steps>::kTotal; ++i) {
    Run<S> unit;
#pragma unroll
    for (int c = 0; c < kRun<S>; ++c)
      unit.element[c] = stored<S>(element_of<S>(run, i * kRun<S> + c) * inverse);
    if (i < lane.count) *reinterpret_cast<Run<S>*>(y + lane.first + i * Lane<S, Steps>::kStride) = unit;
  }
}

template <class S, int Steps>
__device__ __forceinline__ void split_row(uint4 (&run)[Lane<S, Steps>::kTotal], int r,
                                          Fragments<S, Steps>& out) {
  float lost = 0;
  forget(run);
#pragma unroll
  for (int step = 0; step < Steps; ++step) {
#pragma unroll
    for (int t = 0; t < 2; ++t) {
      const int i = step * kQuad + 2 * t;
      const float value[2] = {element_of<S>(run, i) * out.scale[r], element_of<S>(run, i + 1) * out.scale[r]};
      const __half2 high = __floats2half2_rn(value[0], value[1]);
      out.high[step][2 * t + r] = *reinterpret_cast<const uint32_t*>(&high);
      if constexpr (Fragments<S, Steps>::kSplit) {
        const float2 kept = __half22float2(high);
        const float left[2] = {value[0] - kept.x, value[1] - kept.y};
        lost += left[0] * left[0] + left[1] * left[1];
        out.low[step][2 * t + r] = pack(left[0], left[1]);
      }
    }
  }
  // 16-bit numbers lose at most the last place of float16's subnormals.
  out.lost[r] = Fragments<S, Steps>::kSplit ? sqrtf(sum_over<4>(lost)) : out.length[r] * 0x1p-30f;
}

// Exact products of both rows with an anchor each (multiplied as the rows are), in all four lanes of a row.
template <class S, int Steps>
__device__ __forceinline__ void exact_products(const Fragments<S, Steps>& rows, const S* const (&anchor)[2],
                                               const bool (&wanted)[2], const Lane<S, Steps>& lane,
                                               float (&product)[2]) {
  constexpr int kCount = kRun<S>, kTotal = Lane<S, Steps>::kTotal, kAtOnce = kTotal < 8 ? kTotal : 8;
  float sum[2][2] = {};
#pragma unroll
  for (int from = 0; from < kTotal; from += kAtOnce) {
    uint4 run[2][kAtOnce];
#pragma unroll
    for (int r = 0; r < 2; ++r) {
#pragma unroll
      for (int i = 0; i < kAtOnce; ++i) {
        const int at = lane.first + (from + i) * Lane<S, Steps>::kStride;
        run[r][i] =
            wanted[r] && from + i < lane.count ? *reinterpret_cast<const uint4*>(anchor[r] + at) : uint4{};
      }
    }
#pragma unroll
    for (int r = 0; r < 2; ++r) {
#pragma unroll
      for (int i = 0; i < kAtOnce * kCount; i += 2) {
        const int step = (from * kCount + i) / kQuad, part = 2 * (i % kQuad / 2) + r;
        float2 x = __half22float2(*reinterpret_cast<const __half2*>(&rows.high[step][part]));
        if constexpr (Fragments<S, Steps>::kSplit) {
          const float2 low = __half22float2(*reinterpret_cast<const __half2*>(&rows.low[step][part]));
          x.x += low.x;
          x.y += low.y;
        }
        sum[r][0] += x.x * element_of<S>(run[r], i);
        sum[r][1] += x.y * element_of<S>(run[r], i + 1);
      }
    }
  }
#pragma unroll
  for (int r = 0; r < 2; ++r) product[r] = sum_over<4>(sum[r][0] + sum[r][1]);
}

}  // namespace stratcore::tangent_projection

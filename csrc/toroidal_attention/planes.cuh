#pragma once

#include <cuda_bf16.h>

#include <cstdint>
#include <type_traits>

#include "../common/element.cuh"
#include "scores.cuh"

// Float32 on tensor cores of 16 bits: a number is the sum of three of bfloat16, its planes, each 2^-8 of the
// one before. They have the exponents of float32, so nothing is scaled and nothing is shared: no number
// touches the bits of another.
namespace stratcore::toroidal_attention {

constexpr int kPlanes = 3;
constexpr int kPlaneWidth = 64;  // columns of planes; heads that are wider go by mma.sync
constexpr int kFewQueries = 32;  // do not pay for planes of the keys

// What the kernels of sm_90a multiply in the place of elements of a type.
template <class S>
constexpr bool kInPlanes = std::is_same_v<S, float>;
template <class S>
using Multiplied = std::conditional_t<kInPlanes<S>, __nv_bfloat16, S>;

// Rows [B, heads, rows, dim] and their planes [B, kPlanes, heads, rows, kPlaneWidth], 0 beyond the columns.
struct SplitRows {
  const void* data;
  Strides strides;
  int64_t batch, heads, rows, dim;
  __nv_bfloat16* planes;
};
constexpr int kMostSplit = 4;
struct SplitTensors {
  SplitRows tensor[kMostSplit];
};

constexpr int kSplitThreads = 256, kSplitCols = 8;  // columns of a thread
constexpr int kSplitRows = kSplitThreads * kSplitCols / kPlaneWidth;

// blockIdx.y: the tensor. Planes are rounded, so that what is left out of a product has no sign of its own.
__global__ void __launch_bounds__(kSplitThreads) split_kernel(const __grid_constant__ SplitTensors all) {
  const SplitRows& to = all.tensor[blockIdx.y];
  constexpr int kChunks = kPlaneWidth / kSplitCols;
  const int thread = static_cast<int>(threadIdx.x), col = thread % kChunks * kSplitCols;
  const int64_t at = int64_t(blockIdx.x) * kSplitRows + thread / kChunks, per_head = to.rows;
  if (at >= to.batch * to.heads * per_head) return;
  const int64_t head = at / per_head, row = at - head * per_head, batch = head / to.heads;
  const Source<float> from =
      source_of<float>(to.data, to.strides, batch, head - batch * to.heads, to.rows, to.dim);
  uint32_t planes[kPlanes][kSplitCols / 2];
#pragma unroll
  for (int part = 0; part < kSplitCols; part += kQuad) {
    const Quad<float> quad = load_quad(from.data + row * from.stride, col + part, to.dim, from.chunked);
#pragma unroll
    for (int i = 0; i < kQuad; i += 2) {
      float rest[2] = {quad.element[i], quad.element[i + 1]};
#pragma unroll
      for (int plane = 0; plane < kPlanes; ++plane) {
        const __nv_bfloat162 rounded = __floats2bfloat162_rn(rest[0], rest[1]);
        planes[plane][(part + i) / 2] = *reinterpret_cast<const uint32_t*>(&rounded);
        rest[0] -= __low2float(rounded);
        rest[1] -= __high2float(rounded);
      }
    }
  }
  const int64_t plane_size = to.heads * to.rows * kPlaneWidth;
  __nv_bfloat16* out =
      to.planes + batch * kPlanes * plane_size + (at - batch * to.heads * to.rows) * kPlaneWidth + col;
#pragma unroll
  for (int plane = 0; plane < kPlanes; ++plane)
    *reinterpret_cast<uint4*>(out + plane * plane_size) = *reinterpret_cast<const uint4*>(planes[plane]);
}

// Planes of two numbers, exactly: each takes the next 8 bits.
__device__ __forceinline__ void split_pair(float low, float high, uint32_t (&planes)[kPlanes]) {
  constexpr uint32_t kHigh = 0xffff0000u;
#pragma unroll
  for (int plane = 0; plane < kPlanes; ++plane) {
    const uint32_t bits[2] = {__float_as_uint(low), __float_as_uint(high)};
    planes[plane] = __byte_perm(bits[0], bits[1], 0x7632);
    low -= __uint_as_float(bits[0] & kHigh);
    high -= __uint_as_float(bits[1] & kHigh);
  }
}

}  // namespace stratcore::toroidal_attention

#pragma once

#include "softmax.cuh"

// The gradient of the queries where blocks of keys add to it in memory, in float32.
namespace stratcore::toroidal_attention {

// Sums of the gradient of 64 queries [8 warps][E / 16][32 lanes][4], as warps hold them: row and first column
// of elements 2 r and 2 r + 1.
template <int E>
__device__ __forceinline__ int2 place_in_tile(int warp, int part, int lane, int r) {
  return make_int2(warp % 4 * 16 + lane / 4 + 8 * r, warp / 4 * (E / 2) + part * 8 + lane % 4 * 2);
}

// The gradient of the queries from the sums that blocks of keys have added to. A block takes 64 queries of a
// head.
template <class S, int E>
__global__ void __launch_bounds__(kBlock)
    query_sums_kernel(const __grid_constant__ Problem problem, const float* sums, int64_t stride, S* grad_q) {
  constexpr int kRows = 64, kChunk = 8;
  __shared__ __align__(16) S rows[kRows][E + kChunk];
  const int tiles = static_cast<int>(stride / kRows), tile = static_cast<int>(blockIdx.x) % tiles;
  const int64_t pair = blockIdx.x / tiles;
  const float4* from = reinterpret_cast<const float4*>(sums + (pair * stride + tile * kRows) * E);
  const int thread = static_cast<int>(threadIdx.x), lane = thread % 32;
  const float scale = float(problem.scale);
#pragma unroll
  for (int at = 0; at < E / 8; ++at) {
    const int warp = at / (E / 16) * 4 + thread / 32, part = at % (E / 16);
    const float4 sum = from[(warp * (E / 16) + part) * 32 + lane];
    const int2 low = place_in_tile<E>(warp, part, lane, 0), high = place_in_tile<E>(warp, part, lane, 1);
    store_two(&rows[low.x][low.y], scale * sum.x, scale * sum.y, true);
    store_two(&rows[high.x][high.y], scale * sum.z, scale * sum.w, true);
  }
  __syncthreads();
  const int count = static_cast<int>(min(int64_t(kRows), problem.queries - tile * kRows));
  const int dim = static_cast<int>(problem.dim);
  S* to = grad_q + (pair * problem.queries + tile * kRows) * dim;
  if (dim % kChunk == 0) {
    const int chunks = dim / kChunk;
    for (int at = thread; at < count * chunks; at += kBlock) {
      const int row = at / chunks, col = at % chunks * kChunk;
      *reinterpret_cast<uint4*>(to + row * dim + col) = *reinterpret_cast<const uint4*>(&rows[row][col]);
    }
    return;
  }
  for (int at = thread; at < count * dim; at += kBlock) to[at] = rows[at / dim][at % dim];
}

}  // namespace stratcore::toroidal_attention

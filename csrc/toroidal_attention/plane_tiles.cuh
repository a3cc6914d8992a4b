#pragma once

#include "planes.cuh"
#include "tile_pipeline.cuh"

// Tiles of planes in shared memory, and products of them: six of bfloat16 in the place of one of float32, all
// but those below 2^-24 of it. Small ones first, so that what tensor cores cut off where they add is little;
// for the same reason the sums over a tile join those over all tiles outside of them.
namespace stratcore::toroidal_attention {

template <int E, int Rows>
struct PlaneTile {
  Sliced<__nv_bfloat16, E, Rows> plane[kPlanes];

  // From row `first` on of a head; `full` waits for its bytes.
  __device__ __forceinline__ void fetch(const CUtensorMap& map, uint64_t* full, int first, int head,
                                        int batch) {
#pragma unroll
    for (int i = 0; i < kPlanes; ++i) plane[i].fetch(map, full, first, head, batch * kPlanes + i);
  }
};

// Rows in shared memory, and factors of `Steps` steps in registers, as the type is multiplied.
template <class S, int E, int Rows>
using RowTile = std::conditional_t<kInPlanes<S>, PlaneTile<E, Rows>, Sliced<Multiplied<S>, E, Rows>>;
template <class S, int Steps>
using Factors = std::conditional_t<kInPlanes<S>, uint32_t[kPlanes][Steps][4], uint32_t[Steps][4]>;

// Calls use(i, j, first) for the planes of both factors, the small products first.
template <class Use>
__device__ __forceinline__ void each_product(const Use& use) {
#pragma unroll
  for (int sum = kPlanes - 1; sum >= 0; --sum)
#pragma unroll
    for (int i = sum; i >= 0; --i) use(i, sum - i, sum == kPlanes - 1 && i == sum);
}

// sums = rows [64 group, 64 group + 64) of a times all rows of b, transposed.
template <int E, int Rows, int Cols>
__device__ __forceinline__ void multiply_rows(float (&sums)[Cols / 8][4], const PlaneTile<E, Rows>& a,
                                              int group, const PlaneTile<E, Cols>& b) {
  static_assert(E == kSlice, "one slice");
  const MatrixDescriptor left(shared_address(a.plane[0].slice[0][64 * group]), 1);
  const MatrixDescriptor right(shared_address(b.plane[0].slice[0]), 1);
  clear(sums);
  each_product([&](int i, int j, bool first) {
#pragma unroll
    for (int step = 0; step < E / 16; ++step)
      Wgmma<__nv_bfloat16>::template multiply<false, false>(sums, left.at(i * sizeof(a.plane[0]) + step * 32),
                                                            right.at(j * sizeof(b.plane[0]) + step * 32),
                                                            !first || step > 0);
  });
}

// sums = factor [64, Rows] in registers times b.
template <int E, int Rows>
__device__ __forceinline__ void multiply_factors(float (&sums)[E / 8][4],
                                                 const uint32_t (&factor)[kPlanes][Rows / 16][4],
                                                 const PlaneTile<E, Rows>& b) {
  const MatrixDescriptor right(shared_address(b.plane[0].slice[0]), 1);
  clear(sums);
  each_product([&](int i, int j, bool first) {
#pragma unroll
    for (int step = 0; step < Rows / 16; ++step)
      Wgmma<__nv_bfloat16>::template multiply<true>(sums, factor[i][step],
                                                    right.at(j * sizeof(b.plane[0]) + step * 16 * kSlice * 2),
                                                    !first || step > 0);
  });
}

template <class S, int N>
__device__ __forceinline__ void pack(const float (&sums)[N][4], uint32_t (&factor)[kPlanes][N / 2][4]) {
  static_assert(kInPlanes<S>);
#pragma unroll
  for (int step = 0; step < N / 2; ++step) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const float* pair = &sums[2 * step + i / 2][i % 2 * 2];
      uint32_t planes[kPlanes];
      split_pair(pair[0], pair[1], planes);
#pragma unroll
      for (int plane = 0; plane < kPlanes; ++plane) factor[plane][step][i] = planes[plane];
    }
  }
}

// total += sums.
template <int N>
__device__ __forceinline__ void add_sums(float (&total)[N][4], const float (&sums)[N][4]) {
#pragma unroll
  for (int n = 0; n < N; ++n)
#pragma unroll
    for (int e = 0; e < 4; ++e) total[n][e] += sums[n][e];
}

}  // namespace stratcore::toroidal_attention

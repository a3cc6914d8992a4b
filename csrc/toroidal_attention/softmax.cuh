#pragma once

#include "scores.cuh"

namespace stratcore::toroidal_attention {

// Running softmax of a lane's two rows: the sums of weights and of weighted values, relative to 2^maximum.
template <int N>
struct Softmax {
  float maximum[2] = {-INFINITY, -INFINITY}, weight[2] = {};  // weight: of this lane alone
  float value[N][4] = {};

  // Scores, less `row` of each row and `col` of even and odd columns, become weights. What was summed so far
  // belongs to the maximum before: `value` is to be multiplied by `factor`, `weight` already is.
  template <int M>
  __device__ __forceinline__ void absorb(float (&scores)[M][4], const float (&row)[2], const float (&col)[2],
                                         float (&factor)[2]) {
    float largest[2][2], shift[2][2], share[2][2] = {};  // of even and odd columns, so that sums wait less
#pragma unroll
    for (int i = 0; i < 4; ++i) largest[i / 2][i % 2] = scores[0][i];
#pragma unroll
    for (int n = 1; n < M; ++n)
#pragma unroll
      for (int i = 0; i < 4; ++i) largest[i / 2][i % 2] = fmaxf(largest[i / 2][i % 2], scores[n][i]);
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const float both = fmaxf(largest[r][0] + col[0], largest[r][1] + col[1]);
      const float most = fmaxf(maximum[r], row_max(both) + row[r]);
      const float base = most == -INFINITY ? 0.0f : most;
      factor[r] = power_of_two(maximum[r] - base);
      maximum[r] = most;
#pragma unroll
      for (int e = 0; e < 2; ++e) shift[r][e] = base - row[r] - col[e];
    }
#pragma unroll
    for (int n = 0; n < M; ++n) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        scores[n][i] = power_of_two(scores[n][i] - shift[i / 2][i % 2]);
        share[i / 2][i % 2] += scores[n][i];
      }
    }
#pragma unroll
    for (int r = 0; r < 2; ++r) weight[r] = fmaf(weight[r], factor[r], share[r][0] + share[r][1]);
  }

  __device__ __forceinline__ void rescale(const float (&factor)[2]) {
#pragma unroll
    for (int n = 0; n < N; ++n)
#pragma unroll
      for (int e = 0; e < 4; ++e) value[n][e] *= factor[e / 2];
  }

  // Log2 of the sum of weights of a row; -infinity without any.
  __device__ float lse(int r) const { return maximum[r] + log2f(row_sum(weight[r])); }
};

// Two neighbors of a row; `together`: they lie at a multiple of their size and both belong to it.
template <class S>
__device__ __forceinline__ void store_two(S* to, float low, float high, bool together) {
  if (together) {
    if constexpr (sizeof(S) == 2)
      *reinterpret_cast<uint32_t*>(to) = Packing<S>::pack(low, high);
    else
      *reinterpret_cast<float2*>(to) = make_float2(low, high);
    return;
  }
  to[0] = S(low);
}

// Rows of `count`, each times its factor.
template <class S, int E>
__device__ void store_rows(S* data, int64_t stride, const RowInfo& rows, int64_t count, int64_t dim, int lane,
                           const float (&values)[E / 8][4], const float (&factor)[2]) {
  const bool together =
      dim % 2 == 0 && stride % 2 == 0 && reinterpret_cast<uintptr_t>(data) % (2 * sizeof(S)) == 0;
  if (together && dim == E) {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      if (rows.index[r] >= count) continue;
      S* row = data + rows.index[r] * stride + lane % 4 * 2;
#pragma unroll
      for (int n = 0; n < E / 8; ++n)
        store_two(row + 8 * n, values[n][2 * r] * factor[r], values[n][2 * r + 1] * factor[r], true);
    }
    return;
  }
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    if (rows.index[r] >= count) continue;
    S* row = data + rows.index[r] * stride;
#pragma unroll
    for (int n = 0; n < E / 8; ++n) {
      const int col = 8 * n + lane % 4 * 2;
      const float low = values[n][2 * r] * factor[r], high = values[n][2 * r + 1] * factor[r];
      if (col < dim) store_two(row + col, low, high, together);
      if (!together && col + 1 < dim) row[col + 1] = S(high);
    }
  }
}

}  // namespace stratcore::toroidal_attention

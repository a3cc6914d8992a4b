#pragma once

#include "../common/element.cuh"
#include "../common/warp.cuh"
#include "tangent_projection.h"
#include "tangent_projection_math.h"

// Rows alone: L lanes a row, the row in registers. Legend as in tangent_projection.h.
namespace stratcore::tangent_projection {

constexpr int kWarps = 8;  // a block

template <class S>
struct Targets {
  S* y;
  Computed<S>* norm;
  int32_t* nearest;
  Computed<S>* cosine;
};

template <class T>
__device__ inline T inverse_radius(T norm, double eps) {
  return T(1) / radius_of(norm, T(eps));
}

// Q quads of one row a lane; elements beyond the row are 0.
template <int L, int Q, class S>
__device__ inline void load_row(const S* row, int lane, int64_t dim, bool aligned,
                                Computed<S> (&values)[Q][kQuad]) {
#pragma unroll
  for (int q = 0; q < Q; ++q) {
    const Quad<S> quad = load_quad(row, int64_t(q * L + lane) * kQuad, dim, aligned);
#pragma unroll
    for (int c = 0; c < kQuad; ++c) values[q][c] = number(quad.element[c]);
  }
}

template <int L, int Q, class S>
__global__ void __launch_bounds__(kWarps* kWarp)
    normalize_kernel(Problem problem, Targets<S> out, bool aligned) {
  using T = Computed<S>;
  const int lane = threadIdx.x % L;
  const int64_t groups = int64_t(gridDim.x) * (kWarps * kWarp / L);
  const int64_t rounds = (problem.rows + groups - 1) / groups;
  int64_t row = (int64_t(blockIdx.x) * blockDim.x + threadIdx.x) / L;
  for (int64_t round = 0; round < rounds; ++round, row += groups) {
    const bool inside = row < problem.rows;
    const int64_t offset = (inside ? row : problem.rows - 1) * problem.dim;
    T x[Q][kQuad];
    load_row<L, Q, S>(static_cast<const S*>(problem.x) + offset, lane, problem.dim, aligned, x);
    T squares = 0;
#pragma unroll
    for (int q = 0; q < Q; ++q) {
#pragma unroll
      for (int c = 0; c < kQuad; ++c) squares += x[q][c] * x[q][c];
    }
    const T norm = sqrt(sum_over<L>(squares)), scale = inverse_radius(norm, problem.eps);
    if (!inside) continue;
#pragma unroll
    for (int q = 0; q < Q; ++q) {
#pragma unroll
      for (int c = 0; c < kQuad; ++c) x[q][c] *= scale;
      store_quad(out.y + offset, int64_t(q * L + lane) * kQuad, problem.dim, aligned, x[q]);
    }
    if (lane == 0) out.norm[row] = norm;
  }
}

// A row of any length by a warp, read twice; returns its norm.
template <class S>
__device__ inline Computed<S> normalize_row(const S* x, S* y, Computed<S>* norm_out, int64_t dim, double eps,
                                            int lane) {
  using T = Computed<S>;
  T squares = 0;
  for (int64_t d = lane; d < dim; d += kWarp) squares += T(number(x[d])) * T(number(x[d]));
  const T norm = sqrt(sum_over<kWarp>(squares)), scale = inverse_radius(norm, eps);
  for (int64_t d = lane; d < dim; d += kWarp) y[d] = stored<S>(T(number(x[d])) * scale);
  if (lane == 0) *norm_out = norm;
  return norm;
}

template <class S>
__global__ void __launch_bounds__(kWarps* kWarp) normalize_long_kernel(Problem problem, Targets<S> out) {
  const int lane = threadIdx.x % kWarp;
  const int64_t warps = int64_t(gridDim.x) * kWarps, dim = problem.dim;
  for (int64_t row = int64_t(blockIdx.x) * kWarps + threadIdx.x / kWarp; row < problem.rows; row += warps) {
    normalize_row(static_cast<const S*>(problem.x) + row * dim, out.y + row * dim, out.norm + row, dim,
                  problem.eps, lane);
  }
}

}  // namespace stratcore::tangent_projection

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

template <class S>
constexpr int kRun = sizeof(S) == 2 ? 8 : kQuad;  // neighbors that a lane takes, of 16 bytes (float64: 32)

template <class S>
struct alignas(16) Run {
  S element[kRun<S>];
};

// Elements of rows of `dim` from `data` on that one access can take: a run, a quad or 1.
template <class S>
inline int width_of(const void* data, int64_t dim) {
  if (dim % kRun<S> == 0 && reinterpret_cast<uintptr_t>(data) % 16 == 0) return kRun<S>;
  return quads_aligned<S>(data, dim) ? kQuad : 1;
}

// Q runs of one row a lane; elements beyond the row are 0. Of long rows whole runs are loaded without a
// branch for each, which keeps their loads from being on their way together.
template <int L, int Q, class S>
__device__ inline void load_row(const S* row, int lane, int64_t dim, int width, Run<S> (&run)[Q]) {
  if constexpr (Q >= 4 && sizeof(Run<S>) == sizeof(uint4)) {
    if (width == kRun<S>) {
#pragma unroll
      for (int q = 0; q < Q; ++q) {
        const int at = (q * L + lane) * kRun<S>;
        uint4 bits{};
        if (at < dim) bits = *reinterpret_cast<const uint4*>(row + at);
        run[q] = reinterpret_cast<const Run<S>&>(bits);
      }
      return;
    }
  }
#pragma unroll
  for (int q = 0; q < Q; ++q) {
    const int64_t at = int64_t(q * L + lane) * kRun<S>;
    if (kRun<S> > kQuad && width == kRun<S> && at < dim) {
      run[q] = *reinterpret_cast<const Run<S>*>(row + at);
    } else {
#pragma unroll
      for (int c = 0; c < kRun<S>; c += kQuad) {
        *reinterpret_cast<Quad<S>*>(run[q].element + c) = load_quad(row, at + c, dim, width >= kQuad);
      }
    }
  }
}

// Brings a row that is read later into the L2 cache.
template <int L, int Q, class S>
__device__ __forceinline__ void prefetch_row(const S* row, int lane, int64_t dim) {
#pragma unroll
  for (int q = 0; q < Q; ++q) {
    const int64_t at = int64_t(q * L + lane) * kRun<S>;
    if (at < dim) asm volatile("prefetch.global.L2 [%0];" ::"l"(row + at));
  }
}

// Has the compiler convert 16-bit runs anew instead of keeping what it has made of them: more rows on their
// way.
template <int Q, class S>
__device__ __forceinline__ void keep_packed(Run<S> (&run)[Q]) {
  if constexpr (sizeof(S) == 2) {
#pragma unroll
    for (int q = 0; q < Q; ++q) {
      uint4& bits = reinterpret_cast<uint4&>(run[q]);
      asm volatile("" : "+r"(bits.x), "+r"(bits.y), "+r"(bits.z), "+r"(bits.w));
    }
  }
}

// Stores value(q, c) as element c of the lane's run q.
template <int L, int Q, class S, class Value>
__device__ inline void store_row(S* row, int lane, int64_t dim, int width, const Value& value) {
#pragma unroll
  for (int q = 0; q < Q; ++q) {
    const int64_t at = int64_t(q * L + lane) * kRun<S>;
    Computed<S> values[kRun<S>];
#pragma unroll
    for (int c = 0; c < kRun<S>; ++c) values[c] = value(q, c);
    if (kRun<S> > kQuad && width == kRun<S> && at < dim) {
      Run<S> run;
#pragma unroll
      for (int c = 0; c < kRun<S>; ++c) run.element[c] = stored<S>(values[c]);
      *reinterpret_cast<Run<S>*>(row + at) = run;
    } else {
#pragma unroll
      for (int c = 0; c < kRun<S>; c += kQuad) {
        const auto& quad = *reinterpret_cast<const Computed<S>(*)[kQuad]>(values + c);
        store_quad(row, at + c, dim, width >= kQuad, quad);
      }
    }
  }
}

template <int L, int Q, class S>
__global__ void __launch_bounds__(kWarps* kWarp)
    normalize_kernel(Problem problem, Targets<S> out, int width) {
  using T = Computed<S>;
  const int lane = threadIdx.x % L;
  const int64_t groups = int64_t(gridDim.x) * (kWarps * kWarp / L);
  const int64_t rounds = (problem.rows + groups - 1) / groups;
  int64_t row = (int64_t(blockIdx.x) * blockDim.x + threadIdx.x) / L;
  for (int64_t round = 0; round < rounds; ++round, row += groups) {
    const bool inside = row < problem.rows;
    const int64_t offset = (inside ? row : problem.rows - 1) * problem.dim;
    Run<S> x[Q];
    load_row<L, Q, S>(static_cast<const S*>(problem.x) + offset, lane, problem.dim, width, x);
    T squares = 0;
#pragma unroll
    for (int q = 0; q < Q; ++q) {
#pragma unroll
      for (int c = 0; c < kRun<S>; ++c) squares += T(number(x[q].element[c])) * T(number(x[q].element[c]));
    }
    const T norm = sqrt(sum_over<L>(squares)), scale = inverse_radius(norm, problem.eps);
    keep_packed(x);
    if (!inside) continue;
    store_row<L, Q, S>(out.y + offset, lane, problem.dim, width,
                       [&](int q, int c) { return T(number(x[q].element[c])) * scale; });
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

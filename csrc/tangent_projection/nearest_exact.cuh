#pragma once

#include "rows.cuh"

// Rows against few anchors, or few rows against anchors: a block scores four rows exactly. Legend as in
// tangent_projection.h.
namespace stratcore::tangent_projection {

constexpr int kExactRows = 4;  // of a block

// Best anchor so far; NaN is larger than everything, of equals the lower anchor wins.
template <class T>
struct Nearest {
  T cosine = -INFINITY;
  int32_t anchor = 0x7fffffff;

  __device__ void see(T other, int32_t index) {
    const bool is_nan = other != other, held = cosine != cosine;
    const bool equal = is_nan ? held : other == cosine;
    if ((is_nan && !held) || other > cosine || (equal && index < anchor)) {
      cosine = other;
      anchor = index;
    }
  }
};

// Rows that are not finite have no nearest anchor: 0, with cosine NaN.
template <class S>
__device__ inline void write_nearest(const Targets<S>& out, int64_t row, const Nearest<Computed<S>>& nearest,
                                     Computed<S> norm, double eps) {
  const bool finite = norm < Computed<S>(INFINITY);
  out.nearest[row] = finite ? nearest.anchor : 0;
  out.cosine[row] = finite ? nearest.cosine * inverse_radius(norm, eps) : Computed<S>(NAN);
}

template <class S>
__device__ inline Computed<S> inverse_length(Computed<S> squares) {
  return squares > Computed<S>(0) ? Computed<S>(1) / sqrt(squares) : Computed<S>(0);
}

constexpr int kExactAnchors = 4;  // of a warp at once

// Cosines, but for the rows' lengths, of the block's rows with anchors [from, from + kExactAnchors), in every
// lane.
template <class S>
__device__ inline void score_exactly(const Problem& problem, const S* const (&x)[kExactRows], int64_t from,
                                     bool aligned, int lane, Nearest<Computed<S>> (&best)[kExactRows]) {
  using T = Computed<S>;
  const S* anchor[kExactAnchors];
#pragma unroll
  for (int n = 0; n < kExactAnchors; ++n) {
    anchor[n] =
        static_cast<const S*>(problem.anchors) + min(from + n, problem.anchor_count - 1) * problem.dim;
  }
  T dot[kExactAnchors][kExactRows] = {}, squares[kExactAnchors] = {};
  for (int64_t at = lane * kQuad; at < problem.dim; at += kWarp * kQuad) {
    Quad<S> row[kExactRows], other[kExactAnchors];
#pragma unroll
    for (int r = 0; r < kExactRows; ++r) row[r] = load_quad(x[r], at, problem.dim, aligned);
#pragma unroll
    for (int n = 0; n < kExactAnchors; ++n) other[n] = load_quad(anchor[n], at, problem.dim, aligned);
#pragma unroll
    for (int n = 0; n < kExactAnchors; ++n) {
#pragma unroll
      for (int c = 0; c < kQuad; ++c) {
        const T value = number(other[n].element[c]);
        squares[n] += value * value;
#pragma unroll
        for (int r = 0; r < kExactRows; ++r) dot[n][r] += value * T(number(row[r].element[c]));
      }
    }
  }
#pragma unroll
  for (int n = 0; n < kExactAnchors; ++n) {
    const T scale = inverse_length<S>(sum_over<kWarp>(squares[n]));
    const auto index = static_cast<int32_t>(min(from + n, problem.anchor_count - 1));
#pragma unroll
    for (int r = 0; r < kExactRows; ++r) best[r].see(sum_over<kWarp>(dot[n][r]) * scale, index);
  }
}

template <class S>
__global__ void __launch_bounds__(kWarps* kWarp) exact_kernel(Problem problem, Targets<S> out, bool aligned) {
  using T = Computed<S>;
  __shared__ Nearest<T> found[kWarps][kExactRows];
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  const int64_t dim = problem.dim, tiles = (problem.rows + kExactRows - 1) / kExactRows;
  for (int64_t tile = blockIdx.x; tile < tiles; tile += gridDim.x) {
    const S* x[kExactRows];
#pragma unroll
    for (int r = 0; r < kExactRows; ++r) {
      x[r] = static_cast<const S*>(problem.x) + min(tile * kExactRows + r, problem.rows - 1) * dim;
    }
    Nearest<T> best[kExactRows];
    for (int64_t from = warp * kExactAnchors; from < problem.anchor_count; from += kWarps * kExactAnchors) {
      score_exactly<S>(problem, x, from, aligned, lane, best);
    }
    if (lane == 0) {
#pragma unroll
      for (int r = 0; r < kExactRows; ++r) found[warp][r] = best[r];
    }
    __syncthreads();
    const int64_t row = tile * kExactRows + warp;
    if (warp < kExactRows && row < problem.rows) {
      const S* own = static_cast<const S*>(problem.x) + row * dim;
      const T norm = normalize_row(own, out.y + row * dim, out.norm + row, dim, problem.eps, lane);
      if (lane == 0) {
        Nearest<T> nearest;
        for (int w = 0; w < kWarps; ++w) nearest.see(found[w][warp].cosine, found[w][warp].anchor);
        write_nearest<S>(out, row, nearest, norm, problem.eps);
      }
    }
    __syncthreads();
  }
}

}  // namespace stratcore::tangent_projection

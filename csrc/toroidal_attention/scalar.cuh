#pragma once

#include <cstdint>

#include "backward_mma.cuh"
#include "toroidal_attention.h"

// Float64, for checks: a warp a row, scores of 32 pairs at once. The forward leaves out tiles of one query
// and 32 keys; the backward none.
namespace stratcore::toroidal_attention {

constexpr int kMostDim = 256;
constexpr int kLaneDims = kMostDim / 32;

// Rows of one head.
struct DoubleRows {
  const double* data;
  int64_t stride;

  __device__ DoubleRows(const void* from, const Strides& strides, int64_t batch, int64_t head)
      : data(static_cast<const double*>(from) + batch * strides.batch + head * strides.head),
        stride(strides.row) {}
  __device__ const double* operator[](int64_t index) const { return data + index * stride; }
};

__device__ inline double dot(const double* a, const double* b, int64_t dim) {
  double sum = 0;
  for (int64_t i = 0; i < dim; ++i) sum += a[i] * b[i];
  return sum;
}

// The score of a pair, and what each slope multiplies; -infinity where the query does not see the key.
struct PairScore {
  double score, parts[kMaxAxes];

  __device__ PairScore(const Problem& problem, int64_t batch, int64_t head, int64_t query, int64_t key,
                       double product) {
    const Site a = site_of(problem.lattice, problem.query_offset + query);
    const Site b = site_of(problem.lattice, problem.key_offset + key);
    double steps[kMaxAxes];
    for (int axis = 0; axis < kMaxAxes; ++axis)
      steps[axis] = ring_steps(a.at[axis], b.at[axis], problem.lattice.period[axis]);
    distance_parts(problem.metric, problem.lattice, steps, problem.slope_count, parts);
    score = product * problem.scale;
    const double* slopes = static_cast<const double*>(problem.slopes) + head * problem.slope_count;
    for (int axis = 0; axis < problem.slope_count; ++axis) score -= slopes[axis] * parts[axis];
    const Mask& mask = problem.mask;
    if (mask.element != MaskElement::kNone) {
      const int64_t at = batch * mask.batch + head * mask.head + query * mask.row + key * mask.col;
      if (mask.element == MaskElement::kBool) {
        if (!static_cast<const bool*>(mask.data)[at]) score = -INFINITY;
      } else {
        score += mask.element == MaskElement::kFloat32 ? static_cast<const float*>(mask.data)[at]
                                                       : static_cast<const double*>(mask.data)[at];
      }
    }
    if (key >= key_limit(problem, query)) score = -INFINITY;
  }
};

// sums[i] += sum over lanes j < count of weight_j rows[first + j][lane + 32 i].
__device__ inline void add_weighted(double (&sums)[kLaneDims], double weight, const DoubleRows& rows,
                                    int64_t first, int count, int64_t dim, int lane) {
  for (int j = 0; j < count; ++j) {
    const double w = __shfl_sync(0xffffffffu, weight, j);
    const double* row = rows[first + j];
    for (int i = 0; i < kLaneDims; ++i)
      if (lane + 32 * i < dim) sums[i] += w * row[lane + 32 * i];
  }
}

__device__ inline void store(double* row, const double (&sums)[kLaneDims], double factor, int64_t dim,
                             int lane) {
  for (int i = 0; i < kLaneDims; ++i)
    if (lane + 32 * i < dim) row[lane + 32 * i] = sums[i] * factor;
}

__device__ inline double warp_sum(double value) {
  for (int offset = 16; offset; offset /= 2) value += __shfl_xor_sync(0xffffffffu, value, offset);
  return value;
}

// Warp of a grid whose warps are numbered.
__device__ inline int64_t warp_index() { return (int64_t(blockIdx.x) * blockDim.x + threadIdx.x) / 32; }

// Running softmax of a row.
struct ScalarSoftmax {
  double maximum = -INFINITY, weight = 0, values[kLaneDims] = {};

  __device__ double lse() const { return weight == 0 ? -INFINITY : maximum + log(weight); }

  // Scores of lanes, of rows of v from `first` on.
  __device__ void absorb(double score, const DoubleRows& v, int first, int count, int64_t dim, int lane) {
    double largest = score;
    for (int offset = 16; offset; offset /= 2)
      largest = fmax(largest, __shfl_xor_sync(0xffffffffu, largest, offset));
    largest = fmax(largest, maximum);
    const double base = largest == -INFINITY ? 0 : largest, factor = exp(maximum - base);
    maximum = largest;
    const double share = exp(score - base);
    weight = weight * factor + warp_sum(share);
    for (double& value : values) value *= factor;
    add_weighted(values, share, v, first, count, dim, lane);
  }
};

__global__ void forward_scalar_kernel(const __grid_constant__ Prepared problem, Output out,
                                      const float* key_norms) {
  const int64_t row = warp_index(), pair = row / problem.queries, query = row % problem.queries;
  if (pair >= problem.batch * problem.heads) return;
  const Head head = head_of<double>(problem, static_cast<int>(pair));
  const int lane = threadIdx.x % 32, limit = key_limit(problem, query);
  const DoubleRows q(problem.q, problem.q_strides, head.batch, head.head),
      k(problem.k, problem.k_strides, head.batch, head.kv_head),
      v(problem.v, problem.v_strides, head.batch, head.kv_head);
  ScalarSoftmax sums;
  const auto look = [&](int tile) {
    const int first = 32 * tile, count = min(32, limit - first);
    double score = -INFINITY;
    if (lane < count) {
      const double product = dot(q[query], k[first + lane], problem.dim);
      score = PairScore(problem, head.batch, head.head, query, first + lane, product).score;
    }
    sums.absorb(score, v, first, count, problem.dim, lane);
  };
  KeyTiles<32> tiles(problem, head, static_cast<int>(query), 1, limit);
  int looked = 0;
  if (tiles.skipping() && tiles.count() > 0) {
    const int tile = tiles.nearest(lane);
    look(tile);
    const double norm = sqrt(dot(q[query], q[query], problem.dim)) * fabs(problem.scale) * kNormMargin;
    const double key_norm = key_norms[head.batch * problem.kv_heads + head.kv_head];
    tiles.judge_by(float((norm * key_norm - sums.lse()) * kLog2e));
    tiles.leave_out(tile);
    looked = 1;
  }
  for (int tile = tiles.next(lane); tile >= 0; tile = tiles.next(lane)) look(tile);
  double* data =
      static_cast<double*>(out.out) + head.batch * out.out_strides.batch + head.head * out.out_strides.head;
  store(data + query * out.out_strides.row, sums.values, sums.weight == 0 ? 0 : 1 / sums.weight, problem.dim,
        lane);
  if (lane != 0) return;
  static_cast<double*>(out.lse)[row] = sums.lse();
  atomicAdd(out.tiles + 2 * pair, tiles.count() - tiles.given() - looked);
  atomicAdd(out.tiles + 2 * pair + 1, tiles.count());
}

// What both backward kernels need of a pair: its weight and the gradient of its score.
struct PairGradient {
  double weight = 0, score = 0;

  __device__ void set(const PairScore& pair, double lse, double product, double delta) {
    weight = lse == -INFINITY ? 0 : exp(pair.score - lse);
    score = weight == 0 ? 0 : weight * (product - delta);
  }
};

__device__ inline double delta_of(const Problem& problem, const Output& out, const Gradients& gradients,
                                  int64_t batch, int64_t head, int64_t query) {
  const DoubleRows o(out.out, out.out_strides, batch, head),
      g(gradients.grad_out, gradients.grad_out_strides, batch, head);
  const int64_t at = (batch * problem.heads + head) * problem.queries + query;
  return dot(o[query], g[query], problem.dim) -
         (gradients.grad_lse ? static_cast<const double*>(gradients.grad_lse)[at] : 0);
}

// slopes: [B, H, N, S], the share of each query.
__global__ void query_scalar_kernel(const __grid_constant__ Problem problem, Output out, Gradients gradients,
                                    double* slopes) {
  const int64_t row = warp_index(), pair = row / problem.queries, query = row % problem.queries;
  if (pair >= problem.batch * problem.heads) return;
  const int64_t batch = pair / problem.heads, head = pair % problem.heads;
  const int64_t kv_head = head / (problem.heads / problem.kv_heads);
  const int lane = threadIdx.x % 32;
  const DoubleRows q(problem.q, problem.q_strides, batch, head),
      k(problem.k, problem.k_strides, batch, kv_head), v(problem.v, problem.v_strides, batch, kv_head),
      g(gradients.grad_out, gradients.grad_out_strides, batch, head);
  const double lse = static_cast<const double*>(out.lse)[row];
  const double delta = delta_of(problem, out, gradients, batch, head, query);
  double sums[kLaneDims] = {}, shares[kMaxAxes] = {};
  const int limit = key_limit(problem, query);
  for (int first = 0; first < limit; first += 32) {
    const int count = min(32, limit - first), key = first + lane;
    PairGradient gradient;
    if (lane < count) {
      const PairScore score(problem, batch, head, query, key, dot(q[query], k[key], problem.dim));
      gradient.set(score, lse, dot(g[query], v[key], problem.dim), delta);
      for (int axis = 0; axis < problem.slope_count; ++axis)
        shares[axis] -= gradient.score * score.parts[axis];
    }
    add_weighted(sums, gradient.score, k, first, count, problem.dim, lane);
  }
  store(static_cast<double*>(gradients.grad_q) + row * problem.dim, sums, problem.scale, problem.dim, lane);
  for (int axis = 0; axis < problem.slope_count; ++axis) {
    const double share = warp_sum(shares[axis]);
    if (lane == 0) slopes[row * problem.slope_count + axis] = share;
  }
}

__global__ void key_scalar_kernel(const __grid_constant__ Problem problem, Output out, Gradients gradients) {
  const int64_t row = warp_index(), group = row / problem.keys, key = row % problem.keys;
  if (group >= problem.batch * problem.kv_heads) return;
  const int64_t batch = group / problem.kv_heads, kv_head = group % problem.kv_heads;
  const int64_t repeats = problem.heads / problem.kv_heads;
  const int lane = threadIdx.x % 32;
  const DoubleRows k(problem.k, problem.k_strides, batch, kv_head),
      v(problem.v, problem.v_strides, batch, kv_head);
  double sums_k[kLaneDims] = {}, sums_v[kLaneDims] = {};
  for (int64_t head = kv_head * repeats; head < (kv_head + 1) * repeats; ++head) {
    const DoubleRows q(problem.q, problem.q_strides, batch, head),
        g(gradients.grad_out, gradients.grad_out_strides, batch, head);
    for (int64_t first = 0; first < problem.queries; first += 32) {
      const int count = static_cast<int>(min(int64_t(32), problem.queries - first));
      const int64_t query = first + lane;
      PairGradient gradient;
      if (lane < count) {
        const PairScore score(problem, batch, head, query, key, dot(q[query], k[key], problem.dim));
        const double lse =
            static_cast<const double*>(out.lse)[(batch * problem.heads + head) * problem.queries + query];
        gradient.set(score, lse, dot(g[query], v[key], problem.dim),
                     delta_of(problem, out, gradients, batch, head, query));
      }
      add_weighted(sums_k, gradient.score, q, first, count, problem.dim, lane);
      add_weighted(sums_v, gradient.weight, g, first, count, problem.dim, lane);
    }
  }
  store(static_cast<double*>(gradients.grad_k) + row * problem.dim, sums_k, problem.scale, problem.dim, lane);
  store(static_cast<double*>(gradients.grad_v) + row * problem.dim, sums_v, 1, problem.dim, lane);
}

}  // namespace stratcore::toroidal_attention

#pragma once

#include "row_scores.cuh"

// After the scores: norms, y and the exact cosines of the anchors that the scores leave, a warp for each row.
// Legend as in tangent_projection.h.
namespace stratcore::tangent_projection {

// Runs of a row of `dim`, a multiple of a run; without branches, so that all loads are on their way together.
template <class S, int Q>
__device__ __forceinline__ void load_whole(const S* row, int lane, int64_t dim, Run<S> (&run)[Q]) {
#pragma unroll
  for (int q = 0; q < Q; ++q) {
    const int at = (q * kWarp + lane) * kRun<S>;
    uint4 bits{};
    if (at < dim) bits = *reinterpret_cast<const uint4*>(row + at);
    run[q] = reinterpret_cast<const Run<S>&>(bits);
  }
}

template <class S, int Q>
__device__ __forceinline__ void store_scaled(S* row, int lane, int64_t dim, float scale,
                                             const Run<S> (&run)[Q]) {
#pragma unroll
  for (int q = 0; q < Q; ++q) {
    const int at = (q * kWarp + lane) * kRun<S>;
    Run<S> scaled;
#pragma unroll
    for (int c = 0; c < kRun<S>; ++c) scaled.element[c] = stored<S>(number(run[q].element[c]) * scale);
    if (at < dim) *reinterpret_cast<Run<S>*>(row + at) = scaled;
  }
}

// A row in the registers of a warp, or as much of it as fits there.
template <class S, int Q>
struct RowParts {
  static constexpr int kColumns = kWarp * Q * kRun<S>;
  const S* row;
  int64_t dim;
  int lane;
  Run<S> run[Q];

  // Calls use(its first column, its columns from there on), part by part.
  template <class Use>
  __device__ __forceinline__ void each(bool loaded, const Use& use) {
    for (int64_t from = 0; from < dim; from += kColumns) {
      if (!loaded || dim > kColumns) load_whole(row + from, lane, dim - from, run);
      use(from);
    }
  }

  __device__ __forceinline__ bool is_zero() {
    bool other = false;
    each(true, [&](int64_t) {
#pragma unroll
      for (int q = 0; q < Q; ++q) {
#pragma unroll
        for (int c = 0; c < kRun<S>; ++c) other |= float(number(run[q].element[c])) != 0.0f;
      }
    });
    return !__any_sync(kFullWarp, other);
  }

  template <int N>
  __device__ __forceinline__ void add_products(int64_t from, const S* const (&other)[N], float (&sum)[N]) {
    Run<S> second[N][Q];
#pragma unroll
    for (int n = 0; n < N; ++n) load_whole(other[n] + from, lane, dim - from, second[n]);
#pragma unroll
    for (int n = 0; n < N; ++n) {
      keep_packed(run);
      keep_packed(second[n]);
#pragma unroll
      for (int q = 0; q < Q; ++q) {
#pragma unroll
        for (int c = 0; c < kRun<S>; ++c)
          sum[n] += float(number(run[q].element[c])) * float(number(second[n][q].element[c]));
      }
    }
  }
};

struct Measures {
  float squares = 0, lost = 0;  // of what float32 loses as a factor: 16-bit numbers nothing
};

template <class S, int Q>
__device__ __forceinline__ void measure(const Run<S> (&run)[Q], Measures& sum) {
#pragma unroll
  for (int q = 0; q < Q; ++q) {
#pragma unroll
    for (int c = 0; c < kRun<S>; ++c) {
      const float value = number(run[q].element[c]);
      sum.squares += value * value;
      if constexpr (sizeof(S) == 4) sum.lost += (value - cut(value)) * (value - cut(value));
    }
  }
}

// The largest of numbers that are not NaN.
__device__ __forceinline__ float warp_max(float value) {
  const auto flip = [](int bits) { return bits ^ (bits >> 31 & 0x7fffffff); };
  return __int_as_float(flip(__reduce_max_sync(kFullWarp, flip(__float_as_int(value)))));
}

// The scores that are left of a row, those of a share in each lane.
struct KeptScores {
  float2 value;
  float top;
  uint32_t top_index, index_mask;

  __device__ KeptScores(float2 value_, const Bound& bound, int64_t count) {
    value = value_;
    top = warp_max(value.x);
    index_mask = ~bound.kept;
    top_index = min(__float_as_uint(top) & index_mask, static_cast<uint32_t>(count - 1));
  }
};

// Anchors to score exactly, in the same order in every lane: the first of shares where no other can be the
// nearest, then all that the other shares have seen.
struct Choice {
  unsigned one, more;  // shares
  uint32_t first, seen;

  __device__ Choice(const KeptScores& score, float least, bool all, int64_t anchors) {
    first = __float_as_uint(score.value.x) & score.index_mask;
    seen = Share().seen(anchors);
    more = __ballot_sync(kFullWarp, all || score.value.y >= least);
    one = __ballot_sync(kFullWarp, score.value.x >= least) & ~more;
  }

  __device__ uint32_t count() const { return __popc(one) + __popc(more) * seen; }

  __device__ uint32_t operator[](uint32_t i) const {
    const uint32_t ones = __popc(one), skip = i < ones ? i : (i - ones) / seen;
    unsigned left = i < ones ? one : more;
    for (uint32_t n = 0; n < skip; ++n) left &= left - 1;
    const int share = __ffs(left) - 1;
    const uint32_t own = __shfl_sync(kFullWarp, first, share);
    return i < ones ? own : Share{static_cast<uint32_t>(share)}[(i - ones) % seen];
  }
};

constexpr float kLeastNorm = 0x1p-60f;  // of a row whose bound holds in float32

// The nearest of the chosen anchors.
template <class S, int Q>
__device__ __forceinline__ Nearest<float> score_choice(RowParts<S, Q>& x, const Choice& choice,
                                                       const S* anchors, const float* inverse, int64_t last) {
  constexpr int kOnce = Q * kRun<S> >= 32 ? 2 : 4;
  Nearest<float> nearest;
  const uint32_t count = choice.count();
  for (uint32_t i = 0; i < count; i += kOnce) {
    uint32_t index[kOnce];
    const S* other[kOnce];
    float sum[kOnce] = {};
#pragma unroll
    for (uint32_t n = 0; n < kOnce; ++n) {
      index[n] = min(choice[min(i + n, count - 1)], static_cast<uint32_t>(last));
      other[n] = anchors + index[n] * x.dim;
    }
    x.each(true, [&](int64_t from) { x.add_products(from, other, sum); });
#pragma unroll
    for (int n = 0; n < kOnce; ++n)
      nearest.see(sum_over<kWarp>(sum[n]) * inverse[index[n]], static_cast<int32_t>(index[n]));
  }
  return nearest;
}

template <class S, int Q>
__device__ __forceinline__ void finish_row(const Problem& problem, const float* inverse,
                                           const Targets<S>& out, int64_t row, int lane, const Bound& bound) {
  const int64_t dim = problem.dim, offset = row * dim;
  const S* anchors = static_cast<const S*>(problem.anchors);
  RowParts<S, Q> x{static_cast<const S*>(problem.x) + offset, dim, lane, {}};
  const KeptScores score(reinterpret_cast<const float2*>(out.y + offset)[lane], bound, problem.anchor_count);
  const S* const top[1] = {anchors + score.top_index * dim};
  Measures sum;
  float product[1] = {};
  x.each(false, [&](int64_t from) {
    measure(x.run, sum);
    x.add_products(from, top, product);
  });
  const float norm = sqrtf(sum_over<kWarp>(sum.squares)), lost = sqrtf(sum_over<kWarp>(sum.lost));
  Nearest<float> nearest;
  nearest.see(sum_over<kWarp>(product[0]) * inverse[score.top_index], static_cast<int32_t>(score.top_index));
  const float scale = inverse_radius(norm, problem.eps);
  keep_packed(x.run);
  x.each(true, [&](int64_t from) { store_scaled(out.y + offset + from, lane, dim - from, scale, x.run); });
  keep_packed(x.run);
  const float least = least_score(norm, lost, score.top, dim, bound);
  const Choice choice(score, least, norm < kLeastNorm || !(least > -INFINITY), problem.anchor_count);
  if (norm == 0 && bound.anchor_lost < INFINITY && x.is_zero()) {
    nearest = {0.0f, 0};
  } else if (norm < INFINITY && choice.count() > 1) {
    nearest = score_choice(x, choice, anchors, inverse, problem.anchor_count - 1);
  }
  if (lane == 0) {
    out.norm[row] = norm;
    write_nearest<S>(out, row, nearest, norm, problem.eps);
  }
}

template <class S, int Q>
__global__ void __launch_bounds__(kWarps* kWarp, Q* kRun<S> < 32 ? 3 : 2)
    finish_kernel(Problem problem, Prepared anchors, int index_bits, Targets<S> out) {
  const int lane = threadIdx.x % kWarp;
  const Bound bound = bound_with(index_bits, anchors, problem.anchor_count);
  const int64_t step = int64_t(gridDim.x) * kWarps, dim = problem.dim;
  for (int64_t row = int64_t(blockIdx.x) * kWarps + threadIdx.x / kWarp; row < problem.rows; row += step) {
    if (row + step < problem.rows) {
      prefetch_row<kWarp, Q>(static_cast<const S*>(problem.x) + (row + step) * dim, lane, dim);
      prefetch_row<1, 1>(out.y + (row + step) * dim, 0, dim);
    }
    finish_row<S, Q>(problem, anchors.inverse, out, row, lane, bound);
  }
}

}  // namespace stratcore::tangent_projection

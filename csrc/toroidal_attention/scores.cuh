#pragma once

#include <cfloat>
#include <cstdint>

#include "fragments.cuh"
#include "toroidal_attention.h"

// From products of queries and keys to scores: bias by distance, causality and mask. Rows are what a block
// holds on to, columns what passes by: queries and keys, or (kTransposed) keys and queries. Scores and slopes
// are in units of log 2, so that exp2 follows.
namespace stratcore::toroidal_attention {

constexpr float kLog2e = 1.4426950408889634f;
constexpr float kPi = 3.14159265358979f;

// The bias is a sum over axes, each with a slope.
STRATCORE_HOST_DEVICE inline bool separable(Metric metric) {
  return metric == Metric::kL1 || metric == Metric::kChordalSquared;
}
STRATCORE_HOST_DEVICE inline bool of_chords(Metric metric) {
  return metric == Metric::kChordal || metric == Metric::kChordalSquared;
}

// A problem with what kernels would else work out again and again.
struct Prepared : Problem {
  uint32_t query_base, key_base;  // position of the first query and key, modulo the sites
  float factor;                   // of products, in units of log 2

  explicit Prepared(const Problem& problem)
      : Problem(problem), query_base(reduced(problem.lattice, problem.query_offset)),
        key_base(reduced(problem.lattice, problem.key_offset)),
        factor(static_cast<float>(problem.scale) * kLog2e) {}
};

// Most problems: one ring, whose metrics are all alike but for chords, and no mask.
inline bool of_plain_ring(const Problem& problem) {
  return problem.lattice.axes == 1 && !of_chords(problem.metric) &&
         problem.mask.element == MaskElement::kNone;
}

// The same with all that is known of it as constants. Kernels made for it are a fraction as long, and where
// blocks are short, most of their time goes by waiting for instructions that the processor has not at hand.
__device__ __forceinline__ Prepared plain_ring(const Prepared& problem) {
  Prepared ring = problem;
  ring.metric = Metric::kL1;
  ring.slope_count = 1;
  ring.lattice.axes = 1;
#pragma unroll
  for (int axis = 1; axis < kMaxAxes; ++axis) ring.lattice.period[axis] = ring.lattice.block[axis] = 1;
  ring.mask.element = MaskElement::kNone;
  return ring;
}

// What all blocks of one query head share.
struct Head {
  int batch, head, kv_head;
  float slopes[kMaxAxes];  // in units of log 2; of separable metrics one an axis, else the first

  __device__ __forceinline__ float slope(int axis) const {
    return axis == 0 ? slopes[0] : axis == 1 ? slopes[1] : slopes[2];
  }
};

// Of the head with number `pair` of all batches; T: type of the slopes.
template <class T = float>
__device__ inline Head head_of(const Prepared& problem, int pair) {
  const int heads = static_cast<int>(problem.heads), repeats = heads / static_cast<int>(problem.kv_heads);
  const int batch = pair / heads, head = pair - batch * heads;
  Head out{batch, head, head / repeats, {}};
  const T* slopes = static_cast<const T*>(problem.slopes) + head * problem.slope_count;
  const int axes = separable(problem.metric) ? problem.lattice.axes : 1;
#pragma unroll
  for (int axis = 0; axis < kMaxAxes; ++axis)
    out.slopes[axis] = axis < axes ? float(slopes[problem.slope_count > 1 ? axis : 0]) * kLog2e : 0.0f;
  return out;
}

template <class S>
__device__ inline Source<S> source_of(const void* data, const Strides& strides, int64_t batch, int64_t head,
                                      int64_t rows, int64_t dim) {
  constexpr int kPerChunk = 16 / sizeof(S);
  const S* first = static_cast<const S*>(data) + batch * strides.batch + head * strides.head;
  const bool chunked =
      reinterpret_cast<uintptr_t>(first) % 16 == 0 && strides.row % kPerChunk == 0 && dim % kPerChunk == 0;
  return {first, strides.row, static_cast<int>(rows), static_cast<int>(dim), chunked};
}

// The first key that query `index` does not see.
__device__ inline int key_limit(const Problem& problem, int64_t index) {
  if (!problem.causal) return static_cast<int>(problem.keys);
  const int64_t position = problem.query_offset + index, group = problem.causal_group;
  int64_t end = position + 1;
  if (group > 1) end = (position / group - (position % group < 0 ? 1 : 0) + 1) * group;
  const int64_t limit = end - problem.key_offset;
  return static_cast<int>(limit < 0 ? 0 : limit < problem.keys ? limit : problem.keys);
}

// The first query that sees key `index`.
__device__ inline int first_query(const Problem& problem, int64_t index) {
  if (index >= problem.keys) return INT32_MAX;
  if (!problem.causal) return 0;
  const int64_t group = problem.causal_group;
  int64_t start = problem.key_offset + index;
  if (group > 1) start = (start / group - (start % group < 0 ? 1 : 0)) * group;
  const int64_t query = start - problem.query_offset;
  return static_cast<int>(query < 0 ? 0 : query < INT32_MAX ? query : INT32_MAX);
}

// Where the rows of a block and the columns of a tile lie on each axis: the coordinate, or of metrics of
// chords sine and cosine of half its angle, seen from the tile's first column: so that the distances of near
// pairs are exact. Coordinates and their differences are whole numbers below 2^24.
template <int Rows, int Cols>
struct alignas(16) Places {
  float2 row[kMaxAxes][Rows], col[kMaxAxes][Cols];
};

// What else a block knows of them.
template <int Rows, int Cols>
struct Sites {
  Site row[Rows];
  int limit[Cols];  // transposed: the first key that the query does not see; 0 beyond the queries
};

__device__ inline float2 half_angle(int32_t at, int32_t origin, int32_t period) {
  int32_t apart = at - origin;
  apart += apart < -(period / 2) ? period : apart > period / 2 ? -period : 0;
  float2 place;
  sincospif(float(apart) / float(period), &place.x, &place.y);
  return place;
}

__device__ inline float2 place_of(const Problem& problem, const Site& site, const Site& origin, int axis) {
  if (of_chords(problem.metric))
    return half_angle(site.at[axis], origin.at[axis], problem.lattice.period[axis]);
  return make_float2(float(site.at[axis]), 0.0f);
}

// Of the block's rows, from `first` on; before the first tile.
template <bool kTransposed, int Rows, int Cols>
__device__ inline void place_rows(Places<Rows, Cols>& places, Sites<Rows, Cols>& sites,
                                  const Prepared& problem, int first) {
  for (int row = threadIdx.x; row < Rows; row += kBlock) {
    const uint32_t position = (kTransposed ? problem.key_base : problem.query_base) + first + row;
    const Site site = sites.row[row] = site_at(problem.lattice, position);
#pragma unroll
    for (int axis = 0; axis < kMaxAxes; ++axis)
      if (axis < problem.lattice.axes) places.row[axis][row].x = float(site.at[axis]);
  }
}

// Of a tile's columns, from `first` on; after place_rows, by the same threads.
template <bool kTransposed, int Rows, int Cols>
__device__ inline void place_columns(Places<Rows, Cols>& places, Sites<Rows, Cols>& sites,
                                     const Prepared& problem, int first) {
  const uint32_t base = (kTransposed ? problem.query_base : problem.key_base) + first;
  const bool chords = of_chords(problem.metric);
  Site origin{};
  if (chords) origin = site_at(problem.lattice, base);
  for (int col = threadIdx.x; col < Cols; col += kBlock) {
    const Site site = site_at(problem.lattice, base + col);
#pragma unroll
    for (int axis = 0; axis < kMaxAxes; ++axis)
      if (axis < problem.lattice.axes) places.col[axis][col] = place_of(problem, site, origin, axis);
    if (kTransposed) sites.limit[col] = first + col < problem.queries ? key_limit(problem, first + col) : 0;
  }
  if (!chords) return;
  for (int row = threadIdx.x; row < Rows; row += kBlock)
#pragma unroll
    for (int axis = 0; axis < kMaxAxes; ++axis)
      if (axis < problem.lattice.axes)
        places.row[axis][row] = place_of(problem, sites.row[row], origin, axis);
}

// Rows l / 4 and l / 4 + 8 of a warp.
struct RowInfo {
  int within, index[2];  // the first within the block; both in the tensor
  int limit[2];  // the first key that the query does not see; transposed: first query that sees the key

  template <bool kTransposed>
  static __device__ RowInfo of(const Problem& problem, int first, int warp, int lane) {
    RowInfo info;
    info.within = warp * kWarpRows + lane / 4;
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      info.index[r] = first + info.within + 8 * r;
      info.limit[r] = kTransposed ? first_query(problem, info.index[r]) : key_limit(problem, info.index[r]);
    }
    return info;
  }
};

// Places of the pairs that a lane holds, from a block's own.
template <int Rows, int Cols>
struct PlacedPairs {
  const Places<Rows, Cols>& places;
  int within;  // first row

  __device__ __forceinline__ float2 row(int axis, int r) const { return places.row[axis][within + 8 * r]; }
  __device__ __forceinline__ const float2* cols(int axis) const { return places.col[axis]; }
};

// Steps of a ring, for places of rows and columns that are any number of turns apart.
__device__ __forceinline__ float ring_distance(float row, float col, float period, float turns) {
  constexpr float kRounds = 12582912.0f;  // 1.5 2^23: sums with it are whole
  const float apart = row - col, turn = fmaf(apart, turns, kRounds) - kRounds;
  return fabsf(fmaf(-turn, period, apart));
}

// Calls use(n, e, steps) with the distance along one axis of the pairs that the lane holds, columns from 8
// `tile` on.
template <int N, class Pairs, class Use>
__device__ __forceinline__ void along_axis(const Problem& problem, const Pairs& pairs, int axis, int tile,
                                           int lane, const Use& use) {
  const auto& periods = problem.lattice.period;
  const float period = float(axis == 0 ? periods[0] : axis == 1 ? periods[1] : periods[2]);
  const float2 row[2] = {pairs.row(axis, 0), pairs.row(axis, 1)};
  const float4* cols = reinterpret_cast<const float4*>(pairs.cols(axis) + 8 * tile) + lane % 4;
  if (of_chords(problem.metric)) {
    const float diameter = period / kPi;
#pragma unroll
    for (int n = 0; n < N; ++n) {
      const float4 pair = cols[4 * n];
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        const float2 col = e % 2 ? make_float2(pair.z, pair.w) : make_float2(pair.x, pair.y);
        use(n, e, fabsf(row[e / 2].x * col.y - row[e / 2].y * col.x) * diameter);
      }
    }
    return;
  }
  const float turns = 1.0f / period;
#pragma unroll
  for (int n = 0; n < N; ++n) {
    const float4 pair = cols[4 * n];
#pragma unroll
    for (int e = 0; e < 4; ++e)
      use(n, e, ring_distance(row[e / 2].x, e % 2 ? pair.z : pair.x, period, turns));
  }
}

// Of metrics that are no sum over axes: distance[n][e] of pairs that the lane holds, columns from 8 `tile`
// on.
template <int N, class Pairs>
__device__ __forceinline__ void distances(const Problem& problem, const Pairs& pairs, int tile, int lane,
                                          float (&distance)[N][4]) {
  const bool largest = problem.metric == Metric::kLinf;
#pragma unroll
  for (int n = 0; n < N; ++n)
#pragma unroll
    for (int e = 0; e < 4; ++e) distance[n][e] = 0.0f;
#pragma unroll 1
  for (int axis = 0; axis < problem.lattice.axes; ++axis) {
    along_axis<N>(problem, pairs, axis, tile, lane, [&](int n, int e, float steps) {
      distance[n][e] = largest ? fmaxf(distance[n][e], steps) : fmaf(steps, steps, distance[n][e]);
    });
  }
  if (largest) return;
#pragma unroll
  for (int n = 0; n < N; ++n)
#pragma unroll
    for (int e = 0; e < 4; ++e) distance[n][e] = sqrtf(distance[n][e]);
}

// Calls use(axis of the slope, n, e, part) for what each slope of the head multiplies; after(axis) behind the
// last of an axis.
template <int N, class Pairs, class Use, class After>
__device__ __forceinline__ void each_part(const Problem& problem, const Pairs& pairs, int lane,
                                          const Use& use, const After& after) {
  constexpr int kAtOnce = 2;  // distances in registers beside the scores
  if (!separable(problem.metric)) {
#pragma unroll
    for (int tile = 0; tile < N; tile += kAtOnce) {
      float distance[kAtOnce][4];
      distances<kAtOnce>(problem, pairs, tile, lane, distance);
#pragma unroll
      for (int n = 0; n < kAtOnce; ++n)
#pragma unroll
        for (int e = 0; e < 4; ++e) use(0, tile + n, e, distance[n][e]);
    }
    after(0);
    return;
  }
  const bool squares = problem.metric == Metric::kChordalSquared;
#pragma unroll 1
  for (int axis = 0; axis < problem.lattice.axes; ++axis) {
    along_axis<N>(problem, pairs, axis, 0, lane,
                  [&](int n, int e, float steps) { use(axis, n, e, squares ? steps * steps : steps); });
    after(axis);
  }
}
template <int N, class Pairs, class Use>
__device__ __forceinline__ void each_part(const Problem& problem, const Pairs& pairs, int lane,
                                          const Use& use) {
  each_part<N>(problem, pairs, lane, use, [](int) {});
}

// What a mask adds to the scores of a tile; only where the problem has a mask.
template <int Cols>
struct MaskTile {
  static constexpr int kStride = Cols + 8;
  float bias[kRows][kStride];
};

template <class S>
__device__ inline float mask_bias(const Problem& problem, const Head& head, int query, int key) {
  const Mask& mask = problem.mask;
  if (key >= problem.keys || (mask.row != 0 && query >= problem.queries)) return 0.0f;
  const int64_t at = head.batch * mask.batch + head.head * mask.head + query * mask.row + key * mask.col;
  if (mask.element == MaskElement::kBool) return static_cast<const bool*>(mask.data)[at] ? 0.0f : -INFINITY;
  const float value = mask.element == MaskElement::kFloat32 ? static_cast<const float*>(mask.data)[at]
                                                            : float(static_cast<const S*>(mask.data)[at]);
  // The least finite number absorbs a score; minus infinity hides it.
  return value == -INFINITY ? value : fmaxf(value * kLog2e, -FLT_MAX);
}

// Of rows from `row` and columns from `col` on; neighboring threads read neighboring keys.
template <class S, bool kTransposed, int Cols>
__device__ inline void load_mask(MaskTile<Cols>& tile, const Problem& problem, const Head& head, int row,
                                 int col) {
#pragma unroll 1
  for (int at = threadIdx.x; at < kRows * Cols; at += kBlock) {
    const int r = kTransposed ? at % kRows : at / Cols, c = kTransposed ? at / kRows : at % Cols;
    tile.bias[r][c] =
        mask_bias<S>(problem, head, kTransposed ? col + c : row + r, kTransposed ? row + r : col + c);
  }
}

// Products become scores but for masks.
template <int N, class Pairs>
__device__ __forceinline__ void scale_and_bias(const Problem& problem, const Head& head, const Pairs& pairs,
                                               int lane, float (&sums)[N][4]) {
  const float scale = float(problem.scale) * kLog2e;
#pragma unroll
  for (int n = 0; n < N; ++n)
#pragma unroll
    for (int e = 0; e < 4; ++e) sums[n][e] *= scale;
  each_part<N>(problem, pairs, lane, [&](int axis, int n, int e, float part) {
    sums[n][e] = fmaf(-head.slope(axis), part, sums[n][e]);
  });
}

// -infinity where a query does not see a key. `first`: the tile's first column; `limits`: transposed, of its
// queries.
template <bool kTransposed, int N>
__device__ __forceinline__ void hide(const int* limits, const RowInfo& rows, int first, int lane,
                                     float (&scores)[N][4]) {
#pragma unroll
  for (int n = 0; n < N; ++n) {
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      const int within = 8 * n + lane % 4 * 2 + e % 2;
      const bool seen = kTransposed ? rows.index[e / 2] < limits[within] : first + within < rows.limit[e / 2];
      if (!seen) scores[n][e] = -INFINITY;
    }
  }
}

// All of it. `limited`: some query does not see all keys of the tile.
template <bool kTransposed, int N, int Cols>
__device__ __forceinline__ void score(const Problem& problem, const Head& head,
                                      const Places<kRows, Cols>& places, const Sites<kRows, Cols>& sites,
                                      const MaskTile<Cols>& mask, const RowInfo& rows, int first,
                                      bool limited, int lane, float (&sums)[N][4]) {
  scale_and_bias(problem, head, PlacedPairs<kRows, Cols>{places, rows.within}, lane, sums);
  if (problem.mask.element != MaskElement::kNone) {
#pragma unroll
    for (int n = 0; n < N; ++n)
#pragma unroll
      for (int e = 0; e < 4; ++e)
        sums[n][e] += mask.bias[rows.within + e / 2 * 8][8 * n + lane % 4 * 2 + e % 2];
  }
  if (limited) hide<kTransposed>(sites.limit, rows, first, lane, sums);
}

// 0 below 2^-126.
__device__ __forceinline__ float power_of_two(float exponent) {
  float power;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(power) : "f"(exponent));
  return power;
}

// Largest and sum over the four lanes of a row.
__device__ __forceinline__ float row_max(float value) {
  value = fmaxf(value, __shfl_xor_sync(0xffffffffu, value, 1));
  return fmaxf(value, __shfl_xor_sync(0xffffffffu, value, 2));
}
__device__ __forceinline__ float row_sum(float value) {
  value += __shfl_xor_sync(0xffffffffu, value, 1);
  return value + __shfl_xor_sync(0xffffffffu, value, 2);
}

}  // namespace stratcore::toroidal_attention

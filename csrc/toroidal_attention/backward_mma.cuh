#pragma once

#include "forward_mma.cuh"

// The backward by mma.sync: one kernel holds queries and lets keys pass by (gradients of queries and slopes),
// one holds keys and lets queries pass by (of keys and values). Each computes the weights anew; no atomics,
// so the same bits on every run.
namespace stratcore::toroidal_attention {

// Of every row of queries, in units of log 2 where of scores. A row without weights: lse infinity, so all are
// 0.
struct RowSums {
  float *lse,
      *delta;      // [B, H, `stride`]; delta: <grad_out, out> - grad_lse; beyond N as rows without weights
  float* excess;   // [B, H, blocks of 64 queries]: what tiles are judged by
  bool* empty;     // the same: whether some row has no weights
  float* slopes;   // [B, H, blocks, S]: shares of their gradient
  float* queries;  // [B, H, `stride`, width of tiles]: their gradient, where blocks add to it; 0 at first
  int64_t stride;  // N up to whole blocks of 64
};

// Columns in flight.
template <class S, int E>
STRATCORE_HOST_DEVICE constexpr int query_kernel_cols() {
  return sizeof(S) == 2 ? (E == 256 ? 32 : 64) : (E == 256 ? 16 : 32);
}
template <class S, int E>
STRATCORE_HOST_DEVICE constexpr int key_kernel_cols() {
  return sizeof(S) == 2 ? (E == 64 ? 64 : 32) : (E == 256 ? 16 : 32);
}

// lse, delta, excess and emptiness; a block takes 64 queries of a head, 16 lanes a row, several rows at once.
template <class S>
__global__ void __launch_bounds__(kBlock)
    row_kernel(const __grid_constant__ Problem problem, const __grid_constant__ Output out,
               const __grid_constant__ Gradients gradients, const __grid_constant__ RowSums sums,
               const float* key_norms) {
  constexpr int kLanes = kRowLanes, kAtOnce = kRowsAtOnce, kTimes = kRows / kAtOnce;
  __shared__ float excess[kRows];
  const int queries = static_cast<int>(problem.queries), blocks = (queries + kRows - 1) / kRows;
  const int pair = static_cast<int>(blockIdx.x) / blocks,
            block = static_cast<int>(blockIdx.x) - pair * blocks;
  const int heads = static_cast<int>(problem.heads), batch = pair / heads, head = pair - batch * heads;
  const int first = block * kRows, thread = static_cast<int>(threadIdx.x);
  const auto source = [&](const void* data, const Strides& strides) {
    return source_of<S>(data, strides, batch, head, queries, problem.dim);
  };
  const Source<S> o = source(out.out, out.out_strides),
                  g = source(gradients.grad_out, gradients.grad_out_strides),
                  q = source(problem.q, problem.q_strides);
  const bool skipping = problem.eps > 0;
  float dots[kTimes] = {}, squares[kTimes] = {};
  for (int col = thread % kLanes * Chunk<S>::kCount; col < o.dim; col += kLanes * Chunk<S>::kCount) {
#pragma unroll
    for (int i = 0; i < kTimes; ++i) {
      const int index = first + i * kAtOnce + thread / kLanes;
      if (index >= queries) continue;
      dots[i] += Chunk<S>::of(o, index, col).dot(Chunk<S>::of(g, index, col));
      if (!skipping) continue;
      const Chunk<S> query = Chunk<S>::of(q, index, col);
      squares[i] += query.dot(query);
    }
  }
  const int kv_heads = static_cast<int>(problem.kv_heads);
  const float key_norm = skipping ? key_norms[batch * kv_heads + head / (heads / kv_heads)] : 0.0f;
  const float reach = fabsf(float(problem.scale)) * kLog2e * kNormMargin * key_norm;
  bool empty = false;
  int base = 0, held = kTimes, same = 0, also = kTimes;
  reduce_scatter<kTimes, kLanes>(dots, thread % kLanes, base, held);
  if (skipping) reduce_scatter<kTimes, kLanes>(squares, thread % kLanes, same, also);
  static_assert(scattered<kTimes, kLanes>() == 1, "a lane ends with one row at most");
  if (held > 0) {
    const int row = base * kAtOnce + thread / kLanes, index = first + row;
    const int64_t place = pair * sums.stride + index, at = pair * problem.queries + index;
    const bool inside = index < queries;
    const float lse = inside ? static_cast<const float*>(out.lse)[at] * kLog2e : -INFINITY;
    const float grad_lse =
        inside && gradients.grad_lse ? static_cast<const float*>(gradients.grad_lse)[at] : 0.0f;
    empty |= lse == -INFINITY;
    sums.lse[place] = lse == -INFINITY ? INFINITY : lse;
    sums.delta[place] = lse == -INFINITY ? 0.0f : dots[0] - grad_lse;
    excess[row] = inside ? sqrtf(squares[0]) * reach - lse : -INFINITY;
  }
  empty = __syncthreads_or(empty);
  if (thread >= 32) return;
  float largest = larger(excess[thread], excess[thread + 32]);
#pragma unroll
  for (int offset = 16; offset; offset /= 2)
    largest = larger(largest, __shfl_xor_sync(kFullWarp, largest, offset));
  if (thread != 0) return;
  sums.empty[pair * blocks + block] = empty;
  if (skipping) sums.excess[pair * blocks + block] = largest;
}

template <class S, int E, int Cols>
struct BackwardShared {
  static constexpr int kCols = Cols;
  // Of rows and columns: queries or keys, and the gradients of outputs or values.
  alignas(16) S row[kRows * E], row_other[kRows * E], col[kCols * E], col_other[kCols * E];
  Places<kRows, kCols> places;
  Sites<kRows, kCols> sites;
  float lse[kCols], delta[kCols];  // transposed
  float slopes[kWarps][kMaxAxes];
  MaskTile<kCols> mask;  // not allocated without a mask
};

// Weights and gradients of the scores of one tile: scores becomes P, products becomes dS = P (products -
// delta).
template <int N>
__device__ __forceinline__ void to_gradients(float (&scores)[N][4], float (&products)[N][4], int n, int e,
                                             float lse, float delta) {
  scores[n][e] =
      power_of_two(fminf(scores[n][e] - lse, 0.0f));  // beyond 0 where rounding of a huge mask takes it
  products[n][e] = scores[n][e] * (products[n][e] - delta);
}

// Rows without weights take no part, even where the gradient of their output is not a number.
template <int N>
__device__ __forceinline__ void drop_rows(float (&gradients)[N][4], const float (&lse)[2]) {
#pragma unroll
  for (int n = 0; n < N; ++n)
#pragma unroll
    for (int e = 0; e < 4; ++e) gradients[n][e] = lse[e / 2] == INFINITY ? 0.0f : gradients[n][e];
}

template <class S, int E>
__global__ void __launch_bounds__(kBlock)
    query_kernel(const __grid_constant__ Prepared problem, Gradients gradients, RowSums sums) {
  using Shared = BackwardShared<S, E, query_kernel_cols<S, E>()>;
  using P = Product<S>;
  constexpr int kCols = Shared::kCols, kTiles = kCols / 8;
  extern __shared__ char bytes[];
  auto& shared = *reinterpret_cast<Shared*>(bytes);
  const auto tile_at = [](const S* data) {
    return Tile<S, E>{static_cast<uint32_t>(__cvta_generic_to_shared(data))};
  };
  const Tile<S, E> q = tile_at(shared.row), g = tile_at(shared.row_other), k = tile_at(shared.col),
                   v = tile_at(shared.col_other);
  const int blocks = static_cast<int>((problem.queries + kRows - 1) / kRows);
  const int block = blocks - 1 - static_cast<int>(blockIdx.x % blocks), first = block * kRows;
  const int64_t pair = blockIdx.x / blocks;
  const Head head = head_of(problem, static_cast<int>(pair));
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const RowInfo rows = RowInfo::of<false>(problem, first, warp, lane);
  const int last = static_cast<int>(min(int64_t(first + kRows), problem.queries)) - 1;
  const int whole = key_limit(problem, first);
  const auto source = [&](const void* data, const Strides& strides, int64_t of, int64_t count) {
    return source_of<S>(data, strides, head.batch, of, count, problem.dim);
  };
  const Source<S> keys = source(problem.k, problem.k_strides, head.kv_head, problem.keys),
                  values = source(problem.v, problem.v_strides, head.kv_head, problem.keys);
  load_tile<kRows>(q, source(problem.q, problem.q_strides, head.head, problem.queries), first);
  load_tile<kRows>(g, source(gradients.grad_out, gradients.grad_out_strides, head.head, problem.queries),
                   first);
  float lse[2], delta[2];
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    const bool inside = rows.index[r] < problem.queries;
    lse[r] = inside ? sums.lse[pair * sums.stride + rows.index[r]] : INFINITY;
    delta[r] = inside ? sums.delta[pair * sums.stride + rows.index[r]] : 0.0f;
  }
  KeyTiles<kCols> tiles(problem, head, first, last - first + 1, key_limit(problem, last));
  if (tiles.skipping()) tiles.judge_by(sums.excess[pair * blocks + block]);
  place_rows<false>(shared.places, shared.sites, problem, first);
  const bool empty = __any_sync(0xffffffffu, lse[0] == INFINITY || lse[1] == INFINITY);
  float grad[E / 8][4] = {}, slopes[kMaxAxes] = {};
  for (int tile = tiles.next(lane); tile >= 0; tile = tiles.next(lane)) {
    __syncthreads();
    load_tile<kCols>(k, keys, tile * kCols);
    load_tile<kCols>(v, values, tile * kCols);
    copies_commit();
    place_columns<false>(shared.places, shared.sites, problem, tile * kCols);
    if (problem.mask.element != MaskElement::kNone)
      load_mask<S, false>(shared.mask, problem, head, first, tile * kCols);
    copies_wait<0>();
    __syncthreads();
    float scores[kTiles][4] = {}, products[kTiles][4] = {};
#pragma unroll
    for (int step = 0; step < E / P::kStep; ++step) {
      P::add_rows(scores, P::rows_of(q, warp * kWarpRows, step, lane), k, step, lane);
      P::add_rows(products, P::rows_of(g, warp * kWarpRows, step, lane), v, step, lane);
    }
    const bool limited = (tile + 1) * kCols > whole;
    score<false>(problem, head, shared.places, shared.sites, shared.mask, rows, tile * kCols, limited, lane,
                 scores);
#pragma unroll
    for (int n = 0; n < kTiles; ++n)
#pragma unroll
      for (int e = 0; e < 4; ++e) to_gradients(scores, products, n, e, lse[e / 2], delta[e / 2]);
    if (empty) drop_rows(products, lse);
    each_part<kTiles>(problem, PlacedPairs<kRows, kCols>{shared.places, rows.within}, lane,
                      [&](int axis, int n, int e, float part) {
#pragma unroll
                        for (int a = 0; a < kMaxAxes; ++a)
                          if (a == axis) slopes[a] = fmaf(-products[n][e], part, slopes[a]);
                      });
#pragma unroll
    for (int step = 0; step < kCols / P::kStep; ++step)
      P::add_columns(grad, P::sums_of(products, step), k, step, 0, lane);
  }
  const float factor[2] = {float(problem.scale), float(problem.scale)};
  store_rows<S, E>(static_cast<S*>(gradients.grad_q) + pair * problem.queries * problem.dim, problem.dim,
                   rows, problem.queries, problem.dim, lane, grad, factor);
  for (int axis = 0; axis < kMaxAxes; ++axis) {
    float share = slopes[axis];
    for (int offset = 16; offset; offset /= 2) share += __shfl_xor_sync(0xffffffffu, share, offset);
    if (lane == 0) shared.slopes[warp][axis] = share;
  }
  __syncthreads();
  if (static_cast<int>(threadIdx.x) >= problem.slope_count) return;
  float share = 0.0f;  // one slope for all axes has them all
  for (int w = 0; w < kWarps; ++w)
    for (int axis = threadIdx.x; axis < kMaxAxes; axis += problem.slope_count)
      share += shared.slopes[w][axis];
  sums.slopes[(pair * blocks + block) * problem.slope_count + threadIdx.x] = share;
}

// A thread a head and axis; the shares in a fixed order, in float64.
template <class T>
__global__ void slope_kernel(const __grid_constant__ Problem problem, const T* shares, int blocks,
                             T* grad_slopes) {
  const int64_t at = int64_t(blockIdx.x) * (blockDim.x / 32) + threadIdx.x / 32, lane = threadIdx.x % 32;
  if (at >= problem.heads * problem.slope_count) return;
  const int64_t head = at / problem.slope_count, axis = at % problem.slope_count;
  double sum = 0;
  for (int64_t batch = 0; batch < problem.batch; ++batch) {
    const T* own = shares + (batch * problem.heads + head) * blocks * problem.slope_count + axis;
#pragma unroll 8
    for (int64_t i = lane; i < blocks; i += 32) sum += own[i * problem.slope_count];
  }
  for (int offset = 16; offset; offset /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, offset);
  if (lane == 0) grad_slopes[at] = T(sum);
}

// Queries without weights take no part, even where the gradient of their output is not a number. By a block.
template <class S, int Elements, int Cols>
__device__ inline void drop_columns(S (&outputs)[Elements], const float (&lse)[Cols]) {
  for (int at = threadIdx.x; at < Elements; at += kBlock)
    if (lse[at / (Elements / Cols)] == INFINITY) outputs[at] = S(0.0f);
}

// Columns of the gradients that a block computes: all, or half of them where registers hold no more.
template <int E>
STRATCORE_HOST_DEVICE constexpr int kept_cols() {
  return E > 128 ? 128 : E;
}

template <class S, int E>
__global__ void __launch_bounds__(kBlock)
    key_kernel(const __grid_constant__ Prepared problem, Gradients gradients, RowSums sums) {
  using Shared = BackwardShared<S, E, key_kernel_cols<S, E>()>;
  using P = Product<S>;
  constexpr int kCols = Shared::kCols, kTiles = kCols / 8, kKept = kept_cols<E>(), kParts = E / kKept;
  extern __shared__ char bytes[];
  auto& shared = *reinterpret_cast<Shared*>(bytes);
  const auto tile_at = [](const S* data) {
    return Tile<S, E>{static_cast<uint32_t>(__cvta_generic_to_shared(data))};
  };
  const Tile<S, E> k = tile_at(shared.row), v = tile_at(shared.row_other), q = tile_at(shared.col),
                   g = tile_at(shared.col_other);
  const int part = static_cast<int>(blockIdx.x % kParts) * kKept;
  const int blocks = static_cast<int>((problem.keys + kRows - 1) / kRows);
  const int first = static_cast<int>(blockIdx.x / kParts % blocks) * kRows;
  const int64_t group = blockIdx.x / kParts / blocks, batch = group / problem.kv_heads;
  const int64_t kv_head = group % problem.kv_heads, repeats = problem.heads / problem.kv_heads;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const RowInfo rows = RowInfo::of<true>(problem, first, warp, lane);
  const int length = static_cast<int>(min(int64_t(kRows), problem.keys - first));
  load_tile<kRows>(k, source_of<S>(problem.k, problem.k_strides, batch, kv_head, problem.keys, problem.dim),
                   first);
  load_tile<kRows>(v, source_of<S>(problem.v, problem.v_strides, batch, kv_head, problem.keys, problem.dim),
                   first);
  place_rows<true>(shared.places, shared.sites, problem, first);
  float grad_k[kKept / 8][4] = {}, grad_v[kKept / 8][4] = {};
  for (int64_t repeat = 0; repeat < repeats; ++repeat) {
    const Head head = head_of(problem, static_cast<int>(batch * problem.heads + kv_head * repeats + repeat));
    const int64_t pair = batch * problem.heads + head.head;
    const auto source = [&](const void* data, const Strides& strides) {
      return source_of<S>(data, strides, batch, head.head, problem.queries, problem.dim);
    };
    const Source<S> queries = source(problem.q, problem.q_strides),
                    outputs = source(gradients.grad_out, gradients.grad_out_strides);
    QueryTiles<kCols> tiles(problem, head, first, length, sums.excess);
    for (int tile = tiles.next(lane); tile >= 0; tile = tiles.next(lane)) {
      __syncthreads();
      load_tile<kCols>(q, queries, tile * kCols);
      load_tile<kCols>(g, outputs, tile * kCols);
      copies_commit();
      place_columns<true>(shared.places, shared.sites, problem, tile * kCols);
      if (problem.mask.element != MaskElement::kNone)
        load_mask<S, true>(shared.mask, problem, head, first, tile * kCols);
      if (threadIdx.x < kCols) {
        const int index = tile * kCols + static_cast<int>(threadIdx.x);
        const bool inside = index < problem.queries;
        shared.lse[threadIdx.x] = inside ? sums.lse[pair * sums.stride + index] : INFINITY;
        shared.delta[threadIdx.x] = inside ? sums.delta[pair * sums.stride + index] : 0.0f;
      }
      copies_wait<0>();
      __syncthreads();
      if (__syncthreads_or(threadIdx.x < kCols && shared.lse[threadIdx.x] == INFINITY)) {
        drop_columns(shared.col_other, shared.lse);
        __syncthreads();
      }
      float scores[kTiles][4] = {}, products[kTiles][4] = {};
#pragma unroll
      for (int step = 0; step < E / P::kStep; ++step) {
        P::add_rows(scores, P::rows_of(k, warp * kWarpRows, step, lane), q, step, lane);
        P::add_rows(products, P::rows_of(v, warp * kWarpRows, step, lane), g, step, lane);
      }
      const bool limited = key_limit(problem, tile * kCols) < first + kRows;
      score<true>(problem, head, shared.places, shared.sites, shared.mask, rows, tile * kCols, limited, lane,
                  scores);
#pragma unroll
      for (int n = 0; n < kTiles; ++n) {
#pragma unroll
        for (int e = 0; e < 4; ++e) {
          const int col = 8 * n + lane % 4 * 2 + e % 2;
          to_gradients(scores, products, n, e, shared.lse[col], shared.delta[col]);
        }
      }
#pragma unroll
      for (int step = 0; step < kCols / P::kStep; ++step) {
        P::add_columns(grad_v, P::sums_of(scores, step), g, step, part, lane);
        P::add_columns(grad_k, P::sums_of(products, step), q, step, part, lane);
      }
    }
  }
  const float scale[2] = {float(problem.scale), float(problem.scale)}, one[2] = {1.0f, 1.0f};
  const int64_t at = group * problem.keys * problem.dim + part;
  store_rows<S, kKept>(static_cast<S*>(gradients.grad_k) + at, problem.dim, rows, problem.keys,
                       problem.dim - part, lane, grad_k, scale);
  store_rows<S, kKept>(static_cast<S*>(gradients.grad_v) + at, problem.dim, rows, problem.keys,
                       problem.dim - part, lane, grad_v, one);
}

}  // namespace stratcore::toroidal_attention

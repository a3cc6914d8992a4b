#pragma once

#include "skip.cuh"
#include "softmax.cuh"

// The forward by mma.sync, for every type but float64 on any GPU. A block holds 64 queries of one head; tiles
// of keys and values pass through shared memory. Softmax with a running maximum.
namespace stratcore::toroidal_attention {

// Keys in flight.
template <class S, int E>
STRATCORE_HOST_DEVICE constexpr int forward_cols() {
  return E == 256 ? 32 : 64;
}

template <class S, int E>
struct ForwardShared {
  static constexpr int kCols = forward_cols<S, E>();
  alignas(16) S q[kRows * E], k[kCols * E], v[kCols * E];
  Places<kRows, kCols> places;
  Sites<kRows, kCols> sites;
  float norms[kRows], excess[kWarps];
  MaskTile<kCols> mask;  // not allocated without a mask
};

// One tile of keys.
template <class S, int E>
struct ForwardStep {
  using Shared = ForwardShared<S, E>;
  using P = Product<S>;
  static constexpr int kCols = Shared::kCols;

  const Prepared& problem;
  const Head& head;
  const RowInfo& rows;
  Shared& shared;
  Source<S> keys, values;
  int first;  // query of the block
  int whole;  // keys that every query of the block sees
  Tile<S, E> q, k, v;

  __device__ void fetch_keys(int tile) const {
    load_tile<kCols>(k, keys, tile * kCols);
    copies_commit();
  }

  // The keys of `tile` are on their way; those of `next` (-1: none) are on theirs at the end.
  __device__ __forceinline__ void run(int tile, int next, Softmax<E / 8>& sums, int lane, int warp) const {
    load_tile<kCols>(v, values, tile * kCols);
    copies_commit();
    place_columns<false>(shared.places, shared.sites, problem, tile * kCols);
    if (problem.mask.element != MaskElement::kNone)
      load_mask<S, false>(shared.mask, problem, head, first, tile * kCols);
    copies_wait<1>();
    __syncthreads();
    float scores[kCols / 8][4] = {};
#pragma unroll
    for (int step = 0; step < E / P::kStep; ++step)
      P::add_rows(scores, P::rows_of(q, warp * kWarpRows, step, lane), k, step, lane);
    const bool limited = (tile + 1) * kCols > whole;
    score<false>(problem, head, shared.places, shared.sites, shared.mask, rows, tile * kCols, limited, lane,
                 scores);
    float factor[2];
    sums.absorb(scores, {0.0f, 0.0f}, {0.0f, 0.0f}, factor);
    sums.rescale(factor);
    copies_wait<0>();
    __syncthreads();
    if (next >= 0) fetch_keys(next);
#pragma unroll
    for (int step = 0; step < kCols / P::kStep; ++step)
      P::add_columns(sums.value, P::sums_of(scores, step), v, step, 0, lane);
    __syncthreads();
  }
};

template <class S, int E>
__global__ void __launch_bounds__(kBlock)
    forward_kernel(const __grid_constant__ Prepared problem, Output out, const float* key_norms) {
  using Step = ForwardStep<S, E>;
  extern __shared__ char bytes[];
  auto& shared = *reinterpret_cast<ForwardShared<S, E>*>(bytes);
  const auto address = [](const S* data) {
    return Tile<S, E>{static_cast<uint32_t>(__cvta_generic_to_shared(data))};
  };
  // The last queries see most keys where it is causal: first.
  const int blocks = static_cast<int>((problem.queries + kRows - 1) / kRows);
  const int first = (blocks - 1 - static_cast<int>(blockIdx.x % blocks)) * kRows;
  const int64_t pair = blockIdx.x / blocks;
  const Head head = head_of(problem, static_cast<int>(pair));
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const RowInfo rows = RowInfo::of<false>(problem, first, warp, lane);
  const int last = static_cast<int>(min(int64_t(first + kRows), problem.queries)) - 1;
  KeyTiles<Step::kCols> tiles(problem, head, first, last - first + 1, key_limit(problem, last));
  const Step step{
      problem,
      head,
      rows,
      shared,
      source_of<S>(problem.k, problem.k_strides, head.batch, head.kv_head, problem.keys, problem.dim),
      source_of<S>(problem.v, problem.v_strides, head.batch, head.kv_head, problem.keys, problem.dim),
      first,
      key_limit(problem, first),
      address(shared.q),
      address(shared.k),
      address(shared.v)};
  load_tile<kRows>(
      step.q, source_of<S>(problem.q, problem.q_strides, head.batch, head.head, problem.queries, problem.dim),
      first);
  place_rows<false>(shared.places, shared.sites, problem, first);
  Softmax<E / 8> sums;
  int tile = tiles.skipping() && tiles.count() > 0 ? tiles.nearest(lane) : -1;
  if (tile >= 0) {
    step.fetch_keys(tile);
    step.run(tile, -1, sums, lane, warp);
    row_norms(problem, step.q, shared.norms);
    __syncthreads();
    const float key_norm = key_norms[head.batch * problem.kv_heads + head.kv_head];
    const float lse[2] = {sums.lse(0), sums.lse(1)};
    tiles.judge_by(block_excess(problem, rows, shared.norms, key_norm, lse, shared.excess));
    tiles.leave_out(tile);
  }
  tile = tiles.next(lane);
  if (tile >= 0) step.fetch_keys(tile);
  while (tile >= 0) {
    const int next = tiles.next(lane);
    step.run(tile, next, sums, lane, warp);
    tile = next;
  }
  float factor[2];
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    const float lse = sums.lse(r), weight = row_sum(sums.weight[r]);
    factor[r] = weight == 0.0f ? 0.0f : 1.0f / weight;
    if (lane % 4 == 0 && rows.index[r] < problem.queries)
      static_cast<float*>(out.lse)[pair * problem.queries + rows.index[r]] = lse / kLog2e;
  }
  S* data = static_cast<S*>(out.out) + head.batch * out.out_strides.batch + head.head * out.out_strides.head;
  store_rows<S, E>(data, out.out_strides.row, rows, problem.queries, problem.dim, lane, sums.value, factor);
  if (threadIdx.x == 0) {
    const int given = tiles.given() + (tiles.skipping() && tiles.count() > 0 ? 1 : 0);
    atomicAdd(out.tiles + 2 * pair, tiles.count() - given);
    atomicAdd(out.tiles + 2 * pair + 1, tiles.count());
  }
}

}  // namespace stratcore::toroidal_attention

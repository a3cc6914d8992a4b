#pragma once

#include "backward_wgmma.cuh"

// The backward on sm_90a, second kernel: gradients of keys and values.
namespace stratcore::toroidal_attention {

// Queries of a tile: registers hold two gradients.
template <int E>
STRATCORE_HOST_DEVICE constexpr int key_wgmma_cols() {
  return E == 64 ? 64 : 32;
}

// A block that holds keys; queries of all heads that share them pass by.
template <class S, int E>
class KeyGradient {
 public:
  using Shared = BackwardWgmma<S, E, key_wgmma_cols<E>()>;
  static constexpr int kCols = Shared::kCols, kTiles = kCols / 8;

  __device__ KeyGradient(const Prepared& problem, int group, int first)
      : problem_(problem), group_(group), first_(first),
        repeats_(static_cast<int>(problem.heads / problem.kv_heads)),
        length_(min(Shared::kRows, static_cast<int>(problem.keys) - first)) {}

  __device__ Box box() const { return box_at(problem_.lattice, problem_.key_base + first_, length_); }
  __device__ int pair_of(int repeat) const { return group_ * repeats_ + repeat; }  // of all batches

  __device__ void describe(const float* excess) const {
    const int lane = static_cast<int>(threadIdx.x) % 32, queries = static_cast<int>(problem_.queries);
    const Box rows = box();
    NoteWriter notes(Shared::here().notes, lane);
    for (int repeat = 0; repeat < repeats_; ++repeat) {
      const Head head = head_of(problem_, pair_of(repeat));
      const QueryTiles<kCols> tiles(problem_, head, first_, length_, excess);
      for (int base = 0; base < tiles.count(); base += 32) {
        notes.give(tiles.wants(base + lane), [&](TileNote& note) {
          const int query = (base + lane) * kCols, count = min(kCols, queries - query);
          describe_tile(problem_, rows, box_at(problem_.lattice, problem_.query_base + query, count),
                        base + lane, note);
          note.repeat = repeat;
        });
      }
    }
    notes.finish();
  }

  __device__ void fetch(const BackwardMaps& maps, const RowSums& sums) const {
    Shared& shared = Shared::here();
    const int heads = static_cast<int>(problem_.heads), kv_heads = static_cast<int>(problem_.kv_heads);
    barrier_arrive_expecting(&shared.rows_full, sizeof(shared.row));
    for (int i = 0; i < 2; ++i)
      shared.row[i].fetch(maps.row[i], &shared.rows_full, first_, group_ % kv_heads, group_ / kv_heads);
    NoteReader notes;
    int given = 0;
    while (const TileNote* note = notes.next(shared.notes)) {
      const int at = given % kStages, pair = pair_of(note->repeat), query = note->tile * kCols;
      barrier_wait(&shared.empty[at], given++ / kStages % 2 ^ 1);
      barrier_arrive_expecting(&shared.full[at],
                               sizeof(shared.col[at]) + sizeof(shared.lse[at]) + sizeof(shared.delta[at]));
      for (int i = 0; i < 2; ++i)
        shared.col[at][i].fetch(maps.col[i], &shared.full[at], query, pair % heads, pair / heads);
      const int64_t place = pair * sums.stride + query;
      bulk_copy(shared.lse[at], sums.lse + place, sizeof(shared.lse[at]), &shared.full[at]);
      bulk_copy(shared.delta[at], sums.delta + place, sizeof(shared.delta[at]), &shared.full[at]);
    }
  }

  __device__ void compute(int warpgroup, const Gradients& gradients) const {
    Shared& shared = Shared::here();
    const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
    const RowInfo rows = RowInfo::of<true>(problem_, first_, warp, lane);
    float grad_k[E / 8][4] = {}, grad_v[E / 8][4] = {}, scores[kTiles][4], products[kTiles][4];
    uint32_t weights[kCols / 16][4], packed[kCols / 16][4];
    Head head = head_of(problem_, pair_of(0));
    NoteReader notes;
    int given = 0, repeat = 0;
    barrier_wait(&shared.rows_full, 0);
    while (const TileNote* note = notes.next(shared.notes)) {
      const int at = given % kStages;
      if (note->repeat != repeat) head = head_of(problem_, pair_of(repeat = note->repeat));
      barrier_wait(&shared.full[at], given / kStages % 2);
      drop_columns(shared.lse[at], shared.col[at][1]);
      wgmma_fence();
      multiply_rows(scores, shared.row[0], warpgroup, shared.col[at][0]);
      wgmma_commit();
      multiply_rows(products, shared.row[1], warpgroup, shared.col[at][1]);
      wgmma_commit();
      wgmma_wait<1>();
      hold(scores);
      hold(grad_v);
      hold(grad_k);
      if (given > 0) barrier_arrive(&shared.empty[(given - 1) % kStages]);
      const bool limited = key_limit(problem_, note->tile * kCols) < first_ + length_;
      weigh<true, S>(problem_, head, shared.pattern, *note, rows, limited, lane, scores,
                     [&](int, int col) { return shared.lse[at][col]; });
      pack<S>(scores, weights);
      wgmma_fence();
      add_product(grad_v, weights, shared.col[at][1]);
      wgmma_commit();
      wgmma_wait<1>();
      hold(products);
#pragma unroll
      for (int n = 0; n < kTiles; ++n)
#pragma unroll
        for (int e = 0; e < 4; ++e)
          products[n][e] = scores[n][e] * (products[n][e] - shared.delta[at][8 * n + lane % 4 * 2 + e % 2]);
      pack<S>(products, packed);
      wgmma_fence();
      add_product(grad_k, packed, shared.col[at][0]);
      wgmma_commit();
      ++given;
    }
    wgmma_wait<0>();
    hold(grad_v);
    hold(grad_k);
    const float scale[2] = {float(problem_.scale), float(problem_.scale)}, one[2] = {1.0f, 1.0f};
    const int64_t place = group_ * problem_.keys * problem_.dim;
    store_rows<S, E>(static_cast<S*>(gradients.grad_k) + place, problem_.dim, rows, problem_.keys,
                     problem_.dim, lane, grad_k, scale);
    store_rows<S, E>(static_cast<S*>(gradients.grad_v) + place, problem_.dim, rows, problem_.keys,
                     problem_.dim, lane, grad_v, one);
  }

 private:
  // Queries without weights take no part, even where the gradient of their output is not a number. Both
  // groups agree.
  __device__ __forceinline__ static void drop_columns(const float (&lse)[kCols],
                                                      Sliced<S, E, kCols>& outputs) {
    const int lane = static_cast<int>(threadIdx.x) % 32;
    bool empty = false;
#pragma unroll
    for (int col = lane; col < kCols; col += 32) empty |= lse[col] == INFINITY;
    if (!__any_sync(0xffffffffu, empty)) return;
    for (int at = static_cast<int>(threadIdx.x); at < E / kSlice * kCols; at += kGroup * Shared::kGroups) {
      if (lse[at % kCols] != INFINITY) continue;
      uint4* row = reinterpret_cast<uint4*>(outputs.slice[at / kCols][at % kCols]);
      for (int i = 0; i < kSlice / 8; ++i) row[i] = make_uint4(0, 0, 0, 0);
    }
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
    named_wait<kGroup * Shared::kGroups>(2);
  }

  const Prepared& problem_;
  int group_, first_, repeats_, length_;
};

template <class S, int E>
__global__ void __launch_bounds__(BackwardWgmma<S, E, key_wgmma_cols<E>()>::kThreads, 1)
    key_wgmma_kernel(const __grid_constant__ Prepared problem, const __grid_constant__ Gradients gradients,
                     const __grid_constant__ RowSums sums, const __grid_constant__ BackwardMaps maps) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
  using Shared = BackwardWgmma<S, E, key_wgmma_cols<E>()>;
  const int blocks = (static_cast<int>(problem.keys) + Shared::kRows - 1) / Shared::kRows;
  const int group = static_cast<int>(blockIdx.x) / blocks;
  const int first = (static_cast<int>(blockIdx.x) - group * blocks) * Shared::kRows;
  const KeyGradient<S, E> block(problem, group, first);
  Shared& shared = Shared::here();
  if (threadIdx.x == 0) shared.init();
  write_pattern(shared.pattern, problem, problem.key_base + first, block.box(), problem.query_base,
                static_cast<int>(threadIdx.x), Shared::kThreads);
  __syncthreads();
  const int warpgroup = static_cast<int>(threadIdx.x) / kGroup;
  if (warpgroup < Shared::kGroups) {
    take_registers<240>();
    block.compute(warpgroup, gradients);
    return;
  }
  give_registers<24>();
  const int warp = static_cast<int>(threadIdx.x) / 32 % 4;
  if (warp == 0 && threadIdx.x % 32 == 0) block.fetch(maps, sums);
  if (warp == 1) block.describe(sums.excess);
#endif
}

}  // namespace stratcore::toroidal_attention

#pragma once

#include "key_block.cuh"
#include "query_sums.cuh"

// The backward on sm_90a by blocks that hold keys, which queries of all heads that share them pass by:
// gradients of keys and values, and (kAll) of queries and slopes too. Every weight is then made once and a
// tile takes five products; but what a block has for the queries it adds in memory to what others have, in
// any order.
namespace stratcore::toroidal_attention {

template <class S, int E, bool kAll>
class KeyGradient {
 public:
  using Shared = KeyWgmma<S, E>;
  static constexpr int kCols = Shared::kCols, kTiles = kCols / 8, kWarpsOfBlock = 4 * Shared::kGroups;

  __device__ KeyGradient(const Prepared& problem, int group, int first)
      : problem_(problem), group_(group), first_(first),
        repeats_(static_cast<int>(problem.heads / problem.kv_heads)),
        length_(min(Shared::kRows, static_cast<int>(problem.keys) - first)) {}

  __device__ Box box() const { return box_at(problem_.lattice, problem_.key_base + first_, length_); }
  __device__ int pair_of(int repeat) const { return group_ * repeats_ + repeat; }  // of all batches

  __device__ void describe(const RowSums& sums) const {
    const int lane = static_cast<int>(threadIdx.x) % 32, queries = static_cast<int>(problem_.queries);
    const Box rows = box();
    NoteWriter notes(Shared::here().notes, lane);
    for (int repeat = 0; repeat < repeats_; ++repeat) {
      const Head head = head_of(problem_, pair_of(repeat));
      const QueryTiles<kCols> tiles(problem_, head, first_, length_, sums.excess);
      for (int base = 0; base < tiles.count(); base += 32) {
        const int tile = tiles.at(base + lane);
        notes.give(tiles.wants(tile), [&](TileNote& note) {
          const int query = tile * kCols, count = min(kCols, queries - query);
          describe_tile(problem_, rows, box_at(problem_.lattice, problem_.query_base + query, count), tile,
                        note);
          note.ring &= !kInPlanes<S>;
          note.repeat = repeat;
          note.empty = sums.empty[pair_of(repeat) * tiles.count() + tile];
          note.limited = key_limit(problem_, query) < first_ + Shared::kRows;
          for (int axis = 0; axis < kMaxAxes; ++axis) note.weight[axis] = head.slopes[axis];
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

  // Where rows and columns lie, by the groups that compute: the others begin meanwhile.
  __device__ void write_places() const {
    constexpr int kComputing = kGroup * Shared::kGroups;
    Shared& shared = Shared::here();
    write_pattern(shared.pattern, problem_, problem_.key_base + first_, box(), problem_.query_base,
                  static_cast<int>(threadIdx.x), kComputing);
    named_wait<kComputing>(kAllGroups);
    named_arrive<kComputing + 32>(kPlaced);
    if constexpr (kAll) {
      shared.write_coordinates(problem_.lattice.axes);
      fence_shared_to_async();
      named_wait<kComputing>(kAllGroups);
    }
  }

  // The warp that works out what exponents have of a tile's columns and rows.
  __device__ void number() const {
    Shared& shared = Shared::here();
    named_wait<kGroup * Shared::kGroups + 32>(kPlaced);
    const int lane = static_cast<int>(threadIdx.x) % 32;
    NoteReader notes;
    int given = 0;
    while (const TileNote* note = notes.next(shared.notes)) {
      const int at = given % kStages;
      barrier_wait(&shared.full[at], given++ / kStages % 2);
      const float slope = note->weight[0];
      for (int col = lane; col < kCols; col += 32)
        shared.numbers[at][col] = column_number(shared.pattern, *note, slope, col) - shared.lse[at][col];
      for (int row = lane; row < Shared::kRows; row += 32)
        shared.row_numbers[at][row] = row_number(shared.pattern, *note, slope, row);
      barrier_arrive(&shared.numbered[at]);
      barrier_arrive(&shared.empty[at]);
    }
  }

  __device__ void compute(int warpgroup, const Gradients& gradients, const RowSums& sums) const {
    Shared& shared = Shared::here();
    const int lane = static_cast<int>(threadIdx.x) % 32, warp = uniform(static_cast<int>(threadIdx.x) / 32);
    const RowInfo rows = RowInfo::of<true>(problem_, first_, warp, lane);
    float grad_k[E / 8][4] = {}, grad_v[E / 8][4] = {}, queries[E / 16][4], moments[1][4];
    float scores[kTiles][4], products[kTiles][4];
    uint32_t weights[kCols / 16][4], packed[kCols / 16][4];
    NoteReader notes;
    int given = 0, repeat = 0;
    int before = 0;  // number of the tile before, of all pairs
    const auto add_products = [&](int at) {
      wgmma_fence();
      add_product(grad_v, weights, shared.col[at][1]);
      add_product(grad_k, packed, shared.col[at][0]);
      wgmma_commit();
    };
    if constexpr (kAll) start_slopes();
    barrier_wait(&shared.rows_full, 0);
    while (const TileNote* note = notes.next(shared.notes)) {
      const int at = given % kStages;
      if (note->repeat != repeat) {
        for (; repeat < note->repeat; ++repeat) {
          if constexpr (kAll) share_slopes(sums, repeat, warp, lane);
        }
      }
      // One group multiplies while the other one does not: the second begins later by a part of a tile.
      const bool staggers = given == 0 && !note->empty;
      if (staggers && warpgroup == 1) named_wait<kGroup * Shared::kGroups>(kSecondStarts);
      barrier_wait(&shared.full[at], given / kStages % 2);
      if (note->empty) drop_columns(shared.lse[at], shared.col[at][1]);
      wgmma_fence();
      multiply_rows(scores, shared.row[0], warpgroup, shared.col[at][0]);
      wgmma_commit();
      wgmma_wait<1>();  // of the tile before: registers for the next product
      hold(grad_v);
      hold(grad_k);
      wgmma_fence();
      multiply_rows(products, shared.row[1], warpgroup, shared.col[at][1]);
      wgmma_commit();
      barrier_wait(&shared.numbered[at], given / kStages % 2);
      wgmma_wait<1>();
      hold(scores);
      if (given > 0) barrier_arrive(&shared.empty[(given - 1) % kStages]);
      weigh<true, S>(
          problem_, [&] { return head_of(problem_, pair_of(repeat)); }, shared.pattern, *note, rows, lane,
          [&](int axis) { return note->weight[axis]; },
          [&](int r) { return shared.row_numbers[at][rows.within + 8 * r]; },
          [&](int col) { return shared.numbers[at][col]; }, scores);
      wgmma_wait<0>();
      hold(products);
#pragma unroll
      for (int n = 0; n < kTiles; ++n)
#pragma unroll
        for (int e = 0; e < 4; ++e)
          products[n][e] = scores[n][e] * (products[n][e] - shared.delta[at][8 * n + lane % 4 * 2 + e % 2]);
      if (staggers && warpgroup == 0) named_arrive<kGroup * Shared::kGroups>(kSecondStarts);
      pack<S>(scores, weights);
      if constexpr (kAll) {
        if (!note->linear)
          each_slope(products, problem_, shared.pattern, *note, rows, lane,
                     [&](int axis, float share) { shared.slopes[axis][threadIdx.x] += share; });
      }
      pack<S>(products, packed);
      if constexpr (!kAll) {
        add_products(at);
      } else {
        give_scores(packed, given, warp, lane);
        start_moments(moments, packed);
        if (given == 0) {
          add_products(at);
          wgmma_wait<1>();
          add_moments(moments, *note, rows.within, lane);
        } else {
          start_queries(queries, given - 1, warpgroup);
          add_products(at);
          wgmma_wait<1>();
          add_moments(moments, *note, rows.within, lane);  // ahead of the stores that loads would wait for
          send_queries(queries, given - 1, warp, sums.queries, before);
        }
        before = pair_of(repeat) * static_cast<int>(sums.stride / kCols) + note->tile;
      }
      ++given;
    }
    if constexpr (kAll) {
      if (given > 0) {
        start_queries(queries, given - 1, warpgroup);
        wgmma_wait<0>();
        send_queries(queries, given - 1, warp, sums.queries, before);
      }
      for (; repeat < repeats_; ++repeat) share_slopes(sums, repeat, warp, lane);
    }
    wgmma_wait<0>();
    hold(grad_v);
    hold(grad_k);
    const float scale[2] = {float(problem_.scale), float(problem_.scale)}, one[2] = {1.0f, 1.0f};
    const int64_t keys = group_ * problem_.keys * problem_.dim;
    named_wait<kGroup * Shared::kGroups>(kAllGroups);  // nobody reads keys and values any more
    store_rows_by<S, E>(shared.row[0], static_cast<S*>(gradients.grad_k) + keys, problem_.dim, rows,
                        problem_.keys, problem_.dim, lane, grad_k, scale);
    store_rows_by<S, E>(shared.row[1], static_cast<S*>(gradients.grad_v) + keys, problem_.dim, rows,
                        problem_.keys, problem_.dim, lane, grad_v, one);
  }

 protected:
  static constexpr int kAllGroups = 1, kSecondStarts = 2, kPlaced = 3;  // named barriers

  // Queries without weights take no part, even where the gradient of their output is not a number. Both
  // groups agree.
  __device__ __forceinline__ static void drop_columns(const float (&lse)[kCols],
                                                      RowTile<S, E, kCols>& outputs) {
    if constexpr (kInPlanes<S>)
      for (auto& plane : outputs.plane) clear_columns(lse, plane);
    else
      clear_columns(lse, outputs);
    fence_shared_to_async();
    named_wait<kGroup * Shared::kGroups>(kAllGroups);
  }
  __device__ __forceinline__ static void clear_columns(const float (&lse)[kCols],
                                                       Sliced<Multiplied<S>, E, kCols>& outputs) {
    for (int at = static_cast<int>(threadIdx.x); at < E / kSlice * kCols; at += kGroup * Shared::kGroups) {
      if (lse[at % kCols] != INFINITY) continue;
      uint4* row = reinterpret_cast<uint4*>(outputs.slice[at / kCols][at % kCols]);
      for (int i = 0; i < kSlice / 8; ++i) row[i] = make_uint4(0, 0, 0, 0);
    }
  }

  __device__ static void start_slopes() {
    for (int axis = 0; axis < kMaxAxes; ++axis) Shared::here().slopes[axis][threadIdx.x] = 0.0f;
  }

  // A warp's share of the gradient of the slopes of a head, in a place of its own; starts the next at 0.
  __device__ void share_slopes(const RowSums& sums, int repeat, int warp, int lane) const {
    const auto& own = Shared::here().slopes;
    const int blocks = (static_cast<int>(problem_.keys) + Shared::kRows - 1) / Shared::kRows;
    const int count = problem_.slope_count;
    const int64_t block = int64_t(pair_of(repeat)) * blocks + first_ / Shared::kRows;
    float* place = sums.slopes + (block * kWarpsOfBlock + warp) * count;
    for (int slope = 0; slope < count; ++slope) {
      float share = 0.0f;
      for (int axis = slope; axis < kMaxAxes; axis += count) share += own[axis][threadIdx.x];  // one has all
      for (int offset = 16; offset; offset /= 2) share += __shfl_xor_sync(0xffffffffu, share, offset);
      if (lane == 0) place[slope] = share;
    }
    start_slopes();
  }

  // Gradients of the scores into shared memory, chunks swapped as matrix_descriptor has them, for both
  // groups.
  __device__ __forceinline__ static void give_scores(const uint32_t (&packed)[kCols / 16][4], int given,
                                                     int warp, int lane) {
    Shared& shared = Shared::here();
    const int at = given % 2;
    barrier_wait(&shared.scores_empty[at], given / 2 % 2 ^ 1);
    const uint32_t first =
        shared_address(shared.scores[at][16 * warp + lane % 16]) + ((lane / 16 ^ lane % 8) << 4);
#pragma unroll
    for (int step = 0; step < kCols / 16; ++step) store_matrices(first ^ step << 5, packed[step]);
    fence_shared_to_async();
    __syncwarp();
    if (lane == 0) barrier_arrive(&shared.scores_full[at]);
  }

  // moments = gradients of the scores times a column of ones and the coordinates of the queries.
  __device__ __forceinline__ static void start_moments(float (&moments)[1][4],
                                                       const uint32_t (&packed)[kCols / 16][4]) {
    const MatrixDescriptor right(shared_address(Shared::here().coordinates), 1);
    clear(moments);
    wgmma_fence();
#pragma unroll
    for (int step = 0; step < kCols / 16; ++step)
      Wgmma<S>::template multiply<true>(moments, packed[step], right.at(16 * step * kSlice * sizeof(S)),
                                        step > 0);
    wgmma_commit();
  }

  // Adds a linear tile's share to the gradient of the slopes. Lanes of a row in turn hold column 0 (of ones)
  // and axis 0, axes 1 and 2.
  __device__ __forceinline__ void add_moments(float (&moments)[1][4], const TileNote& note, int within,
                                              int lane) const {
    hold(moments);
    if (!note.linear) return;
    Shared& shared = Shared::here();
    const float total[2] = {__shfl_sync(0xffffffffu, moments[0][0], lane & ~3),
                            __shfl_sync(0xffffffffu, moments[0][2], lane & ~3)};
#pragma unroll
    for (int axis = 0; axis < kMaxAxes; ++axis) {
      if (axis >= problem_.lattice.axes || lane % 4 != (axis + 1) / 2) continue;
      float share = 0.0f;
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        const float place = note.start[axis] + shared.pattern.row[axis][within + 8 * r];
        share += fmaf(note.slope[axis], place, note.base[axis]) * total[r];
        share -= note.slope[axis] * moments[0][2 * r + (axis + 1) % 2];
      }
      shared.slopes[axis][threadIdx.x] -= share;
    }
  }

  // queries = half of the columns of: gradients of the scores, transposed, times all keys of the block.
  __device__ __forceinline__ static void start_queries(float (&queries)[E / 16][4], int given,
                                                       int warpgroup) {
    Shared& shared = Shared::here();
    const int at = given % 2, column = warpgroup * (E / 2);
    barrier_wait(&shared.scores_full[at], given / 2 % 2);
    clear(queries);
    wgmma_fence();
    const MatrixDescriptor left(shared_address(shared.scores[at]), 1);
    const MatrixDescriptor right(shared_address(&shared.row[0].slice[column / kSlice][0][column % kSlice]),
                                 1);
#pragma unroll
    for (int step = 0; step < Shared::kRows / 16; ++step) {
      const uint32_t rows = 16 * step * kSlice * sizeof(S);
      Wgmma<S>::template multiply<true, true>(queries, left.at(rows), right.at(rows), step > 0);
    }
    wgmma_commit();
  }

  // Adds the warp's part of a tile's sums to those in memory.
  __device__ __forceinline__ static void send_queries(float (&queries)[E / 16][4], int given, int warp,
                                                      float* all, int tile) {
    hold(queries);
    const int lane = static_cast<int>(threadIdx.x) % 32;
    if (lane == 0) barrier_arrive(&Shared::here().scores_empty[given % 2]);
    float4* own = reinterpret_cast<float4*>(all) + (int64_t(tile) * 8 + warp) * (E / 16 * 32) + lane;
#pragma unroll
    for (int n = 0; n < E / 16; ++n) add_to_memory(own + n * 32, queries[n]);
  }

  const Prepared& problem_;
  int group_, first_, repeats_, length_;
};

template <class S, int E, class Block>
__device__ __forceinline__ void key_block(const Prepared& problem, const Gradients& gradients,
                                          const RowSums& sums, const BackwardMaps& maps) {
  using Shared = KeyWgmma<S, E>;
  const int blocks = (static_cast<int>(problem.keys) + Shared::kRows - 1) / Shared::kRows;
  const int group = static_cast<int>(blockIdx.x) / blocks;
  const int first = (static_cast<int>(blockIdx.x) - group * blocks) * Shared::kRows;
  const Block block(problem, group, first);
  if (threadIdx.x == 0) Shared::here().init();
  __syncthreads();
  const int warpgroup = uniform(static_cast<int>(threadIdx.x) / kGroup);
  if (warpgroup < Shared::kGroups) {
    take_registers<240>();
    block.write_places();
    block.compute(warpgroup, gradients, sums);
    return;
  }
  give_registers<24>();
  const int warp = static_cast<int>(threadIdx.x) / 32 % 4;
  if (warp == 0 && threadIdx.x % 32 == 0) block.fetch(maps, sums);
  if (warp == 1) block.describe(sums);
  if (warp == 2) block.number();
}

// kRing: of_plain_ring.
template <class S, int E, bool kAll, bool kRing>
__global__ void __launch_bounds__(KeyWgmma<S, E>::kThreads, 1)
    key_wgmma_kernel(const __grid_constant__ Prepared problem, const __grid_constant__ Gradients gradients,
                     const __grid_constant__ RowSums sums, const __grid_constant__ BackwardMaps maps) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
  if constexpr (kRing)
    key_block<S, E, KeyGradient<S, E, kAll>>(plain_ring(problem), gradients, sums, maps);
  else
    key_block<S, E, KeyGradient<S, E, kAll>>(problem, gradients, sums, maps);
#endif
}

}  // namespace stratcore::toroidal_attention

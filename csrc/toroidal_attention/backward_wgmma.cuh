#pragma once

#include "backward_mma.cuh"
#include "plane_tiles.cuh"

// The backward on sm_90a for 16-bit types and heads of up to 128: as by mma.sync one kernel that holds
// queries, here, and one that holds keys, in backward_keys_wgmma.cuh: the same bits on every run. A block
// holds 128 rows.
namespace stratcore::toroidal_attention {

// Boxes of the rows that a block holds, and of a tile.
struct BackwardMaps {
  CUtensorMap row[2], col[2];  // queries or keys, and the gradients of outputs or values
};

template <class S, int Width>
struct alignas(1024) BackwardWgmma {
  static constexpr int kCols = 64, kGroups = 2, kRows = 64 * kGroups, kThreads = kGroup * (1 + kGroups);

  RowTile<S, Width, kRows> row[2];
  RowTile<S, Width, kCols> col[kStages][2];
  Pattern<kRows, kCols> pattern;
  NoteQueue notes;
  float slopes[4 * kGroups][kMaxAxes];
  uint64_t rows_full, full[kStages], empty[kStages];

  __device__ void init() {
    barrier_init(&rows_full, 1);
    for (int stage = 0; stage < kStages; ++stage) {
      barrier_init(&full[stage], 1);
      barrier_init(&empty[stage], kGroup * kGroups);
    }
    notes.init(kGroup * kGroups + 1);
    fence_barrier_init();
  }

  // Derived anew each time: a reference that is kept would be read as one to any memory.
  __device__ __forceinline__ static BackwardWgmma& here() {
    extern __shared__ __align__(1024) char bytes[];
    return *reinterpret_cast<BackwardWgmma*>(bytes);
  }
};

// What exponents have of a column and of a row, but for log-sums, of tiles of one ring; else 0. Not for
// planes: their sum is rounded at the size of the tile.
template <int Rows, int Cols>
__device__ __forceinline__ float column_number(const Pattern<Rows, Cols>& pattern, const TileNote& note,
                                               float slope, int col) {
  return note.ring ? slope * note.slope[0] * pattern.col[0][col] : 0.0f;
}
template <int Rows, int Cols>
__device__ __forceinline__ float row_number(const Pattern<Rows, Cols>& pattern, const TileNote& note,
                                            float slope, int row) {
  return note.ring ? -slope * fmaf(note.slope[0], note.start[0] + pattern.row[0][row], note.base[0]) : 0.0f;
}

// Products with their tile become weights. `slope` of an axis; `row` and `col`: numbers of
// row 0 or 1 and of a column, less log-sums.
template <bool kTransposed, class S, int N, int Rows, int Cols, class HeadOf, class Slope, class Row,
          class Col>
__device__ __forceinline__ void weigh(const Prepared& problem, const HeadOf& head,
                                      const Pattern<Rows, Cols>& pattern, const TileNote& note,
                                      const RowInfo& rows, int lane, const Slope& slope, const Row& row,
                                      const Col& col, float (&scores)[N][4]) {
#pragma unroll
  for (int n = 0; n < N; ++n)
#pragma unroll
    for (int e = 0; e < 4; ++e)
      scores[n][e] = fmaf(scores[n][e], problem.factor, col(8 * n + lane % 4 * 2 + e % 2)) + row(e / 2);
  if (!note.ring) {
    each_part_of<N>(
        problem, pattern, note, rows.within, lane,
        [&](int axis, int n, int e, float part) { scores[n][e] = fmaf(-slope(axis), part, scores[n][e]); },
        [](int) {});
  }
  const int first = note.tile * Cols;
  if (problem.mask.element != MaskElement::kNone) {
    add_mask<S, kTransposed>(problem, head(), rows, first, lane, scores);
#pragma unroll
    for (int n = 0; n < N; ++n)
#pragma unroll
      for (int e = 0; e < 4; ++e) scores[n][e] = fminf(scores[n][e], 0.0f);  // rounding of a huge mask
  }
#pragma unroll
  for (int n = 0; n < N; ++n)
#pragma unroll
    for (int e = 0; e < 4; ++e) scores[n][e] = power_of_two(scores[n][e]);
  if (!note.limited) return;
#pragma unroll
  for (int n = 0; n < N; ++n) {
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      const int at = first + 8 * n + lane % 4 * 2 + e % 2;
      const bool seen = kTransposed ? at >= rows.limit[e / 2] : at < rows.limit[e / 2];
      if (!seen) scores[n][e] = 0.0f;
    }
  }
}

// Calls use(axis, share) with the lane's share in the gradient of each slope, from a tile's gradients of
// scores.
template <int N, int Rows, int Cols, class Use>
__device__ __forceinline__ void each_slope(const float (&gradients)[N][4], const Problem& problem,
                                           const Pattern<Rows, Cols>& pattern, const TileNote& note,
                                           const RowInfo& rows, int lane, const Use& use) {
  float share[2] = {};
  each_part_of<N>(
      problem, pattern, note, rows.within, lane,
      [&](int, int n, int e, float part) { share[e % 2] = fmaf(-gradients[n][e], part, share[e % 2]); },
      [&](int axis) {
        use(axis, share[0] + share[1]);
        share[0] = share[1] = 0.0f;
      });
}

// A block that holds queries; keys pass by.
template <class S, int E>
class QueryGradient {
 public:
  using Shared = BackwardWgmma<S, E>;
  static constexpr int kCols = Shared::kCols, kTiles = kCols / 8;

  __device__ QueryGradient(const Prepared& problem, const Head& head, int pair, int block)
      : problem_(problem), head_(head), pair_(pair), block_(block), first_(block * Shared::kRows),
        last_(min(first_ + Shared::kRows, static_cast<int>(problem.queries)) - 1) {}

  __device__ Box box() const {
    return box_at(problem_.lattice, problem_.query_base + first_, last_ - first_ + 1);
  }

  __device__ void describe(const float* excess) const {
    const int lane = static_cast<int>(threadIdx.x) % 32;
    const Box rows = box();
    KeyTiles<kCols> tiles(problem_, head_, first_, last_ - first_ + 1, key_limit(problem_, last_));
    if (tiles.skipping()) {
      const int blocks = (static_cast<int>(problem_.queries) + kRows - 1) / kRows, at = first_ / kRows;
      const float* of_head = excess + int64_t(pair_) * blocks;
      tiles.judge_by(larger(of_head[at], of_head[min(at + 1, blocks - 1)]));
    }
    const int whole = key_limit(problem_, first_);
    NoteWriter notes(Shared::here().notes, lane);
    for (int base = 0; base < tiles.count(); base += 32) {
      notes.give(tiles.wants(base + lane), [&](TileNote& note) {
        const int key = (base + lane) * kCols, count = min(kCols, static_cast<int>(problem_.keys) - key);
        describe_tile(problem_, rows, box_at(problem_.lattice, problem_.key_base + key, count), base + lane,
                      note);
        note.ring &= !kInPlanes<S>;
        note.limited = key + kCols > whole;
      });
    }
    notes.finish();
  }

  __device__ void fetch(const BackwardMaps& maps) const {
    Shared& shared = Shared::here();
    barrier_arrive_expecting(&shared.rows_full, sizeof(shared.row));
    for (int i = 0; i < 2; ++i)
      shared.row[i].fetch(maps.row[i], &shared.rows_full, first_, head_.head, head_.batch);
    NoteReader notes;
    int given = 0;
    while (const TileNote* note = notes.next(shared.notes)) {
      const int at = given % kStages;
      barrier_wait(&shared.empty[at], given++ / kStages % 2 ^ 1);
      barrier_arrive_expecting(&shared.full[at], sizeof(shared.col[at]));
      for (int i = 0; i < 2; ++i)
        shared.col[at][i].fetch(maps.col[i], &shared.full[at], note->tile * kCols, head_.kv_head,
                                head_.batch);
    }
  }

  __device__ void compute(int group, const Gradients& gradients, const RowSums& sums) const {
    Shared& shared = Shared::here();
    const int lane = static_cast<int>(threadIdx.x) % 32, warp = uniform(static_cast<int>(threadIdx.x) / 32);
    const RowInfo rows = RowInfo::of<false>(problem_, first_, warp, lane);
    float lse[2], delta[2];
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const bool inside = rows.index[r] < problem_.queries;
      lse[r] = inside ? sums.lse[pair_ * sums.stride + rows.index[r]] : INFINITY;
      delta[r] = inside ? sums.delta[pair_ * sums.stride + rows.index[r]] : 0.0f;
    }
    const bool empty = __any_sync(0xffffffffu, lse[0] == INFINITY || lse[1] == INFINITY);
    float grad[E / 8][4] = {}, slopes[kMaxAxes] = {}, scores[kTiles][4], products[kTiles][4];
    Factors<S, kCols / 16> packed;
    NoteReader notes;
    int given = 0;
    barrier_wait(&shared.rows_full, 0);
    while (const TileNote* note = notes.next(shared.notes)) {
      const int at = given % kStages;
      barrier_wait(&shared.full[at], given / kStages % 2);
      wgmma_fence();
      multiply_rows(scores, shared.row[0], group, shared.col[at][0]);
      wgmma_commit();
      multiply_rows(products, shared.row[1], group, shared.col[at][1]);
      wgmma_commit();
      const float slope = head_.slope(0);
      const float numbers[2] = {row_number(shared.pattern, *note, slope, rows.within) - lse[0],
                                row_number(shared.pattern, *note, slope, rows.within + 8) - lse[1]};
      wgmma_wait<1>();
      hold(scores);
      if constexpr (!kInPlanes<S>) hold(grad);
      if (given > 0) barrier_arrive(&shared.empty[(given - 1) % kStages]);
      weigh<false, S>(
          problem_, [&] { return head_; }, shared.pattern, *note, rows, lane,
          [&](int axis) { return head_.slope(axis); }, [&](int r) { return numbers[r]; },
          [&](int col) { return column_number(shared.pattern, *note, slope, col); }, scores);
      wgmma_wait<0>();
      hold(products);
#pragma unroll
      for (int n = 0; n < kTiles; ++n)
#pragma unroll
        for (int e = 0; e < 4; ++e) products[n][e] = scores[n][e] * (products[n][e] - delta[e / 2]);
      if (empty) drop_rows(products, lse);
      each_slope(products, problem_, shared.pattern, *note, rows, lane, [&](int axis, float share) {
#pragma unroll
        for (int a = 0; a < kMaxAxes; ++a) slopes[a] += a == axis ? share : 0.0f;
      });
      pack<S>(products, packed);
      add_keys(grad, scores, packed, at);
      ++given;
    }
    wgmma_wait<0>();
    hold(grad);
    const float factor[2] = {float(problem_.scale), float(problem_.scale)};
    S* data = static_cast<S*>(gradients.grad_q) + pair_ * problem_.queries * problem_.dim;
    store_rows<S, E>(data, problem_.dim, rows, problem_.queries, problem_.dim, lane, grad, factor);
    share_slopes(slopes, sums, warp, lane);
  }

 private:
  // grad += gradients of the scores, packed, times the keys at stage `at`; in planes done at once, by way of
  // `sums`.
  __device__ __forceinline__ static void add_keys(float (&grad)[E / 8][4], float (&sums)[kTiles][4],
                                                  const Factors<S, kCols / 16>& packed, int at) {
    Shared& shared = Shared::here();
    wgmma_fence();
    if constexpr (kInPlanes<S>) {
      multiply_factors(sums, packed, shared.col[at][0]);
      wgmma_commit();
      wgmma_wait<0>();
      hold(sums);
      add_sums(grad, sums);
    } else {
      add_product(grad, packed, shared.col[at][0]);
      wgmma_commit();
    }
  }

  // The block's share of the gradient of the slopes, from those of the lanes, in a fixed order.
  __device__ void share_slopes(const float (&slopes)[kMaxAxes], const RowSums& sums, int warp,
                               int lane) const {
    Shared& shared = Shared::here();
    for (int axis = 0; axis < kMaxAxes; ++axis) {
      float share = slopes[axis];
      for (int offset = 16; offset; offset /= 2) share += __shfl_xor_sync(0xffffffffu, share, offset);
      if (lane == 0) shared.slopes[warp][axis] = share;
    }
    named_wait<kGroup * Shared::kGroups>(1);
    const int axis = static_cast<int>(threadIdx.x), count = problem_.slope_count;
    if (axis >= count) return;
    float share = 0.0f;  // one slope for all axes has them all
    for (int w = 0; w < 4 * Shared::kGroups; ++w)
      for (int a = axis; a < kMaxAxes; a += count) share += shared.slopes[w][a];
    const int blocks = (static_cast<int>(problem_.queries) + Shared::kRows - 1) / Shared::kRows;
    sums.slopes[(int64_t(pair_) * blocks + block_) * count + axis] = share;
  }

  const Prepared& problem_;
  Head head_;
  int pair_, block_, first_, last_;
};

template <class S, int E>
__global__ void __launch_bounds__(BackwardWgmma<S, E>::kThreads, 1)
    query_wgmma_kernel(const __grid_constant__ Prepared problem, const __grid_constant__ Gradients gradients,
                       const __grid_constant__ RowSums sums, const __grid_constant__ BackwardMaps maps) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
  using Shared = BackwardWgmma<S, E>;
  const int blocks = (static_cast<int>(problem.queries) + Shared::kRows - 1) / Shared::kRows;
  const int pair = static_cast<int>(blockIdx.x) / blocks;
  // The last queries see most keys where it is causal: first.
  const int at = blocks - 1 - (static_cast<int>(blockIdx.x) - pair * blocks);
  const QueryGradient<S, E> block(problem, head_of(problem, pair), pair, at);
  Shared& shared = Shared::here();
  if (threadIdx.x == 0) shared.init();
  write_pattern(shared.pattern, problem, problem.query_base + at * Shared::kRows, block.box(),
                problem.key_base, static_cast<int>(threadIdx.x), Shared::kThreads);
  __syncthreads();
  const int group = uniform(static_cast<int>(threadIdx.x) / kGroup);
  if (group < Shared::kGroups) {
    take_registers<224>();
    block.compute(group, gradients, sums);
    return;
  }
  give_registers<56>();
  const int warp = static_cast<int>(threadIdx.x) / 32 % 4;
  if (warp == 0 && threadIdx.x % 32 == 0) block.fetch(maps);
  if (warp == 1) block.describe(sums.excess);
#endif
}

}  // namespace stratcore::toroidal_attention

#pragma once

#include "softmax.cuh"
#include "tile_pipeline.cuh"

// The forward on sm_90a for 16-bit types. A block holds 128 queries of one head (192 where heads are narrow),
// 64 a warpgroup. The scores of a tile are made while the values of the tile before are summed, and one
// warpgroup's softmax runs while the others' products do.
namespace stratcore::toroidal_attention {

// q, k and v [B, H, N, E] for bulk copies.
struct ForwardMaps {
  CUtensorMap q, k, v;
};

template <class S, int Width>
struct alignas(1024) ForwardWgmma {
  static constexpr int kCols = Width == 256 ? 64 : 128;  // keys of a tile
  // Warpgroups that compute. Narrow heads have little to multiply beside the powers of two, and need few
  // registers.
  static constexpr int kGroups = Width == 64 ? 3 : 2;
  static constexpr int kRows = 64 * kGroups;
  static constexpr int kThreads = kGroup * (1 + kGroups);
  using KeyTile = Sliced<S, Width, kCols>;

  Sliced<S, Width, kRows> q;
  KeyTile k[kStages], v[kStages];
  Pattern<kRows, kCols> pattern;
  float col[2][kMaxAxes][kCols];  // coordinates of the pattern times slope and times -slope of the axis
  NoteQueue notes;
  float excess[4 * kGroups];
  uint64_t q_full, judged, k_full[kStages], k_empty[kStages], v_full[kStages], v_empty[kStages];

  __device__ void init() {
    barrier_init(&q_full, 1);
    barrier_init(&judged, 4 * kGroups);
    for (int stage = 0; stage < kStages; ++stage) {
      barrier_init(&k_full[stage], 1);
      barrier_init(&v_full[stage], 1);
      barrier_init(&k_empty[stage], kGroup * kGroups);
      barrier_init(&v_empty[stage], kGroup * kGroups);
    }
    notes.init(kGroup * kGroups + 1);
    fence_barrier_init();
  }

  // Derived anew each time: a reference that is kept would be read as one to any memory.
  __device__ __forceinline__ static ForwardWgmma& here() {
    extern __shared__ __align__(1024) char bytes[];
    return *reinterpret_cast<ForwardWgmma*>(bytes);
  }
};

// The queries of a block.
struct QueryBlock {
  const Prepared& problem;
  Head head;
  int first, last;

  __device__ Box box() const { return box_at(problem.lattice, problem.query_base + first, last - first + 1); }
};

// The warp that describes. Where tiles may be left out, the first one is looked at before the others are
// judged.
template <class Shared>
__device__ void describe_keys(const QueryBlock& block, int32_t* tile_counts) {
  constexpr int kCols = Shared::kCols;
  const Prepared& problem = block.problem;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const Box rows = block.box();
  KeyTiles<kCols> tiles(problem, block.head, block.first, block.last - block.first + 1,
                        key_limit(problem, block.last));
  NoteWriter notes(Shared::here().notes, lane);
  const auto give = [&](int tile, bool wanted) {
    notes.give(wanted, [&](TileNote& note) {
      const int key = tile * kCols, count = min(kCols, static_cast<int>(problem.keys) - key);
      describe_tile(problem, rows, box_at(problem.lattice, problem.key_base + key, count), tile, note);
    });
  };
  if (tiles.skipping() && tiles.count() > 0) {
    const int tile = tiles.nearest(lane);
    give(tile, lane == 0);
    auto& shared = Shared::here();
    barrier_wait(&shared.judged, 0);
    float excess = shared.excess[0];
    for (int warp = 1; warp < 4 * Shared::kGroups; ++warp) excess = larger(excess, shared.excess[warp]);
    tiles.judge_by(excess);
    tiles.leave_out(tile);
  }
  for (int base = 0; base < tiles.count(); base += 32) {
    const int tile = tiles.at(base + lane);
    give(tile, tiles.wants(tile));
  }
  notes.finish();
  if (lane != 0) return;
  atomicAdd(tile_counts, tiles.count() - notes.given());
  atomicAdd(tile_counts + 1, tiles.count());
}

// The thread that fetches.
template <class Shared>
__device__ void fetch_keys(const QueryBlock& block, const ForwardMaps& maps) {
  auto& shared = Shared::here();
  const int batch = block.head.batch, kv_head = block.head.kv_head;
  barrier_arrive_expecting(&shared.q_full, sizeof(shared.q));
  shared.q.fetch(maps.q, &shared.q_full, block.first, block.head.head, batch);
  NoteReader notes;
  int given = 0;
  while (const TileNote* note = notes.next(shared.notes)) {
    const int at = given % kStages, key = note->tile * Shared::kCols;
    const uint32_t parity = given++ / kStages % 2 ^ 1;
    barrier_wait(&shared.k_empty[at], parity);
    barrier_arrive_expecting(&shared.k_full[at], sizeof(shared.k[at]));
    shared.k[at].fetch(maps.k, &shared.k_full[at], key, kv_head, batch);
    barrier_wait(&shared.v_empty[at], parity);
    barrier_arrive_expecting(&shared.v_full[at], sizeof(shared.v[at]));
    shared.v[at].fetch(maps.v, &shared.v_full[at], key, kv_head, batch);
  }
}

// A warpgroup that computes.
template <class S, int E>
class ForwardGroup {
 public:
  using Shared = ForwardWgmma<S, E>;
  static constexpr int kCols = Shared::kCols, kTiles = kCols / 8, kGroups = Shared::kGroups;

  __device__ ForwardGroup(const QueryBlock& block, int group)
      : b_(block), group_(group), lane_(static_cast<int>(threadIdx.x) % 32),
        warp_(static_cast<int>(threadIdx.x) % kGroup / 32),
        rows_(RowInfo::of<false>(block.problem, block.first, 4 * group + warp_, lane_)),
        whole_(key_limit(block.problem, block.first)) {}

  __device__ void run(const float* key_norms) {
    Shared& shared = Shared::here();
    if (group_ == kGroups - 1) named_arrive<2 * kGroup>(kTurn);
    float scores[kTiles][4], factor[2];
    uint32_t weights[kCols / 16][4];
    NoteReader notes;
    const TileNote* note = notes.next(shared.notes);
    if (!note) return;
    barrier_wait(&shared.q_full, 0);
    barrier_wait(&shared.k_full[0], 0);
    take_turn();
    multiply_keys(scores, 0);
    pass_turn();
    wgmma_wait<0>();
    hold(scores);
    barrier_arrive(&shared.k_empty[0]);
    finish_scores(scores, *note, factor);
    pack<S>(scores, weights);
    if (may_skip(b_.problem, b_.head))
      judge(key_norms[b_.head.batch * b_.problem.kv_heads + b_.head.kv_head]);
    int done = 0;  // tiles whose values are summed
    while ((note = notes.next(shared.notes))) {
      const int at = (done + 1) % kStages, before = done % kStages;
      barrier_wait(&shared.k_full[at], (done + 1) / kStages % 2);
      take_turn();
      multiply_keys(scores, at);
      barrier_wait(&shared.v_full[before], done / kStages % 2);
      multiply_values(weights, before);
      pass_turn();
      wgmma_wait<1>();
      hold(scores);
      barrier_arrive(&shared.k_empty[at]);
      finish_scores(scores, *note, factor);
      after_weights();
      wgmma_wait<0>();
      hold(sums.value);
      barrier_arrive(&shared.v_empty[before]);
      sums.rescale(factor);
      pack<S>(scores, weights);
      ++done;
    }
    const int before = done % kStages;
    barrier_wait(&shared.v_full[before], done / kStages % 2);
    multiply_values(weights, before);
    wgmma_wait<0>();
    hold(sums.value);
  }

  __device__ void store(const Output& out, int pair) {
    const int64_t queries = b_.problem.queries;
    float factor[2];
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const float lse = sums.lse(r), weight = row_sum(sums.weight[r]);
      factor[r] = weight == 0.0f ? 0.0f : 1.0f / weight;
      if (lane_ % 4 == 0 && rows_.index[r] < queries)
        static_cast<float*>(out.lse)[pair * queries + rows_.index[r]] = lse / kLog2e;
    }
    S* data = static_cast<S*>(out.out) + b_.head.batch * out.out_strides.batch +
              b_.head.head * out.out_strides.head;
    store_rows<S, E>(data, out.out_strides.row, rows_, queries, b_.problem.dim, lane_, sums.value, factor);
  }

 private:
  static constexpr int kTurn = 1;  // named barriers: of group 0, 1, ..

  __device__ void take_turn() const { named_wait<2 * kGroup>(kTurn + group_); }
  __device__ void pass_turn() const { named_arrive<2 * kGroup>(kTurn + (group_ + 1) % kGroups); }

  __device__ __forceinline__ void multiply_keys(float (&scores)[kTiles][4], int at) {
    Shared& shared = Shared::here();
    wgmma_fence();
    multiply_rows(scores, shared.q, group_, shared.k[at]);
    wgmma_commit();
  }

  __device__ __forceinline__ void multiply_values(const uint32_t (&weights)[kCols / 16][4], int at) {
    wgmma_fence();
    add_product(sums.value, weights, Shared::here().v[at]);
    wgmma_commit();
  }

  // Products become scores, but for `row` of each row.
  __device__ __forceinline__ void add_simple(float (&scores)[kTiles][4], const TileNote& note,
                                             float (&row)[2]) const {
    const Shared& shared = Shared::here();
    float scale = float(b_.problem.scale) * kLog2e;  // until it is used
#pragma unroll 1
    for (int axis = 0; axis < b_.problem.lattice.axes; ++axis) {
      const float slope = b_.head.slope(axis), sign = note.slope[axis], base = note.base[axis];
      const float start = note.start[axis];
      const float place[2] = {start + shared.pattern.row[axis][rows_.within],
                              start + shared.pattern.row[axis][rows_.within + 8]};
      const bool linear = note.form[axis] == AxisForm::kLinear;
      const float2* cols =
          reinterpret_cast<const float2*>(shared.col[linear && sign < 0.0f][axis]) + lane_ % 4;
      if (linear) {
#pragma unroll
        for (int n = 0; n < kTiles; ++n) {
          const float2 col = cols[4 * n];
#pragma unroll
          for (int e = 0; e < 4; ++e) scores[n][e] = fmaf(scores[n][e], scale, e % 2 ? col.y : col.x);
        }
#pragma unroll
        for (int r = 0; r < 2; ++r) row[r] -= slope * fmaf(sign, place[r], base);
      } else {
        const float turned = slope < 0.0f ? sign : -sign, scaled[2] = {slope * place[0], slope * place[1]};
#pragma unroll
        for (int n = 0; n < kTiles; ++n) {
          const float2 col = cols[4 * n];
#pragma unroll
          for (int e = 0; e < 4; ++e)
            scores[n][e] = fmaf(scores[n][e], scale, turned * fabsf(scaled[e / 2] - (e % 2 ? col.y : col.x)));
        }
#pragma unroll
        for (int r = 0; r < 2; ++r) row[r] -= slope * base;
      }
      scale = 1.0f;
    }
  }

  // Products become weights.
  __device__ __forceinline__ void finish_scores(float (&scores)[kTiles][4], const TileNote& note,
                                                float (&factor)[2]) {
    const Problem& problem = b_.problem;
    const int first = note.tile * kCols;
    float row[2] = {};
    if (note.simple) {
      add_simple(scores, note, row);
    } else {
      const MovedPairs<Shared::kRows, kCols> pairs{Shared::here().pattern, note, rows_.within,
                                                   of_chords(problem.metric)};
      scale_and_bias(problem, b_.head, pairs, lane_, scores);
    }
    add_mask<S, false>(problem, b_.head, rows_, first, lane_, scores);
    if (first + kCols > whole_) hide<false>(nullptr, rows_, first, lane_, scores);
    sums.absorb(scores, row, factor);
  }

  // Sums of weights are never negative, but the compiler does not know: else it moves the wait for the
  // product of the values, which comes next, ahead of the powers of two, and they do not run side by side.
  __device__ __forceinline__ void after_weights() const {
    if (sums.weight[0] + sums.weight[1] < 0.0f) barrier_arrive(&Shared::here().judged);
  }

  // |scale| |q| of one of the lane's rows.
  __device__ float row_norm(int r) const {
    const int row = rows_.within + 8 * r;
    float sum = 0.0f;
    for (int slice = 0; slice < E / kSlice; ++slice) {
      for (int chunk = lane_ % 4; chunk < kSlice / 8; chunk += 4) {  // wherever the swizzle put them
        const uint4 bits = *reinterpret_cast<const uint4*>(&Shared::here().q.slice[slice][row][chunk * 8]);
        const S* values = reinterpret_cast<const S*>(&bits);
#pragma unroll
        for (int i = 0; i < 8; ++i) sum += float(values[i]) * float(values[i]);
      }
    }
    return sqrtf(row_sum(sum)) * fabsf(float(b_.problem.scale)) * kLog2e * kNormMargin;
  }

  // Tells what the tiles behind the first one are judged by.
  __device__ void judge(float key_norm) {
    float excess = -INFINITY;
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const float value = row_norm(r) * key_norm - sums.lse(r);
      if (rows_.index[r] < b_.problem.queries) excess = larger(excess, value);
    }
#pragma unroll
    for (int offset = 16; offset; offset /= 2)
      excess = larger(excess, __shfl_xor_sync(0xffffffffu, excess, offset));
    if (lane_ != 0) return;
    Shared::here().excess[4 * group_ + warp_] = excess;
    barrier_arrive(&Shared::here().judged);
  }

  const QueryBlock& b_;
  int group_, lane_, warp_;
  RowInfo rows_;
  int whole_;

 public:
  Softmax<E / 8> sums;
};

// Coordinates of the columns times the slopes of the head.
template <class Shared>
__device__ inline void scale_columns(const Head& head, int axes) {
  Shared& shared = Shared::here();
  for (int at = threadIdx.x; at < axes * Shared::kCols; at += Shared::kThreads) {
    const int axis = at / Shared::kCols, col = at % Shared::kCols;
    const float scaled = head.slope(axis) * shared.pattern.col_place[axis][col].x;
    shared.col[0][axis][col] = scaled;
    shared.col[1][axis][col] = -scaled;
  }
}

template <class S, int E>
__global__ void __launch_bounds__(ForwardWgmma<S, E>::kThreads, 1)
    forward_wgmma_kernel(const __grid_constant__ Prepared problem, const __grid_constant__ Output out,
                         const __grid_constant__ ForwardMaps maps, const float* key_norms) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
  using Shared = ForwardWgmma<S, E>;
  constexpr int kRows = Shared::kRows;
  const int queries = static_cast<int>(problem.queries), blocks = (queries + kRows - 1) / kRows;
  const int pair = static_cast<int>(blockIdx.x) / blocks;
  // The last queries see most keys where it is causal: first.
  const int first = (blocks - 1 - (static_cast<int>(blockIdx.x) - pair * blocks)) * kRows;
  const QueryBlock block{problem, head_of(problem, pair), first, min(first + kRows, queries) - 1};
  Shared& shared = Shared::here();
  if (threadIdx.x == 0) shared.init();
  write_pattern(shared.pattern, problem, problem.query_base + first, block.box(), problem.key_base,
                static_cast<int>(threadIdx.x), Shared::kThreads);
  __syncthreads();
  scale_columns<Shared>(block.head, problem.lattice.axes);
  __syncthreads();
  const int group = static_cast<int>(threadIdx.x) / kGroup;
  if (group < Shared::kGroups) {
    take_registers<Shared::kGroups == 2 ? 224 : 160>();
    ForwardGroup<S, E> computing(block, group);
    computing.run(key_norms);
    computing.store(out, pair);
    return;
  }
  give_registers<Shared::kGroups == 2 ? 56 : 32>();
  const int warp = static_cast<int>(threadIdx.x) / 32 % 4;
  if (warp == 0 && threadIdx.x % 32 == 0) fetch_keys<Shared>(block, maps);
  if (warp == 1) describe_keys<Shared>(block, out.tiles + 2 * pair);
#endif
}

}  // namespace stratcore::toroidal_attention

#pragma once

#include "forward_tiles.cuh"

// The forward on sm_90a for 16-bit types, and for float32 in planes. A block holds 128 queries of one head
// (192 where heads are narrow), 64 a warpgroup. The scores of a tile are made while the values of the tile
// before are summed, and one warpgroup's softmax runs while the others' products do. Where a head looks at
// few tiles, beginning and end of a block take longer than they do: then blocks are small, of 64 queries, and
// several share a processor.
namespace stratcore::toroidal_attention {

// A warpgroup that computes. kRing: of_plain_ring.
template <class S, int E, bool kRing, bool kSmall>
class ForwardGroup {
 public:
  using Shared = ForwardWgmma<S, E, kSmall>;
  static constexpr int kCols = Shared::kCols, kTiles = kCols / 8, kGroups = Shared::kGroups;
  static constexpr bool kReadsCols = !kRing && !kInPlanes<S>;  // shared.col

  __device__ ForwardGroup(const QueryBlock& block, int group)
      : b_(block), group_(group), lane_(static_cast<int>(threadIdx.x) % 32),
        warp_(static_cast<int>(threadIdx.x) % kGroup / 32),
        rows_(RowInfo::of<false>(block.problem, block.first, 4 * group + warp_, lane_)),
        whole_(key_limit(block.problem, block.first)) {}

  __device__ void run(const float* key_norms) {
    Shared& shared = Shared::here();
    if (group_ == kGroups - 1) pass_turn();
    float scores[kTiles][4], factor[2], reach[2];
    Factors<S, kCols / 16> weights = {};  // of the tile before; at first nothing times the tile's own values
    NoteReader notes;
    barrier_wait(&shared.q_full, 0);
    const TileNote* note = notes.next(shared.notes);
    if (!note) return;
    const bool skipping = may_skip(b_.problem, b_.head);
    const unsigned judging = first_tiles() - 1;
    unsigned done = 0, before = 0;  // tiles with weights; the last one's place
    do {
      const unsigned at = done % kStages;
      barrier_wait(&shared.k_full[at], done / kStages % 2);
      take_turn();
      multiply_keys(scores, at);
      barrier_wait(&shared.v_full[before], done > 0 ? (done - 1) / kStages % 2 : 0);
      multiply_values(weights, before);
      pass_turn();
      const bool judges = skipping && done == judging;
      if (judges) bound_scores(key_norms, reach);
      wgmma_wait<1>();
      hold(scores);
      barrier_arrive(&shared.k_empty[at]);
      finish_scores(scores, *note, factor);
      if (judges) judge(reach);
      after_weights();
      wgmma_wait<0>();
      take_values();
      if (done > 0) barrier_arrive(&shared.v_empty[before]);
      if (__any_sync(kFullWarp, factor[0] != 1.0f || factor[1] != 1.0f)) sums.rescale(factor);
      pack<S>(scores, weights);
      before = at;
      ++done;
    } while ((note = notes.next(shared.notes)));
    barrier_wait(&shared.v_full[before], (done - 1) / kStages % 2);
    multiply_values(weights, before);
    wgmma_wait<0>();
    take_values();
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
    if constexpr (kInPlanes<S>) {
      store_rows<S, E>(data, out.out_strides.row, rows_, queries, b_.problem.dim, lane_, sums.value, factor);
    } else {
      named_wait<kGroup>(kStaged + group_);  // no warp reads queries any more
      store_rows_by<S, E>(Shared::here().q, data, out.out_strides.row, rows_, queries, b_.problem.dim, lane_,
                          sums.value, factor);
    }
  }

 private:
  static constexpr int kTurn = 1, kStaged = 4;  // named barriers: of group 0, 1, ..

  // After which the others are judged.
  __device__ unsigned first_tiles() const {
    if constexpr (Shared::kFirst == 1) return 1;
    return min(Shared::kFirst, (key_limit(b_.problem, b_.last) + kCols - 1) / kCols);
  }

  __device__ void take_turn() const {
    if constexpr (kGroups > 1) named_wait<2 * kGroup>(kTurn + group_);
  }
  __device__ void pass_turn() const {
    if constexpr (kGroups > 1) named_arrive<2 * kGroup>(kTurn + (group_ + 1) % kGroups);
  }

  __device__ __forceinline__ void multiply_keys(float (&scores)[kTiles][4], unsigned at) {
    Shared& shared = Shared::here();
    wgmma_fence();
    multiply_rows(scores, shared.q, group_, shared.k[at]);
    wgmma_commit();
  }

  __device__ __forceinline__ void multiply_values(const Factors<S, kCols / 16>& weights, unsigned at) {
    wgmma_fence();
    if constexpr (kInPlanes<S>)
      multiply_factors(products_, weights, Shared::here().v[at]);
    else
      add_product(sums.value, weights, Shared::here().v[at]);
    wgmma_commit();
  }

  // After that product.
  __device__ __forceinline__ void take_values() {
    if constexpr (kInPlanes<S>) {
      hold(products_);
      add_sums(sums.value, products_);
    } else {
      hold(sums.value);
    }
  }

  // Products become scores, but for `row` of each row and `col` of even and odd columns.
  __device__ __forceinline__ void add_simple(float (&scores)[kTiles][4], const TileNote& note,
                                             float (&row)[2], float (&col)[2]) const {
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
      // On a ring a column's coordinate is its number, 8 n + own: quicker worked out than loaded.
      const float step = linear && sign < 0.0f ? -slope : slope;
      const float own[2] = {step * float(lane_ % 4 * 2), step * float(lane_ % 4 * 2 + 1)};
      if (linear) {
#pragma unroll
        for (int n = 0; n < kTiles; ++n) {
          const float2 at = kRing ? make_float2(8.0f * n * step, 8.0f * n * step) : cols[4 * n];
#pragma unroll
          for (int e = 0; e < 4; ++e) scores[n][e] = fmaf(scores[n][e], scale, e % 2 ? at.y : at.x);
        }
        if constexpr (kRing) {
          col[0] = own[0];
          col[1] = own[1];
        }
#pragma unroll
        for (int r = 0; r < 2; ++r) row[r] -= slope * fmaf(sign, place[r], base);
      } else {
        const float turned = slope < 0.0f ? sign : -sign, scaled[2] = {slope * place[0], slope * place[1]};
#pragma unroll
        for (int n = 0; n < kTiles; ++n) {
          const float2 at =
              kRing ? make_float2(fmaf(step, 8.0f * n, own[0]), fmaf(step, 8.0f * n, own[1])) : cols[4 * n];
#pragma unroll
          for (int e = 0; e < 4; ++e)
            scores[n][e] = fmaf(scores[n][e], scale, turned * fabsf(scaled[e / 2] - (e % 2 ? at.y : at.x)));
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
    const Prepared& problem = b_.problem;
    const int first = note.tile * kCols;
    float row[2] = {}, col[2] = {};
    if constexpr (kInPlanes<S>) {  // a row's number plus a column's would be rounded at the size of the tile
#pragma unroll
      for (int n = 0; n < kTiles; ++n)
#pragma unroll
        for (int e = 0; e < 4; ++e) scores[n][e] *= problem.factor;
      each_part_of<kTiles>(
          problem, Shared::here().pattern, note, rows_.within, lane_,
          [&](int axis, int n, int e, float part) {
            scores[n][e] = fmaf(-b_.head.slope(axis), part, scores[n][e]);
          },
          [](int) {});
    } else if (note.simple) {
      add_simple(scores, note, row, col);
    } else {
      const MovedPairs<Shared::kRows, kCols> pairs{Shared::here().pattern, note, rows_.within,
                                                   of_chords(problem.metric)};
      scale_and_bias(problem, b_.head, pairs, lane_, scores);
    }
    add_mask<S, false>(problem, b_.head, rows_, first, lane_, scores);
    if (first + kCols > whole_)  // rarely: what rows see is worked out anew, for it would take registers
      hide<false>(nullptr, RowInfo::of<false>(problem, b_.first, 4 * group_ + warp_, lane_), first, lane_,
                  scores);
    sums.absorb(scores, row, col, factor);
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
        float values[8] = {};
        const auto add = [&](const auto& rows) {
          const auto* place = &rows.slice[slice][row][chunk * 8];
          const uint4 bits = *reinterpret_cast<const uint4*>(place);
#pragma unroll
          for (int i = 0; i < 8; ++i) values[i] += float(reinterpret_cast<decltype(place)>(&bits)[i]);
        };
        if constexpr (kInPlanes<S>)
          for (const auto& plane : Shared::here().q.plane) add(plane);
        else
          add(Shared::here().q);
#pragma unroll
        for (int i = 0; i < 8; ++i) sum += values[i] * values[i];
      }
    }
    return sqrtf(row_sum(sum)) * fabsf(float(b_.problem.scale)) * kLog2e * kNormMargin;
  }

  // What bounds the scores of the lane's rows.
  __device__ void bound_scores(const float* key_norms, float (&reach)[2]) const {
    const float key_norm = key_norms[b_.head.batch * b_.problem.kv_heads + b_.head.kv_head];
#pragma unroll
    for (int r = 0; r < 2; ++r) reach[r] = row_norm(r) * key_norm;
  }

  // Tells what the tiles behind the first one are judged by.
  __device__ void judge(const float (&reach)[2]) {
    float excess = -INFINITY;
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const float value = reach[r] - sums.lse(r);
      if (rows_.index[r] <= b_.last) excess = larger(excess, value);
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
  float products_[kInPlanes<S> ? E / 8 : 1][4];  // of planes: sums over a tile

 public:
  Softmax<E / 8> sums;
};

// Where rows and columns lie, by the groups that compute: the others begin meanwhile.
template <class Shared, bool kCols>
__device__ inline void write_places(const QueryBlock& block) {
  constexpr int kThreads = kGroup * Shared::kGroups, kWritten = 8;
  Shared& shared = Shared::here();
  const Prepared& problem = block.problem;
  const int thread = static_cast<int>(threadIdx.x);
  write_pattern(shared.pattern, problem, problem.query_base + block.first, block.box(), problem.key_base,
                thread, kThreads);
#pragma unroll
  for (int axis = 0; axis < kMaxAxes; ++axis) {
    if (!kCols || axis >= problem.lattice.axes) continue;
    for (int col = thread; col < Shared::kCols; col += kThreads) {  // the thread's own
      const float scaled = block.head.slope(axis) * shared.pattern.col_place[axis][col].x;
      shared.col[0][axis][col] = scaled;
      shared.col[1][axis][col] = -scaled;
    }
  }
  named_wait<kThreads>(kWritten);
}

template <class Shared, class Group>
__device__ __forceinline__ void forward_block(const Prepared& problem, const Output& out,
                                              const ForwardMaps& maps, const float* key_norms, int pair,
                                              const Head& head) {
  constexpr int kRows = Shared::kRows;
  const int queries = static_cast<int>(problem.queries), blocks = (queries + kRows - 1) / kRows;
  // The last queries see most keys where it is causal: first.
  const int first = (blocks - 1 - (static_cast<int>(blockIdx.x) - pair * blocks)) * kRows;
  const QueryBlock block{problem, head, first, min(first + kRows, queries) - 1};
  Shared& shared = Shared::here();
  if (threadIdx.x == 0) shared.init();
  __syncthreads();
  const int group = static_cast<int>(threadIdx.x) / kGroup;
  if (group < Shared::kGroups) {
    take_registers<Shared::kComputing>();
    write_places<Shared, Group::kReadsCols>(block);
    Group computing(block, group);
    computing.run(key_norms);
    computing.store(out, pair);
    return;
  }
  give_registers<Shared::kServing>();
  const int warp = static_cast<int>(threadIdx.x) / 32 % 4;
  if (warp == 0 && threadIdx.x % 32 == 0) fetch_keys<Shared>(block, maps);
  if (warp == 1) describe_keys<Shared>(block, maps, out.tiles + 2 * pair);
}

// Whether some heads go by small blocks.
template <class S, int E>
constexpr bool kHasSmall = !kInPlanes<S> && E <= 128;

// kRing: of_plain_ring. Heads of rings are shared out between large and small blocks.
template <class S, int E, bool kRing, bool kSmall>
__global__ void __launch_bounds__(ForwardWgmma<S, E, kSmall>::kThreads, ForwardWgmma<S, E, kSmall>::kBlocks)
    forward_wgmma_kernel(const __grid_constant__ Prepared problem, const __grid_constant__ Output out,
                         const __grid_constant__ ForwardMaps maps, const float* key_norms) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
  using Shared = ForwardWgmma<S, E, kSmall>;
  using Group = ForwardGroup<S, E, kRing, kSmall>;
  const int blocks = (static_cast<int>(problem.queries) + Shared::kRows - 1) / Shared::kRows;
  const int pair = static_cast<int>(blockIdx.x) / blocks;
  if constexpr (kRing) {
    const Prepared ring = plain_ring(problem);
    const Head head = head_of(ring, pair);
    if (kHasSmall<S, E> && looks_at_few(ring, head) != kSmall) return;
    forward_block<Shared, Group>(ring, out, maps, key_norms, pair, head);
  } else {
    forward_block<Shared, Group>(problem, out, maps, key_norms, pair, head_of(problem, pair));
  }
#endif
}

}  // namespace stratcore::toroidal_attention

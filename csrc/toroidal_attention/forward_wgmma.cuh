#pragma once

#include "../common/hopper.cuh"
#include "../common/wgmma.cuh"
#include "softmax.cuh"
#include "tile_note.cuh"

// The forward on sm_90a for 16-bit types. A block holds 128 queries of one head: two warpgroups of 64
// compute; of a third, one warp describes tiles, 32 at once, and one fetches their keys and values by bulk
// tensor copies. The scores of a tile are made while the values of the tile before are summed, and one
// warpgroup's softmax runs while the other's products do.
namespace stratcore::toroidal_attention {

constexpr int kGroup = 128;  // threads of a warpgroup
constexpr int kStages = 2;   // tiles of keys and values in shared memory
constexpr int kBatches = 2;  // batches of descriptions
constexpr int kSlice = 64;   // columns of a tile in shared memory: rows of 128 bytes

// q, k and v [B, H, N, E] for bulk copies; null maps where their layout does not allow it.
struct TensorMaps {
  CUtensorMap q, k, v;
};

template <int E>
STRATCORE_HOST_DEVICE constexpr int wgmma_keys() {
  return E == 256 ? 64 : 128;
}
// Warpgroups that compute. Narrow heads have little to multiply beside the powers of two, and need few
// registers.
template <int E>
STRATCORE_HOST_DEVICE constexpr int compute_groups() {
  return E == 64 ? 3 : 2;
}
template <int E>
STRATCORE_HOST_DEVICE constexpr int wgmma_queries() {
  return 64 * compute_groups<E>();
}

// Tiles described together; none: the end.
struct NoteBatch {
  TileNote notes[32];
  int count;
};

template <class S, int E>
struct alignas(1024) WgmmaShared {
  static constexpr int kCols = wgmma_keys<E>(), kRows = wgmma_queries<E>(), kGroups = compute_groups<E>();
  S q[E / kSlice][kRows][kSlice];
  S k[kStages][E / kSlice][kCols][kSlice];
  S v[kStages][E / kSlice][kCols][kSlice];
  Pattern<kRows, kCols> pattern;
  NoteBatch batches[kBatches];
  float excess[4 * kGroups];
  uint64_t q_full, judged, k_full[kStages], k_empty[kStages], v_full[kStages], v_empty[kStages];
  uint64_t noted[kBatches], read[kBatches];
};

template <class S, int E>
struct WgmmaBlock {
  using Shared = WgmmaShared<S, E>;
  static constexpr int kCols = Shared::kCols, kGroups = Shared::kGroups;

  const Prepared& problem;
  Head head;
  int first, last;  // queries

  // Derived anew each time: a reference that is kept would be read as one to any memory.
  __device__ __forceinline__ static Shared& shared() {
    extern __shared__ __align__(1024) char bytes[];
    return *reinterpret_cast<Shared*>(bytes);
  }

  __device__ static void init_barriers() {
    Shared& s = shared();
    barrier_init(&s.q_full, 1);
    barrier_init(&s.judged, 4 * kGroups);
    for (int stage = 0; stage < kStages; ++stage) {
      barrier_init(&s.k_full[stage], 1);
      barrier_init(&s.v_full[stage], 1);
      barrier_init(&s.k_empty[stage], kGroup * kGroups);
      barrier_init(&s.v_empty[stage], kGroup * kGroups);
    }
    for (int batch = 0; batch < kBatches; ++batch) {
      barrier_init(&s.noted[batch], 1);
      barrier_init(&s.read[batch], kGroup * kGroups + 1);
    }
    fence_barrier_init();
  }
};

__device__ inline float larger(float a, float b) { return b <= a ? a : a <= b ? b : NAN; }

// Notes in order, for a thread that counts for `read`.
template <class Shared>
class NoteReader {
 public:
  // The next one; null at the end. Done with the one before.
  __device__ __forceinline__ const TileNote* next(Shared& shared) {
    if (at_ == count_) {
      if (batches_ > 0) barrier_arrive(&shared.read[(batches_ - 1) % kBatches]);
      barrier_wait(&shared.noted[batches_ % kBatches], batches_ / kBatches % 2);
      count_ = shared.batches[batches_ % kBatches].count;
      at_ = 0;
      ++batches_;
      if (count_ == 0) return nullptr;
    }
    return &shared.batches[(batches_ - 1) % kBatches].notes[at_++];
  }

 private:
  int batches_ = 0, at_ = 0, count_ = 0;
};

// --- the warp that describes

template <class S, int E>
class Describing {
 public:
  static constexpr int kCols = wgmma_keys<E>();

  __device__ explicit Describing(const WgmmaBlock<S, E>& block)
      : b_(block), lane_(static_cast<int>(threadIdx.x) % 32),
        rows_(box_at(block.problem.lattice, block.problem.query_base + block.first,
                     block.last - block.first + 1)) {}

  __device__ void run(int32_t* tile_counts) {
    const Prepared& problem = b_.problem;
    auto& shared = b_.shared();
    KeyTiles<kCols> tiles(problem, b_.head, b_.first, b_.last - b_.first + 1, key_limit(problem, b_.last));
    if (tiles.skipping() && tiles.count() > 0) {
      const int tile = tiles.nearest(lane_);
      give(tile, lane_ == 0);
      barrier_wait(&shared.judged, 0);
      float excess = shared.excess[0];
      for (int warp = 1; warp < 4 * compute_groups<E>(); ++warp) excess = larger(excess, shared.excess[warp]);
      tiles.judge_by(excess);
      tiles.leave_out(tile);
    }
    for (int base = 0; base < tiles.count(); base += 32) give(base + lane_, tiles.wants(base + lane_));
    finish();
    if (lane_ != 0) return;
    atomicAdd(tile_counts, tiles.count() - given_);
    atomicAdd(tile_counts + 1, tiles.count());
  }

 private:
  // The tile of every lane that wants to.
  __device__ void give(int tile, bool wanted) {
    const unsigned all = __ballot_sync(0xffffffffu, wanted);
    if (!all) return;
    NoteBatch& batch = free_batch();
    if (wanted) {
      const int key = tile * kCols, count = min(kCols, static_cast<int>(b_.problem.keys) - key);
      const Box cols = box_at(b_.problem.lattice, b_.problem.key_base + key, count);
      describe_tile(b_.problem, rows_, cols, tile, batch.notes[__popc(all & ((1u << lane_) - 1))]);
    }
    given_ += __popc(all);
    publish(batch, __popc(all));
  }
  __device__ void finish() { publish(free_batch(), 0); }

  __device__ NoteBatch& free_batch() const {
    auto& shared = b_.shared();
    barrier_wait(&shared.read[batches_ % kBatches], batches_ / kBatches % 2 ^ 1);
    return shared.batches[batches_ % kBatches];
  }
  __device__ void publish(NoteBatch& batch, int count) {
    __syncwarp();
    if (lane_ == 0) {
      batch.count = count;
      barrier_arrive(&b_.shared().noted[batches_ % kBatches]);
    }
    ++batches_;
  }

  const WgmmaBlock<S, E>& b_;
  int lane_, batches_ = 0, given_ = 0;
  Box rows_;
};

// --- the thread that fetches

template <class S, int E>
__device__ void fetch_tiles(const WgmmaBlock<S, E>& block, const TensorMaps& maps) {
  constexpr int kCols = wgmma_keys<E>();
  auto& shared = block.shared();
  const int batch = static_cast<int>(block.head.batch), head = static_cast<int>(block.head.head);
  const int kv_head = static_cast<int>(block.head.kv_head);
  barrier_arrive_expecting(&shared.q_full, sizeof(shared.q));
  for (int slice = 0; slice < E / kSlice; ++slice)
    tensor_copy(shared.q[slice], maps.q, &shared.q_full, slice * kSlice, block.first, head, batch);
  NoteReader<WgmmaShared<S, E>> notes;
  int given = 0;
  while (const TileNote* note = notes.next(shared)) {
    const int at = given % kStages, key = note->tile * kCols;
    const uint32_t parity = given++ / kStages % 2 ^ 1;
    barrier_wait(&shared.k_empty[at], parity);
    barrier_arrive_expecting(&shared.k_full[at], sizeof(shared.k[at]));
    for (int slice = 0; slice < E / kSlice; ++slice)
      tensor_copy(shared.k[at][slice], maps.k, &shared.k_full[at], slice * kSlice, key, kv_head, batch);
    barrier_wait(&shared.v_empty[at], parity);
    barrier_arrive_expecting(&shared.v_full[at], sizeof(shared.v[at]));
    for (int slice = 0; slice < E / kSlice; ++slice)
      tensor_copy(shared.v[at][slice], maps.v, &shared.v_full[at], slice * kSlice, key, kv_head, batch);
  }
}

// --- the warpgroups that compute

template <class S, int E>
class Computing {
 public:
  using Block = WgmmaBlock<S, E>;
  using Shared = typename Block::Shared;
  static constexpr int kCols = Block::kCols, kTiles = kCols / 8, kGroups = Block::kGroups;

  __device__ Computing(const Block& block, int group)
      : b_(block), group_(group), lane_(static_cast<int>(threadIdx.x) % 32),
        warp_(static_cast<int>(threadIdx.x) % kGroup / 32),
        rows_(RowInfo::of<false>(block.problem, block.first, 4 * group + warp_, lane_)),
        whole_(key_limit(block.problem, block.first)) {}

  __device__ void run(const float* key_norms) {
    Shared& shared = b_.shared();
    if (group_ == kGroups - 1) named_arrive<2 * kGroup>(kTurn);
    float scores[kTiles][4], factor[2];
    uint32_t weights[kCols / 16][4];
    NoteReader<Shared> notes;
    const TileNote* note = notes.next(shared);
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
    pack(scores, weights);
    if (may_skip(b_.problem, b_.head))
      judge(key_norms[b_.head.batch * b_.problem.kv_heads + b_.head.kv_head]);
    int done = 0;  // tiles whose values are summed
    while ((note = notes.next(shared))) {
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
      pack(scores, weights);
      ++done;
    }
    const int before = done % kStages;
    barrier_wait(&shared.v_full[before], done / kStages % 2);
    multiply_values(weights, before);
    wgmma_wait<0>();
    hold(sums.value);
  }

  __device__ void store(const Output& out, int64_t pair) {
    float factor[2];
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const float lse = sums.lse(r), weight = row_sum(sums.weight[r]);
      factor[r] = weight == 0.0f ? 0.0f : 1.0f / weight;
      if (lane_ % 4 == 0 && rows_.index[r] < b_.problem.queries)
        static_cast<float*>(out.lse)[pair * b_.problem.queries + rows_.index[r]] = lse / kLog2e;
    }
    S* data = static_cast<S*>(out.out) + b_.head.batch * out.out_strides.batch +
              b_.head.head * out.out_strides.head;
    store_rows<S, E>(data, out.out_strides.row, rows_, b_.problem.queries, b_.problem.dim, lane_, sums.value,
                     factor);
  }

 private:
  static constexpr int kTurn = 1;  // named barriers: of group 0, 1, ..

  __device__ void take_turn() const { named_wait<2 * kGroup>(kTurn + group_); }
  __device__ void pass_turn() const { named_arrive<2 * kGroup>(kTurn + (group_ + 1) % kGroups); }

  __device__ __forceinline__ void multiply_keys(float (&scores)[kTiles][4], int at) {
    wgmma_fence();
#pragma unroll
    for (int step = 0; step < E / 16; ++step) {
      const uint32_t column = step % 4 * 32;
      const uint64_t q = matrix_descriptor(shared_address(b_.shared().q[step / 4][64 * group_]) + column, 1);
      const uint64_t k = matrix_descriptor(shared_address(b_.shared().k[at][step / 4]) + column, 1);
      Wgmma<S>::template multiply<false, false>(scores, q, k, step > 0);
    }
    wgmma_commit();
  }

  __device__ __forceinline__ void multiply_values(const uint32_t (&weights)[kCols / 16][4], int at) {
    wgmma_fence();
#pragma unroll
    for (int step = 0; step < kCols / 16; ++step) {
      const uint32_t rows = shared_address(b_.shared().v[at][0][16 * step]);
      Wgmma<S>::template multiply<true>(sums.value, weights[step],
                                        matrix_descriptor(rows, kCols * kSlice * sizeof(S)), true);
    }
    wgmma_commit();
  }

  // Products become scores, but for `row` of each row.
  __device__ __forceinline__ void add_simple(float (&scores)[kTiles][4], const TileNote& note,
                                             float (&row)[2]) const {
    const auto& pattern = b_.shared().pattern;
    float scale = float(b_.problem.scale) * kLog2e;  // until it is used
    row[0] = row[1] = 0.0f;
#pragma unroll 1
    for (int axis = 0; axis < b_.problem.lattice.axes; ++axis) {
      const float slope = b_.head.slope(axis), sign = note.slope[axis], base = note.base[axis];
      const float u[2] = {pattern.row[axis][rows_.within], pattern.row[axis][rows_.within + 8]};
      if (note.form[axis] == AxisForm::kLinear) {
        const float2* cols = reinterpret_cast<const float2*>(pattern.col[sign < 0.0f][axis]) + lane_ % 4;
#pragma unroll
        for (int n = 0; n < kTiles; ++n) {
          const float2 col = cols[4 * n];
#pragma unroll
          for (int e = 0; e < 4; ++e) scores[n][e] = fmaf(scores[n][e], scale, e % 2 ? col.y : col.x);
        }
#pragma unroll
        for (int r = 0; r < 2; ++r) row[r] -= slope * fmaf(sign, note.start[axis] + u[r], base);
      } else {
        const float2* cols = reinterpret_cast<const float2*>(pattern.col[0][axis]) + lane_ % 4;
        const float turned = slope < 0.0f ? sign : -sign;
        const float place[2] = {slope * (note.start[axis] + u[0]), slope * (note.start[axis] + u[1])};
#pragma unroll
        for (int n = 0; n < kTiles; ++n) {
          const float2 col = cols[4 * n];
#pragma unroll
          for (int e = 0; e < 4; ++e)
            scores[n][e] = fmaf(scores[n][e], scale, turned * fabsf(place[e / 2] - (e % 2 ? col.y : col.x)));
        }
#pragma unroll
        for (int r = 0; r < 2; ++r) row[r] -= slope * base;
      }
      scale = 1.0f;
    }
  }

  __device__ __forceinline__ void add_mask(float (&scores)[kTiles][4], int tile) const {
    const bool pairs = b_.problem.mask.row != 0;
#pragma unroll
    for (int n = 0; n < kTiles; ++n) {
#pragma unroll
      for (int column = 0; column < 2; ++column) {
        const int key = tile * kCols + 8 * n + lane_ % 4 * 2 + column;
        const float bias = mask_bias<S>(b_.problem, b_.head, rows_.index[0], key);
        scores[n][column] += bias;
        scores[n][2 + column] += pairs ? mask_bias<S>(b_.problem, b_.head, rows_.index[1], key) : bias;
      }
    }
  }

  // Products become weights.
  __device__ __forceinline__ void finish_scores(float (&scores)[kTiles][4], const TileNote& note,
                                                float (&factor)[2]) {
    float row[2] = {};
    if (note.simple) {
      add_simple(scores, note, row);
    } else {
      const bool chords = of_chords(b_.problem.metric);
      const MovedPairs<Shared::kRows, kCols> pairs{b_.shared().pattern, note, rows_.within, chords};
      scale_and_bias(b_.problem, b_.head, pairs, lane_, scores);
    }
    if (b_.problem.mask.element != MaskElement::kNone) add_mask(scores, note.tile);
    if ((note.tile + 1) * kCols > whole_) hide<false>(nullptr, rows_, note.tile * kCols, lane_, scores);
    sums.absorb(scores, row, factor);
  }

  __device__ __forceinline__ void pack(const float (&scores)[kTiles][4],
                                       uint32_t (&weights)[kCols / 16][4]) const {
#pragma unroll
    for (int step = 0; step < kCols / 16; ++step) {
      const auto factor = Product<S>::sums_of(scores, step);
#pragma unroll
      for (int i = 0; i < 4; ++i) weights[step][i] = factor.value[i];
    }
  }

  // Sums of weights are never negative, but the compiler does not know: else it moves the wait for the
  // product of the values, which comes next, ahead of the powers of two, and they do not run side by side.
  __device__ __forceinline__ void after_weights() const {
    if (sums.weight[0] + sums.weight[1] < 0.0f) barrier_arrive(&b_.shared().judged);
  }

  // |scale| |q| of one of the lane's rows.
  __device__ float row_norm(int r) const {
    const int row = rows_.within + 8 * r;
    float sum = 0.0f;
    for (int slice = 0; slice < E / kSlice; ++slice) {
      for (int chunk = lane_ % 4; chunk < kSlice / 8; chunk += 4) {  // wherever the swizzle put them
        const uint4 bits = *reinterpret_cast<const uint4*>(&b_.shared().q[slice][row][chunk * 8]);
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
    if (lane_ == 0) {
      b_.shared().excess[4 * group_ + warp_] = excess;
      barrier_arrive(&b_.shared().judged);
    }
  }

  const Block& b_;
  int group_, lane_, warp_;
  RowInfo rows_;
  int whole_;

 public:
  Softmax<E / 8> sums;
};

template <class S, int E>
__global__ void __launch_bounds__(kGroup * (1 + compute_groups<E>()), 1)
    forward_wgmma_kernel(const __grid_constant__ Prepared problem, const __grid_constant__ Output out,
                         const __grid_constant__ TensorMaps maps, const float* key_norms) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
  constexpr int kRows = wgmma_queries<E>(), kGroups = compute_groups<E>();
  const int queries = static_cast<int>(problem.queries), blocks = (queries + kRows - 1) / kRows;
  const int pair = static_cast<int>(blockIdx.x) / blocks;
  const int first = (blocks - 1 - (static_cast<int>(blockIdx.x) - pair * blocks)) * kRows;
  const int last = min(first + kRows, queries) - 1;
  const WgmmaBlock<S, E> block{problem, head_of(problem, pair), first, last};
  if (threadIdx.x == 0) block.init_barriers();
  const Box rows = box_at(problem.lattice, block.problem.query_base + first, last - first + 1);
  write_pattern(block.shared().pattern, problem, block.head, rows, first, static_cast<int>(threadIdx.x),
                kGroup * (1 + kGroups));
  __syncthreads();
  const int group = static_cast<int>(threadIdx.x) / kGroup;
  if (group < kGroups) {
    take_registers<kGroups == 2 ? 224 : 160>();
    Computing<S, E> computing(block, group);
    computing.run(key_norms);
    computing.store(out, pair);
    return;
  }
  give_registers<kGroups == 2 ? 56 : 32>();
  const int warp = static_cast<int>(threadIdx.x) / 32 % 4;
  if (warp == 0 && threadIdx.x % 32 == 0) fetch_tiles(block, maps);
  if (warp == 1) Describing<S, E>(block).run(out.tiles + 2 * pair);
#endif
}

}  // namespace stratcore::toroidal_attention

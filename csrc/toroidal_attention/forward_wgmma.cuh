#pragma once

#include "../common/hopper.cuh"
#include "../common/wgmma.cuh"
#include "linear_tile.cuh"
#include "softmax.cuh"

// The forward on sm_90a for 16-bit types. A block holds 128 queries of one head: two warpgroups of 64
// compute; of a third, one warp fetches tiles of keys and values by bulk tensor copies, two work out what the
// distances of a tile need. The scores of a tile are made while the values of the tile before are summed, and
// one warpgroup's softmax runs while the other's products do.
namespace stratcore::toroidal_attention {

constexpr int kGroup = 128;        // threads of a warpgroup
constexpr int kComputeGroups = 2;  // of a block
constexpr int kBlockQueries = 64 * kComputeGroups;
constexpr int kDescribers = 64;  // threads
constexpr int kStages = 2;       // tiles of keys and values in shared memory
constexpr int kNotes = 3;        // tiles described
constexpr int kSlice = 64;       // columns of a tile in shared memory: rows of 128 bytes

// q, k and v [B, H, N, E] for bulk copies; null maps where their layout does not allow it.
struct TensorMaps {
  CUtensorMap q, k, v;
};

template <int E>
STRATCORE_HOST_DEVICE constexpr int wgmma_keys() {
  return E == 256 ? 64 : 128;
}

enum class BiasForm : int32_t { kLinear, kGeneral };

// What is known of a tile before its products.
template <int Cols>
struct Note {
  // Where the bias is linear, of the axes that are across: places times slope. Else: as scores.cuh has it.
  Places<kBlockQueries, Cols> places;
  float row[kBlockQueries], col[Cols];  // added to the scores: a linear bias, and the mask of the keys
  float signs[kMaxAxes];
  int across;  // axes
  int tile;    // -1: no more
  BiasForm form;
};

template <class S, int E>
struct alignas(1024) WgmmaShared {
  static constexpr int kCols = wgmma_keys<E>();
  S q[E / kSlice][kBlockQueries][kSlice];
  S k[kStages][E / kSlice][kCols][kSlice];
  S v[kStages][E / kSlice][kCols][kSlice];
  Note<kCols> notes[kNotes];
  float norms[kBlockQueries], excess[4 * kComputeGroups];
  uint64_t q_full, normed, judged, k_full[kStages], k_empty[kStages], v_full[kStages], v_empty[kStages];
  uint64_t noted[kNotes], read[kNotes];
};

template <class S, int E>
struct WgmmaBlock {
  using Shared = WgmmaShared<S, E>;
  static constexpr int kCols = Shared::kCols;

  const Problem& problem;
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
    barrier_init(&s.normed, kDescribers);
    barrier_init(&s.judged, 4 * kComputeGroups);
    for (int stage = 0; stage < kStages; ++stage) {
      barrier_init(&s.k_full[stage], 1);
      barrier_init(&s.v_full[stage], 1);
      barrier_init(&s.k_empty[stage], kGroup * kComputeGroups);
      barrier_init(&s.v_empty[stage], kGroup * kComputeGroups);
    }
    for (int note = 0; note < kNotes; ++note) {
      barrier_init(&s.noted[note], kDescribers);
      barrier_init(&s.read[note], kGroup * kComputeGroups);
    }
    fence_barrier_init();
  }
};

__device__ inline float larger(float a, float b) { return b <= a ? a : a <= b ? b : NAN; }

// Calls give(tile) for the tiles of the block in order; all warps that do agree. Returns how many eps left
// out, and of how many.
template <class S, int E, class Give>
__device__ __forceinline__ int2 each_tile(const WgmmaBlock<S, E>& block, int lane, const Give& give) {
  const Problem& problem = block.problem;
  KeyTiles<wgmma_keys<E>()> tiles(problem, block.head, block.first, block.last - block.first + 1,
                                  key_limit(problem, block.last));
  int before = 0;
  if (tiles.skipping() && tiles.count() > 0) {
    const int tile = tiles.nearest(lane);
    give(tile);
    before = 1;
    auto& shared = block.shared();
    barrier_wait(&shared.judged, 0);
    float excess = shared.excess[0];
    for (int warp = 1; warp < 4 * kComputeGroups; ++warp) excess = larger(excess, shared.excess[warp]);
    tiles.judge_by(excess);
    tiles.leave_out(tile);
  }
  for (int tile = tiles.next(lane); tile >= 0; tile = tiles.next(lane)) give(tile);
  return make_int2(tiles.count() - tiles.given() - before, tiles.count());
}

// --- the warp that fetches

template <class S, int E>
__device__ void fetch_tiles(const WgmmaBlock<S, E>& block, const TensorMaps& maps, int32_t* tile_counts) {
  using Block = WgmmaBlock<S, E>;
  constexpr int kCols = Block::kCols;
  auto& shared = Block::shared();
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int batch = static_cast<int>(block.head.batch), head = static_cast<int>(block.head.head);
  const int kv_head = static_cast<int>(block.head.kv_head);
  if (lane == 0) {
    barrier_arrive_expecting(&shared.q_full, sizeof(shared.q));
    for (int slice = 0; slice < E / kSlice; ++slice)
      tensor_copy(shared.q[slice], maps.q, &shared.q_full, slice * kSlice, block.first, head, batch);
  }
  int given = 0;
  const int2 counts = each_tile(block, lane, [&](int tile) {
    const int at = given % kStages;
    const uint32_t parity = given++ / kStages % 2 ^ 1;
    if (lane == 0) {
      barrier_wait(&shared.k_empty[at], parity);
      barrier_arrive_expecting(&shared.k_full[at], sizeof(shared.k[at]));
      for (int slice = 0; slice < E / kSlice; ++slice)
        tensor_copy(shared.k[at][slice], maps.k, &shared.k_full[at], slice * kSlice, tile * kCols, kv_head,
                    batch);
      barrier_wait(&shared.v_empty[at], parity);
      barrier_arrive_expecting(&shared.v_full[at], sizeof(shared.v[at]));
      for (int slice = 0; slice < E / kSlice; ++slice)
        tensor_copy(shared.v[at][slice], maps.v, &shared.v_full[at], slice * kSlice, tile * kCols, kv_head,
                    batch);
    }
    __syncwarp();
  });
  if (lane != 0) return;
  atomicAdd(tile_counts, counts.x);
  atomicAdd(tile_counts + 1, counts.y);
}

// --- the warps that describe

// |scale| |q| K of the queries, by rows of 128 bytes; each thread begins at another chunk.
template <class S, int E>
__device__ void write_norms(const WgmmaBlock<S, E>& block, int thread, float key_norm) {
  auto& shared = block.shared();
  barrier_wait(&shared.q_full, 0);
  for (int row = thread; row < kBlockQueries; row += kDescribers) {
    float sum = 0.0f;
    for (int slice = 0; slice < E / kSlice; ++slice) {
      for (int i = 0; i < kSlice / 8; ++i) {
        const uint4 bits = *reinterpret_cast<const uint4*>(&shared.q[slice][row][(i + row) % 8 * 8]);
        const S* values = reinterpret_cast<const S*>(&bits);
#pragma unroll
        for (int j = 0; j < 8; ++j) sum += float(values[j]) * float(values[j]);
      }
    }
    shared.norms[row] = sqrtf(sum) * fabsf(float(block.problem.scale)) * kLog2e * kNormMargin * key_norm;
  }
  barrier_arrive(&shared.normed);
}

template <class S, int E>
__device__ void describe_tile(const WgmmaBlock<S, E>& block, const Box& rows, int thread, int tile,
                              Note<wgmma_keys<E>()>& note) {
  constexpr int kCols = wgmma_keys<E>();
  const Problem& problem = block.problem;
  const uint32_t base = block.head.key_base + tile * kCols;
  const Box cols = box_at(problem.lattice, base, min(kCols, static_cast<int>(problem.keys) - tile * kCols));
  const LinearBias linear(problem, block.head, rows, cols);
  const bool exists = linear.exists();
  if (thread == 0) {
    note.tile = tile;
    note.form = exists ? BiasForm::kLinear : BiasForm::kGeneral;
    note.across = exists ? linear.across(note.signs) : 0;
  }
  Site origin{};
  if (!exists) origin = site_at(problem.lattice, base);
  for (int row = thread; row < kBlockQueries; row += kDescribers) {
    const Site site = site_at(problem.lattice, block.head.query_base + block.first + row);
    note.row[row] = exists ? linear.of_row(site, note.places.row, row) : 0.0f;
#pragma unroll
    for (int axis = 0; axis < kMaxAxes; ++axis)
      if (!exists && axis < problem.lattice.axes)
        note.places.row[axis][row] = place_of(problem, site, origin, axis);
  }
  for (int col = thread; col < kCols; col += kDescribers) {
    const Site site = site_at(problem.lattice, base + col);
    float bias = exists ? linear.of_column(site, note.places.col, col) : 0.0f;
#pragma unroll
    for (int axis = 0; axis < kMaxAxes; ++axis)
      if (!exists && axis < problem.lattice.axes)
        note.places.col[axis][col] = place_of(problem, site, origin, axis);
    if (problem.mask.element != MaskElement::kNone)
      bias += mask_bias<S>(problem, block.head, block.first, tile * kCols + col);
    note.col[col] = bias;
  }
}

template <class S, int E>
__device__ void describe_tiles(const WgmmaBlock<S, E>& block, const float* key_norms) {
  auto& shared = block.shared();
  const int lane = static_cast<int>(threadIdx.x) % 32, thread = static_cast<int>(threadIdx.x) % kDescribers;
  const Problem& problem = block.problem;
  const Box rows = box_at(problem.lattice, block.head.query_base + block.first, block.last - block.first + 1);
  int given = 0;
  const auto free_note = [&]() -> Note<wgmma_keys<E>()>& {
    const int at = given % kNotes;
    barrier_wait(&shared.read[at], given / kNotes % 2 ^ 1);
    return shared.notes[at];
  };
  const bool skipping = may_skip(problem, block.head);
  each_tile(block, lane, [&](int tile) {
    describe_tile<S, E>(block, rows, thread, tile, free_note());
    barrier_arrive(&shared.noted[given % kNotes]);
    if (skipping && given == 0)
      write_norms<S, E>(block, thread, key_norms[block.head.batch * problem.kv_heads + block.head.kv_head]);
    ++given;
  });
  free_note().tile = -1;
  barrier_arrive(&shared.noted[given % kNotes]);
}

// --- the warpgroups that compute

template <class S, int E>
class Computing {
 public:
  using Block = WgmmaBlock<S, E>;
  using Shared = typename Block::Shared;
  static constexpr int kCols = Block::kCols, kTiles = kCols / 8;

  __device__ Computing(const Block& block, int group)
      : b_(block), group_(group), lane_(static_cast<int>(threadIdx.x) % 32),
        warp_(static_cast<int>(threadIdx.x) % kGroup / 32),
        rows_(RowInfo::of<false>(block.problem, block.first, 4 * group + warp_, lane_)),
        whole_(key_limit(block.problem, block.first)) {}

  __device__ void run() {
    Shared& shared = b_.shared();
    if (group_ == 1) named_arrive<2 * kGroup>(kTurn);
    float scores[kTiles][4], factor[2];
    uint32_t weights[kCols / 16][4];
    barrier_wait(&shared.noted[0], 0);
    if (shared.notes[0].tile < 0) return;
    barrier_wait(&shared.q_full, 0);
    barrier_wait(&shared.k_full[0], 0);
    take_turn();
    multiply_keys(scores, 0);
    pass_turn();
    wgmma_wait<0>();
    hold(scores);
    barrier_arrive(&shared.k_empty[0]);
    finish_scores(scores, 0, factor);
    pack(scores, weights);
    if (may_skip(b_.problem, b_.head)) judge();
    int done = 0, note = 1, note_parity = 0;  // tiles whose scores are made; the next note
    while (true) {
      barrier_wait(&shared.noted[note], note_parity);
      if (shared.notes[note].tile < 0) break;
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
      finish_scores(scores, note, factor);
      wgmma_wait<0>();
      hold(sums.value);
      barrier_arrive(&shared.v_empty[before]);
      sums.rescale(factor);
      pack(scores, weights);
      ++done;
      if (++note == kNotes) {
        note = 0;
        note_parity ^= 1;
      }
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
  static constexpr int kTurn = 1;  // named barriers: of group 0, of group 1

  __device__ void take_turn() const { named_wait<2 * kGroup>(kTurn + group_); }
  __device__ void pass_turn() const { named_arrive<2 * kGroup>(kTurn + 1 - group_); }

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

  // Products become scores but for the bias of the rows, where the bias is linear.
  __device__ __forceinline__ void add_linear(float (&scores)[kTiles][4], const Note<kCols>& note) const {
    const float scale = float(b_.problem.scale) * kLog2e;
    const float2* cols = reinterpret_cast<const float2*>(note.col) + lane_ % 4;
#pragma unroll
    for (int n = 0; n < kTiles; ++n) {
      const float2 col = cols[4 * n];
#pragma unroll
      for (int e = 0; e < 4; ++e) scores[n][e] = fmaf(scores[n][e], scale, e % 2 ? col.y : col.x);
    }
#pragma unroll 1
    for (int i = 0; i < note.across; ++i) {
      const float sign = note.signs[i];
      const float row[2] = {note.places.row[i][rows_.within].x, note.places.row[i][rows_.within + 8].x};
      const float4* places = reinterpret_cast<const float4*>(note.places.col[i]) + lane_ % 4;
#pragma unroll
      for (int n = 0; n < kTiles; ++n) {
        const float4 pair = places[4 * n];
#pragma unroll
        for (int e = 0; e < 4; ++e)
          scores[n][e] = fmaf(-sign, fabsf(row[e / 2] - (e % 2 ? pair.z : pair.x)), scores[n][e]);
      }
    }
  }

  __device__ __forceinline__ void add_general(float (&scores)[kTiles][4], const Note<kCols>& note) const {
    scale_and_bias(b_.problem, b_.head, note.places, rows_, lane_, scores);
    if (b_.problem.mask.element == MaskElement::kNone) return;
    const float2* cols = reinterpret_cast<const float2*>(note.col) + lane_ % 4;
#pragma unroll
    for (int n = 0; n < kTiles; ++n) {
      const float2 col = cols[4 * n];
#pragma unroll
      for (int e = 0; e < 4; ++e) scores[n][e] += e % 2 ? col.y : col.x;
    }
  }

  // Products become weights.
  __device__ __forceinline__ void finish_scores(float (&scores)[kTiles][4], int at, float (&factor)[2]) {
    const Note<kCols>& note = b_.shared().notes[at];
    if (note.form == BiasForm::kLinear)
      add_linear(scores, note);
    else
      add_general(scores, note);
    const float row[2] = {note.row[rows_.within], note.row[rows_.within + 8]};
    if ((note.tile + 1) * kCols > whole_) hide<false>(nullptr, rows_, note.tile * kCols, lane_, scores);
    sums.absorb(scores, row, factor);
    // Sums of weights are never negative, but the compiler does not know: else it moves the wait for the
    // product of the values, which comes next, ahead of the powers of two, and they do not overlap.
    const int behind = sums.weight[0] + sums.weight[1] < 0.0f ? 1 : 0;
    barrier_arrive(&b_.shared().read[at] + behind);
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

  // Tells what the tiles behind the first one are judged by.
  __device__ void judge() {
    barrier_wait(&b_.shared().normed, 0);
    float excess = -INFINITY;
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const float value = b_.shared().norms[rows_.within + 8 * r] - sums.lse(r);
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
__global__ void __launch_bounds__(kGroup * (1 + kComputeGroups), 1)
    forward_wgmma_kernel(const __grid_constant__ Problem problem, const __grid_constant__ Output out,
                         const __grid_constant__ TensorMaps maps, const float* key_norms) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
  const int blocks = static_cast<int>((problem.queries + kBlockQueries - 1) / kBlockQueries);
  const int64_t pair = blockIdx.x / blocks;
  const int first = (blocks - 1 - static_cast<int>(blockIdx.x % blocks)) * kBlockQueries;
  const int last = static_cast<int>(min(int64_t(first + kBlockQueries), problem.queries)) - 1;
  const WgmmaBlock<S, E> block{problem, head_of(problem, pair / problem.heads, pair % problem.heads), first,
                               last};
  if (threadIdx.x == 0) block.init_barriers();
  __syncthreads();
  const int group = static_cast<int>(threadIdx.x) / kGroup;
  if (group < kComputeGroups) {
    take_registers<224>();
    Computing<S, E> computing(block, group);
    computing.run();
    computing.store(out, pair);
    return;
  }
  give_registers<56>();
  const int warp = static_cast<int>(threadIdx.x) / 32 % 4;
  if (warp == 0)
    fetch_tiles(block, maps, out.tiles + 2 * pair);
  else if (warp >= 4 - kDescribers / 32)
    describe_tiles(block, key_norms);
#endif
}

}  // namespace stratcore::toroidal_attention

#pragma once

#include "../common/hopper.cuh"
#include "../common/wgmma.cuh"
#include "linear_tile.cuh"
#include "softmax.cuh"

// The forward on sm_90a for 16-bit types. A block holds 128 queries of one head: two warpgroups of 64
// compute, a third fetches tiles of keys and values by bulk tensor copies and works out what each pair's
// distance needs. The scores of a tile are made while the values of the tile before are summed, and one
// warpgroup's softmax runs while the other's products do.
namespace stratcore::toroidal_attention {

constexpr int kGroup = 128;        // threads of a warpgroup
constexpr int kComputeGroups = 2;  // of a block
constexpr int kBlockQueries = 64 * kComputeGroups;
constexpr int kStages = 2;
constexpr int kSlice = 64;  // columns of a tile in shared memory: rows of 128 bytes

// q, k and v [B, H, N, E] for bulk copies; null maps where their layout does not allow it.
struct TensorMaps {
  CUtensorMap q, k, v;
};

template <int E>
STRATCORE_HOST_DEVICE constexpr int wgmma_keys() {
  return E == 256 ? 64 : 128;
}

// What the warpgroup that fetches tells of a tile.
template <int Cols>
struct Stage {
  Places<kBlockQueries, Cols> places;   // where the bias is not linear
  float row[kBlockQueries], col[Cols];  // added to the scores: a linear bias, and the mask of the keys
  int tile;                             // -1: no more
  bool linear;
};

template <class S, int E>
struct alignas(1024) WgmmaShared {
  static constexpr int kCols = wgmma_keys<E>();
  S q[E / kSlice][kBlockQueries][kSlice];
  S k[kStages][E / kSlice][kCols][kSlice];
  S v[kStages][E / kSlice][kCols][kSlice];
  Stage<kCols> stage[kStages];
  float norms[kBlockQueries], excess[2 * kComputeGroups * 4];
  uint64_t q_full, judged, k_full[kStages], k_empty[kStages], v_full[kStages], v_empty[kStages];
};

template <class S, int E>
struct WgmmaBlock {
  using Shared = WgmmaShared<S, E>;
  static constexpr int kCols = Shared::kCols;

  const Problem& problem;
  const TensorMaps& maps;
  Head head;
  int first, last;  // queries

  // Derived anew each time: a reference that is kept would be read as one to any memory.
  __device__ __forceinline__ static Shared& shared() {
    extern __shared__ __align__(1024) char bytes[];
    return *reinterpret_cast<Shared*>(bytes);
  }
};

// --- the warpgroup that fetches

template <class S, int E>
class Fetching {
 public:
  using Block = WgmmaBlock<S, E>;
  static constexpr int kCols = Block::kCols;

  __device__ explicit Fetching(const Block& block)
      : b_(block), thread_(static_cast<int>(threadIdx.x) % kGroup), lane_(thread_ % 32),
        rows_(box_of(block.problem.lattice, block.problem.query_offset + block.first,
                     block.last - block.first + 1)) {}

  __device__ void run(const float* key_norms) {
    const Problem& problem = b_.problem;
    if (thread_ == 0) {
      barrier_arrive_expecting(&b_.shared().q_full, sizeof(b_.shared().q));
      for (int slice = 0; slice < E / kSlice; ++slice)
        tensor_copy(b_.shared().q[slice], b_.maps.q, &b_.shared().q_full, slice * kSlice, b_.first,
                    static_cast<int>(b_.head.head), static_cast<int>(b_.head.batch));
    }
    site_ = site_of(problem.lattice, problem.query_offset + b_.first + thread_);
    KeyTiles<kCols> tiles(problem, b_.head, b_.first, b_.last - b_.first + 1, key_limit(problem, b_.last));
    const bool judges = tiles.skipping() && tiles.count() > 0;
    if (judges) {
      const int tile = tiles.nearest(lane_);
      give(tile);
      barrier_wait(&b_.shared().q_full, 0);
      write_norm(key_norms[b_.head.batch * problem.kv_heads + b_.head.kv_head]);
      barrier_wait(&b_.shared().judged, 0);
      float excess = b_.shared().excess[0];
      for (int warp = 1; warp < 4 * kComputeGroups; ++warp) excess = larger(excess, b_.shared().excess[warp]);
      tiles.judge_by(excess);
      tiles.leave_out(tile);
    }
    for (int tile = tiles.next(lane_); tile >= 0; tile = tiles.next(lane_)) give(tile);
    give(-1);
    count(tiles.count(), tiles.given() + (judges ? 1 : 0));
  }

  int32_t* tile_counts = nullptr;  // of the head

 private:
  __device__ void count(int all, int given) const {
    if (thread_ != 0) return;
    atomicAdd(tile_counts, all - given);
    atomicAdd(tile_counts + 1, all);
  }

  // |scale| |q| K of this thread's query; the compute groups wait for `judged` in turn.
  __device__ void write_norm(float key_norm) {
    float sum = 0.0f;
    for (int slice = 0; slice < E / kSlice; ++slice) {
      for (int i = 0; i < kSlice / 8; ++i) {
        const uint4 bits =
            *reinterpret_cast<const uint4*>(&b_.shared().q[slice][thread_][(i + thread_) % 8 * 8]);
        const S* values = reinterpret_cast<const S*>(&bits);
        for (int j = 0; j < 8; ++j) sum += float(values[j]) * float(values[j]);
      }
    }
    b_.shared().norms[thread_] =
        sqrtf(sum) * fabsf(float(b_.problem.scale)) * kLog2e * kNormMargin * key_norm;
    named_arrive<kGroup * (1 + kComputeGroups)>(kNormsWritten);
  }

  __device__ void describe(Stage<kCols>& stage, int tile) {
    const Problem& problem = b_.problem;
    stage.tile = tile;
    if (tile < 0) return;
    const int64_t offset = problem.key_offset + int64_t(tile) * kCols;
    const int64_t count = min(int64_t(kCols), problem.keys - int64_t(tile) * kCols);
    const Box cols = box_of(problem.lattice, offset, count);
    const LinearBias linear(problem, b_.head, rows_, cols);
    stage.linear = linear.exists();
    const bool masked = problem.mask.element != MaskElement::kNone;
    if (linear.exists()) {
      stage.row[thread_] = linear.of_row(site_);
    } else {
      const Site origin = site_of(problem.lattice, offset);
#pragma unroll
      for (int axis = 0; axis < kMaxAxes; ++axis)
        if (axis < problem.lattice.axes)
          stage.places.row[axis][thread_] = place_of(problem, site_, origin, axis);
    }
    if (thread_ >= kCols) return;
    const Site site = site_of(problem.lattice, offset + thread_);
    float col = 0.0f;
    if (linear.exists()) {
      col = linear.of_column(site);
    } else {
      const Site origin = site_of(problem.lattice, offset);
#pragma unroll
      for (int axis = 0; axis < kMaxAxes; ++axis)
        if (axis < problem.lattice.axes)
          stage.places.col[axis][thread_] = place_of(problem, site, origin, axis);
    }
    if (masked) col += mask_bias<S>(problem, b_.head, b_.first, tile * kCols + thread_);
    stage.col[thread_] = col;
  }

  __device__ void copy(S (&to)[E / kSlice][kCols][kSlice], const CUtensorMap& map, uint64_t* full, int tile) {
    for (int slice = 0; slice < E / kSlice; ++slice)
      tensor_copy(to[slice], map, full, slice * kSlice, tile * kCols, static_cast<int>(b_.head.kv_head),
                  static_cast<int>(b_.head.batch));
  }

  // The next tile, or -1 for the end.
  __device__ void give(int tile) {
    Shared& shared = b_.shared();
    const int at = given_ % kStages;
    const uint32_t parity = given_ / kStages % 2 ^ 1;
    barrier_wait(&shared.k_empty[at], parity);
    describe(shared.stage[at], tile);
    if (thread_ != 0 || tile < 0) {
      barrier_arrive(&shared.k_full[at]);
    } else {
      barrier_arrive_expecting(&shared.k_full[at], sizeof(shared.k[at]));
      copy(shared.k[at], b_.maps.k, &shared.k_full[at], tile);
    }
    if (tile >= 0) {
      if (thread_ == 0) {
        barrier_wait(&shared.v_empty[at], parity);
        barrier_arrive_expecting(&shared.v_full[at], sizeof(shared.v[at]));
        copy(shared.v[at], b_.maps.v, &shared.v_full[at], tile);
      }
      __syncwarp();
    }
    ++given_;
  }

  using Shared = typename Block::Shared;

 public:
  static constexpr int kNormsWritten = 5;  // named barrier

  static __device__ float larger(float a, float b) { return b <= a ? a : a <= b ? b : NAN; }

 private:
  const Block& b_;
  int thread_, lane_, given_ = 0;
  Box rows_;
  Site site_;
};

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
    barrier_wait(&shared.q_full, 0);
    float scores[kTiles][4], factor[2];
    uint32_t weights[kCols / 16][4];
    barrier_wait(&shared.k_full[0], 0);
    if (shared.stage[0].tile < 0) return;
    take_turn();
    multiply_keys(scores, 0);
    pass_turn();
    wgmma_wait<0>();
    hold(scores);
    finish_scores(scores, 0, factor);
    pack(scores, weights);
    if (may_skip(b_.problem, b_.head)) judge();
    int done = 0;  // tiles whose scores are made
    while (true) {
      const int at = (done + 1) % kStages, before = done % kStages;
      barrier_wait(&shared.k_full[at], (done + 1) / kStages % 2);
      if (shared.stage[at].tile < 0) break;
      take_turn();
      multiply_keys(scores, at);
      barrier_wait(&shared.v_full[before], done / kStages % 2);
      multiply_values(weights, before);
      pass_turn();
      wgmma_wait<1>();
      hold(scores);
      finish_scores(scores, at, factor);
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

  // Products become weights; lets the tile of keys go.
  __device__ __forceinline__ void finish_scores(float (&scores)[kTiles][4], int at, float (&factor)[2]) {
    const Stage<kCols>& stage = b_.shared().stage[at];
    const float2* cols = reinterpret_cast<const float2*>(stage.col) + lane_ % 4;
    float row[2] = {};
    if (stage.linear) {
      const float scale = float(b_.problem.scale) * kLog2e;
#pragma unroll
      for (int n = 0; n < kTiles; ++n) {
        const float2 col = cols[4 * n];
#pragma unroll
        for (int e = 0; e < 4; ++e) scores[n][e] = fmaf(scores[n][e], scale, e % 2 ? col.y : col.x);
      }
      row[0] = stage.row[rows_.within];
      row[1] = stage.row[rows_.within + 8];
    } else {
      scale_and_bias(b_.problem, b_.head, stage.places, rows_, lane_, scores);
      if (b_.problem.mask.element != MaskElement::kNone) {
#pragma unroll
        for (int n = 0; n < kTiles; ++n) {
          const float2 col = cols[4 * n];
#pragma unroll
          for (int e = 0; e < 4; ++e) scores[n][e] += e % 2 ? col.y : col.x;
        }
      }
    }
    if ((stage.tile + 1) * kCols > whole_)
      hide<false>(stage.places, rows_, stage.tile * kCols, lane_, scores);
    sums.absorb(scores, row, factor);
    // Sums of weights are never negative, but the compiler does not know: else it moves the wait for the
    // product of the values, which comes next, ahead of the powers of two, and they do not overlap.
    const int behind = sums.weight[0] + sums.weight[1] < 0.0f ? 1 : 0;
    barrier_arrive(&b_.shared().k_empty[at] + behind);
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
    named_wait<kGroup * (1 + kComputeGroups)>(Fetching<S, E>::kNormsWritten);
    float excess = -INFINITY;
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const float value = b_.shared().norms[rows_.within + 8 * r] - sums.lse(r);
      if (rows_.index[r] < b_.problem.queries) excess = Fetching<S, E>::larger(excess, value);
    }
#pragma unroll
    for (int offset = 16; offset; offset /= 2)
      excess = Fetching<S, E>::larger(excess, __shfl_xor_sync(0xffffffffu, excess, offset));
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
    forward_wgmma_kernel(const __grid_constant__ Problem problem, Output out,
                         const __grid_constant__ TensorMaps maps, const float* key_norms) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
  auto& shared = WgmmaBlock<S, E>::shared();
  const int blocks = static_cast<int>((problem.queries + kBlockQueries - 1) / kBlockQueries);
  const int64_t pair = blockIdx.x / blocks;
  const int first = (blocks - 1 - static_cast<int>(blockIdx.x % blocks)) * kBlockQueries;
  const int last = static_cast<int>(min(int64_t(first + kBlockQueries), problem.queries)) - 1;
  const Head head = head_of(problem, pair / problem.heads, pair % problem.heads);
  const WgmmaBlock<S, E> block{problem, maps, head, first, last};
  if (threadIdx.x == 0) {
    barrier_init(&shared.q_full, 1);
    barrier_init(&shared.judged, 4 * kComputeGroups);
    for (int stage = 0; stage < kStages; ++stage) {
      barrier_init(&shared.k_full[stage], kGroup);
      barrier_init(&shared.v_full[stage], 1);
      barrier_init(&shared.k_empty[stage], kGroup * kComputeGroups);
      barrier_init(&shared.v_empty[stage], kGroup * kComputeGroups);
    }
    fence_barrier_init();
  }
  __syncthreads();
  const int group = static_cast<int>(threadIdx.x) / kGroup;
  if (group == kComputeGroups) {
    give_registers<56>();
    Fetching<S, E> fetching(block);
    fetching.tile_counts = out.tiles + 2 * pair;
    fetching.run(key_norms);
  } else {
    take_registers<224>();
    Computing<S, E> computing(block, group);
    computing.run();
    computing.store(out, pair);
  }
#endif
}

}  // namespace stratcore::toroidal_attention

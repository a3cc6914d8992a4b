#pragma once

#include "candidates.cuh"

// Scores of many rows of any length with many anchors on sm_90a: the rows as they lie in memory times the
// anchors, of which each lane keeps the largest sums. Legend as in tangent_projection.h.
//
// A block takes 128 rows and 256 anchors at a time, 128 bytes of columns after another. A warp brings these
// into a ring of stages; two blocks of a cluster bring half the anchors each for both. Two warpgroups
// multiply.
namespace stratcore::tangent_projection {

constexpr int kScoreRows = 128, kScoreAnchors = 256, kSlabBytes = 128, kStages = 4, kClusterBlocks = 2;
constexpr int kScoreWarps = 8, kScoreThreads = (kScoreWarps + 4) * 32;  // the last four: one brings slabs
constexpr uint32_t kRowSlab = kScoreRows * kSlabBytes, kAnchorSlab = kScoreAnchors * kSlabBytes;
constexpr uint32_t kStageBytes = kRowSlab + kAnchorSlab, kSwizzleBytes = 1024;
constexpr int kRowShares = 8;  // of a lane's scores with a row, two of each kept: a warp reads those of a row

template <class S>
constexpr int kSlabColumns = kSlabBytes / int(sizeof(S));

// Where an element of the anchors stands: [kScoreAnchors at a time][slab][anchor][16 bytes, swizzled].
template <class S>
struct SlabPlace {
  using Element = S;
  static constexpr int64_t kAnchors = kScoreAnchors, kColumns = kSlabColumns<S>;
  __device__ int64_t operator()(int64_t anchor, int64_t column, int64_t padded_dim) const {
    constexpr int kWide = 16 / sizeof(S);
    const int own = static_cast<int>(anchor % kScoreAnchors), at = static_cast<int>(column % kColumns);
    const int64_t slab = anchor / kScoreAnchors * (padded_dim / kColumns) + column / kColumns;
    return (slab * kScoreAnchors + own) * kColumns + (at / kWide ^ own % 8) * kWide + at % kWide;
  }
};

struct ScorePlan {
  uint32_t slabs, parts;  // of the columns, of the anchors
  int64_t pairs;          // of tiles of rows, one for a cluster
  int index_bits;
};

// The stage that a block's product number `turn` is in.
struct Turn {
  uint32_t stage = 0, phase = 0;

  __device__ void next() {
    if (++stage < kStages) return;
    stage = 0;
    phase ^= 1;
  }
};

// By one thread of each block.
template <class S>
__device__ __forceinline__ void bring_slabs(const CUtensorMap& rows, const unsigned char* anchors,
                                            const ScorePlan& plan, unsigned char* stages, uint64_t* full,
                                            uint64_t* empty) {
  constexpr uint32_t kShare = kAnchorSlab / kClusterBlocks;
  const uint32_t rank = block_of_cluster();
  Turn turn;
  for (int64_t pair = blockIdx.x / kClusterBlocks; pair < plan.pairs; pair += gridDim.x / kClusterBlocks) {
    const int first = static_cast<int>(pair * kClusterBlocks + rank) * kScoreRows;
    for (uint32_t part = 0; part < plan.parts; ++part) {
      for (uint32_t slab = 0; slab < plan.slabs; ++slab, turn.next()) {
        unsigned char* stage = stages + turn.stage * kStageBytes;
        barrier_wait(empty + turn.stage, turn.phase ^ 1);
        barrier_expect(full + turn.stage, kStageBytes);
        bulk_copy_box(stage, rows, static_cast<int>(slab) * kSlabColumns<S>, first, full + turn.stage);
        bulk_copy_to_all(stage + kRowSlab + rank * kShare,
                         anchors + int64_t(part * plan.slabs + slab) * kAnchorSlab + rank * kShare, kShare,
                         full + turn.stage, (1 << kClusterBlocks) - 1);
      }
    }
  }
}

__device__ __forceinline__ void release_stage(uint64_t* empty) {
  const int lane = threadIdx.x % kWarp;
  __syncwarp();
  if (lane < kClusterBlocks) barrier_release(empty, lane);
}

// sum = 64 rows from `row_offset` of each stage on times the anchors of a part.
template <class S>
__device__ __forceinline__ void multiply_part(const unsigned char* stages, uint32_t row_offset,
                                              uint32_t slabs, uint64_t* full, uint64_t* empty, Turn& turn,
                                              float (&sum)[128]) {
  uint64_t* last = nullptr;
  hold(sum);
  for (uint32_t slab = 0; slab < slabs; ++slab, turn.next()) {
    const uint32_t stage = shared_address(stages + turn.stage * kStageBytes);
    barrier_wait(full + turn.stage, turn.phase);
    const uint64_t a = swizzled_descriptor(stage + row_offset), b = swizzled_descriptor(stage + kRowSlab);
    wgmma_fence();
#pragma unroll
    for (int step = 0; step < kSlabBytes / 32; ++step)
      wgmma_wide<S>(sum, a + 2 * step, b + 2 * step, slab > 0 || step > 0);
    wgmma_commit();
    wgmma_wait<1>();
    if (last) release_stage(last);
    last = empty + turn.stage;
  }
  wgmma_wait<0>();
  hold(sum);
  release_stage(last);
}

// The two largest scores of a share; an index stands in the last places of each.
struct Pair {
  float first = -INFINITY, second = -INFINITY;

  __device__ __forceinline__ void see(float score) {
    second = fmaxf(second, fminf(first, score));
    first = fmaxf(first, score);
  }
};

// The share [lane of four][kRowShares] of a row that anchor 64 k + 8 share + 2 lane + {0, 1} belongs to.
struct Share {
  uint32_t number;

  __device__ uint32_t seen(int64_t anchors) const { return static_cast<uint32_t>((anchors + 63) / 64 * 2); }
  __device__ uint32_t operator[](uint32_t i) const {
    return i / 2 * 64 + number % kRowShares * 8 + number / kRowShares * 2 + i % 2;
  }
};

// Leaves the largest scores of a row where its y will be.
template <class S>
__device__ __forceinline__ void keep_scores(const Pair (&share)[kRowShares], int quarter, S* y) {
  float4* kept = reinterpret_cast<float4*>(y) + quarter * (kRowShares / 2);
#pragma unroll
  for (int i = 0; i < kRowShares; i += 2)
    kept[i / 2] = make_float4(share[i].first, share[i].second, share[i + 1].first, share[i + 1].second);
}

template <class S>
__global__ void __launch_bounds__(kScoreThreads, 1)
    scores_kernel(const __grid_constant__ CUtensorMap map, Problem problem, Prepared anchors, ScorePlan plan,
                  S* y) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
  extern __shared__ unsigned char memory[];
  __shared__ uint64_t full[kStages], empty[kStages];
  unsigned char* stages = memory + (0u - shared_address(memory)) % kSwizzleBytes;
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
  if (threadIdx.x == 0) {
    for (int stage = 0; stage < kStages; ++stage) {
      barrier_init(full + stage);
      barrier_init(empty + stage, kClusterBlocks * kScoreWarps);
    }
    fence_barrier_init();
  }
  __syncthreads();
  cluster_barrier();
  if (warp >= kScoreWarps) {
    leave_registers<40>();
    if (threadIdx.x == kScoreWarps * kWarp) {
      bring_slabs<S>(map, static_cast<const unsigned char*>(anchors.unit), plan, stages, full, empty);
    }
  } else {
    take_registers<232>();
    const uint32_t kept = ~0u << plan.index_bits;
    Turn turn;
    for (int64_t pair = blockIdx.x / kClusterBlocks; pair < plan.pairs; pair += gridDim.x / kClusterBlocks) {
      const int64_t first = (pair * kClusterBlocks + block_of_cluster()) * kScoreRows + warp * 16 + lane / 4;
      Pair largest[2][kRowShares];
      for (uint32_t part = 0; part < plan.parts; ++part) {
        float sum[128];
        multiply_part<S>(stages, warp / 4 * (kRowSlab / 2), plan.slabs, full, empty, turn, sum);
        see_scores(sum, part * kScoreAnchors, problem.anchor_count, kept, lane % 4, largest);
      }
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        if (first + 8 * r < problem.rows)
          keep_scores(largest[r], lane % 4, y + (first + 8 * r) * problem.dim);
      }
    }
  }
  __syncwarp();
  cluster_barrier();
#endif
}

}  // namespace stratcore::tangent_projection

#pragma once

#include "candidates.cuh"

// Many rows against many anchors on sm_90a, each row read once. A warpgroup holds 64 rows in registers, in
// float16 and what that leaves of float32, scores all anchors with the former and the best one exactly with
// both. Legend as in tangent_projection.h.
namespace stratcore::tangent_projection {

// A chunk's products with 64 rows, and where they are: the block's chunks in order, round for round.
template <class S, int Steps>
struct Step {
  using U = Units<Steps>;
  uint32_t chunk, turn;
  bool passes;

  __device__ Step(const Plan& plan, uint32_t round, uint32_t chunk_)
      : chunk(chunk_), turn((round * plan.passing + plan.passing_before(chunk_)) * U::kPerChunk),
        passes(plan.passes(chunk_)) {}

  __device__ __forceinline__ void start(const Image<S, Steps>& image, const Fragments<S, Steps>& rows,
                                        float (&sum)[32]) const {
    const Plan& plan = image.plan;
    uint64_t factor[U::kPerChunk];
#pragma unroll
    for (int part = 0; part < U::kPerChunk; ++part) {
      const uint32_t slot = passes ? image.resident() + (turn + part) % plan.ring
                                   : (chunk - plan.passing_before(chunk)) * U::kPerChunk + part;
      barrier_wait(image.full + slot, passes ? (turn + part) / plan.ring & 1 : 0);
      factor[part] =
          matrix_descriptor(shared_address(image.slots + slot * U::kBytes), kChunkAnchors * 16, 128);
    }
    hold(sum);
    wgmma_fence();
#pragma unroll
    for (int step = 0; step < Steps; ++step) {
      wgmma(sum, rows.high[step], factor[step / U::kSteps] + step % U::kSteps * (kChunkAnchors * 32 >> 4),
            step > 0);
    }
    wgmma_commit();
  }

  // Once the products are there.
  __device__ __forceinline__ void finish(const Image<S, Steps>& image, int64_t count, uint32_t kept,
                                         int quarter, float (&sum)[32],
                                         Largest (&largest)[2][kShares]) const {
    hold(sum);
    if (passes) {
#pragma unroll
      for (int part = 0; part < U::kPerChunk; ++part) image.release(turn + part);
    }
    see_scores(sum, chunk * kChunkAnchors, count, kept, quarter, largest);
  }
};

// Scores of 64 rows with all anchors; `round` counts the tiles of the block.
template <class S, int Steps>
__device__ __forceinline__ void score_all(const Image<S, Steps>& image, const Fragments<S, Steps>& rows,
                                          uint32_t round, int64_t count, uint32_t kept, int quarter,
                                          Largest (&largest)[2][kShares]) {
  const Plan& plan = image.plan;
  float even[32] = {}, odd[32] = {};
  uint32_t chunk = 0;
  Step<S, Steps>(plan, round, 0).start(image, rows, even);
  for (; chunk + 2 < plan.chunks; chunk += 2) {
    Step<S, Steps>(plan, round, chunk + 1).start(image, rows, odd);
    wgmma_wait<1>();
    Step<S, Steps>(plan, round, chunk).finish(image, count, kept, quarter, even, largest);
    Step<S, Steps>(plan, round, chunk + 2).start(image, rows, even);
    wgmma_wait<1>();
    Step<S, Steps>(plan, round, chunk + 1).finish(image, count, kept, quarter, odd, largest);
  }
  if (chunk + 1 < plan.chunks) {
    Step<S, Steps>(plan, round, chunk + 1).start(image, rows, odd);
    wgmma_wait<1>();
    Step<S, Steps>(plan, round, chunk).finish(image, count, kept, quarter, even, largest);
    wgmma_wait<0>();
    Step<S, Steps>(plan, round, chunk + 1).finish(image, count, kept, quarter, odd, largest);
  } else {
    wgmma_wait<0>();
    Step<S, Steps>(plan, round, chunk).finish(image, count, kept, quarter, even, largest);
  }
}

// A warp's 8 rows from `first` on into its stage; its lanes must be through with what is there.
__device__ __forceinline__ void fetch_rows(const Plan& plan, const void* x, int64_t first, int64_t rows,
                                           int lane, unsigned char* stage, uint64_t* barrier) {
  __syncwarp();
  if (lane == 0) barrier_expect(barrier, 8 * plan.row_bytes);
  __syncwarp();
  if (lane < 8) {
    const auto* row = static_cast<const unsigned char*>(x) + min(first + lane, rows - 1) * plan.row_bytes;
    bulk_copy(stage + plan.row_offset(lane), row, plan.row_bytes, barrier);
  }
}

// Norms, nearest anchors and cosines of rows `first` and `first` + 8, or what the second kernel is to settle.
template <class S, int Steps>
__device__ __forceinline__ void write_nearest_rows(const Problem& problem, const float* inverse_lengths,
                                                   const Targets<S>& out, int64_t first,
                                                   const float (&norm)[2], const Fragments<S, Steps>& rows,
                                                   const Lane<S, Steps>& own, const Bound& bound,
                                                   const Largest (&largest)[2][kShares]) {
  const int quarter = threadIdx.x % 4;
  Verdict verdict[2];
  bool wanted[2];
  int32_t index[2];
  const S* anchor[2];
  float product[2], inverse[2];
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    verdict[r] = judge(rows, r, largest[r], problem.dim, bound);
    // A row of zeros has products of 0, unless an anchor is not finite.
    const bool zero = rows.length[r] == 0 && bound.anchor_lost < INFINITY;
    if (zero) verdict[r].count = verdict[r].unknown = 0;
    index[r] = zero ? 0 : static_cast<int32_t>(__float_as_uint(verdict[r].top) & ~bound.kept);
    wanted[r] = zero || (verdict[r].count == 1 && !verdict[r].unknown);
    anchor[r] = static_cast<const S*>(problem.anchors) + index[r] * problem.dim;
    inverse[r] = wanted[r] ? inverse_lengths[index[r]] : 0.0f;
  }
  exact_products<S, Steps>(rows, anchor, wanted, own, product);
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    const int64_t row = first + 8 * r;
    const bool inside = row < problem.rows, waits = inside && verdict[r].doubtful();
    if (inside && quarter == 0) {
      out.norm[row] = norm[r];
      if (!waits) {
        const float cosine = product[r] * rows.inverse_scale(r) * inverse[r];
        write_nearest<S>(out, row, {cosine, index[r]}, norm[r], problem.eps);
      }
    }
    if (!__any_sync(kFullWarp, waits)) continue;
    const uint64_t list = list_candidates(verdict[r], largest[r], bound.kept, quarter);
    if (waits && quarter == 0) {
      out.nearest[row] = static_cast<int32_t>(list);
      out.cosine[row] = __uint_as_float(static_cast<uint32_t>(list >> 32));
    }
  }
}

template <class S, int Steps>
__global__ void __launch_bounds__(kRowGroups<S>* kGroupThreads, 1)
    wgmma_kernel(Problem problem, Prepared anchors, Plan plan, Targets<S> out) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
  extern __shared__ __align__(16) unsigned char memory[];
  constexpr int kBlockRows = kRowGroups<S> * kGroupRows, kWarpRows = 16, kWarpsHere = kBlockRows / kWarpRows;
  __shared__ uint64_t full[kMostSlots], arrived[kWarpsHere][2];
  __shared__ unsigned through[kMostSlots];
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp, quarter = lane % 4;
  const Lane<S, Steps> own(quarter, static_cast<int>(problem.dim));
  const int64_t tiles = (problem.rows + kBlockRows - 1) / kBlockRows;
  const auto rounds = static_cast<uint32_t>((tiles - blockIdx.x + gridDim.x - 1) / gridDim.x);
  const auto first_of = [&](uint32_t round) {
    return (blockIdx.x + int64_t(round) * gridDim.x) * kBlockRows + warp * kWarpRows;
  };
  unsigned char* stages = memory + warp * plan.stages * plan.stage_bytes;
  const Image<S, Steps> image{memory + kWarpsHere * plan.stages * plan.stage_bytes,
                              full,
                              through,
                              static_cast<const unsigned char*>(anchors.unit),
                              plan,
                              rounds * plan.passing * Units<Steps>::kPerChunk};
  // Half a tile of a warp, number `turn` of the block.
  const auto fetch = [&](uint32_t turn) {
    if (turn >= 2 * rounds) return;
    const uint32_t stage = turn % plan.stages;
    fetch_rows(plan, problem.x, first_of(turn / 2) + turn % 2 * 8, problem.rows, lane,
               stages + stage * plan.stage_bytes, &arrived[warp][stage]);
  };
  if (lane == 0) {
    for (int stage = 0; stage < 2; ++stage) barrier_init(&arrived[warp][stage]);
    fence_barrier_init();
  }
  for (uint32_t turn = 0; turn < plan.stages; ++turn) fetch(turn);
  if (threadIdx.x == 0) image.start();
  __syncthreads();
  const Bound bound = bound_with(plan.index_bits, anchors, problem.anchor_count);
  for (uint32_t round = 0; round < rounds; ++round) {
    const int64_t first = first_of(round);
    if (plan.stages == 1 && lane == 0 && round + 1 < rounds) {
      const int64_t next = first_of(round + 1);
      if (next < problem.rows) {
        prefetch_to_l2(static_cast<const S*>(problem.x) + next * problem.dim,
                       static_cast<uint32_t>(min(int64_t(kWarpRows), problem.rows - next)) * plan.row_bytes);
      }
    }
    Fragments<S, Steps> rows;
    float norm[2];
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      uint4 run[Lane<S, Steps>::kTotal];
      const int64_t row = first + lane / 4 + 8 * r;
      const uint32_t turn = 2 * round + r, stage = turn % plan.stages;
      barrier_wait(&arrived[warp][stage], turn / plan.stages & 1);
      load_runs(stages + stage * plan.stage_bytes + plan.row_offset(lane / 4), own, run);
      norm[r] = measure_row<S, Steps>(run, r, rows, [&] { fetch(turn + plan.stages); });
      if (row < problem.rows)
        write_unit(run, inverse_radius(norm[r], problem.eps), own, out.y + row * problem.dim);
      split_row<S, Steps>(run, r, rows);
    }
    Largest largest[2][kShares];
    score_all<S, Steps>(image, rows, round, problem.anchor_count, bound.kept, quarter, largest);
    write_nearest_rows<S, Steps>(problem, anchors.inverse, out, first + lane / 4, norm, rows, own, bound,
                                 largest);
  }
#endif
}

}  // namespace stratcore::tangent_projection

#pragma once

#include "finish_rows.cuh"

// Many rows of up to 256 columns against hundreds of anchors on sm_90a. Legend as in tangent_projection.h.
//
// Three kinds of warps in a block, each at its own pace: writers read 128 rows, write y and norms and leave
// the rows in float16 in one of two images in shared memory; multipliers score an image with all anchors and
// leave the largest scores in it; then the writers score the anchors that are left exactly, with the rows
// read again, some from the L2 cache. A warp brings the anchors, with another block of the cluster.
namespace stratcore::tangent_projection {

constexpr int kFusedRows = 128, kFusedColumns = 256, kSlabs = 4, kImages = 2, kPartAnchors = 128, kUnits = 6;
constexpr int kMultipliers = 8, kWriters = 8;  // warps
constexpr int kFusedThreads = (kMultipliers + kWriters + 4) * kWarp;
// Of a thread; the kernel starts with 96 for each, and who takes more waits until others have left enough.
constexpr int kMultiplierRegisters = 120, kWriterRegisters = 104, kOtherRegisters = 32;
static_assert(2 * (kMultiplierRegisters + kWriterRegisters) + kOtherRegisters <= 5 * 96);
constexpr uint32_t kImageSlab = kFusedRows * kSlabBytes, kImageBytes = kSlabs * kImageSlab;
constexpr uint32_t kUnitBytes = kPartAnchors * kSlabBytes;
constexpr uint32_t kFusedBytes = kImages * kImageBytes + kUnits * kUnitBytes + kSwizzleBytes;

// A writer's lane l holds of row l / 8 of four the run l % 8 of every eight: of each slab of an image a piece
// of 16 bytes.
constexpr int kRowsAtOnce = 4, kRowLanes = 8;
template <class S>
constexpr int kPieceRuns = 8 / kRun<S>;
template <class S>
constexpr int kLaneRuns = kSlabs * kPieceRuns<S>;

// Where an element of the anchors stands: [part][slab][anchor][16 bytes, swizzled], columns as in an image.
template <class S>
struct FusedPlace {
  using Element = __half;
  static constexpr int64_t kAnchors = kPartAnchors, kColumns = kFusedColumns;
  __device__ int64_t operator()(int64_t anchor, int64_t column, int64_t) const {
    constexpr int kWide = kRowLanes * kRun<S>;
    const int run = static_cast<int>(column / kWide), lane = static_cast<int>(column % kWide) / kRun<S>;
    const int own = static_cast<int>(anchor % kPartAnchors);
    const int in_piece = run % kPieceRuns<S> * kRun<S> + static_cast<int>(column % kRun<S>);
    return ((anchor / kPartAnchors * kSlabs + run / kPieceRuns<S>)*kPartAnchors + own) * 64 +
           (lane ^ own % 8) * 8 + in_piece;
  }
};

struct FusedPlan {
  uint32_t parts;
  int64_t pairs;  // of tiles of rows, one for a cluster
  int index_bits;
};

struct FusedShared {
  uint64_t arrived[kUnits], used[kUnits];     // of the anchors
  uint64_t filled[kImages], scored[kImages];  // of the images
};

// By one thread of each block.
__device__ __forceinline__ void bring_anchors(const unsigned char* anchors, const FusedPlan& plan,
                                              uint32_t rounds, unsigned char* units, FusedShared& shared) {
  constexpr uint32_t kHalf = kUnitBytes / kClusterBlocks;
  const uint32_t from = block_of_cluster() * kHalf, count = plan.parts * kSlabs;
  uint32_t slot = 0, phase = 0;
  for (uint32_t round = 0; round < rounds; ++round) {
    for (uint32_t unit = 0; unit < count; ++unit) {
      barrier_wait(shared.used + slot, phase ^ 1);
      barrier_expect(shared.arrived + slot, kUnitBytes);
      bulk_copy_to_all(units + slot * kUnitBytes + from, anchors + int64_t(unit) * kUnitBytes + from, kHalf,
                       shared.arrived + slot, (1 << kClusterBlocks) - 1);
      if (++slot == kUnits) slot = 0, phase ^= 1;
    }
  }
}

// Where the scores of share `share` with a row stand in what was its image: of 16 bytes for two shares the
// number share / 2, moved by the row.
__device__ __forceinline__ float2* scores_in(unsigned char* image, int row, int share) {
  unsigned char* part = image + row % 64 / 32 * kImageSlab + row / 64 * (kImageSlab / 2) + row % 32 * 256;
  return reinterpret_cast<float2*>(part + (share / 2 ^ row % 8) * 16) + share % 2;
}

// The place in the ring of anchors.
struct Slot {
  uint32_t index = 0, phase = 0;

  __device__ void next() {
    if (++index < kUnits) return;
    index = 0;
    phase ^= 1;
  }
};

// sum = 64 rows of an image times a part of the anchors.
__device__ __forceinline__ void multiply_image(uint32_t rows, const unsigned char* units, FusedShared& shared,
                                               Slot& slot, float (&sum)[64]) {
  uint64_t* last = nullptr;
  hold(sum);
#pragma unroll 1
  for (uint32_t slab = 0; slab < kSlabs; ++slab, slot.next()) {
    barrier_wait(shared.arrived + slot.index, slot.phase);
    const uint64_t a = swizzled_descriptor(rows + slab * kImageSlab);
    const uint64_t b = swizzled_descriptor(shared_address(units + slot.index * kUnitBytes));
    wgmma_fence();
#pragma unroll
    for (int step = 0; step < kSlabBytes / 32; ++step)
      wgmma_half(sum, a + 2 * step, b + 2 * step, slab > 0 || step > 0);
    wgmma_commit();
    wgmma_wait<1>();
    if (last) release_stage(last);
    last = shared.used + slot.index;
  }
  wgmma_wait<0>();
  hold(sum);
  release_stage(last);
}

__device__ __forceinline__ void score_images(int64_t count, const FusedPlan& plan, uint32_t rounds,
                                             unsigned char* images, const unsigned char* units,
                                             FusedShared& shared) {
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp, group = warp / 4;
  const uint32_t kept = ~0u << plan.index_bits;
  Slot slot;
  for (uint32_t round = 0; round < rounds; ++round) {
    unsigned char* image = images + round % kImages * kImageBytes;
    barrier_wait(shared.filled + round % kImages, round / kImages & 1);
    Pair largest[2][kRowShares];
#pragma unroll 1
    for (uint32_t part = 0; part < plan.parts; ++part) {
      float sum[64];
      multiply_image(shared_address(image) + group * (kImageSlab / 2), units, shared, slot, sum);
      see_scores(sum, part * kPartAnchors, count, kept, lane % 4, largest);
    }
    // The four warps are through with the rows, too.
    asm volatile("bar.sync %0, 128;" ::"r"(1 + group) : "memory");
#pragma unroll
    for (int r = 0; r < 2; ++r) {
#pragma unroll
      for (int i = 0; i < kRowShares; i += 2) {
        *reinterpret_cast<float4*>(scores_in(image, warp * 16 + lane / 4 + 8 * r,
                                             lane % 4 * kRowShares + i)) =
            make_float4(largest[r][i].first, largest[r][i].second, largest[r][i + 1].first,
                        largest[r][i + 1].second);
      }
    }
    __syncwarp();
    if (lane == 0) barrier_arrive(shared.scored + round % kImages);
  }
}

constexpr int kWarpRows = kFusedRows / kWriters, kRounds = kWarpRows / kRowsAtOnce;  // of a writer
static_assert(kImages * kRounds == kRowLanes);

// Of rows that a warp has written and not decided yet, each in one of the row's lanes: the power of two that
// it was multiplied with, its length then and that of what float16 took.
struct RowState {
  float scale, length, lost;

  __device__ RowState at(int place) const {
    return {__shfl_sync(kFullWarp, scale, place, kRowLanes), __shfl_sync(kFullWarp, length, place, kRowLanes),
            __shfl_sync(kFullWarp, lost, place, kRowLanes)};
  }
  __device__ float inverse_scale() const { return __uint_as_float((254u << 23) - __float_as_uint(scale)); }
  __device__ float norm() const { return length * inverse_scale(); }
};

template <class S>
__device__ __forceinline__ void load_lane(const S* row, int own, int64_t dim, Run<S> (&run)[kLaneRuns<S>]) {
#pragma unroll
  for (int q = 0; q < kLaneRuns<S>; ++q) {
    const int at = (q * kRowLanes + own) * kRun<S>;
    uint4 bits{};
    if (at < dim) bits = *reinterpret_cast<const uint4*>(row + at);
    run[q] = reinterpret_cast<const Run<S>&>(bits);
  }
}

// Element i of a lane's runs.
template <class S>
__device__ __forceinline__ float lane_element(const Run<S> (&run)[kLaneRuns<S>], int i) {
  return number(run[i / kRun<S>].element[i % kRun<S>]);
}

constexpr int kLaneElements = kFusedColumns / kRowLanes;

// A row of an image in float16; returns the squares of what that takes of the lane's elements.
template <class S>
__device__ __forceinline__ float write_image(const Run<S> (&run)[kLaneRuns<S>], float scale,
                                             unsigned char* image, int row, int own) {
  float lost = 0;
#pragma unroll
  for (int slab = 0; slab < kSlabs; ++slab) {
    uint32_t piece[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const float value[2] = {lane_element<S>(run, 8 * slab + 2 * i) * scale,
                              lane_element<S>(run, 8 * slab + 2 * i + 1) * scale};
      const __half2 half = __floats2half2_rn(value[0], value[1]);
      piece[i] = *reinterpret_cast<const uint32_t*>(&half);
      if constexpr (sizeof(S) == 4) {
        const float2 kept = __half22float2(half);
        lost += (value[0] - kept.x) * (value[0] - kept.x) + (value[1] - kept.y) * (value[1] - kept.y);
      }
    }
    *reinterpret_cast<uint4*>(image + slab * kImageSlab + row * kSlabBytes + (own ^ row % 8) * 16) =
        make_uint4(piece[0], piece[1], piece[2], piece[3]);
  }
  return lost;
}

// Row `row` of x, which is row `place_in_image` of the image: y, norm and image.
template <class S>
__device__ __forceinline__ RowState write_row(const Problem& problem, const Targets<S>& out, int64_t row,
                                              int place_in_image, unsigned char* image,
                                              Run<S> (&run)[kLaneRuns<S>]) {
  const int own = threadIdx.x % kRowLanes;
  float largest = 0, squares = 0;
#pragma unroll
  for (int i = 0; i < kLaneElements; ++i) largest = fmaxf(largest, fabsf(lane_element<S>(run, i)));
#pragma unroll
  for (int offset = kRowLanes / 2; offset; offset /= 2)
    largest = fmaxf(largest, __shfl_xor_sync(kFullWarp, largest, offset));
  RowState state;
  state.scale = __uint_as_float(exponent_into_half(largest) << 23);
  keep_packed(run);
#pragma unroll
  for (int i = 0; i < kLaneElements; ++i) {
    const float value = lane_element<S>(run, i) * state.scale;
    squares += value * value;
  }
  keep_packed(run);
  const float lost = write_image<S>(run, state.scale, image, place_in_image, own);
  state.length = sqrtf(sum_over<kRowLanes>(squares));
  state.lost = sizeof(S) == 4 ? sqrtf(sum_over<kRowLanes>(lost)) : state.length * 0x1p-30f;
  const float norm = state.norm(), inverse = inverse_radius(norm, problem.eps);
  keep_packed(run);
  if (row < problem.rows) {
#pragma unroll
    for (int q = 0; q < kLaneRuns<S>; ++q) {
      const int at = (q * kRowLanes + own) * kRun<S>;
      Run<S> unit;
#pragma unroll
      for (int c = 0; c < kRun<S>; ++c) unit.element[c] = stored<S>(number(run[q].element[c]) * inverse);
      if (at < problem.dim) *reinterpret_cast<Run<S>*>(out.y + row * problem.dim + at) = unit;
    }
    if (own == 0) out.norm[row] = norm;
  }
  return state;
}

// The warp's rows of a tile, `first` in x and `image_row` in the image, on.
template <class S>
__device__ __forceinline__ void write_rows(const Problem& problem, const Targets<S>& out, int64_t first,
                                           int image_row, unsigned char* image, int place, RowState& state) {
  const int own = threadIdx.x % kRowLanes, sub = threadIdx.x % kWarp / kRowLanes;
  const auto load = [&](int round, Run<S>(&run)[kLaneRuns<S>]) {
    const int64_t row = min(first + round * kRowsAtOnce + sub, problem.rows - 1);
    load_lane(static_cast<const S*>(problem.x) + row * problem.dim, own, problem.dim, run);
  };
  Run<S> run[2][kLaneRuns<S>];
  load(0, run[0]);
#pragma unroll
  for (int round = 0; round < kRounds; ++round) {
    const int row = round * kRowsAtOnce + sub;
    if (round + 1 < kRounds) load(round + 1, run[(round + 1) % 2]);
    const RowState written = write_row<S>(problem, out, first + row, image_row + row, image, run[round % 2]);
    if (own == place + round) state = written;
  }
}

// A row with several candidates, by a whole warp.
template <class S>
__device__ __forceinline__ void settle_row(const Problem& problem, const float* inverse,
                                           const Targets<S>& out, int64_t row, float2 score,
                                           const RowState& state, const Bound& bound) {
  const int64_t dim = problem.dim;
  const int lane = threadIdx.x % kWarp;
  RowParts<S, kPieceRuns<S>> x{static_cast<const S*>(problem.x) + row * dim, dim, lane, {}};
  load_whole(x.row, lane, dim, x.run);
  const KeptScores scores(score, bound, problem.anchor_count);
  const float least = least_score(state.length, state.lost, scores.top, dim, bound);
  const Choice choice(scores, least, !(least > -INFINITY), problem.anchor_count);
  const Nearest<float> nearest =
      score_choice(x, choice, static_cast<const S*>(problem.anchors), inverse, problem.anchor_count - 1);
  if (lane == 0) write_nearest<S>(out, row, nearest, state.norm(), problem.eps);
}

// The anchor of the largest score of a row, and whether others may be nearer.
struct Decision {
  uint32_t index;
  bool doubtful;
};

__device__ __forceinline__ Decision decide(unsigned char* image, int image_row, const RowState& state,
                                           const Problem& problem, const Bound& bound) {
  const int own = threadIdx.x % kRowLanes;
  float4 score[2];
#pragma unroll
  for (int i = 0; i < 2; ++i)
    score[i] = *reinterpret_cast<const float4*>(scores_in(image, image_row, 2 * (own + i * kRowLanes)));
  float top = fmaxf(fmaxf(score[0].x, score[0].z), fmaxf(score[1].x, score[1].z));
#pragma unroll
  for (int offset = kRowLanes / 2; offset; offset /= 2)
    top = fmaxf(top, __shfl_xor_sync(kFullWarp, top, offset));
  const float least = least_score(state.length, state.lost, top, problem.dim, bound);
  int candidates = 0;
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    candidates +=
        (score[i].x >= least) + (score[i].y >= least) + (score[i].z >= least) + (score[i].w >= least);
  }
  candidates = sum_over<kRowLanes>(candidates);
  if (state.length == 0 && bound.anchor_lost < INFINITY) return {0, false};  // all products are 0
  const auto last = static_cast<uint32_t>(problem.anchor_count - 1);
  return {min(__float_as_uint(top) & ~bound.kept, last),
          state.length < INFINITY && (candidates > 1 || !(least > -INFINITY))};
}

// Nearest anchors and cosines of kRowsAtOnce rows.
template <class S>
__device__ __forceinline__ void decide_rows(const Problem& problem, const float* inverse,
                                            const Targets<S>& out, int64_t first, int image_row,
                                            unsigned char* image, int place, const RowState& states,
                                            const Bound& bound) {
  const int own = threadIdx.x % kRowLanes, sub = threadIdx.x % kWarp / kRowLanes;
  const int64_t dim = problem.dim, row = first + sub, from = min(row, problem.rows - 1) * dim;
  Run<S> x[kLaneRuns<S>], other[kLaneRuns<S>];
  load_lane(static_cast<const S*>(problem.x) + from, own, dim, x);
  const RowState state = states.at(place);
  const Decision decision = decide(image, image_row + sub, state, problem, bound);
  load_lane(static_cast<const S*>(problem.anchors) + decision.index * dim, own, dim, other);
  const float unit = inverse[decision.index];
  float product = 0;
#pragma unroll
  for (int i = 0; i < kLaneElements; ++i)
    product += lane_element<S>(x, i) * state.scale * lane_element<S>(other, i);
  product = sum_over<kRowLanes>(product) * state.inverse_scale() * unit;
  const bool inside = row < problem.rows;
  if (own == 0 && inside && !decision.doubtful) {
    write_nearest<S>(out, row, {product, static_cast<int32_t>(decision.index)}, state.norm(), problem.eps);
  }
  for (unsigned left = __ballot_sync(kFullWarp, own == 0 && inside && decision.doubtful); left;
       left &= left - 1) {
    const int lane = __ffs(left) - 1, which = lane / kRowLanes;
    const RowState one{__shfl_sync(kFullWarp, state.scale, lane), __shfl_sync(kFullWarp, state.length, lane),
                       __shfl_sync(kFullWarp, state.lost, lane)};
    settle_row<S>(problem, inverse, out, first + which,
                  *scores_in(image, image_row + which, threadIdx.x % kWarp), one, bound);
  }
}

template <class S>
__device__ __forceinline__ void write_tiles(const Problem& problem, const Prepared& anchors,
                                            const FusedPlan& plan, const Targets<S>& out, int64_t pair,
                                            uint32_t rounds, unsigned char* images, FusedShared& shared) {
  const int lane = threadIdx.x % kWarp, own = (threadIdx.x / kWarp - kMultipliers) * kWarpRows;
  const Bound bound = bound_with(plan.index_bits, anchors, problem.anchor_count);
  const int64_t step = int64_t(gridDim.x) * kFusedRows;
  int64_t first = (pair * kClusterBlocks + block_of_cluster()) * kFusedRows + own;
  RowState state{1.0f, 0.0f, 0.0f};
  for (uint32_t round = 0; round < rounds + kImages; ++round, first += step) {
    const uint32_t which = round % kImages;
    unsigned char* image = images + which * kImageBytes;
    if (round < rounds && lane == 0 && first + step < problem.rows) {
      const auto count = static_cast<uint32_t>(min(int64_t(kWarpRows), problem.rows - first - step));
      prefetch_to_l2(static_cast<const S*>(problem.x) + (first + step) * problem.dim,
                     count * static_cast<uint32_t>(problem.dim * sizeof(S)));
    }
    if (round >= kImages) {
      barrier_wait(shared.scored + which, (round / kImages - 1) & 1);
#pragma unroll 1
      for (int i = 0; i < kRounds; ++i) {
        decide_rows<S>(problem, anchors.inverse, out, first - kImages * step + i * kRowsAtOnce,
                       own + i * kRowsAtOnce, image, which * kRounds + i, state, bound);
      }
      // Where a warp writes rows, scores of others stand.
      asm volatile("bar.sync %0, 128;" ::"r"(threadIdx.x / 128 + 1) : "memory");
    }
    if (round >= rounds) continue;
    write_rows<S>(problem, out, first, own, image, which * kRounds, state);
    fence_shared_writes();
    __syncwarp();
    if (lane == 0) barrier_arrive(shared.filled + which);
  }
}

template <class S>
__global__ void __launch_bounds__(kFusedThreads, 1)
    fused_kernel(Problem problem, Prepared anchors, FusedPlan plan, Targets<S> out) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
  extern __shared__ unsigned char memory[];
  __shared__ FusedShared shared;
  unsigned char* images = memory + (0u - shared_address(memory)) % kSwizzleBytes;
  unsigned char* units = images + kImages * kImageBytes;
  const int warp = threadIdx.x / kWarp;
  const int64_t pair = blockIdx.x / kClusterBlocks, clusters = gridDim.x / kClusterBlocks;
  const auto rounds = static_cast<uint32_t>((plan.pairs - pair + clusters - 1) / clusters);
  if (threadIdx.x == 0) {
    for (int i = 0; i < kUnits; ++i) {
      barrier_init(shared.arrived + i);
      barrier_init(shared.used + i, kClusterBlocks * kMultipliers);
    }
    for (int i = 0; i < kImages; ++i) {
      barrier_init(shared.filled + i, kWriters);
      barrier_init(shared.scored + i, kMultipliers);
    }
    fence_barrier_init();
  }
  __syncthreads();
  cluster_barrier();
  if (warp < kMultipliers) {
    take_registers<kMultiplierRegisters>();
    score_images(problem.anchor_count, plan, rounds, images, units, shared);
  } else if (warp < kMultipliers + kWriters) {
    take_registers<kWriterRegisters>();
    write_tiles<S>(problem, anchors, plan, out, pair, rounds, images, shared);
  } else {
    leave_registers<kOtherRegisters>();
    if (threadIdx.x == (kMultipliers + kWriters) * kWarp)
      bring_anchors(static_cast<const unsigned char*>(anchors.unit), plan, rounds, units, shared);
  }
  __syncwarp();
  cluster_barrier();
#endif
}

}  // namespace stratcore::tangent_projection

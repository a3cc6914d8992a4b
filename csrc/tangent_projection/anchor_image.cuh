#pragma once

#include "hopper.cuh"
#include "nearest_tensor.cuh"

// The anchors in float16 for wgmma: how they lie in global memory, which of them stay in shared memory and
// which pass through it. Legend as in tangent_projection.h.
//
// The image has columns in the order in which lanes hold those of a row, in units that lie in shared memory
// as they do in the image.
namespace stratcore::tangent_projection {

constexpr int kChunkAnchors = 64;  // of one product
constexpr int kGroupThreads = 128;
constexpr int kGroupRows = 64;
constexpr uint32_t kSharedBytes = 227 * 1024;  // of a block
constexpr int kMostSlots = 28;
constexpr int64_t kMostImageAnchors = 4096;

// Steps are of 16 columns.
template <int Steps>
struct Units {
  static constexpr int kPerChunk = Steps > 8 ? Steps / 8 : 1, kSteps = Steps / kPerChunk;
  static constexpr int kBytes = kChunkAnchors * kSteps * 32;
};

template <class S>
constexpr int kRowGroups = sizeof(S) == 2 ? 3 : 2;  // warpgroups of a block

// Of the index that stands in the last places of a score.
inline int index_bits_for(int64_t anchors) {
  int bits = 6;
  while (int64_t(1) << bits < anchors) ++bits;
  return bits;
}

// Shared memory: each warp's rows on their way, `stages` times 8 rows, then slots for units. Chunks that do
// not fit pass through the last `ring` slots, spread evenly among those that stay.
struct Plan {
  uint32_t stages, row_bytes, stage_bytes;
  uint32_t chunks, passing, ring, slots;
  int index_bits;

  __host__ __device__ uint32_t passing_before(uint32_t chunk) const {
    return (chunk * passing + chunks - 1) / chunks;
  }
  __host__ __device__ bool passes(uint32_t chunk) const {
    return passing_before(chunk + 1) > passing_before(chunk);
  }
  __host__ __device__ uint32_t chunk_of(uint32_t passing_index) const {
    return passing_index * chunks / passing;
  }
  // Of a warp's stage. Rows of one parity are 64 bytes off those of the other: two rows' reads share no bank.
  __device__ uint32_t row_offset(uint32_t row) const {
    return row / 2 * row_bytes + row % 2 * (4 * row_bytes + 64);
  }
};

template <class S, int Steps>
inline Plan plan_for(const Problem& problem) {
  using U = Units<Steps>;
  constexpr uint32_t kWarpsHere = kRowGroups<S> * 4, kBarrierBytes = kMostSlots * 12 + kWarpsHere * 16;
  Plan plan{};
  plan.row_bytes = static_cast<uint32_t>(problem.dim * sizeof(S));
  plan.stage_bytes = 8 * plan.row_bytes + 64;
  plan.chunks = static_cast<uint32_t>((problem.anchor_count + kChunkAnchors - 1) / kChunkAnchors);
  plan.index_bits = index_bits_for(problem.anchor_count);
  uint32_t most = 0;
  for (plan.stages = 2; plan.stages > 0; --plan.stages) {
    most = (kSharedBytes - kBarrierBytes - plan.stages * kWarpsHere * plan.stage_bytes) /
           (U::kBytes * U::kPerChunk);
    if (plan.chunks <= most || plan.stages == 1) break;
  }
  if (plan.chunks > most) {
    // One slot does where no two neighbors pass: the next chunk starts before this one's slots are free.
    const uint32_t through = 2 * (plan.chunks - (most - 1)) <= plan.chunks ? 1 : 3;
    plan.ring = through * U::kPerChunk;
    plan.passing = plan.chunks - (most - through);
  }
  plan.slots = (plan.chunks - plan.passing) * U::kPerChunk + plan.ring;
  return plan;
}

// Where an element stands in the image: [chunk][part][8 columns][8 anchors] blocks of 8 anchors by 8 columns.
// Of the 16 columns of a step, lane q of four holds those at 2 q + {0, 1, 8, 9}.
template <class S, int Steps>
struct ImagePlace {
  using Element = __half;
  static constexpr int64_t kAnchors = kChunkAnchors, kColumns = Steps * 16;
  __device__ int64_t operator()(int64_t anchor, int64_t column, int64_t) const {
    constexpr int kWide = 4 * kRun<S>;  // columns of four lanes' runs
    const int lane = static_cast<int>(column % kWide) / kRun<S>, own = static_cast<int>(column % kRun<S>);
    const int64_t step = column / kWide * (kRun<S> / kQuad) + own / kQuad;
    const int64_t block = 2 * step + own % kQuad / 2;
    return anchor / kChunkAnchors * kChunkAnchors * kColumns + block * kChunkAnchors * 8 +
           anchor % kChunkAnchors * 8 + 2 * lane + own % 2;
  }
};

// The units in shared memory, a barrier for each, and how many warps are through with each passing one.
template <class S, int Steps>
struct Image {
  using U = Units<Steps>;
  static constexpr unsigned kUsers = kRowGroups<S> * 4;
  unsigned char* slots;
  uint64_t* full;
  unsigned* through;
  const unsigned char* units;  // in global memory
  Plan plan;
  uint32_t total;  // passing units of this block

  __device__ uint32_t resident() const { return plan.slots - plan.ring; }

  __device__ void copy(uint32_t slot, uint32_t unit) const {
    barrier_expect(full + slot, U::kBytes);
    bulk_copy(slots + slot * U::kBytes, units + int64_t(unit) * U::kBytes, U::kBytes, full + slot);
  }

  // The passing unit number `turn` of the block into its slot.
  __device__ void copy_passing(uint32_t turn) const {
    const uint32_t chunk = plan.chunk_of(turn / U::kPerChunk % plan.passing);
    copy(resident() + turn % plan.ring, chunk * U::kPerChunk + turn % U::kPerChunk);
  }

  // By one thread.
  __device__ void start() const {
#pragma unroll 1
    for (uint32_t slot = 0; slot < plan.slots; ++slot) barrier_init(full + slot);
    fence_barrier_init();
#pragma unroll 1
    for (uint32_t i = 0; i < plan.ring; ++i) through[i] = 0;
#pragma unroll 1
    for (uint32_t chunk = 0, slot = 0; chunk < plan.chunks; ++chunk) {
      if (plan.passes(chunk)) continue;
      for (int part = 0; part < U::kPerChunk; ++part) copy(slot++, chunk * U::kPerChunk + part);
    }
#pragma unroll 1
    for (uint32_t turn = 0; turn < plan.ring; ++turn) copy_passing(turn);
  }

  // By every warp once its products with a passing unit are done: the last one fetches the next.
  __device__ void release(uint32_t turn) const {
    __syncwarp();
    if (threadIdx.x % kWarp == 0) {
      __threadfence_block();
      const bool last = atomicInc(through + turn % plan.ring, kUsers - 1) == kUsers - 1;
      if (last && turn + plan.ring < total) copy_passing(turn + plan.ring);
    }
  }
};

}  // namespace stratcore::tangent_projection

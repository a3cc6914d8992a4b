#pragma once

#include "held_pieces.cuh"

// Many rows of 256 columns against up to 512 anchors on sm_90a. Legend as in tangent_projection.h.
//
// Two blocks of a cluster hold half the anchors each in shared memory, from the first row to the last, and
// images of rows pass between them. Two kinds of warps: a holder reads eight rows into its registers, writes
// y and norms, leaves their image in float16 in both blocks, and once the scores are there, compares the
// anchor that they leave exactly with what it holds; the scorers of a block, one warpgroup, multiply tiles of
// 32 rows of either block with the block's anchors.
namespace stratcore::tangent_projection {

constexpr int kHeldRows = 64, kHeldAnchors = 512, kHeldParts = 2;  // parts of the anchors in a block
constexpr int kTilePieces = kHeldRows / kPieceRows, kOwnPieces = kTilePieces / kClusterBlocks;
constexpr int kOwnRows = kHeldRows / kClusterBlocks, kImageTiles = 2, kScoreTiles = 4;
constexpr int kScorers = 4, kHolders = 12;  // warps
constexpr int kHeldThreads = (kScorers + kHolders) * kWarp;
// Of a thread; the kernel starts with 128. Where rows take less, scorers have two sets of sums, so that one
// is sorted while the other is made.
template <class S>
constexpr int kSums = sizeof(S) == 2 ? 2 : 1;
template <class S>
constexpr int kScorerRegisters = sizeof(S) == 2 ? 168 : 104;
template <class S>
constexpr int kHolderRegisters = sizeof(S) == 2 ? 112 : 136;
static_assert(kScorerRegisters<float> + 3 * kHolderRegisters<float> <= 4 * 128);
static_assert(kScorerRegisters<__half> + 3 * kHolderRegisters<__half> <= 4 * 128);
// A holder leaves an image only after it has read the scores of its last: those of a tile are read once the
// tile is complete that its holders fill next.
static_assert(kHolders % kOwnPieces == 0 && kHolders / kOwnPieces < kScoreTiles);
constexpr uint32_t kTileBytes = kTilePieces * kPieceBytes, kPartBytes = kSlabs * kUnitBytes;
constexpr uint32_t kScoreBytes = kOwnRows * 256;
constexpr uint32_t kHeldBytes =
    kHeldParts * kPartBytes + kImageTiles * kTileBytes + kScoreTiles * kScoreBytes + kSwizzleBytes;

// Where an element of the anchors stands: [block][part][slab][anchor][16 bytes, swizzled], columns as in an
// image. Of four parts of the anchors block 0 holds the first and third.
template <class S>
struct HeldPlace {
  using Element = __half;
  static constexpr int64_t kAnchors = kHeldAnchors, kColumns = kFusedColumns;
  __device__ int64_t operator()(int64_t anchor, int64_t column, int64_t) const {
    constexpr int kWide = kRowLanes * kRun<S>;
    const int run = static_cast<int>(column / kWide), lane = static_cast<int>(column % kWide) / kRun<S>;
    const int own = static_cast<int>(anchor % kPartAnchors), part = static_cast<int>(anchor / kPartAnchors);
    const int in_piece = run % kPieceRuns<S> * kRun<S> + static_cast<int>(column % kRun<S>);
    const int64_t slab = (part % kClusterBlocks * kHeldParts + part / kClusterBlocks) * kSlabs;
    return ((slab + run / kPieceRuns<S>)*kPartAnchors + own) * 64 + (lane ^ own % 8) * 8 + in_piece;
  }
};

struct HeldPlan {
  int64_t pairs;  // of tiles of rows, one for a cluster
  int index_bits;
  float tag_error;  // as of Bound
};

struct HeldShared {
  uint64_t arrived;              // the anchors
  uint64_t filled[kImageTiles];  // images
  uint64_t freed[kImageTiles];   // images in both blocks
  uint64_t scored[kScoreTiles];  // the own rows of a tile, by both blocks
  float anchor_lost;             // as of Bound
};

// Where what a block holds lies in its shared memory.
struct HeldMemory {
  unsigned char *anchors, *images, *scores;

  __device__ explicit HeldMemory(unsigned char* memory)
      : anchors(memory), images(anchors + kHeldParts * kPartBytes),
        scores(images + kImageTiles * kTileBytes) {}
};

// sum = the rows of an image times a part of the anchors.
__device__ __forceinline__ void start_product(uint32_t image, uint32_t part, float (&sum)[64]) {
  hold(sum);
  wgmma_fence();
#pragma unroll
  for (int slab = 0; slab < kSlabs; ++slab) {
    const uint64_t a = swizzled_descriptor(image + slab * kPieceSlab, kPieceBytes);
    const uint64_t b = swizzled_descriptor(part + slab * kUnitBytes);
#pragma unroll
    for (int step = 0; step < kSlabBytes / 32; ++step)
      wgmma_half(sum, a + 2 * step, b + 2 * step, slab > 0 || step > 0);
  }
  wgmma_commit();
}

// Leaves the largest scores of the own anchors with rows of a tile in the shared memory of the rows' block.
__device__ __forceinline__ void send_scores(const Pair (&largest)[2][kGroupShares], unsigned char* scores,
                                            uint64_t* scored) {
  const int warp = threadIdx.x / kWarp % kScorers, lane = threadIdx.x % kWarp;
  const uint32_t owner = warp / (kScorers / kClusterBlocks);
  const int share = (static_cast<int>(block_of_cluster()) * 4 + lane % 4) * kGroupShares;
  const uint32_t barrier = address_in(shared_address(scored), owner);
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    const int row = warp % (kScorers / kClusterBlocks) * 16 + lane / 4 + 8 * r;
#pragma unroll
    for (int i = 0; i < kGroupShares; i += 2) {
      send_numbers(address_in(shared_address(held_scores(scores, row, share + i)), owner),
                   make_float4(largest[r][i].first, largest[r][i].second, largest[r][i + 1].first,
                               largest[r][i + 1].second),
                   barrier);
    }
  }
}

// Has the compiler make what it knows of the largest scores here.
__device__ __forceinline__ void hold(Pair (&largest)[2][kGroupShares]) {
#pragma unroll
  for (int r = 0; r < 2; ++r) {
#pragma unroll
    for (int i = 0; i < kGroupShares; ++i)
      asm volatile("" : "+f"(largest[r][i].first), "+f"(largest[r][i].second));
  }
}

// By one warpgroup.
template <int Sums>
__device__ __forceinline__ void score_tiles(int64_t count, int index_bits, uint32_t rounds,
                                            const HeldMemory& memory, HeldShared& shared) {
  const int lane = threadIdx.x % kWarp;
  const uint32_t kept = ~0u << index_bits, first = block_of_cluster() * kPartAnchors;
  const uint32_t anchors = shared_address(memory.anchors);
  barrier_wait(&shared.arrived, 0);
#pragma unroll 1
  for (uint32_t round = 0; round < rounds; ++round) {
    const uint32_t slot = round % kImageTiles;
    const uint32_t image = shared_address(memory.images + slot * kTileBytes);
    float sum[Sums][64];
    barrier_wait(shared.filled + slot, round / kImageTiles & 1);
    start_product(image, anchors, sum[0]);
    if constexpr (Sums == 2) start_product(image, anchors + kPartBytes, sum[1]);
    Pair largest[2][kGroupShares];
    wgmma_wait<Sums - 1>();
    hold(sum[0]);
    see_scores(sum[0], first, count, kept, lane % 4, largest);
    hold(largest);
    if constexpr (Sums == 1) start_product(image, anchors + kPartBytes, sum[0]);
    wgmma_wait<0>();
    hold(sum[Sums - 1]);
    __syncwarp();
    if (lane < kClusterBlocks) barrier_release(shared.freed + slot, lane);
    see_scores(sum[Sums - 1], kClusterBlocks * kPartAnchors + first, count, kept, lane % 4, largest);
    uint64_t* scored = shared.scored + round % kScoreTiles;
    if (threadIdx.x == 0) barrier_expect(scored, kScoreBytes);
    send_scores(largest, memory.scores + round % kScoreTiles * kScoreBytes, scored);
  }
}

template <class S>
__device__ __forceinline__ void hold_pieces(const Problem& problem, const Prepared& anchors,
                                            const HeldPlan& plan, const Targets<S>& out, int64_t pair,
                                            uint32_t rounds, const HeldMemory& memory, HeldShared& shared) {
  const int lane = threadIdx.x % kWarp, warp = __shfl_sync(kFullWarp, threadIdx.x / kWarp, 0) - kScorers;
  const uint32_t rank = block_of_cluster(), pieces = rounds * kOwnPieces;
  const auto first_of = [&](uint32_t piece) {
    const int64_t tile = pair + int64_t(piece / kOwnPieces) * (gridDim.x / kClusterBlocks);
    return (tile * kClusterBlocks + rank) * kOwnRows + piece % kOwnPieces * kPieceRows;
  };
  for (uint32_t number = warp; number < pieces; number += kHolders) {
    const uint32_t round = number / kOwnPieces, place = number % kOwnPieces;
    const uint32_t slot = round % kImageTiles;
    Piece<S> piece(first_of(number));
    piece.load(problem);
    piece.measure();
    unsigned char* image = memory.images + slot * kTileBytes + (rank * kOwnPieces + place) * kPieceBytes;
    barrier_wait(shared.freed + slot, (round / kImageTiles & 1) ^ 1);
    piece.write_image(image);
    fence_shared_writes();
    __syncwarp();
    if (lane == 0) {
      barrier_arrive(shared.filled + slot);
      send_to_block(image, kPieceBytes, shared.filled + slot, rank ^ 1);
      const int64_t next = first_of(number + kHolders);
      if (number + kHolders < pieces && next < problem.rows) {
        const auto count = static_cast<uint32_t>(min(int64_t(kPieceRows), problem.rows - next));
        prefetch_to_l2(static_cast<const S*>(problem.x) + next * problem.dim,
                       count * static_cast<uint32_t>(problem.dim * sizeof(S)));
      }
    }
    __syncwarp();
    piece.write_unit(problem, out);
    barrier_wait(shared.scored + round % kScoreTiles, round / kScoreTiles & 1);
    const Bound bound{*static_cast<volatile float*>(&shared.anchor_lost), plan.tag_error,
                      ~0u << plan.index_bits};
    decide_piece<S>(problem, anchors.inverse, out, piece, memory.scores + round % kScoreTiles * kScoreBytes,
                    place * kPieceRows, bound);
  }
}

template <class S>
__global__ void __launch_bounds__(kHeldThreads, 1)
    held_kernel(Problem problem, Prepared anchors, HeldPlan plan, Targets<S> out) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
  problem.dim = kFusedColumns;  // as it is: addresses need fewer registers
  extern __shared__ unsigned char dynamic_memory[];
  __shared__ HeldShared shared;
  const HeldMemory memory(dynamic_memory + (0u - shared_address(dynamic_memory)) % kSwizzleBytes);
  const int64_t pair = blockIdx.x / kClusterBlocks, clusters = gridDim.x / kClusterBlocks;
  const auto rounds = static_cast<uint32_t>((plan.pairs - pair + clusters - 1) / clusters);
  if (threadIdx.x == 0) {
    barrier_init(&shared.arrived);
    for (int i = 0; i < kImageTiles; ++i) {
      barrier_init(shared.filled + i, kTilePieces);
      barrier_init(shared.freed + i, kClusterBlocks * kScorers);
    }
    for (int i = 0; i < kScoreTiles; ++i) barrier_init(shared.scored + i);
    fence_barrier_init();
    constexpr uint32_t kBytes = kHeldParts * kPartBytes;
    barrier_expect(&shared.arrived, kBytes);
    bulk_copy(memory.anchors, static_cast<const unsigned char*>(anchors.unit) + block_of_cluster() * kBytes,
              kBytes, &shared.arrived);
  }
  if (threadIdx.x / kWarp == 1) {
    const Bound bound = bound_with(plan.index_bits, anchors, problem.anchor_count);
    if (threadIdx.x % kWarp == 0) shared.anchor_lost = bound.anchor_lost;
  }
  __syncthreads();
  cluster_barrier();
  if (threadIdx.x < kScorers * kWarp) {
    if constexpr (kScorerRegisters<S> > 128)
      take_registers<kScorerRegisters<S>>();
    else
      leave_registers<kScorerRegisters<S>>();
    score_tiles<kSums<S>>(problem.anchor_count, plan.index_bits, rounds, memory, shared);
  } else {
    if constexpr (kHolderRegisters<S> > 128)
      take_registers<kHolderRegisters<S>>();
    else
      leave_registers<kHolderRegisters<S>>();
    hold_pieces<S>(problem, anchors, plan, out, pair, rounds, memory, shared);
  }
  __syncwarp();
  cluster_barrier();
#endif
}

}  // namespace stratcore::tangent_projection

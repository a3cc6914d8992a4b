#pragma once

#include "hopper.cuh"
#include "nearest_tensor.cuh"

// Many rows against many anchors on sm_90a, each row read once. A warpgroup holds 64 rows in registers, in
// float16 and what that leaves of float32, scores all anchors with the former and the best ones exactly with
// both. Legend as in tangent_projection.h.
//
// Lane l holds of rows l / 4 and l / 4 + 8 of its warp's 16 the runs l % 4 of every 64 bytes. A product does
// not mind the order of its columns: the image of the anchors has them in the order in which the lanes hold
// them, in units that lie in shared memory as they do in the image.
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

// Shared memory: each warp's rows on their way, `stages` times 8 rows, then slots for units. Chunks that do not
// fit pass through the last `ring` slots, spread evenly among those that stay.
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
  constexpr uint32_t kWarpsHere = kRowGroups<S> * 4;
  Plan plan{};
  plan.row_bytes = static_cast<uint32_t>(problem.dim * sizeof(S));
  plan.stage_bytes = 8 * plan.row_bytes + 64;
  plan.chunks = static_cast<uint32_t>((problem.anchor_count + kChunkAnchors - 1) / kChunkAnchors);
  plan.index_bits = 6;
  while (1u << (plan.index_bits - 6) < plan.chunks) ++plan.index_bits;
  uint32_t most = 0;
  for (plan.stages = 2; plan.stages > 0; --plan.stages) {
    most = (kSharedBytes - kMostSlots * 12 - kWarpsHere * 16 - plan.stages * kWarpsHere * plan.stage_bytes) / (U::kBytes * U::kPerChunk);
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

// Rows l / 4 + 8 r of a warp, lane l: halves of float16 [step][2 t + r] as wgmma wants them, multiplied with a
// power of two, and what the rounding left of them (16-bit rows: nothing that counts).
template <class S, int Steps>
struct Fragments {
  static constexpr bool kSplit = sizeof(S) == 4;
  uint32_t high[Steps][4], low[kSplit ? Steps : 1][4];
  float scale[2], length[2], lost[2];  // the power of two, lengths of the multiplied row and of its low part

  __device__ float inverse_scale(int r) const { return __uint_as_float((254u << 23) - __float_as_uint(scale[r])); }
};

// A lane's columns of a row: runs from `first` on, every 4 kRun columns; `count` of them lie in the row.
template <class S, int Steps>
struct Lane {
  static constexpr int kTotal = Steps * kQuad / kRun<S>, kStride = 4 * kRun<S>;
  int first, count;

  __device__ Lane(int quarter, int dim)
      : first(quarter * kRun<S>), count((dim - quarter * kRun<S> + kStride - 1) / kStride) {}
};

template <class S, int Steps>
__device__ __forceinline__ void load_runs(const unsigned char* row, const Lane<S, Steps>& lane,
                                          uint4 (&run)[Lane<S, Steps>::kTotal]) {
#pragma unroll
  for (int i = 0; i < Lane<S, Steps>::kTotal; ++i) {
    const int at = (lane.first + i * Lane<S, Steps>::kStride) * int(sizeof(S));
    run[i] = i < lane.count ? *reinterpret_cast<const uint4*>(row + at) : uint4{};
  }
}

// Element i of runs as loaded.
template <class S>
__device__ __forceinline__ float element_of(const uint4* run, int i) {
  const uint4& bits = run[i / kRun<S>];
  return number(reinterpret_cast<const S*>(&bits)[i % kRun<S>]);
}

// Has the compiler convert runs anew instead of keeping what it has made of them, for want of registers.
template <int N>
__device__ __forceinline__ void forget(uint4 (&run)[N]) {
#pragma unroll
  for (int i = 0; i < N; ++i)
    asm volatile("" : "+r"(run[i].x), "+r"(run[i].y), "+r"(run[i].z), "+r"(run[i].w)::"memory");
}

// The power of two, by its exponent as float32 holds it, that brings `largest` into [2^14, 2^15).
__device__ __forceinline__ uint32_t exponent_into_half(float largest) {
  return largest < INFINITY ? min(268 - (__float_as_uint(largest) >> 23), 253u) : 127u;
}

// The lengths of a row, multiplied and not; the latter is returned. Calls `once_read` when all of it is there.
template <class S, int Steps, class Then>
__device__ __forceinline__ float measure_row(uint4 (&run)[Lane<S, Steps>::kTotal], int r,
                                             Fragments<S, Steps>& out, const Then& once_read) {
  float largest = 0, squares = 0;
  forget(run);
#pragma unroll
  for (int i = 0; i < Steps * kQuad; ++i) largest = fmaxf(largest, fabsf(element_of<S>(run, i)));
  largest = fmaxf(largest, __shfl_xor_sync(kFullWarp, largest, 1));
  largest = fmaxf(largest, __shfl_xor_sync(kFullWarp, largest, 2));
  once_read();
  const uint32_t exponent = exponent_into_half(largest);
  out.scale[r] = __uint_as_float(exponent << 23);
  forget(run);
#pragma unroll
  for (int i = 0; i < Steps * kQuad; ++i) {
    const float value = element_of<S>(run, i) * out.scale[r];
    squares += value * value;
  }
  out.length[r] = sqrtf(sum_over<4>(squares));
  return out.length[r] * out.inverse_scale(r);
}

template <class S, int Steps>
__device__ __forceinline__ void write_unit(uint4 (&run)[Lane<S, Steps>::kTotal], float inverse,
                                           const Lane<S, Steps>& lane, S* y) {
  forget(run);
#pragma unroll
  for (int i = 0; i < Lane<S, Steps>::kTotal; ++i) {
    Run<S> unit;
#pragma unroll
    for (int c = 0; c < kRun<S>; ++c) unit.element[c] = stored<S>(element_of<S>(run, i * kRun<S> + c) * inverse);
    if (i < lane.count) *reinterpret_cast<Run<S>*>(y + lane.first + i * Lane<S, Steps>::kStride) = unit;
  }
}

template <class S, int Steps>
__device__ __forceinline__ void split_row(uint4 (&run)[Lane<S, Steps>::kTotal], int r,
                                          Fragments<S, Steps>& out) {
  float lost = 0;
  forget(run);
#pragma unroll
  for (int step = 0; step < Steps; ++step) {
#pragma unroll
    for (int t = 0; t < 2; ++t) {
      const int i = step * kQuad + 2 * t;
      const float value[2] = {element_of<S>(run, i) * out.scale[r], element_of<S>(run, i + 1) * out.scale[r]};
      const __half2 high = __floats2half2_rn(value[0], value[1]);
      out.high[step][2 * t + r] = *reinterpret_cast<const uint32_t*>(&high);
      if constexpr (Fragments<S, Steps>::kSplit) {
        const float2 kept = __half22float2(high);
        const float left[2] = {value[0] - kept.x, value[1] - kept.y};
        lost += left[0] * left[0] + left[1] * left[1];
        out.low[step][2 * t + r] = pack(left[0], left[1]);
      }
    }
  }
  // 16-bit numbers lose at most the last place of float16's subnormals.
  out.lost[r] = Fragments<S, Steps>::kSplit ? sqrtf(sum_over<4>(lost)) : out.length[r] * 0x1p-30f;
}

// The three largest scores that a lane has seen of a row's share; an index stands in the last places of each.
struct Largest {
  float first = -INFINITY, second = -INFINITY, third = -INFINITY;

  __device__ __forceinline__ void see(float score) {
    const float loser = fminf(first, score);
    first = fmaxf(first, score);
    const float last = fminf(second, loser);
    second = fmaxf(second, loser);
    third = fmaxf(third, last);
  }
};

constexpr int kShares = 2;  // of a lane's scores: three near ties in one cost a search of all anchors

__device__ __forceinline__ float tagged(float score, uint32_t kept, uint32_t index) {
  return __uint_as_float((__float_as_uint(score) & kept) | index);
}

// Scores of a chunk; anchors from `count` on are padding.
__device__ __forceinline__ void see_chunk(float (&sum)[32], uint32_t chunk, int64_t count, uint32_t kept, int quarter,
                                          Largest (&largest)[2][kShares]) {
  const uint32_t base = chunk * kChunkAnchors + 2 * quarter;
  if ((chunk + 1) * kChunkAnchors > count) {
#pragma unroll
    for (int i = 0; i < 32; ++i)
      sum[i] = int64_t(base + i / 4 * 8 + i % 2) < count ? sum[i] : -0x1p127f;
  }
#pragma unroll
  for (int i = 0; i < 32; ++i) largest[i / 2 % 2][i / 4 % kShares].see(
        tagged(sum[i], kept, base + i / 4 * 8 + i % 2));
}

// Exact products of both rows with an anchor each (multiplied as the rows are), in all four lanes of a row.
template <class S, int Steps>
__device__ __forceinline__ void exact_products(const Fragments<S, Steps>& rows, const S* const (&anchor)[2],
                                               const bool (&wanted)[2], const Lane<S, Steps>& lane,
                                               float (&product)[2]) {
  constexpr int kCount = kRun<S>, kTotal = Lane<S, Steps>::kTotal, kAtOnce = kTotal < 8 ? kTotal : 8;
  float sum[2][2] = {};
#pragma unroll
  for (int from = 0; from < kTotal; from += kAtOnce) {
    uint4 run[2][kAtOnce];
#pragma unroll
    for (int r = 0; r < 2; ++r) {
#pragma unroll
      for (int i = 0; i < kAtOnce; ++i) {
        const int at = lane.first + (from + i) * Lane<S, Steps>::kStride;
        run[r][i] = wanted[r] && from + i < lane.count ? *reinterpret_cast<const uint4*>(anchor[r] + at) : uint4{};
      }
    }
#pragma unroll
    for (int r = 0; r < 2; ++r) {
#pragma unroll
      for (int i = 0; i < kAtOnce * kCount; i += 2) {
        const int step = (from * kCount + i) / kQuad, part = 2 * (i % kQuad / 2) + r;
        float2 x = __half22float2(*reinterpret_cast<const __half2*>(&rows.high[step][part]));
        if constexpr (Fragments<S, Steps>::kSplit) {
          const float2 low = __half22float2(*reinterpret_cast<const __half2*>(&rows.low[step][part]));
          x.x += low.x;
          x.y += low.y;
        }
        sum[r][0] += x.x * element_of<S>(run[r], i);
        sum[r][1] += x.y * element_of<S>(run[r], i + 1);
      }
    }
  }
#pragma unroll
  for (int r = 0; r < 2; ++r) product[r] = sum_over<4>(sum[r][0] + sum[r][1]);
}

struct Search {
  float anchor_lost, tag_error;  // what float16 took of an anchor at most; the share that a tag may change
  uint32_t kept;                 // mask of what a tag leaves of a score
};

// The least score that an anchor may have to be the nearest of row r.
template <class S, int Steps>
__device__ __forceinline__ float least_score(const Fragments<S, Steps>& rows, int r, float largest, int64_t dim,
                                             const Search& search) {
  const float length = rows.length[r], share = length > 0 ? rows.lost[r] / length : 0.0f;
  return largest - 2.01f * score_error(share, search.anchor_lost, dim) * length -
         2.1f * search.tag_error * fabsf(largest);
}

// A row with more candidates than one is settled by a second kernel. Until then their places in `nearest` and
// `cosine` hold the candidates, 12 bits each, two and two, with the sign of `nearest` set and their number below it.
constexpr int kMostCandidates = 4, kIndexBits = 12;
constexpr uint32_t kAllAnchors = 7;

__device__ inline bool is_doubtful(int32_t nearest) { return nearest < 0; }
__device__ inline uint32_t candidates_of(int32_t nearest) { return uint32_t(nearest) >> 2 * kIndexBits & 7; }

__device__ inline int32_t candidate(int32_t nearest, float cosine, uint32_t which) {
  const uint32_t two = which < 2 ? uint32_t(nearest) : __float_as_uint(cosine);
  return static_cast<int32_t>(two >> which % 2 * kIndexBits & ((1u << kIndexBits) - 1));
}

// What the scores say of a row.
struct Verdict {
  float least;    // of a candidate
  int own, count;  // candidates of the lane, and of the row
  bool unknown;   // there may be more
  float top;

  __device__ bool doubtful() const { return unknown || count > 1; }
};

template <class S, int Steps>
__device__ __forceinline__ Verdict judge(const Fragments<S, Steps>& rows, int r, const Largest (&share)[kShares],
                                         int64_t dim, const Search& search) {
  Verdict verdict{};
  float top = fmaxf(share[0].first, share[1].first);
  top = fmaxf(top, __shfl_xor_sync(kFullWarp, top, 1));
  verdict.top = fmaxf(top, __shfl_xor_sync(kFullWarp, top, 2));
  verdict.least = least_score(rows, r, verdict.top, dim, search);
  int more = 0;
#pragma unroll
  for (int i = 0; i < kShares; ++i) {
    verdict.own += (share[i].first >= verdict.least) + (share[i].second >= verdict.least);
    more |= share[i].third >= verdict.least;
  }
  int both = verdict.own + (more << 8);
  both += __shfl_xor_sync(kFullWarp, both, 1);
  both += __shfl_xor_sync(kFullWarp, both, 2);
  verdict.count = both & 255;
  verdict.unknown = both >> 8 != 0 || verdict.count > kMostCandidates;
  return verdict;
}

// The candidates of a row as `candidate` reads them, in all four lanes.
__device__ __forceinline__ uint64_t list_candidates(const Verdict& verdict, const Largest (&share)[kShares],
                                                    uint32_t kept, int quarter) {
  int at = verdict.own;
#pragma unroll
  for (int offset = 1; offset < 4; offset *= 2) {
    const int before = __shfl_up_sync(kFullWarp, at, offset, 4);
    if (quarter >= offset) at += before;
  }
  at -= verdict.own;
  uint64_t list = 0;
#pragma unroll
  for (int i = 0; i < kShares; ++i) {
    for (const float score : {share[i].first, share[i].second}) {
      if (score < verdict.least || verdict.unknown) continue;
      list |= uint64_t(__float_as_uint(score) & ~kept) << (at / 2 * 32 + at % 2 * kIndexBits);
      ++at;
    }
  }
  list |= __shfl_xor_sync(kFullWarp, list, 1);
  list |= __shfl_xor_sync(kFullWarp, list, 2);
  const uint32_t count = verdict.unknown ? kAllAnchors : uint32_t(verdict.count);
  return list | 1u << 31 | count << 2 * kIndexBits;
}

// One row against all anchors by a whole warp.
template <class S>
__device__ inline Nearest<float> search_all(const S* x, const S* anchors, const float* inverse, int64_t count,
                                            int64_t dim) {
  constexpr int kOnce = 8;
  const S* same[kOnce];
#pragma unroll
  for (int n = 0; n < kOnce; ++n) same[n] = x;
  Nearest<float> nearest;
  for (int64_t i = 0; i < count; i += kOnce) {
    int32_t index[kOnce];
    float score[kOnce];
#pragma unroll
    for (int n = 0; n < kOnce; ++n) index[n] = static_cast<int32_t>(min(i + n, count - 1));
    exact_scores<S>(same, anchors, index, inverse, dim, true, threadIdx.x % kWarp, score);
#pragma unroll
    for (int n = 0; n < kOnce; ++n) nearest.see(score[n], index[n]);
  }
  return nearest;
}

// Scores the candidates of doubtful rows exactly: a warp looks at 32 rows, and takes those one by one.
template <class S>
__global__ void __launch_bounds__(kWarps* kWarp)
    settle_kernel(Problem problem, const float* inverse, Targets<S> out) {
  const S* anchors = static_cast<const S*>(problem.anchors);
  const int lane = threadIdx.x % kWarp;
  const int64_t step = int64_t(gridDim.x) * kWarps * kWarp;
  for (int64_t first = (int64_t(blockIdx.x) * kWarps + threadIdx.x / kWarp) * kWarp; first < problem.rows;
       first += step) {
    const bool inside = first + lane < problem.rows;
    const int32_t held = inside ? out.nearest[first + lane] : 0;
    const float listed = inside ? out.cosine[first + lane] : 0.0f;
    for (unsigned left = __ballot_sync(kFullWarp, is_doubtful(held)); left; left &= left - 1) {
      const int own = __ffs(left) - 1;
      const int64_t row = first + own;
      const S* x = static_cast<const S*>(problem.x) + row * problem.dim;
      const int32_t head = __shfl_sync(kFullWarp, held, own);
      const float tail = __shfl_sync(kFullWarp, listed, own);
      const uint32_t count = candidates_of(head);
      Nearest<float> nearest;
      if (count == kAllAnchors) {
        nearest = search_all(x, anchors, inverse, problem.anchor_count, problem.dim);
      } else {
        const S* same[kMostCandidates] = {x, x, x, x};
        int32_t index[kMostCandidates];
        float score[kMostCandidates];
#pragma unroll
        for (uint32_t n = 0; n < kMostCandidates; ++n) index[n] = candidate(head, tail, min(n, count - 1));
        exact_scores<S>(same, anchors, index, inverse, problem.dim, true, lane, score);
#pragma unroll
        for (int n = 0; n < kMostCandidates; ++n) nearest.see(score[n], index[n]);
      }
      if (lane == 0) write_nearest<S>(out, row, nearest, out.norm[row], problem.eps);
    }
  }
}

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
    copy(resident() + turn % plan.ring,
         chunk * U::kPerChunk + turn % U::kPerChunk);
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

// A chunk's products with 64 rows, and where they are: the block's chunks in order, round for round.
template <class S, int Steps>
struct Step {
  using U = Units<Steps>;
  uint32_t chunk, turn;
  bool passes;

  __device__ Step(const Plan& plan, uint32_t round, uint32_t chunk_)
      : chunk(chunk_),
        turn((round * plan.passing + plan.passing_before(chunk_)) * U::kPerChunk),
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
  __device__ __forceinline__ void finish(const Image<S, Steps>& image, int64_t count, uint32_t kept, int quarter,
                                         float (&sum)[32], Largest (&largest)[2][kShares]) const {
    hold(sum);
    if (passes) {
#pragma unroll
      for (int part = 0; part < U::kPerChunk; ++part) image.release(turn + part);
    }
    see_chunk(sum, chunk, count, kept, quarter, largest);
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
__device__ __forceinline__ void fetch_rows(const Plan& plan, const void* x, int64_t first, int64_t rows, int lane,
                                           unsigned char* stage, uint64_t* barrier) {
  __syncwarp();
  if (lane == 0) barrier_expect(barrier, 8 * plan.row_bytes);
  __syncwarp();
  if (lane < 8) {
    const auto* row = static_cast<const unsigned char*>(x) + min(first + lane, rows - 1) * plan.row_bytes;
    bulk_copy(stage + plan.row_offset(lane), row, plan.row_bytes, barrier);
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
                              reinterpret_cast<const unsigned char*>(anchors.unit),
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
  Search search{0.0f, exp2f(float(plan.index_bits - 23)), ~0u << plan.index_bits};
  for (int64_t n = lane; n < problem.anchor_count; n += kWarp)
    search.anchor_lost = fmaxf(search.anchor_lost, anchors.lost[n]);
  for (int offset = kWarp / 2; offset; offset /= 2)
    search.anchor_lost = fmaxf(search.anchor_lost, __shfl_xor_sync(kFullWarp, search.anchor_lost, offset));
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
    score_all<S, Steps>(image, rows, round, problem.anchor_count, search.kept, quarter, largest);
    Verdict verdict[2];
    bool wanted[2];
    int32_t index[2];
    const S* anchor[2];
    float product[2], inverse[2];
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      verdict[r] = judge(rows, r, largest[r], problem.dim, search);
      // A row of zeros has products of 0, unless an anchor is not finite.
      const bool zero = rows.length[r] == 0 && search.anchor_lost < INFINITY;
      if (zero) verdict[r].count = verdict[r].unknown = 0;
      index[r] = zero ? 0 : static_cast<int32_t>(__float_as_uint(verdict[r].top) & ~search.kept);
      wanted[r] = zero || (verdict[r].count == 1 && !verdict[r].unknown);
      anchor[r] = static_cast<const S*>(problem.anchors) + index[r] * problem.dim;
      inverse[r] = wanted[r] ? anchors.inverse[index[r]] : 0.0f;
    }
    exact_products<S, Steps>(rows, anchor, wanted, own, product);
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const int64_t row = first + lane / 4 + 8 * r;
      const bool inside = row < problem.rows, waits = inside && verdict[r].doubtful();
      if (inside && quarter == 0) {
        out.norm[row] = norm[r];
        if (!waits) {
          const float cosine = product[r] * rows.inverse_scale(r) * inverse[r];
          write_nearest<S>(out, row, {cosine, index[r]}, norm[r], problem.eps);
        }
      }
      if (!__any_sync(kFullWarp, waits)) continue;
      const uint64_t list = list_candidates(verdict[r], largest[r], search.kept, quarter);
      if (waits && quarter == 0) {
        out.nearest[row] = static_cast<int32_t>(list);
        out.cosine[row] = __uint_as_float(static_cast<uint32_t>(list >> 32));
      }
    }
  }
#endif
}

}  // namespace stratcore::tangent_projection

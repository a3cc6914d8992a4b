#pragma once

#include <cub/block/block_reduce.cuh>
#include <cub/block/block_scan.cuh>

#include "../common/element.cuh"
#include "../common/launch.cuh"
#include "topk_lista.h"
#include "topk_lista_math.h"

// Threshold, exact selection by (magnitude, lower index), zeroing and compact output of rows whose keys fit
// in registers. Legend as in topk_lista.h.
namespace stratcore::topk_lista {

constexpr int kExpertsPerLaunch = 256;  // their k travel as kernel arguments: no copy to the device

static_assert(kExpertsPerLaunch == kMostGroupExperts, "all k of grouped rows travel with one launch");

struct ExpertWidths {
  int32_t k[kExpertsPerLaunch];
};

// k of the experts [begin, end).
inline ExpertWidths widths_of(const Sizes& sizes, int64_t begin, int64_t end) {
  ExpertWidths widths{};
  for (int64_t expert = begin; expert < end; ++expert) {
    widths.k[expert - begin] = static_cast<int32_t>(sizes.k[expert]);
  }
  return widths;
}

template <class T, class S>
struct SelectArguments {
  const T* first;    // [E, B, m]
  const T* second;   // [E, B, m] or null
  const T* theta;    // [E, m] or null
  S* dense;          // [E, B, m]
  T* values;         // [E, B, K]
  int32_t* indices;  // [E, B, K]
  int8_t* support;   // [E, B, m] or null
  int64_t rows, atoms, width;
  int64_t expert_begin, expert_end;  // of this launch
  const int32_t* group_expert;       // [E] whose k counts, or null where each counts for itself

  __device__ int64_t expert_of(int64_t flat) const {
    return expert_end - expert_begin == 1 ? expert_begin : flat / rows;
  }

  __device__ int32_t k_of(int64_t expert, const ExpertWidths& widths) const {
    return widths.k[group_expert ? group_expert[expert] : expert - expert_begin];
  }

  // h of an element; its support is written.
  __device__ T threshold(int64_t expert, int64_t offset, int64_t i) const {
    const T u = second ? first[offset + i] + second[offset + i] : first[offset + i];
    const T bound = theta ? theta[expert * atoms + i] : T(0);
    if (support) support[offset + i] = threshold_sign(u, bound);
    return theta ? soft_threshold(u, bound) : u;
  }

  // A kept element goes to its rank among the kept; behind them the others, lowest index first, fill the
  // width.
  __device__ void write(int64_t flat, int64_t i, int32_t k, bool kept, int64_t kept_before, T value) const {
    dense[flat * atoms + i] = stored<S>(kept ? value : T(0));
    const int64_t slot = kept ? kept_before : k + (i - kept_before);
    if (slot < width) {
      values[flat * width + slot] = kept ? value : T(0);
      indices[flat * width + slot] = static_cast<int32_t>(i);
    }
  }
};

// Where the k-th largest of a row's keys lies: at least k keys are >= low, fewer than k are >= high. The
// first pivots go down from the largest key in growing strides, for the k-th is mostly within a few octaves
// of it.
struct Bracket {
  uint32_t low, high, stride;
  int32_t at_low, at_high;  // keys >= low, >= high
  int32_t k;

  __device__ Bracket(uint32_t largest, int32_t count, int32_t k_)
      : low(0), high(largest + 1), stride(1u << 22), at_low(count), at_high(0), k(k_) {}

  __device__ bool open() const { return at_low != k && high - low > 1; }

  __device__ uint32_t below_top(uint32_t distance) const { return high > distance ? high - distance : 1; }

  // After the first one, which is 1: what the threshold has left.
  __device__ uint32_t next_pivot() {
    if (low > 1) return low + (high - low) / 2;
    const uint32_t pivot = max(below_top(stride), low + 1);
    stride *= 2;
    return pivot;
  }

  __device__ void narrow(uint32_t pivot, int32_t count) {
    if (count >= k) {
      if (pivot > low) low = pivot, at_low = count;
    } else if (pivot < high) {
      high = pivot, at_high = count;
    }
  }

  // Keys in [low, high) are kept in order of their index while there is room.
  __device__ int32_t room() const { return k - at_high; }
};

template <int kLanes>
__device__ int32_t group_sum(int32_t value) {
#pragma unroll
  for (int offset = kLanes / 2; offset > 0; offset /= 2) value += __shfl_xor_sync(~0u, value, offset);
  return value;
}

template <int kLanes>
__device__ uint32_t group_max(uint32_t value) {
#pragma unroll
  for (int offset = kLanes / 2; offset > 0; offset /= 2)
    value = max(value, __shfl_xor_sync(~0u, value, offset));
  return value;
}

// kLanes lanes a row, kPer of its entries each: lane l has entries l, l + kLanes, ... No lane leaves before
// its warp.
template <int kLanes, int kPer, class S>
__global__ void __launch_bounds__(kThreads)
    select_by_lanes_kernel(SelectArguments<float, S> args, ExpertWidths widths) {
  const int lane = threadIdx.x % kLanes, shift = threadIdx.x % 32 / kLanes * kLanes;
  const uint32_t group = kLanes == 32 ? ~0u : (1u << kLanes) - 1, before = (1u << lane) - 1;
  const int64_t end = args.expert_end * args.rows, stride = int64_t(gridDim.x) * (kThreads / kLanes);
  const int64_t begin = args.expert_begin * args.rows + int64_t(blockIdx.x) * (kThreads / kLanes);
  for (int64_t first = begin; first < end; first += stride) {
    const int64_t flat = first + threadIdx.x / kLanes;
    const bool present = flat < end;
    const int64_t expert = present ? args.expert_of(flat) : args.expert_begin, offset = flat * args.atoms;
    const int32_t k = args.k_of(expert, widths);
    float h[kPer];
    uint32_t largest = 0;
#pragma unroll
    for (int j = 0; j < kPer; ++j) {
      const int i = j * kLanes + lane;
      h[j] = present && i < args.atoms ? args.threshold(expert, offset, i) : 0.0f;
      largest = max(largest, magnitude_key(h[j]));
    }
    Bracket bracket(group_max<kLanes>(largest), kLanes * kPer, k);
    uint32_t pivot = 1;  // keys >= 1: what the threshold has left
    while (__any_sync(~0u, bracket.open())) {
      int32_t count = 0;
#pragma unroll
      for (int j = 0; j < kPer; ++j) count += magnitude_key(h[j]) >= pivot;
      count = group_sum<kLanes>(count);
      if (bracket.open()) bracket.narrow(pivot, count);
      pivot = bracket.next_pivot();
    }
    int32_t inside_before = 0, kept_before = 0;
#pragma unroll
    for (int j = 0; j < kPer; ++j) {
      const uint32_t key = magnitude_key(h[j]);
      const bool inside = key >= bracket.low && key < bracket.high;
      const uint32_t inside_bits = __ballot_sync(~0u, inside) >> shift & group;
      const bool kept =
          key >= bracket.high || (inside && inside_before + __popc(inside_bits & before) < bracket.room());
      const uint32_t kept_bits = __ballot_sync(~0u, kept) >> shift & group;
      const int i = j * kLanes + lane;
      if (present && i < args.atoms) {
        args.write(flat, i, k, kept, kept_before + __popc(kept_bits & before), h[j]);
      }
      inside_before += __popc(inside_bits);
      kept_before += __popc(kept_bits);
    }
  }
}

constexpr int kRowThreads = 512, kRowWarps = kRowThreads / 32;

// Sums of three counts over the block; every thread has them after one barrier. `slots` is double-buffered.
__device__ inline int3 block_counts(int3 own, int3* slots) {
  const int32_t pair = __reduce_add_sync(~0u, own.x | own.y << 16), third = __reduce_add_sync(~0u, own.z);
  if (threadIdx.x % 32 == 0) slots[threadIdx.x / 32] = make_int3(pair & 0xffff, pair >> 16 & 0xffff, third);
  __syncthreads();
  int3 sum = make_int3(0, 0, 0);
#pragma unroll
  for (int warp = 0; warp < kRowWarps; ++warp) {
    const int3 part = slots[warp];
    sum.x += part.x, sum.y += part.y, sum.z += part.z;
  }
  return sum;
}

// Ranks of flagged entries, in order of the index i = j * kRowThreads + thread: before[j] flagged ones come
// before it.
template <int kPer>
struct BlockRanks {
  using Scan = cub::BlockScan<int32_t, kRowThreads>;
  typename Scan::TempStorage scan;
  int32_t counts[kPer * kRowWarps];

  // Flagged entries before entry j of this warp's first lane lie in counts[j * kRowWarps + warp].
  __device__ void collect(uint32_t flags) {
    const int warp = threadIdx.x / 32;
    __syncthreads();
#pragma unroll
    for (int j = 0; j < kPer; ++j) {
      const uint32_t bits = __ballot_sync(~0u, flags >> j & 1);
      if (threadIdx.x % 32 == 0) counts[j * kRowWarps + warp] = __popc(bits);
    }
    __syncthreads();
    const int slot = threadIdx.x;
    int32_t own = slot < kPer * kRowWarps ? counts[slot] : 0, ahead;
    Scan(scan).ExclusiveSum(own, ahead);
    if (slot < kPer * kRowWarps) counts[slot] = ahead;
    __syncthreads();
  }

  __device__ int32_t before(uint32_t flags, int j) const {
    const uint32_t bits = __ballot_sync(~0u, flags >> j & 1);
    return counts[j * kRowWarps + threadIdx.x / 32] + __popc(bits & ((1u << threadIdx.x % 32) - 1));
  }
};

// One block a row, kPer entries a thread.
template <int kPer, class S>
__global__ void __launch_bounds__(kRowThreads)
    select_by_block_kernel(SelectArguments<float, S> args, ExpertWidths widths) {
  static_assert(kPer <= 32 && kPer * kRowWarps <= kRowThreads, "flags in one word, one scan of the counts");
  __shared__ int3 slots[2][kRowWarps];
  __shared__ BlockRanks<kPer> ranks;
  const int64_t end = args.expert_end * args.rows;
  int parity = 0;
  for (int64_t flat = args.expert_begin * args.rows + blockIdx.x; flat < end; flat += gridDim.x) {
    const int64_t expert = args.expert_of(flat), offset = flat * args.atoms;
    const int32_t k = args.k_of(expert, widths);
    float h[kPer];
    uint32_t largest = 0;
#pragma unroll
    for (int j = 0; j < kPer; ++j) {
      const int i = j * kRowThreads + threadIdx.x;
      h[j] = i < args.atoms ? args.threshold(expert, offset, i) : 0.0f;
      largest = max(largest, magnitude_key(h[j]));
    }
    largest = __reduce_max_sync(~0u, largest);
    if (threadIdx.x % 32 == 0) slots[parity][threadIdx.x / 32].x = static_cast<int>(largest);
    __syncthreads();
#pragma unroll
    for (int warp = 0; warp < kRowWarps; ++warp) {
      largest = max(largest, static_cast<uint32_t>(slots[parity][warp].x));
    }
    parity ^= 1;
    Bracket bracket(largest, kRowThreads * kPer, k);
    uint3 pivot = make_uint3(1, bracket.below_top(4 * bracket.stride), bracket.below_top(bracket.stride));
    while (bracket.open()) {
      int3 count = make_int3(0, 0, 0);
#pragma unroll
      for (int j = 0; j < kPer; ++j) {
        const uint32_t key = magnitude_key(h[j]);
        count.x += key >= pivot.x, count.y += key >= pivot.y, count.z += key >= pivot.z;
      }
      count = block_counts(count, slots[parity]);
      parity ^= 1;
      bracket.narrow(pivot.x, count.x);
      bracket.narrow(pivot.y, count.y);
      bracket.narrow(pivot.z, count.z);
      const uint32_t quarter = max((bracket.high - bracket.low) / 4, 1u);
      const auto at = [&](uint32_t step) { return min(bracket.low + step * quarter, bracket.high - 1); };
      pivot = make_uint3(at(1), at(2), at(3));
    }
    uint32_t inside = 0, kept = 0;
#pragma unroll
    for (int j = 0; j < kPer; ++j) {
      const uint32_t key = magnitude_key(h[j]);
      inside |= uint32_t(key >= bracket.low && key < bracket.high) << j;
      kept |= uint32_t(key >= bracket.high) << j;
    }
    if (bracket.at_low == k) {
      kept |= inside;
    } else {
      ranks.collect(inside);
#pragma unroll
      for (int j = 0; j < kPer; ++j) {
        const bool fits = ranks.before(inside, j) < bracket.room();
        kept |= (fits ? inside : 0) & 1u << j;
      }
    }
    ranks.collect(kept);
#pragma unroll
    for (int j = 0; j < kPer; ++j) {
      const int i = j * kRowThreads + threadIdx.x;
      const int32_t kept_before = ranks.before(kept, j);
      if (i < args.atoms) args.write(flat, i, k, kept >> j & 1, kept_before, h[j]);
    }
  }
}

}  // namespace stratcore::topk_lista

#pragma once

#include "eights.cuh"
#include "select.cuh"

// One step of long rows in one kernel: u from memory or with rows of S^T gathered, threshold, exact
// selection. Legend as in topk_lista.h.
namespace stratcore::topk_lista {

constexpr int kEightsPerThread = 4, kWideEntries = kEight * kEightsPerThread;
constexpr int kMostCandidates = 1024, kMostWideWidth = 256;

template <class S>
struct WideStep {
  const float* first;            // [E, B, m]
  const float* second;           // [E, B, m] or null
  const float* theta;            // [E, m] or null
  const S* table;                // S^T [E, m, m] or null
  const float* previous_values;  // [E, B, K] of the code that meets the table
  const int32_t* previous_indices;
  S* dense;          // [E, B, m] or null; may be `first`
  float* values;     // [E, B, K]
  int32_t* indices;  // [E, B, K]
  int8_t* support;   // [E, B, m] or null
  int64_t rows, atoms, width;
  int64_t expert_begin, expert_end;  // of this launch
  const int32_t* group_expert;       // [E] whose k counts, or null where each counts for itself
};

// Orders entries as the selection does: by magnitude, then the lower index. The last bit is the sign.
struct Ranked {
  uint64_t order;

  __device__ static Ranked of(float value, uint32_t atom) {
    const uint32_t last = (0x7fffffffu - atom) << 1 | __float_as_uint(value) >> 31;
    return {uint64_t(magnitude_key(value)) << 32 | last};
  }
  __device__ int32_t atom() const { return 0x7fffffff - static_cast<int32_t>(uint32_t(order) >> 1); }
  __device__ float value() const {
    return __uint_as_float(uint32_t(order >> 32) | uint32_t(order & 1) << 31);
  }
};

constexpr uint64_t kSmallestNonzero = uint64_t(1) << 32;

template <int kThreads_>
struct WideShared {
  uint64_t candidates[kMostCandidates];
  uint64_t kept[kMostWideWidth];
  float list_value[kMostWideWidth];
  int32_t list_atom[kMostWideWidth];
  uint32_t low[kThreads_ / 32];
  int32_t counts[2][kThreads_ / 32];
  int32_t count;
};

// The n-th largest of the 32 values of a warp, n from 1 on.
__device__ inline uint32_t nth_of_warp(uint32_t value, int n) {
  const int lane = threadIdx.x % 32;
#pragma unroll
  for (int size = 2; size <= 32; size *= 2) {
#pragma unroll
    for (int apart = size / 2; apart > 0; apart /= 2) {
      const uint32_t other = __shfl_xor_sync(~0u, value, apart);
      const bool descending = (lane & size) == 0, first = (lane & apart) == 0;
      value = descending == first ? max(value, other) : min(value, other);
    }
  }
  return __shfl_sync(~0u, value, n - 1);
}

// Where too many entries are at or above `low`, a bound that leaves k or more of them, but no more than the
// list takes. By halves: a path for rows of equal magnitudes.
template <int kThreads_>
__device__ inline uint64_t raise_bound(const float* h, uint64_t low, int32_t count, int32_t k,
                                       WideShared<kThreads_>& shared) {
  uint64_t high = ~uint64_t(0);
#pragma unroll 1
  for (int parity = 0; count > kMostCandidates; parity ^= 1) {
    const uint64_t middle = low + (high - low) / 2;
    int32_t own = 0;
#pragma unroll 1
    for (int j = 0; j < kWideEntries; ++j) {
      const int atom = (j / kEight * kThreads_ + static_cast<int>(threadIdx.x)) * kEight + j % kEight;
      own += Ranked::of(h[j], atom).order >= middle;
    }
    own = __reduce_add_sync(~0u, own);
    if (threadIdx.x % 32 == 0) shared.counts[parity][threadIdx.x / 32] = own;
    __syncthreads();
    int32_t above = 0;
#pragma unroll 1
    for (int warp = 0; warp < kThreads_ / 32; ++warp) above += shared.counts[parity][warp];
    if (above >= k) {
      low = middle, count = above;
    } else {
      high = middle;
    }
  }
  return low;
}

// The threads of a block with one row: kWideEntries entries each, in eights that stand kThreads_ eights
// apart.
template <int kThreads_, class S, bool kFull>
struct WideRow {
  const WideStep<S>& step;
  WideShared<kThreads_>& shared;
  const int64_t flat, expert;
  const int32_t k;
  float h[kEightsPerThread][kEight];

  __device__ static int at(int part) { return (part * kThreads_ + static_cast<int>(threadIdx.x)) * kEight; }

  // The same where the compiler must not keep what it computed from it before: there are no registers for it.
  __device__ static int at_anew(int part) {
    int thread = static_cast<int>(threadIdx.x);
    asm volatile("" : "+r"(thread));
    return (part * kThreads_ + thread) * kEight;
  }

  // Rows of exactly all entries need no bounds, and their parts lie at constant distances.
  template <class V>
  __device__ Eight<V> part_of(const V* row, int part) const {
    if constexpr (kFull) return reinterpret_cast<const Eight<V>*>(row)[part * kThreads_ + threadIdx.x];
    return *reinterpret_cast<const Eight<V>*>(row + (at(part) < step.atoms ? at(part) : 0));
  }

  __device__ bool inside(int part) const { return kFull || at(part) < step.atoms; }

  __device__ void load() {
    const int64_t offset = flat * step.atoms;
#pragma unroll
    for (int part = 0; part < kEightsPerThread; ++part) {
      const auto first = part_of(step.first + offset, part);
#pragma unroll
      for (int i = 0; i < kEight; ++i) h[part][i] = inside(part) ? first.element[i] : 0.0f;
    }
    if (!step.second) return;
#pragma unroll
    for (int part = 0; part < kEightsPerThread; ++part) {
      const auto second = part_of(step.second + offset, part);
#pragma unroll
      for (int i = 0; i < kEight; ++i) h[part][i] += inside(part) ? second.element[i] : 0.0f;
    }
  }

  // u += S z: rows of S^T at the entries of z.
  __device__ void gather() {
    for (int s = threadIdx.x; s < k; s += kThreads_) {
      shared.list_value[s] = step.previous_values[flat * step.width + s];
      shared.list_atom[s] = step.previous_indices[flat * step.width + s];
    }
    __syncthreads();
    const int64_t atoms = step.atoms;
    for (int s = 0; s < k; ++s) {
      const float factor = shared.list_value[s];
      if (factor == 0.0f) continue;
      const S* from = step.table + (expert * atoms + shared.list_atom[s]) * atoms;
      Eight<S> column[kEightsPerThread];
#pragma unroll
      for (int part = 0; part < kEightsPerThread; ++part) column[part] = part_of(from, part);
#pragma unroll
      for (int part = 0; part < kEightsPerThread; ++part) {
        const float weight = inside(part) ? factor : 0.0f;
#pragma unroll
        for (int i = 0; i < kEight; ++i) h[part][i] += weight * number(column[part].element[i]);
      }
    }
  }

  // h of u, support written; returns the largest key of this thread.
  __device__ uint32_t threshold() {
    uint32_t largest = 0;
#pragma unroll
    for (int part = 0; part < kEightsPerThread; ++part) {
      Eight<float> bound{};
      if (step.theta) bound = part_of(step.theta + expert * step.atoms, part);
      int8_t sign[kEight];
#pragma unroll
      for (int i = 0; i < kEight; ++i) {
        const float u = h[part][i];
        sign[i] = threshold_sign(u, bound.element[i]);
        if (step.theta && inside(part)) h[part][i] = soft_threshold(u, bound.element[i]);
        largest = max(largest, magnitude_key(h[part][i]));
      }
      if (step.support) {
        store_signs(step.support + flat * step.atoms, at(part), step.atoms, sign);
      }
    }
    return largest;
  }

  __device__ void copy_to(float* copy) const {
#pragma unroll
    for (int j = 0; j < kWideEntries; ++j) copy[j] = h[j / kEight][j % kEight];
  }

  // Entries from `least` on become candidates; returns how many there are, listed or not.
  __device__ int32_t collect(uint64_t least) {
    const auto key = static_cast<uint32_t>(least >> 32);
    uint32_t flags = 0;
#pragma unroll
    for (int part = 0; part < kEightsPerThread; ++part) {
#pragma unroll
      for (int i = 0; i < kEight; ++i) {
        flags |= uint32_t(magnitude_key(h[part][i]) >= key) << (part * kEight + i);
      }
    }
    if (flags) {
      float copy[kWideEntries];  // few threads have any: registers cannot be indexed
      copy_to(copy);
      for (; flags; flags &= flags - 1) {
        const int j = __ffs(flags) - 1;
        const uint64_t order = Ranked::of(copy[j], at(j / kEight) + j % kEight).order;
        if (order < least) continue;
        const int32_t slot = atomicAdd(&shared.count, 1);
        if (slot < kMostCandidates) shared.candidates[slot] = order;
      }
    }
    __syncthreads();
    return shared.count;
  }

  // At least min(k, non-zeros) candidates, no zeros; returns their number. Every warp has its share of the k
  // at or above its bound, so the smallest bound leaves k or more, and mostly few more.
  __device__ int32_t find_candidates(uint32_t largest) {
    constexpr int kWarps = kThreads_ / 32;
    const uint32_t bound = nth_of_warp(largest, (k + kWarps - 1) / kWarps);
    if (threadIdx.x % 32 == 0) shared.low[threadIdx.x / 32] = bound;
    if (threadIdx.x == 0) shared.count = 0;
    __syncthreads();
    uint32_t smallest = shared.low[0];
#pragma unroll
    for (int warp = 1; warp < kWarps; ++warp) smallest = min(smallest, shared.low[warp]);
    uint64_t low = uint64_t(max(smallest, 1u)) << 32;
    int32_t count = collect(low);
    if (count <= kMostCandidates) return count;
    float copy[kWideEntries];
    copy_to(copy);
    low = raise_bound(copy, low, count, k, shared);
    if (threadIdx.x == 0) shared.count = 0;
    __syncthreads();
    return collect(low);
  }

  // How many of the kept entries stand before an atom, and whether it is one of them.
  __device__ int2 look_up(int32_t atom, int32_t kept) const {
    int2 result = make_int2(0, 0);
    for (int32_t i = 0; i < kept; ++i) {
      const int32_t other = Ranked{shared.kept[i]}.atom();
      result.x += other < atom, result.y |= other == atom;
    }
    return result;
  }

  // The k largest of the candidates into shared.kept, zeros with the lowest indices where they are fewer.
  // Returns the order of the smallest kept non-zero.
  __device__ uint64_t keep(int32_t count) {
    for (int j = threadIdx.x; j < count; j += kThreads_) {
      const uint64_t own = shared.candidates[j];
      int32_t rank = 0;
#pragma unroll 4
      for (int i = 0; i < count; ++i) rank += shared.candidates[i] > own;
      if (rank < k) shared.kept[rank] = own;
    }
    __syncthreads();
    if (count >= k) return shared.kept[k - 1];
    const auto atom = static_cast<int32_t>(threadIdx.x);  // k <= kThreads_
    if (atom < k) {
      const int2 found = look_up(atom, count);
      const int32_t slot = count + atom - found.x;
      if (!found.y && slot < k) shared.kept[slot] = Ranked::of(0.0f, atom).order;
    }
    __syncthreads();
    return kSmallestNonzero;
  }

  __device__ void write(uint64_t smallest) {
    float* values = step.values + flat * step.width;
    int32_t* indices = step.indices + flat * step.width;
    for (int s = threadIdx.x; s < k; s += kThreads_) {
      const Ranked own{shared.kept[s]};
      const int32_t slot = look_up(own.atom(), k).x;
      values[slot] = own.value(), indices[slot] = own.atom();
    }
    for (int atom = threadIdx.x; k < step.width && atom < step.width; atom += kThreads_) {
      const int2 found = look_up(atom, k);
      const int64_t slot = k + atom - found.x;
      if (!found.y && slot < step.width) values[slot] = 0.0f, indices[slot] = atom;
    }
    if (!step.dense) return;
    const auto smallest_key = static_cast<uint32_t>(smallest >> 32);
#pragma unroll
    for (int part = 0; part < kEightsPerThread; ++part) {
      const int first = at_anew(part);
      float kept[kEight];
#pragma unroll
      for (int i = 0; i < kEight; ++i) {
        const uint32_t key = magnitude_key(h[part][i]), last = Ranked::of(h[part][i], first + i).order;
        const bool stays = key > smallest_key || (key == smallest_key && last >= uint32_t(smallest));
        kept[i] = stays ? h[part][i] : 0.0f;
      }
      store_eight<true>(step.dense + flat * step.atoms, first, step.atoms, kept);
    }
  }
};

// One block a step.
template <int kThreads_, class S, bool kGather, bool kFull>
__global__ void __launch_bounds__(kThreads_, 1024 / kThreads_)
    select_wide_kernel(WideStep<S> step, ExpertWidths widths) {
  __shared__ WideShared<kThreads_> shared;
  const int64_t flat = step.expert_begin * step.rows + blockIdx.x, expert = flat / step.rows;
  const int64_t counted = step.group_expert ? step.group_expert[expert] : expert - step.expert_begin;
  WideRow<kThreads_, S, kFull> row{step, shared, flat, expert, widths.k[counted], {}};
  row.load();
  if constexpr (kGather) row.gather();
  const int32_t count = row.find_candidates(row.threshold());
  row.write(row.keep(count));
}

template <int kThreads_, class S>
Status launch_wide(const WideStep<S>& step, const ExpertWidths& widths, cudaStream_t stream) {
  const int64_t rows = (step.expert_end - step.expert_begin) * step.rows;
  const bool full = step.atoms == kThreads_ * kWideEntries;
  const auto gathering =
      full ? select_wide_kernel<kThreads_, S, true, true> : select_wide_kernel<kThreads_, S, true, false>;
  const auto selecting =
      full ? select_wide_kernel<kThreads_, S, false, true> : select_wide_kernel<kThreads_, S, false, false>;
  const auto kernel = step.table ? gathering : selecting;
  kernel<<<static_cast<unsigned>(rows), kThreads_, 0, stream>>>(step, widths);
  return launch_status();
}

// Rows that most_wide_width has let through: every warp has a share of at most 32 of the k.
template <class S>
Status select_wide(const WideStep<S>& step, const ExpertWidths& widths, cudaStream_t stream) {
  if (step.atoms <= 2048) return launch_wide<64>(step, widths, stream);
  if (step.atoms <= 4096) return launch_wide<128>(step, widths, stream);
  if (step.atoms <= 8192) return launch_wide<256>(step, widths, stream);
  return launch_wide<512>(step, widths, stream);
}

}  // namespace stratcore::topk_lista

#pragma once

#include <climits>

#include "../common/warp.cuh"
#include "select.cuh"

// Selection with one warp a row: lane l has the entries l, l + 32, ... of the row in registers. The k-th
// largest of the lanes' maxima is a lower bound of the row's k-th largest; the few entries above it are
// gathered, one a lane, and ranked there. Legend as in topk_lista.h.
namespace stratcore::topk_lista {

constexpr uint32_t kInfinityKey = 0x7f800000;  // of NaN they are larger

// Kept are the entries with a larger key, and those with this key up to this index.
struct LastKept {
  uint32_t key;
  int32_t index;
};

// The few entries of a row from which the kept ones are chosen, in the order of their index.
struct Candidates {
  float value[kWarp];
  int32_t index[kWarp];
};

// One row of kPer entries a lane, in a full row all of them; entries beyond the row are 0 and come after all
// others.
template <int kPer, bool kFull>
struct WarpRow {
  float h[kPer];
  int lane;
  int32_t atoms, k;

  __device__ uint32_t key(int j) const { return magnitude_key(h[j]); }
  __device__ int32_t at(int j) const { return j * kWarp + lane; }
  // As a comparison of the lane, so that no register holds at(j).
  __device__ bool inside(int j) const { return kFull || lane < atoms - j * kWarp; }
  __device__ bool kept(int j, const LastKept& last) const {
    return key(j) > last.key || (key(j) == last.key && lane <= last.index - j * kWarp);
  }
  __device__ uint32_t before() const { return (1u << lane) - 1; }

  // All loads of a kind together, without a store between two of them.
  __device__ void load(const float* first, const float* second, const float* theta) {
#pragma unroll
    for (int j = 0; j < kPer; ++j) h[j] = inside(j) ? first[at(j)] : 0.0f;
    if (second) {
#pragma unroll
      for (int j = 0; j < kPer; ++j) h[j] += inside(j) ? second[at(j)] : 0.0f;
    }
    if (theta) {
#pragma unroll
      for (int j = 0; j < kPer; ++j) {
        if (inside(j)) h[j] = soft_threshold(h[j], __ldg(theta + at(j)));
      }
    }
  }

  // What the threshold passes is not 0, and has the sign of u.
  __device__ void store_support(int8_t* support) const {
#pragma unroll
    for (int j = 0; j < kPer; ++j) {
      if (inside(j)) support[at(j)] = threshold_sign(h[j], 0.0f);
    }
  }

  // A key that at least k entries reach: the k-th largest of the lanes' maxima, 0 for k > 32.
  __device__ uint32_t lower_bound(uint32_t& largest) const {
    uint32_t own = 0;
#pragma unroll
    for (int j = 0; j < kPer; ++j) own = max(own, key(j));
    largest = __reduce_max_sync(kFullWarp, own);
    if (k > kWarp) return 0;
    int32_t larger = 0;
#pragma unroll
    for (int other = 0; other < kWarp; ++other) larger += __shfl_sync(kFullWarp, own, other) > own;
    return __reduce_min_sync(kFullWarp, larger < k ? own : UINT_MAX);
  }

  // Without NaN magnitudes order like their keys, and are no further registers.
  __device__ bool reaches(int j, uint32_t low) const { return fabsf(h[j]) >= __uint_as_float(low); }

  // Entries, none of them NaN, whose key reaches `low` > 0, in the order of their index; of more than 32 only
  // the number counts.
  __device__ int32_t gather(uint32_t low, Candidates& list) const {
    int32_t count = 0;
#pragma unroll
    for (int j = 0; j < kPer; ++j) {
      const bool taken = reaches(j, low);
      const uint32_t bits = __ballot_sync(kFullWarp, taken);
      const int32_t slot = count + __popc(bits & before());
      if (taken && slot < kWarp) list.value[slot] = h[j], list.index[slot] = at(j);
      count += __popc(bits);
    }
    __syncwarp();
    return count;
  }

  // The k largest of at most 32 candidates, one a lane; the kept ones are written.
  __device__ LastKept rank(const Candidates& list, int32_t count, float* values, int32_t* indices) const {
    const float value = lane < count ? list.value[lane] : 0.0f;
    const int32_t index = list.index[lane];
    const uint32_t own_key = magnitude_key(value);
    int32_t larger = 0;
    for (int begin = 0; begin < count; begin += 8) {
#pragma unroll
      for (int i = 0; i < 8; ++i) larger += __shfl_sync(kFullWarp, own_key, begin + i) > own_key;
    }
    bool kept = lane < count && larger < k;
    const uint32_t smallest = __reduce_min_sync(kFullWarp, kept ? own_key : UINT_MAX);
    uint32_t bits = __ballot_sync(kFullWarp, kept);
    LastKept last{smallest, INT_MAX};
    if (__popc(bits) > k) {  // more are equal to the k-th than there is room for
      const uint32_t equal = __ballot_sync(kFullWarp, kept && own_key == smallest);
      const int32_t room = k - __popc(bits & ~equal);
      kept = kept && (own_key > smallest || __popc(equal & before()) < room);
      bits = __ballot_sync(kFullWarp, kept);
      last.index = __reduce_max_sync(kFullWarp, kept && own_key == smallest ? index : 0);
    }
    if (kept) {
      values[__popc(bits & before())] = value;
      indices[__popc(bits & before())] = index;
    }
    return last;
  }

  // The same for any number of entries that reach `low`, by counts.
  __device__ LastKept search(uint32_t largest, uint32_t low, float* values, int32_t* indices) const {
    Bracket bracket(largest, kWarp * kPer, k);
    uint32_t pivot = max(low, 1u);
    while (bracket.open()) {
      int32_t count = 0;
#pragma unroll
      for (int j = 0; j < kPer; ++j) count += key(j) >= pivot;
      bracket.narrow(pivot, __reduce_add_sync(kFullWarp, count));
      pivot = bracket.next_pivot();
    }
    LastKept last{bracket.low, INT_MAX};
    if (bracket.at_low != k) {  // all keys of the bracket are equal
      int32_t room = bracket.room();
#pragma unroll
      for (int j = 0; j < kPer; ++j) {
        const bool equal = key(j) == bracket.low;
        const uint32_t bits = __ballot_sync(kFullWarp, equal);
        const int32_t count = __popc(bits);
        if (room > 0 && count >= room) {
          const bool is_last = equal && __popc(bits & before()) == room - 1;
          last.index = __reduce_max_sync(kFullWarp, is_last ? at(j) : 0);
        }
        room -= count;
      }
    }
    int32_t kept_before = 0;
#pragma unroll
    for (int j = 0; j < kPer; ++j) {
      const bool keep = kept(j, last);
      const uint32_t bits = __ballot_sync(kFullWarp, keep);
      const int32_t slot = kept_before + __popc(bits & before());
      if (keep) {
        values[slot] = h[j];
        indices[slot] = at(j);
      }
      kept_before += __popc(bits);
    }
    return last;
  }

  // Slots behind the k kept entries: the lowest unused ones, with value 0.
  __device__ void fill(const LastKept& last, int32_t width, float* values, int32_t* indices) const {
    int32_t kept_before = 0;
#pragma unroll
    for (int j = 0; j < kPer; ++j) {
      if (j * kWarp >= width) return;
      const bool keep = kept(j, last);
      const uint32_t bits = __ballot_sync(kFullWarp, keep);
      const int32_t slot = k + at(j) - kept_before - __popc(bits & before());
      if (!keep && slot < width && inside(j)) {
        values[slot] = 0.0f;
        indices[slot] = at(j);
      }
      kept_before += __popc(bits);
    }
  }

  template <class S>
  __device__ void store(const LastKept& last, bool ordinary, S* dense) const {
    if (ordinary && last.index == INT_MAX) {
#pragma unroll
      for (int j = 0; j < kPer; ++j) {
        if (inside(j)) dense[at(j)] = stored<S>(reaches(j, last.key) ? h[j] : 0.0f);
      }
    } else {
#pragma unroll
      for (int j = 0; j < kPer; ++j) {
        if (inside(j)) dense[at(j)] = stored<S>(kept(j, last) ? h[j] : 0.0f);
      }
    }
  }
};

template <int kPer, bool kFull, class S>
__global__ void __launch_bounds__(kThreads, kPer > 16 ? 3 : 4)
    select_by_warp_kernel(SelectArguments<float, S> args, ExpertWidths widths) {
  __shared__ Candidates lists[kThreads / kWarp];
  const int64_t flat =
      args.expert_begin * args.rows + int64_t(blockIdx.x) * (kThreads / kWarp) + threadIdx.x / kWarp;
  if (flat >= args.expert_end * args.rows) return;
  Candidates& list = lists[threadIdx.x / kWarp];
  WarpRow<kPer, kFull> row;
  row.lane = threadIdx.x % kWarp;
  row.atoms = static_cast<int32_t>(args.atoms);
  const int64_t expert = args.expert_of(flat), offset = flat * args.atoms;
  row.k = args.k_of(expert, widths);
  row.load(args.first + offset, args.second ? args.second + offset : nullptr,
           args.theta ? args.theta + expert * args.atoms : nullptr);
  if (args.support) row.store_support(args.support + offset);
  float* values = args.values + flat * args.width;
  int32_t* indices = args.indices + flat * args.width;
  uint32_t largest;
  const uint32_t low = row.lower_bound(largest);
  const bool ordinary = largest <= kInfinityKey;
  const int32_t count = low > 0 && ordinary ? row.gather(low, list) : kWarp + 1;
  const LastKept last =
      count <= kWarp ? row.rank(list, count, values, indices) : row.search(largest, low, values, indices);
  if (row.k < args.width) row.fill(last, static_cast<int32_t>(args.width), values, indices);
  row.store(last, ordinary, args.dense + offset);
}

}  // namespace stratcore::topk_lista

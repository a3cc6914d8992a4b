#pragma once

#include "anchor_image.cuh"
#include "row_fragments.cuh"

// From approximate scores to the nearest anchor: the largest scores, which anchors these leave, and the
// second kernel, for rows that they leave more than one. Legend as in tangent_projection.h.
namespace stratcore::tangent_projection {

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

// Scores with 2 N neighboring anchors from `first` on; those from `count` on are padding.
template <int N, class Kept, int Shares>
__device__ __forceinline__ void see_scores(float (&sum)[N], uint32_t first, int64_t count, uint32_t kept,
                                           int quarter, Kept (&largest)[2][Shares]) {
  const uint32_t base = first + 2 * quarter;
  if (first + 2 * N > count) {
#pragma unroll
    for (int i = 0; i < N; ++i) sum[i] = int64_t(base + i / 4 * 8 + i % 2) < count ? sum[i] : -0x1p127f;
  }
#pragma unroll
  for (int i = 0; i < N; ++i)
    largest[i / 2 % 2][i / 4 % Shares].see(tagged(sum[i], kept, base + i / 4 * 8 + i % 2));
}

struct Bound {
  float anchor_lost, tag_error;  // what float16 took of an anchor at most; the share that a tag may change
  uint32_t kept;                 // mask of what a tag leaves of a score
};

// By a whole warp.
__device__ __forceinline__ Bound bound_with(int index_bits, const Prepared& anchors, int64_t count) {
  Bound bound{0.0f, exp2f(float(index_bits - 23)), ~0u << index_bits};
  for (int64_t n = threadIdx.x % kWarp; n < count; n += kWarp)
    bound.anchor_lost = fmaxf(bound.anchor_lost, anchors.lost[n]);
  for (int offset = kWarp / 2; offset; offset /= 2)
    bound.anchor_lost = fmaxf(bound.anchor_lost, __shfl_xor_sync(kFullWarp, bound.anchor_lost, offset));
  return bound;
}

// The least score that an anchor may have to be the nearest of a row of which `lost_share` did not enter the
// scores.
__device__ __forceinline__ float least_score_with(float lost_share, float length, float largest, int64_t dim,
                                                  const Bound& bound) {
  return largest - 2.01f * score_error(lost_share, bound.anchor_lost, dim) * length -
         2.1f * bound.tag_error * fabsf(largest);
}

__device__ __forceinline__ float least_score(float length, float lost, float largest, int64_t dim,
                                             const Bound& bound) {
  return least_score_with(length > 0 ? lost / length : 0.0f, length, largest, dim, bound);
}

// A row with more candidates than one is settled by a second kernel. Until then their places in `nearest` and
// `cosine` hold the candidates, 12 bits each, two and two, with the sign of `nearest` set and their number
// below it.
constexpr int kMostCandidates = 4, kIndexBits = 12;
constexpr uint32_t kAllAnchors = 7;
// Of a candidate among at most 512 anchors: all of its share are candidates.
constexpr uint32_t kWholeShare = 1u << (kIndexBits - 1);

__device__ inline bool is_doubtful(int32_t nearest) { return nearest < 0; }
__device__ inline uint32_t candidates_of(int32_t nearest) { return uint32_t(nearest) >> 2 * kIndexBits & 7; }

__device__ inline int32_t candidate(int32_t nearest, float cosine, uint32_t which) {
  const uint32_t two = which < 2 ? uint32_t(nearest) : __float_as_uint(cosine);
  return static_cast<int32_t>(two >> which % 2 * kIndexBits & ((1u << kIndexBits) - 1));
}

// What the scores say of a row.
struct Verdict {
  float least;     // of a candidate
  int own, count;  // candidates of the lane, and of the row
  bool unknown;    // there may be more
  float top;

  __device__ bool doubtful() const { return unknown || count > 1; }
};

template <class S, int Steps>
__device__ __forceinline__ Verdict judge(const Fragments<S, Steps>& rows, int r,
                                         const Largest (&share)[kShares], int64_t dim, const Bound& bound) {
  Verdict verdict{};
  float top = fmaxf(share[0].first, share[1].first);
  top = fmaxf(top, __shfl_xor_sync(kFullWarp, top, 1));
  verdict.top = fmaxf(top, __shfl_xor_sync(kFullWarp, top, 2));
  verdict.least = least_score(rows.length[r], rows.lost[r], verdict.top, dim, bound);
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

// The nearest of the listed candidates by a whole warp; `Share` says which anchors share scores, if whole
// shares can be listed.
template <class Share, class S>
__device__ __forceinline__ Nearest<float> search_listed(const S* x, const Problem& problem,
                                                        const float* inverse, int32_t head, float tail) {
  constexpr bool kHasShares = !std::is_void_v<Share>;
  const S* anchors = static_cast<const S*>(problem.anchors);
  const S* same[kMostCandidates] = {x, x, x, x};
  const uint32_t count = candidates_of(head);
  int32_t index[kMostCandidates];
  uint32_t whole = 0;
  Nearest<float> nearest;
  const auto see = [&] {
    float score[kMostCandidates];
    exact_scores<S>(same, anchors, index, inverse, problem.dim, true, threadIdx.x % kWarp, score);
#pragma unroll
    for (int n = 0; n < kMostCandidates; ++n) nearest.see(score[n], index[n]);
  };
#pragma unroll
  for (uint32_t n = 0; n < kMostCandidates; ++n) {
    index[n] = candidate(head, tail, min(n, count - 1));
    if constexpr (kHasShares) {
      if (n < count && index[n] & kWholeShare) whole |= 1u << n;
      index[n] &= ~kWholeShare;
    }
  }
  see();
  if constexpr (kHasShares) {
    const auto last = static_cast<uint32_t>(problem.anchor_count - 1);
    for (; whole; whole &= whole - 1) {
      const Share share = Share::of(candidate(head, tail, __ffs(whole) - 1) & ~kWholeShare);
      for (uint32_t i = 0; i < Share::seen(problem.anchor_count); i += kMostCandidates) {
#pragma unroll
        for (uint32_t n = 0; n < kMostCandidates; ++n)
          index[n] = static_cast<int32_t>(min(share[i + n], last));
        see();
      }
    }
  }
  return nearest;
}

// Scores the candidates of doubtful rows exactly: a warp looks at 32 rows, and takes those one by one.
template <class Share, class S>
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
      const Nearest<float> nearest = candidates_of(head) == kAllAnchors
                                         ? search_all(x, anchors, inverse, problem.anchor_count, problem.dim)
                                         : search_listed<Share>(x, problem, inverse, head, tail);
      if (lane == 0) write_nearest<S>(out, row, nearest, out.norm[row], problem.eps);
    }
  }
}

}  // namespace stratcore::tangent_projection

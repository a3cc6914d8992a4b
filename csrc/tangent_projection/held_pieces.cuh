#pragma once

#include "fused_rows.cuh"

// What a warp does with rows that it holds in registers: their images, and from scores to the nearest anchor.
// Legend as in tangent_projection.h.
namespace stratcore::tangent_projection {

constexpr int kPieceRows = 8;  // of a warp
constexpr uint32_t kPieceSlab = kPieceRows * kSlabBytes, kPieceBytes = kSlabs * kPieceSlab;
constexpr int kGroupShares = 4;  // of a lane's scores with a row

// The share [block][lane of four][kGroupShares] of a row that anchor 256 k + 128 block + 32 j + 8 share +
// 2 lane + {0, 1} belongs to.
struct GroupShare {
  uint32_t number;

  static __device__ GroupShare of(uint32_t anchor) {
    return {anchor / 128 % 2 * 16 + anchor / 2 % 4 * kGroupShares + anchor / 8 % kGroupShares};
  }
  static __device__ uint32_t seen(int64_t anchors) {
    return static_cast<uint32_t>((anchors + kClusterBlocks * kPartAnchors - 1) /
                                 (kClusterBlocks * kPartAnchors)) *
           8;
  }
  __device__ uint32_t operator[](uint32_t i) const {
    return i / 8 * 256 + number / 16 * 128 + i / 2 % 4 * 32 + number % kGroupShares * 8 +
           number / kGroupShares % 4 * 2 + i % 2;
  }
};

// Where the scores of share `share` with a row stand: of 16 bytes for two shares the number share / 2, moved
// by the row.
__device__ __forceinline__ float2* held_scores(unsigned char* scores, int row, int share) {
  return reinterpret_cast<float2*>(scores + row * 256 + (share / 2 ^ row % 8) * 16) + share % 2;
}

constexpr int kPieceSets = kPieceRows / kRowsAtOnce;  // of rows that a warp handles at once

template <class S>
using LaneRuns = Run<S>[kLaneRuns<S>];

template <class T, class Combine>
__device__ __forceinline__ void combine_lanes(T (&value)[kPieceSets], const Combine& combine) {
#pragma unroll
  for (int offset = kRowLanes / 2; offset; offset /= 2) {
#pragma unroll
    for (int i = 0; i < kPieceSets; ++i)
      value[i] = combine(value[i], __shfl_xor_sync(kFullWarp, value[i], offset));
  }
}

struct Add {
  template <class T>
  __device__ T operator()(T a, T b) const {
    return a + b;
  }
};
struct Larger {
  __device__ float operator()(float a, float b) const { return fmaxf(a, b); }
};

// The number again, unknown to the compiler: it makes products with it anew, which takes no registers in
// between. All eight lanes of a row have the same.
__device__ __forceinline__ float unknown_copy(float value, int lane) {
  return __shfl_sync(kFullWarp, value, lane, kRowLanes);
}

// A warp's eight rows, two sets side by side.
template <class S>
struct Piece {
  static constexpr bool kSplit = sizeof(S) == 4;  // float16 loses some of an element
  int64_t first;
  int own, sub;  // of the lane: its number in a row, and that of the row in a set
  LaneRuns<S> run[kPieceSets];
  float scale[kPieceSets], length[kPieceSets], lost[kPieceSets];  // as of RowState

  // Reads the lane's number anew: what follows from it is not worth registers from piece to piece.
  __device__ explicit Piece(int64_t first_) : first(first_) {
    int lane;
    asm volatile("mov.u32 %0, %%laneid;" : "=r"(lane));
    own = lane % kRowLanes;
    sub = lane / kRowLanes;
  }

  __device__ __forceinline__ int row(int set) const { return set * kRowsAtOnce + sub; }

  __device__ __forceinline__ RowState state(int set) const { return {scale[set], length[set], lost[set]}; }

  __device__ __forceinline__ void load(const Problem& problem) {
#pragma unroll
    for (int i = 0; i < kPieceSets; ++i) {
      const S* from = static_cast<const S*>(problem.x) + min(first + row(i), problem.rows - 1) * problem.dim;
      load_lane(from, own, problem.dim, run[i]);
    }
  }

  __device__ __forceinline__ void measure() {
    float largest[kPieceSets] = {}, squares[kPieceSets];
#pragma unroll
    for (int i = 0; i < kPieceSets; ++i) {
#pragma unroll
      for (int e = 0; e < kLaneElements; ++e)
        largest[i] = fmaxf(largest[i], fabsf(lane_element<S>(run[i], e)));
    }
    combine_lanes(largest, Larger());
#pragma unroll
    for (int i = 0; i < kPieceSets; ++i) {
      scale[i] = __uint_as_float(exponent_into_half(largest[i]) << 23);
      keep_packed(run[i]);
      float sum[2] = {};
#pragma unroll
      for (int e = 0; e < kLaneElements; ++e) {
        const float value = lane_element<S>(run[i], e) * scale[i];
        sum[e % 2] += value * value;
      }
      squares[i] = sum[0] + sum[1];
    }
    combine_lanes(squares, Add());
#pragma unroll
    for (int i = 0; i < kPieceSets; ++i) length[i] = sqrtf(squares[i]);
  }

  // The image: [slab][row][16 bytes, swizzled].
  __device__ __forceinline__ void write_image(unsigned char* image) {
    float squares[kPieceSets];
#pragma unroll
    for (int i = 0; i < kPieceSets; ++i) {
      keep_packed(run[i]);
      unsigned char* to = image + row(i) * kSlabBytes + (own ^ row(i)) * 16;
      const float factor = unknown_copy(scale[i], own);
      float sum[2] = {};
#pragma unroll
      for (int slab = 0; slab < kSlabs; ++slab) {
        uint32_t half[4];
#pragma unroll
        for (int e = 0; e < 4; ++e) {
          const float value[2] = {lane_element<S>(run[i], 8 * slab + 2 * e) * factor,
                                  lane_element<S>(run[i], 8 * slab + 2 * e + 1) * factor};
          half[e] = pack(value[0], value[1]);
          if constexpr (kSplit) {
            const float2 kept = __half22float2(reinterpret_cast<const __half2&>(half[e]));
            sum[0] += (value[0] - kept.x) * (value[0] - kept.x);
            sum[1] += (value[1] - kept.y) * (value[1] - kept.y);
          }
        }
        *reinterpret_cast<uint4*>(to + slab * kPieceSlab) = make_uint4(half[0], half[1], half[2], half[3]);
      }
      squares[i] = sum[0] + sum[1];
    }
    if constexpr (kSplit) combine_lanes(squares, Add());
#pragma unroll
    for (int i = 0; i < kPieceSets; ++i) lost[i] = kSplit ? sqrtf(squares[i]) : length[i] * 0x1p-30f;
  }

  __device__ __forceinline__ void write_unit(const Problem& problem, const Targets<S>& out) {
#pragma unroll
    for (int i = 0; i < kPieceSets; ++i) {
      keep_packed(run[i]);
      const float norm = state(i).norm(), inverse = inverse_radius(norm, problem.eps);
      const bool inside = first + row(i) < problem.rows;
      S* y = out.y + (first + row(i)) * problem.dim + own * kRun<S>;
#pragma unroll
      for (int q = 0; q < kLaneRuns<S>; ++q) {
        uint4 bits;
#pragma unroll
        for (int c = 0; c < kRun<S>; ++c)
          reinterpret_cast<S*>(&bits)[c] = stored<S>(number(run[i][q].element[c]) * inverse);
        if (inside) *reinterpret_cast<uint4*>(y + q * kRowLanes * kRun<S>) = bits;
      }
      if (inside && own == 0) out.norm[first + row(i)] = norm;
    }
  }

  // Products with an anchor each.
  __device__ __forceinline__ void multiply(const S* const (&anchor)[kPieceSets],
                                           float (&product)[kPieceSets]) {
    constexpr int kOnce = kSplit ? kLaneRuns<S> / 2 : kLaneRuns<S>;  // runs at a time
    float sum[kPieceSets][2] = {}, factor[kPieceSets];
#pragma unroll
    for (int i = 0; i < kPieceSets; ++i) factor[i] = unknown_copy(scale[i], own);
#pragma unroll
    for (int from = 0; from < kLaneRuns<S>; from += kOnce) {
      uint4 other[kPieceSets][kOnce];
#pragma unroll
      for (int i = 0; i < kPieceSets; ++i) {
#pragma unroll
        for (int q = 0; q < kOnce; ++q) {
          const int at = ((from + q) * kRowLanes + own) * kRun<S>;
          other[i][q] = *reinterpret_cast<const uint4*>(anchor[i] + at);
        }
      }
#pragma unroll
      for (int i = 0; i < kPieceSets; ++i) {
        keep_packed(run[i]);
#pragma unroll
        for (int e = 0; e < kOnce * kRun<S>; ++e)
          sum[i][e % 2] +=
              lane_element<S>(run[i], from * kRun<S> + e) * factor[i] * element_of<S>(other[i], e);
      }
    }
#pragma unroll
    for (int i = 0; i < kPieceSets; ++i) product[i] = sum[i][0] + sum[i][1];
    combine_lanes(product, Add());
  }
};

// A lane's shares of the scores with a row.
__device__ __forceinline__ void read_shares(unsigned char* scores, int row, int lane, float2 (&share)[4]) {
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const float4 two =
        *reinterpret_cast<const float4*>(held_scores(scores, row, 2 * (lane + half * kRowLanes)));
    share[2 * half] = make_float2(two.x, two.y);
    share[2 * half + 1] = make_float2(two.z, two.w);
  }
}

// A row's candidates for the second kernel, from its eight lanes: an anchor each, and where its share may
// hold another, all of that share (kWholeShare). In all eight lanes.
__device__ __forceinline__ uint64_t list_shares(unsigned char* scores, int row, int lane, float least,
                                                bool unknown, uint32_t kept) {
  float2 share[4];
  read_shares(scores, row, lane, share);
  int own = 0;
#pragma unroll
  for (int i = 0; i < 4; ++i) own += share[i].x >= least;
  int at = own;
#pragma unroll
  for (int offset = 1; offset < kRowLanes; offset *= 2) {
    const int before = __shfl_up_sync(kFullWarp, at, offset, kRowLanes);
    if (lane >= offset) at += before;
  }
  const int total = __shfl_sync(kFullWarp, at, kRowLanes - 1, kRowLanes);
  unknown |= total > kMostCandidates;
  at -= own;
  uint32_t list[2] = {};
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    if (share[i].x < least || unknown) continue;
    const uint32_t one = (__float_as_uint(share[i].x) & ~kept) | (share[i].y >= least ? kWholeShare : 0);
    if (at < 2)
      list[0] |= one << at % 2 * kIndexBits;
    else
      list[1] |= one << at % 2 * kIndexBits;
    ++at;
  }
#pragma unroll
  for (int offset = kRowLanes / 2; offset; offset /= 2) {
    list[0] |= __shfl_xor_sync(kFullWarp, list[0], offset);
    list[1] |= __shfl_xor_sync(kFullWarp, list[1], offset);
  }
  list[0] |= 1u << 31 | (unknown ? kAllAnchors : uint32_t(total)) << 2 * kIndexBits;
  return uint64_t(list[1]) << 32 | list[0];
}

// Nearest anchors and cosines of a piece, whose scores begin at row `place` of `scores`, or what the second
// kernel is to settle.
template <class S>
__device__ __forceinline__ void decide_piece(const Problem& problem, const float* inverse,
                                             const Targets<S>& out, Piece<S>& piece, unsigned char* scores,
                                             int place, const Bound& bound) {
  const int own = piece.own;
  float2 share[kPieceSets][4];
  float top[kPieceSets], least[kPieceSets], product[kPieceSets];
  uint32_t index[kPieceSets];
  int candidates[kPieceSets];
  const S* anchor[kPieceSets];
#pragma unroll
  for (int i = 0; i < kPieceSets; ++i) {
    read_shares(scores, place + piece.row(i), own, share[i]);
    top[i] = fmaxf(fmaxf(share[i][0].x, share[i][1].x), fmaxf(share[i][2].x, share[i][3].x));
  }
  combine_lanes(top, Larger());
#pragma unroll
  for (int i = 0; i < kPieceSets; ++i) {
    // Lengths are below 2^19 here, within the range of the quick quotient.
    const float share_lost = piece.length[i] > 0 ? __fdividef(piece.lost[i], piece.length[i]) : 0.0f;
    least[i] = least_score_with(share_lost, piece.length[i], top[i], problem.dim, bound);
    candidates[i] = 0;
#pragma unroll
    for (int n = 0; n < 4; ++n) candidates[i] += (share[i][n].x >= least[i]) + (share[i][n].y >= least[i]);
    index[i] = min(__float_as_uint(top[i]) & ~bound.kept, static_cast<uint32_t>(problem.anchor_count - 1));
    if (piece.length[i] == 0 && bound.anchor_lost < INFINITY) index[i] = 0;  // all products are 0
    anchor[i] = static_cast<const S*>(problem.anchors) + index[i] * problem.dim;
  }
  combine_lanes(candidates, Add());
  piece.multiply(anchor, product);
#pragma unroll
  for (int i = 0; i < kPieceSets; ++i) {
    const int64_t row = piece.first + piece.row(i);
    const bool unknown = !(least[i] > -INFINITY);
    const bool zero = piece.length[i] == 0 && bound.anchor_lost < INFINITY;
    const bool doubtful = !zero && piece.length[i] < INFINITY && (candidates[i] > 1 || unknown);
    if (own == 0 && row < problem.rows && !doubtful) {
      write_nearest<S>(out, row,
                       {product[i] * piece.state(i).inverse_scale() * inverse[index[i]],
                        static_cast<int32_t>(index[i])},
                       piece.state(i).norm(), problem.eps);
    }
    if (!__any_sync(kFullWarp, doubtful)) continue;
    const uint64_t list = list_shares(scores, place + piece.row(i), own, least[i], unknown, bound.kept);
    if (own == 0 && row < problem.rows && doubtful) {
      out.nearest[row] = static_cast<int32_t>(list);
      out.cosine[row] = __uint_as_float(static_cast<uint32_t>(list >> 32));
    }
  }
}

}  // namespace stratcore::tangent_projection

#pragma once

#include <cuda_fp16.h>

#include <cstdint>

#include "../common/element.cuh"
#include "../common/warp.cuh"

// Scores of 16 rows against all anchors by tensor cores in float16: which anchors may be the nearest. Legend
// as in tangent_projection.h.
//
// mma.m16n8k16 wants of lane l the rows l / 4 and l / 4 + 8 and of 16 columns the four 2 (l % 4) + {0, 1, 8,
// 9}. A product does not mind the order of its columns, so lane l takes 8 neighboring columns 8 (l % 4) + {0
// .. 7} of every 32 for two such steps: 16-byte loads of both rows and anchors.
namespace stratcore::tangent_projection {

constexpr int kTileRows = 16;   // of a warp
constexpr int kGroup = 32;      // columns of two mma steps
constexpr int kSlabGroups = 8;  // groups of columns that a warp keeps in registers
constexpr int kSlab = kGroup * kSlabGroups;
constexpr int kChunk = 32;  // anchors in shared memory at once
constexpr int kPad = 32;    // elements behind an anchor's slab: 64 bytes shift the banks by half

// Two rows of a lane in float16: as fragments [group][step][register of mma]; the power of two that each was
// multiplied with, the squares of what it is made of, and of what rounding took away, in multiplied units.
struct RowPair {
  uint32_t value[kSlabGroups][2][4];
  float scale[2], squares[2] = {}, lost[2] = {};
};

__device__ inline uint32_t pack(float low, float high) {
  const __half2 both = __floats2half2_rn(low, high);
  return *reinterpret_cast<const uint32_t*>(&both);
}

// A power of two that brings `largest` near 16, so that its neighbors, larger or smaller, are well within
// float16. A row that is not overflows to infinity, and is then scored exactly.
__device__ inline float scale_for(float largest) {
  return largest > 0 && largest < INFINITY ? exp2f(4.0f - float(ilogbf(largest))) : 1.0f;
}

template <class S>
__device__ inline void scale_rows(const S* low, const S* high, int64_t dim, bool aligned, int lane,
                                  RowPair& out) {
  float largest[2] = {};
#pragma unroll
  for (int step = 0; step < 2; ++step) {
    const int64_t at = lane % 4 * 8 + step * kQuad;
    const Quad<S> a = load_quad(low, at, dim, aligned), b = load_quad(high, at, dim, aligned);
#pragma unroll
    for (int c = 0; c < kQuad; ++c) {
      largest[0] = fmaxf(largest[0], fabsf(number(a.element[c])));
      largest[1] = fmaxf(largest[1], fabsf(number(b.element[c])));
    }
  }
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    largest[r] = fmaxf(largest[r], __shfl_xor_sync(kFullWarp, largest[r], 1));
    largest[r] = fmaxf(largest[r], __shfl_xor_sync(kFullWarp, largest[r], 2));
    out.scale[r] = scale_for(largest[r]);
  }
}

// Columns [first, first + 256) of rows `low` and `high`; `count`: also counts their squares.
template <class S>
__device__ inline void load_fragments(const S* low, const S* high, int64_t first, int64_t dim, bool aligned,
                                      int lane, bool count, RowPair& out) {
#pragma unroll
  for (int group = 0; group < kSlabGroups; ++group) {
    const int64_t at = first + group * kGroup + lane % 4 * 8;
#pragma unroll
    for (int step = 0; step < 2; ++step) {
      const Quad<S> quad[2] = {load_quad(low, at + step * kQuad, dim, aligned),
                               load_quad(high, at + step * kQuad, dim, aligned)};
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        float value[kQuad];
#pragma unroll
        for (int c = 0; c < kQuad; ++c) {
          const float exact = number(quad[r].element[c]);
          value[c] = exact * out.scale[r];
          if (count) {
            const float away = value[c] - __half2float(__float2half(value[c]));
            out.squares[r] += exact * exact;
            out.lost[r] += away * away;
          }
        }
        out.value[group][step][r] = pack(value[0], value[1]);
        out.value[group][step][r + 2] = pack(value[2], value[3]);
      }
    }
  }
}

__device__ inline void mma(float (&sum)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// sums[tile] += rows x anchors [8 tile, 8 tile + 8) of a chunk in shared memory [kChunk][kSlab + kPad].
__device__ inline void multiply_chunk(const RowPair& rows, const __half* chunk, int groups, int lane,
                                      float (&sums)[kChunk / 8][4]) {
#pragma unroll
  for (int group = 0; group < kSlabGroups; ++group) {
    if (group >= groups) break;
    uint4 anchor[kChunk / 8];
#pragma unroll
    for (int tile = 0; tile < kChunk / 8; ++tile) {
      const __half* at = chunk + (tile * 8 + lane / 4) * (kSlab + kPad) + group * kGroup + lane % 4 * 8;
      anchor[tile] = *reinterpret_cast<const uint4*>(at);
    }
#pragma unroll
    for (int tile = 0; tile < kChunk / 8; ++tile)
      mma(sums[tile], rows.value[group][0], anchor[tile].x, anchor[tile].y);
#pragma unroll
    for (int tile = 0; tile < kChunk / 8; ++tile)
      mma(sums[tile], rows.value[group][1], anchor[tile].z, anchor[tile].w);
  }
}

// The two largest scores of a row that a lane has seen, and the largest of all others.
struct Best {
  float first = -INFINITY, second = -INFINITY, rest = -INFINITY;
  int32_t first_anchor = 0, second_anchor = 0;

  // Without branches: the loser of the first place meets the second, the loser of that one the rest.
  __device__ __forceinline__ void see(float score, int32_t anchor) {
    const bool wins = score > first;
    const float loser = wins ? first : score;
    const int32_t loser_anchor = wins ? first_anchor : anchor;
    first = wins ? score : first;
    first_anchor = wins ? anchor : first_anchor;
    const bool places = loser > second;
    rest = fmaxf(rest, places ? second : loser);
    second = places ? loser : second;
    second_anchor = places ? loser_anchor : second_anchor;
  }
};

}  // namespace stratcore::tangent_projection

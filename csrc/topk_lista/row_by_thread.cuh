#pragma once

#include "../common/element.cuh"
#include "../common/warp.cuh"
#include "topk_lista.h"
#include "topk_lista_math.h"

// What forward and backward of at most 32 atoms share: a thread has one row or two, their 32 numbers in
// registers; a warp has tiles of 32 rows in shared memory, through which rows and columns change places.
namespace stratcore::topk_lista {

constexpr int kFewAtoms = 32;          // registers of a row
constexpr int kLaneRows = kWarp;       // a row a lane
constexpr int kPitch = kFewAtoms + 4;  // of a tile: quads of neighboring rows lie in other banks
constexpr int kRowTile = kLaneRows * kPitch;

// Columns [first, first + 32) of rows [0, present) of a matrix; the rest of the tile is 0.
__device__ inline void load_tile(const float* source, int64_t columns, int64_t first, int present,
                                 bool aligned, int lane, float* tile) {
#pragma unroll
  for (int part = 0; part < kFewAtoms / kQuad; ++part) {
    const int row = part * kQuad + lane / 8, column = lane % 8 * kQuad;
    Quad<float> quad{};
    if (row < present) quad = load_quad(source + row * columns, first + column, columns, aligned);
    *reinterpret_cast<Quad<float>*>(tile + row * kPitch + column) = quad;
  }
}

__device__ inline void store_tile(const float* tile, float* target, int64_t columns, int64_t first,
                                  int present, bool aligned, int lane) {
#pragma unroll
  for (int part = 0; part < kFewAtoms / kQuad; ++part) {
    const int row = part * kQuad + lane / 8, column = lane % 8 * kQuad;
    const Quad<float> quad = *reinterpret_cast<const Quad<float>*>(tile + row * kPitch + column);
    if (row < present) store_quad(target + row * columns, first + column, columns, aligned, quad.element);
  }
}

// A row between a tile (or any 32 aligned numbers) and registers.
__device__ inline void read_row(const float* row, float (&value)[kFewAtoms]) {
#pragma unroll
  for (int i = 0; i < kFewAtoms; i += kQuad) {
    const float4 quad = *reinterpret_cast<const float4*>(row + i);
    value[i] = quad.x, value[i + 1] = quad.y, value[i + 2] = quad.z, value[i + 3] = quad.w;
  }
}

__device__ inline void write_row(const float (&value)[kFewAtoms], float* row) {
#pragma unroll
  for (int i = 0; i < kFewAtoms; i += kQuad) {
    *reinterpret_cast<float4*>(row + i) = make_float4(value[i], value[i + 1], value[i + 2], value[i + 3]);
  }
}

// The sums of a lane's rows, one in each of kSets tiles, += own[0..count) @ matrix, whose rows of 32 lie
// `pitch` apart; count is a multiple of 4. `own` is the lane's row in the first tile.
template <int kSets>
__device__ inline void add_product(float (&sum)[kSets][kFewAtoms], const float* own, int count,
                                   const float* matrix, int pitch) {
#pragma unroll 1
  for (int j = 0; j < count; j += kQuad) {
    float factor[kSets][kQuad];
#pragma unroll
    for (int set = 0; set < kSets; ++set) {
      const float4 quad = *reinterpret_cast<const float4*>(own + set * kRowTile + j);
      factor[set][0] = quad.x, factor[set][1] = quad.y, factor[set][2] = quad.z, factor[set][3] = quad.w;
    }
#pragma unroll
    for (int part = 0; part < kQuad; ++part) {
#pragma unroll
      for (int i = 0; i < kFewAtoms; i += kQuad) {
        const float4 quad = *reinterpret_cast<const float4*>(matrix + (j + part) * pitch + i);
#pragma unroll
        for (int set = 0; set < kSets; ++set) {
          sum[set][i] += factor[set][part] * quad.x, sum[set][i + 1] += factor[set][part] * quad.y;
          sum[set][i + 2] += factor[set][part] * quad.z, sum[set][i + 3] += factor[set][part] * quad.w;
        }
      }
    }
  }
}

// Rows of a tile that begins `offset` rows from a place with `left` rows.
__device__ inline int rows_present(int64_t left, int offset) {
  return static_cast<int>(min(max(left - offset, int64_t(0)), int64_t(kLaneRows)));
}

// ---- the k-th largest of a row's keys, by networks that sort in falling order

__device__ inline void order(uint32_t& high, uint32_t& low) {
  const uint32_t larger = max(high, low);
  low = min(high, low);
  high = larger;
}

// Batcher's odd-even merge of the entries kFirst, kFirst + kStep, ... of kCount.
template <int kFirst, int kCount, int kStep, int N>
__device__ inline void merge(uint32_t (&key)[N]) {
  if constexpr (2 * kStep < kCount) {
    merge<kFirst, kCount, 2 * kStep>(key);
    merge<kFirst + kStep, kCount, 2 * kStep>(key);
#pragma unroll
    for (int i = kFirst + kStep; i + kStep < kFirst + kCount; i += 2 * kStep) order(key[i], key[i + kStep]);
  } else {
    order(key[kFirst], key[kFirst + kStep]);
  }
}

template <int kFirst, int kCount, int N>
__device__ inline void sort(uint32_t (&key)[N]) {
  if constexpr (kCount > 1) {
    sort<kFirst, kCount / 2>(key);
    sort<kFirst + kCount / 2, kCount / 2>(key);
    merge<kFirst, kCount, 1>(key);
  }
}

// The 8 largest of two sorted octets, sorted, into the first.
template <int kFirst, int kSecond, int N>
__device__ inline void keep_octet(uint32_t (&key)[N]) {
#pragma unroll
  for (int i = 0; i < 8; ++i) key[kFirst + i] = max(key[kFirst + i], key[kSecond + 7 - i]);
#pragma unroll
  for (int half = 4; half > 0; half /= 2) {  // what is left first rises, then falls, or the reverse
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      if (!(i & half)) order(key[kFirst + i], key[kFirst + i + half]);
    }
  }
}

// k <= kTop, one of 8 and 32.
template <int kTop>
__device__ inline uint32_t kth_largest(uint32_t (&key)[kFewAtoms], int32_t k) {
  if constexpr (kTop == 8) {
    sort<0, 8>(key);
    sort<8, 8>(key);
    sort<16, 8>(key);
    sort<24, 8>(key);
    keep_octet<0, 8>(key);
    keep_octet<16, 24>(key);
    keep_octet<0, 16>(key);
  } else {
    sort<0, kFewAtoms>(key);
  }
  uint32_t result = key[0];
#pragma unroll
  for (int i = 1; i < kTop; ++i) result = i < k ? key[i] : result;
  return result;
}

// Keeps the k largest |h| and sets the others to 0; of equal ones the first are kept. The kept ones as bits.
template <int kTop>
__device__ inline uint32_t keep_largest(float (&h)[kFewAtoms], int32_t k) {
  uint32_t key[kFewAtoms];
#pragma unroll
  for (int i = 0; i < kFewAtoms; ++i) key[i] = magnitude_key(h[i]);
  const uint32_t kth = kth_largest<kTop>(key, k);
  const float bound = __uint_as_float(kth);  // by numbers, so that no register holds a key; NaN is not below
  uint32_t kept = 0;
#pragma unroll
  for (int i = 0; i < kFewAtoms; ++i) {
    const bool below = fabsf(h[i]) < bound;
    kept |= below ? 0 : 1u << i;
    h[i] = below ? 0.0f : h[i];
  }
  if (__any_sync(kFullWarp, __popc(kept) > k)) {
    uint32_t equal = 0;
    kept = 0;
#pragma unroll
    for (int i = 0; i < kFewAtoms; ++i) {
      kept |= magnitude_key(h[i]) >= kth ? 1u << i : 0;
      equal |= magnitude_key(h[i]) == kth ? 1u << i : 0;
    }
    while (__popc(kept) > k) kept &= ~(0x80000000u >> __clz(kept & equal));
#pragma unroll
    for (int i = 0; i < kFewAtoms; ++i) h[i] = kept >> i & 1 ? h[i] : 0.0f;
  }
  return kept;
}

}  // namespace stratcore::topk_lista

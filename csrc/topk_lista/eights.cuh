#pragma once

#include "../common/element.cuh"

// Eight neighbors of a row at a time, as numbers in registers.
namespace stratcore::topk_lista {

constexpr int kEight = 8;

// Whether rows of `count` elements from `data` on can be read and written eight elements at a time.
inline bool eights_aligned(const void* data, int64_t count) {
  return count % kEight == 0 && reinterpret_cast<uintptr_t>(data) % 16 == 0;
}

template <class S>
struct alignas(16) Eight {
  S element[kEight];
};

// Elements [at, at + 8) of a row; those from `count` on are 0. Without a branch where rows are aligned, so
// that many loads can be under way at once.
template <bool kAligned, class S>
__device__ inline void load_eight(const S* row, int64_t at, int64_t count, float (&value)[kEight]) {
  if constexpr (kAligned) {
    const bool inside = at < count;
    const auto eight = *reinterpret_cast<const Eight<S>*>(row + (inside ? at : 0));
#pragma unroll
    for (int i = 0; i < kEight; ++i) value[i] = inside ? number(eight.element[i]) : 0.0f;
  } else {
#pragma unroll
    for (int i = 0; i < kEight; ++i) value[i] = at + i < count ? number(row[at + i]) : 0.0f;
  }
}

template <bool kAligned, class S>
__device__ inline void store_eight(S* row, int64_t at, int64_t count, const float (&value)[kEight]) {
  if constexpr (kAligned) {
    Eight<S> eight;
#pragma unroll
    for (int i = 0; i < kEight; ++i) eight.element[i] = stored<S>(value[i]);
    if (at < count) *reinterpret_cast<Eight<S>*>(row + at) = eight;
  } else {
#pragma unroll
    for (int i = 0; i < kEight; ++i) {
      if (at + i < count) row[at + i] = stored<S>(value[i]);
    }
  }
}

// Signs of eight entries, one byte each.
__device__ inline void store_signs(int8_t* row, int64_t at, int64_t count, const int8_t (&sign)[kEight]) {
  uint2 packed{0, 0};
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    packed.x |= uint32_t(uint8_t(sign[i])) << 8 * i;
    packed.y |= uint32_t(uint8_t(sign[i + 4])) << 8 * i;
  }
  if (at < count) *reinterpret_cast<uint2*>(row + at) = packed;
}

template <bool kAligned>
__device__ inline void load_signs(const int8_t* row, int64_t at, int64_t count, int8_t (&sign)[kEight]) {
  if constexpr (kAligned) {
    const bool inside = at < count;
    const auto packed = *reinterpret_cast<const uint2*>(row + (inside ? at : 0));
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      sign[i] = inside ? static_cast<int8_t>(packed.x >> 8 * i) : int8_t(0);
      sign[i + 4] = inside ? static_cast<int8_t>(packed.y >> 8 * i) : int8_t(0);
    }
  } else {
#pragma unroll
    for (int i = 0; i < kEight; ++i) sign[i] = at + i < count ? row[at + i] : int8_t(0);
  }
}

}  // namespace stratcore::topk_lista

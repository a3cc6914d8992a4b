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

// Elements [at, at + 8) of a row; those from `count` on are 0. `aligned` is the same for all threads.
template <class S>
__device__ inline void load_eight(const S* row, int64_t at, int64_t count, bool aligned,
                                  float (&value)[kEight]) {
  if (aligned && at < count) {
    const auto eight = *reinterpret_cast<const Eight<S>*>(row + at);
#pragma unroll
    for (int i = 0; i < kEight; ++i) value[i] = number(eight.element[i]);
    return;
  }
#pragma unroll
  for (int i = 0; i < kEight; ++i) value[i] = at + i < count ? number(row[at + i]) : 0.0f;
}

template <class S>
__device__ inline void store_eight(S* row, int64_t at, int64_t count, bool aligned,
                                   const float (&value)[kEight]) {
  if (aligned && at < count) {
    Eight<S> eight;
#pragma unroll
    for (int i = 0; i < kEight; ++i) eight.element[i] = stored<S>(value[i]);
    *reinterpret_cast<Eight<S>*>(row + at) = eight;
    return;
  }
#pragma unroll
  for (int i = 0; i < kEight; ++i) {
    if (at + i < count) row[at + i] = stored<S>(value[i]);
  }
}

// Signs of eight entries, one byte each.
__device__ inline void store_signs(int8_t* row, int64_t at, int64_t count, bool aligned,
                                   const int8_t (&sign)[kEight]) {
  if (aligned && at < count) {
    uint2 packed{0, 0};
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      packed.x |= uint32_t(uint8_t(sign[i])) << 8 * i;
      packed.y |= uint32_t(uint8_t(sign[i + 4])) << 8 * i;
    }
    *reinterpret_cast<uint2*>(row + at) = packed;
    return;
  }
#pragma unroll
  for (int i = 0; i < kEight; ++i) {
    if (at + i < count) row[at + i] = sign[i];
  }
}

__device__ inline void load_signs(const int8_t* row, int64_t at, int64_t count, bool aligned,
                                  int8_t (&sign)[kEight]) {
  if (aligned && at < count) {
    const auto packed = *reinterpret_cast<const uint2*>(row + at);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      sign[i] = static_cast<int8_t>(packed.x >> 8 * i);
      sign[i + 4] = static_cast<int8_t>(packed.y >> 8 * i);
    }
    return;
  }
#pragma unroll
  for (int i = 0; i < kEight; ++i) sign[i] = at + i < count ? row[at + i] : 0;
}

}  // namespace stratcore::topk_lista

#pragma once

#include <cstdint>
#include <cstring>

#include "../common/macros.h"

namespace stratcore::topk_lista {

// Soft threshold h_theta(u) = sign(u) max(|u| - theta, 0). NaN in u or theta gives NaN.
template <class T>
STRATCORE_HOST_DEVICE inline T soft_threshold(T u, T theta) {
  const T magnitude = u < T(0) ? -u : u;
  if (magnitude <= theta) return T(0);
  return u < T(0) ? u + theta : u - theta;
}

// Sign of u where h_theta passes it (its derivative is 1), else 0.
template <class T>
STRATCORE_HOST_DEVICE inline int8_t threshold_sign(T u, T theta) {
  const T magnitude = u < T(0) ? -u : u;
  if (magnitude <= theta) return 0;
  return u < T(0) ? -1 : 1;
}

template <class T>
struct RankKey;
template <>
struct RankKey<float> {
  using type = uint32_t;
};
template <>
struct RankKey<double> {
  using type = uint64_t;
};

// Unsigned key that orders by magnitude: the bits without the sign. NaN ranks above infinity, +0 equals -0.
template <class T>
STRATCORE_HOST_DEVICE inline typename RankKey<T>::type magnitude_key(T value) {
  using Key = typename RankKey<T>::type;
  Key bits;
  memcpy(&bits, &value, sizeof(T));
  return bits & ~(Key(1) << (8 * sizeof(Key) - 1));
}

}  // namespace stratcore::topk_lista

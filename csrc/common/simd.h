#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "element.h"

// Eight lanes in the compilers' vector extension, filled from any element type. Sums are taken lane by lane,
// so their order does not depend on the instruction set.
namespace stratcore {

// Before a function: compiled for several instruction sets, the best one chosen when the library is loaded.
#if defined(__x86_64__) && defined(__gnu_linux__) && !defined(__clang__) && __GNUC__ >= 12
#define STRATCORE_SIMD_CLONES __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define STRATCORE_SIMD_CLONES
#endif
// What such a function calls must be inlined to be compiled with it.
#define STRATCORE_INLINE inline __attribute__((always_inline))

constexpr int kLanes = 8;
typedef double Lanes __attribute__((vector_size(64)));
typedef float FloatLanes __attribute__((vector_size(32)));
typedef uint32_t WordLanes __attribute__((vector_size(32)));
typedef uint16_t ShortLanes __attribute__((vector_size(16)));

struct BFloat16 {
  uint16_t bits;
};

struct Float16 {
  uint16_t bits;
};

STRATCORE_INLINE void load(const double* from, Lanes& lanes) { std::memcpy(&lanes, from, sizeof(lanes)); }
STRATCORE_INLINE void load(const float* from, FloatLanes& lanes) { std::memcpy(&lanes, from, sizeof(lanes)); }

STRATCORE_INLINE void load(const BFloat16* from, FloatLanes& lanes) {
  ShortLanes bits;
  std::memcpy(&bits, from, sizeof(bits));
  const WordLanes words = __builtin_convertvector(bits, WordLanes) << 16;
  std::memcpy(&lanes, &words, sizeof(lanes));
}

STRATCORE_INLINE void load(const Float16* from, FloatLanes& lanes) {
  ShortLanes bits;
  std::memcpy(&bits, from, sizeof(bits));
  const WordLanes words = __builtin_convertvector(bits, WordLanes);
  // The exponent is rebiased by a product, which is right for subnormal numbers too.
  WordLanes magnitude = (words & 0x7fffu) << 13;
  const WordLanes special = WordLanes(magnitude >= (0x7c00u << 13)) & 0x7f800000u;
  std::memcpy(&lanes, &magnitude, sizeof(lanes));
  lanes *= 0x1p112f;
  std::memcpy(&magnitude, &lanes, sizeof(lanes));
  magnitude |= special | (words & 0x8000u) << 16;
  std::memcpy(&lanes, &magnitude, sizeof(lanes));
}

template <class Stored>
STRATCORE_INLINE void load(const Stored* from, Lanes& lanes) {
  FloatLanes values;
  load(from, values);
  lanes = __builtin_convertvector(values, Lanes);
}

// The first `count` < kLanes elements, then zeros.
template <class Stored, class Vector>
STRATCORE_INLINE void load_first(const Stored* from, int64_t count, Vector& lanes) {
  Stored padded[kLanes] = {};
  for (int64_t i = 0; i < count; ++i) padded[i] = from[i];
  load(padded, lanes);
}

STRATCORE_INLINE double sum(const Lanes& lanes) {
  typedef double Four __attribute__((vector_size(32)));
  typedef double Two __attribute__((vector_size(16)));
  Four fours[2];
  std::memcpy(fours, &lanes, sizeof(lanes));
  const Four four = fours[0] + fours[1];
  Two twos[2];
  std::memcpy(twos, &four, sizeof(four));
  const Two two = twos[0] + twos[1];
  return two[0] + two[1];
}

STRATCORE_INLINE void take_root(Lanes& v) {
  for (int lane = 0; lane < kLanes; ++lane) v[lane] = std::sqrt(v[lane]);
}

template <class T, class Vector>
STRATCORE_INLINE void add_to(T* to, const Vector& lanes) {
  using Kept = std::conditional_t<std::is_same_v<T, double>, Lanes, FloatLanes>;
  Kept kept;
  load(to, kept);
  kept += __builtin_convertvector(lanes, Kept);
  std::memcpy(to, &kept, sizeof(kept));
}

template <class T, class Vector>
STRATCORE_INLINE void add_first_to(T* to, int64_t count, const Vector& lanes) {
  for (int64_t lane = 0; lane < count; ++lane) to[lane] += T(lanes[lane]);
}

template <class To, class From>
To copied_as(From from) {
  To to;
  static_assert(sizeof(To) == sizeof(From));
  std::memcpy(&to, &from, sizeof(To));
  return to;
}

inline void store(double value, double& to) { to = value; }
inline void store(double value, float& to) { to = float(value); }

inline void store(double value, BFloat16& to) {
  const uint32_t bits = copied_as<uint32_t>(float(value));
  const bool nan = (bits & 0x7fffffffu) > 0x7f800000u;
  to.bits = nan ? uint16_t(bits >> 16 | 0x40) : uint16_t((bits + 0x7fffu + (bits >> 16 & 1)) >> 16);
}

inline void store(double value, Float16& to) {
  const uint32_t bits = copied_as<uint32_t>(float(value)), magnitude = bits & 0x7fffffffu;
  const auto sign = uint16_t(bits >> 16 & 0x8000u);
  if (magnitude >= 0x47800000u) {  // 65536 and more, infinity, NaN
    to.bits = sign | (magnitude > 0x7f800000u ? 0x7e00u : 0x7c00u);
  } else if (magnitude < 0x38800000u) {  // subnormal: rounded by an addition at the right exponent
    to.bits = sign | uint16_t(copied_as<uint32_t>(copied_as<float>(magnitude) + 0.5f) - 0x3f000000u);
  } else {
    const uint32_t rounded = magnitude + 0xfffu + (magnitude >> 13 & 1);
    to.bits = sign | uint16_t((rounded - (112u << 23)) >> 13);
  }
}

}  // namespace stratcore

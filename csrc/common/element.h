#pragma once

#include <cstdint>
#include <cstring>

namespace stratcore {

// The stored type of a tensor's elements. Float64 is computed in float64, the others in float32 or better.
enum class Element : int32_t { kFloat64, kFloat32, kBFloat16, kFloat16 };

inline int64_t size_of(Element element) {
  return element == Element::kFloat64 ? 8 : element == Element::kFloat32 ? 4 : 2;
}

// Conversions of the 16-bit types on the host, to the nearest with ties to even. Free of branches, so that
// loops over them become vector code.
inline float float_of_bits(uint32_t bits) {
  float value;
  memcpy(&value, &bits, sizeof(value));
  return value;
}

inline uint32_t bits_of(float value) {
  uint32_t bits;
  memcpy(&bits, &value, sizeof(bits));
  return bits;
}

inline float from_bfloat16(uint16_t value) { return float_of_bits(uint32_t(value) << 16); }

inline uint16_t to_bfloat16(float value) {
  const uint32_t bits = bits_of(value);
  const uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  return uint16_t((bits & 0x7fffffffu) > 0x7f800000u ? 0x7fc0u : rounded);
}

// The exponents differ by 112: one product brings numbers and subnormals there, infinity and NaN need theirs
// set.
inline float from_float16(uint16_t value) {
  const uint32_t magnitude = uint32_t(value & 0x7fffu) << 13;
  const uint32_t bits = bits_of(float_of_bits(magnitude) * 0x1p112f);
  const uint32_t special = magnitude >= 0x0f800000u ? 0x7f800000u : 0u;
  return float_of_bits(bits | special | uint32_t(value & 0x8000u) << 16);
}

// Adding a power of two whose last place is that of the result makes the addition round.
inline uint16_t to_float16(float value) {
  const uint32_t bits = bits_of(value), sign = bits & 0x80000000u, magnitude = bits ^ sign;
  const uint32_t exponent = magnitude & 0x7f800000u;
  const uint32_t aligned = (exponent < 0x38800000u ? 0x38800000u : exponent) + (13u << 23);
  const float one = float_of_bits(aligned > 0x7f000000u ? 0x7f000000u : aligned);
  const uint32_t last_places = bits_of(float_of_bits(magnitude) + one) - bits_of(one);
  const uint32_t step = exponent < 0x38800000u ? 0u : (exponent >> 23) - 113u;
  const uint32_t finite = last_places + (step << 10);
  const uint32_t bounded = magnitude >= 0x477ff000u ? 0x7c00u : finite;
  return uint16_t((magnitude > 0x7f800000u ? 0x7e00u : bounded) | sign >> 16);
}

}  // namespace stratcore

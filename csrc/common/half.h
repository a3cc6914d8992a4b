#pragma once

#include <cstdint>
#include <cstring>

#include "element.h"

// bfloat16 and float16 on the host, by bits: no branches, so that loops over them vectorize everywhere.
namespace stratcore {

struct BFloat16 {
  uint16_t bits;
};

struct Float16 {
  uint16_t bits;
};

namespace half {

template <class To, class From>
[[gnu::always_inline]] inline To bits_as(From from) {
  static_assert(sizeof(To) == sizeof(From), "bits keep their number");
  To to;
  std::memcpy(&to, &from, sizeof(To));
  return to;
}

}  // namespace half

[[gnu::always_inline]] inline float widen(BFloat16 value) {
  return half::bits_as<float>(static_cast<uint32_t>(value.bits) << 16);
}

// Normal numbers: the exponent is moved by a product. Subnormal ones: the bits below that of 1/2, less 1/2.
[[gnu::always_inline]] inline float widen(Float16 value) {
  const uint32_t shifted = static_cast<uint32_t>(value.bits) << 16, twice = shifted + shifted;
  const float normal = half::bits_as<float>((twice >> 4) + (0xE0u << 23)) * 0x1p-112f;
  const float subnormal = half::bits_as<float>((twice >> 17) | (126u << 23)) - 0.5f;
  const uint32_t magnitude = half::bits_as<uint32_t>(twice < (1u << 27) ? subnormal : normal);
  return half::bits_as<float>((shifted & 0x80000000u) | magnitude);
}

// Rounded to nearest, ties to even.
[[gnu::always_inline]] inline void narrow(float value, BFloat16& target) {
  const auto bits = half::bits_as<uint32_t>(value);
  const uint32_t rounded = (bits + 0x7FFFu + ((bits >> 16) & 1u)) >> 16;
  target.bits = static_cast<uint16_t>(value != value ? 0x7FC0u : rounded);
}

// A sum with a power of two far above rounds the mantissa to its ten bits.
[[gnu::always_inline]] inline void narrow(float value, Float16& target) {
  const auto bits = half::bits_as<uint32_t>(value);
  const uint32_t twice = bits + bits, sign = bits & 0x80000000u;
  const uint32_t exponent = twice & 0xFF000000u, bias = exponent < 0x71000000u ? 0x71000000u : exponent;
  const float scaled = (half::bits_as<float>(bits & 0x7FFFFFFFu) * 0x1p+112f) * 0x1p-110f;
  const auto sum = half::bits_as<uint32_t>(half::bits_as<float>((bias >> 1) + 0x07800000u) + scaled);
  const uint32_t finite = ((sum >> 13) & 0x00007C00u) + (sum & 0x00000FFFu);
  target.bits = static_cast<uint16_t>((sign >> 16) | (twice > 0xFF000000u ? 0x7E00u : finite));
}

// float32, in which the 16-bit types are computed, or float64.
template <class Stored>
struct ComputedOf {
  using type = float;
};
template <>
struct ComputedOf<double> {
  using type = double;
};
template <class Stored>
using Computed = typename ComputedOf<Stored>::type;

}  // namespace stratcore

#pragma once

#include <cstdint>

namespace stratcore {

// The stored type of a tensor's elements. Float64 is computed in float64, the others in float32 or better.
enum class Element : int32_t { kFloat64, kFloat32, kBFloat16, kFloat16 };

inline int64_t size_of(Element element) {
  return element == Element::kFloat64 ? 8 : element == Element::kFloat32 ? 4 : 2;
}

}  // namespace stratcore

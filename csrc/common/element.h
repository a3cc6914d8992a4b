#pragma once

#include <cstdint>

namespace stratcore {

// The stored type of a tensor's elements. Float64 is computed in float64, the others in float32 or better.
enum class Element : int32_t { kFloat64, kFloat32, kBFloat16, kFloat16 };

inline int64_t size_of(Element element) {
  return element == Element::kFloat64 ? 8 : element == Element::kFloat32 ? 4 : 2;
}

// Calls `run` with a value of the type that is stored: what it returns. The 16-bit types are those of the
// host (half.h) or of CUDA.
template <class BFloat16, class Float16, class Run>
auto with_element(Element element, const Run& run) {
  switch (element) {
    case Element::kFloat64:
      return run(double());
    case Element::kFloat32:
      return run(float());
    case Element::kBFloat16:
      return run(BFloat16());
    default:
      return run(Float16());
  }
}

}  // namespace stratcore

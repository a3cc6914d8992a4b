#pragma once

#include <cstdint>
#include <type_traits>

namespace stratcore::cayley_menger {

// Calls `run` with the order, 1 .. 8, as a constant: what it returns.
template <class Run>
auto with_order(int32_t order, const Run& run) {
  switch (order) {
    case 1:
      return run(std::integral_constant<int, 1>());
    case 2:
      return run(std::integral_constant<int, 2>());
    case 3:
      return run(std::integral_constant<int, 3>());
    case 4:
      return run(std::integral_constant<int, 4>());
    case 5:
      return run(std::integral_constant<int, 5>());
    case 6:
      return run(std::integral_constant<int, 6>());
    case 7:
      return run(std::integral_constant<int, 7>());
    default:
      return run(std::integral_constant<int, 8>());
  }
}

}  // namespace stratcore::cayley_menger

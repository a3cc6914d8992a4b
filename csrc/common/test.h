#pragma once

#include <cstdint>
#include <cstdio>
#include <random>
#include <vector>

#include "instruction_set.h"

// What the C++ tests share: each is a program that checks on and at last says how many checks failed.
namespace stratcore::test {

inline int failures = 0;

// `where`: numbers that tell the cases of one check apart.
template <class... Where>
void expect(bool condition, const char* what, Where... where) {
  if (condition) return;
  ++failures;
  std::printf("FAILED: %s", what);
  (std::printf(" %lld", static_cast<long long>(where)), ...);
  std::printf("\n");
}

// The status that the program ends with.
inline int summary() {
  std::printf(failures ? "%d checks failed\n" : "all checks passed\n", failures);
  return failures ? 1 : 0;
}

template <class Run>
void on_every_instruction_set(const Run& run) {
  for (const auto set : {InstructionSet::kBaseline, InstructionSet::kAvx2, InstructionSet::kAvx512}) {
    limit_instruction_set(set);
    if (instruction_set() == set) run();
  }
}

template <class T = double>
std::vector<T> random_values(size_t count, unsigned seed, double scale = 1.0) {
  std::mt19937 generator(seed);
  std::normal_distribution<double> normal(0.0, scale);
  std::vector<T> values(count);
  for (T& value : values) value = T(normal(generator));
  return values;
}

}  // namespace stratcore::test

#include "instruction_set.h"

#include <algorithm>
#include <atomic>

namespace stratcore {
namespace {

std::atomic<InstructionSet> limit{InstructionSet::kAvx512};

InstructionSet find_widest() {
#if defined(__x86_64__)
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  const bool avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
                      __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl");
  if (avx2) return avx512 ? InstructionSet::kAvx512 : InstructionSet::kAvx2;
#endif
  return InstructionSet::kBaseline;
}

}  // namespace

InstructionSet instruction_set() {
  static const InstructionSet widest = find_widest();
  return std::min(widest, limit.load(std::memory_order_relaxed));
}

void limit_instruction_set(InstructionSet widest) { limit.store(widest, std::memory_order_relaxed); }

}  // namespace stratcore

// Includes STRATCORE_LANES_FILE once for every instruction set, each time in a namespace of its own
// (baseline, avx2, avx512) and compiled for that set, so that one loop is written once. What it includes
// itself must have been included before, instruction_set.h too. Vectors of STRATCORE_LANES doubles come from
// lanes.h. No include guard: a file names its loops and includes this.
#define STRATCORE_LANES 2
namespace baseline {
#include "lanes.h"
#include STRATCORE_LANES_FILE
}  // namespace baseline
#undef STRATCORE_LANES

#if defined(__x86_64__)

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2,fma")
#endif
#define STRATCORE_LANES 4
namespace avx2 {
#include "lanes.h"
#include STRATCORE_LANES_FILE
}  // namespace avx2
#undef STRATCORE_LANES
#if defined(__clang__)
#pragma clang attribute pop
#pragma clang attribute push(__attribute__((target("avx2,fma,avx512f,avx512dq,avx512bw,avx512vl"))), \
                             apply_to = function)
#else
#pragma GCC pop_options
#pragma GCC push_options
#pragma GCC target("avx2,fma,avx512f,avx512dq,avx512bw,avx512vl")
#endif
#define STRATCORE_LANES 8
namespace avx512 {
#include "lanes.h"
#include STRATCORE_LANES_FILE
}  // namespace avx512
#undef STRATCORE_LANES
#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

#endif
#undef STRATCORE_LANES_FILE

// The function of that name for the instructions of this processor.
#if defined(__x86_64__)
#define STRATCORE_BEST(function)                                                             \
  (::stratcore::instruction_set() == ::stratcore::InstructionSet::kAvx512 ? avx512::function \
   : ::stratcore::instruction_set() == ::stratcore::InstructionSet::kAvx2 ? avx2::function   \
                                                                          : baseline::function)
#else
#define STRATCORE_BEST(function) (baseline::function)
#endif

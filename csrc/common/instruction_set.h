#pragma once

#include <cstdint>

#include "macros.h"
#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace stratcore {

// In the order of their width. On other processors than x86-64 there is the baseline alone.
enum class InstructionSet : int32_t { kBaseline, kAvx2, kAvx512 };

// The widest one that the processor has and the limit allows.
STRATCORE_API InstructionSet instruction_set();

// For tests: from now on no wider one than this.
STRATCORE_API void limit_instruction_set(InstructionSet widest);

}  // namespace stratcore

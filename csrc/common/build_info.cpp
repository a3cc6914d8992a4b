#include "build_info.h"

const char* stratcore_build_description() {
  return "compiler: " STRATCORE_BUILD_COMPILER "\ncuda: " STRATCORE_BUILD_CUDA
         "\narchitectures: " STRATCORE_BUILD_ARCHITECTURES "\nops: " STRATCORE_BUILD_OPS "\n";
}

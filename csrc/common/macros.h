#pragma once

#if defined(__CUDACC__)
#define STRATCORE_HOST_DEVICE __host__ __device__
#else
#define STRATCORE_HOST_DEVICE
#endif

// Visible outside libstratcore.so; everything else is hidden.
#define STRATCORE_API __attribute__((visibility("default")))

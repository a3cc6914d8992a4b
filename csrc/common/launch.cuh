#pragma once

#include <cuda_runtime.h>

#include <algorithm>
#include <cstdint>

#include "executor.h"

namespace stratcore {

constexpr int kThreads = 256;

inline cudaStream_t stream_of(const Executor& executor) { return static_cast<cudaStream_t>(executor.stream); }

// Blocks for a grid-stride loop; the loop covers what the cap leaves over.
inline unsigned grid_for(int64_t work, int64_t per_block = kThreads) {
  return static_cast<unsigned>(std::min<int64_t>((work + per_block - 1) / per_block, 1 << 20));
}

// Streaming multiprocessors of the current device.
int processors();

// Status of the launch just made; a failure is kept for last_launch_error().
Status launch_status();

template <class Body>
__global__ void each_kernel(int64_t count, Body body) {
  const int64_t stride = int64_t(gridDim.x) * blockDim.x;
  for (int64_t i = int64_t(blockIdx.x) * blockDim.x + threadIdx.x; i < count; i += stride) body(i);
}

// Runs body(i) for i in [0, count) on the executor's stream.
template <class Body>
Status launch_each(const Executor& executor, int64_t count, const Body& body) {
  if (count == 0) return kOk;
  each_kernel<<<grid_for(count), kThreads, 0, stream_of(executor)>>>(count, body);
  return launch_status();
}

}  // namespace stratcore

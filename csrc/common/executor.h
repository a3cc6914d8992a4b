#pragma once

#include <cstdint>

#include "macros.h"

namespace stratcore {

enum class DType : int32_t { kFloat32, kFloat64, kBFloat16, kFloat16 };

// A batch of matrices [batch, rows, cols] at any strides (in elements); a stride of 0 repeats.
struct MatrixBatch {
  const void* data;
  int64_t batch_stride;
  int64_t row_stride;
  int64_t col_stride;

  MatrixBatch transposed() const { return {data, batch_stride, col_stride, row_stride}; }
};

// out[b] = left[b] @ right[b]: [batch, rows, inner] @ [batch, inner, cols], each matrix of out row-major and
// contiguous.
struct Gemm {
  DType dtype;  // of the factors; out is float64 for float64, else float32
  int64_t batch, rows, cols, inner;
  MatrixBatch left;
  MatrixBatch right;
  void* out;
  bool narrow = false;           // 16-bit factors give a 16-bit product
  int64_t out_batch_stride = 0;  // 0: rows * cols
};

enum Status : int32_t { kOk = 0, kGemmFailed = 1, kLaunchFailed = 2 };

// What an algorithm needs of the program that calls it: threads, matrix products and, on a GPU, the stream.
// Plain function pointers, so that the algorithms know neither torch nor any other host.
struct Executor {
  void* context;
  void (*parallel_for)(void* context, int64_t begin, int64_t end, int64_t grain,
                       void (*body)(void* argument, int64_t begin, int64_t end), void* argument);
  Status (*gemm)(void* context, const Gemm& product);
  void* stream;  // cudaStream_t; null on the CPU
};

// Calls `body(begin, end)` over [0, count); the body must not throw.
template <class Body>
void parallel_for(const Executor& executor, int64_t count, int64_t grain, const Body& body) {
  auto call = [](void* argument, int64_t begin, int64_t end) {
    (*static_cast<const Body*>(argument))(begin, end);
  };
  executor.parallel_for(executor.context, 0, count, grain, call,
                        const_cast<void*>(static_cast<const void*>(&body)));
}

// Why the last launch that returned kLaunchFailed on this thread failed.
STRATCORE_API const char* last_launch_error();

// Whether calls of this executor are being captured into a CUDA graph, to be run later, on any stream.
STRATCORE_API bool is_capturing(const Executor& executor);

// Threads of the C++ standard library and a plain blocked product, for hosts that bring neither.
// `num_threads` must outlive the executor.
STRATCORE_API Executor host_executor(int32_t* num_threads);

}  // namespace stratcore

#include <algorithm>
#include <thread>
#include <vector>

#include "executor.h"

namespace stratcore {
namespace {

void threads_for(void* context, int64_t begin, int64_t end, int64_t grain,
                 void (*body)(void* argument, int64_t begin, int64_t end), void* argument) {
  const int64_t count = end - begin;
  if (count <= 0) return;
  const int64_t useful = (count + grain - 1) / std::max<int64_t>(grain, 1);
  const int64_t threads = std::max<int64_t>(1, std::min<int64_t>(*static_cast<int32_t*>(context), useful));
  const int64_t share = (count + threads - 1) / threads;
  std::vector<std::thread> workers;
  for (int64_t start = begin + share; start < end; start += share) {
    workers.emplace_back(body, argument, start, std::min(end, start + share));
  }
  body(argument, begin, std::min(end, begin + share));
  for (auto& worker : workers) worker.join();
}

template <class T>
void multiply_rows(const Gemm& product, int64_t begin, int64_t end) {
  const auto* left = static_cast<const T*>(product.left.data);
  const auto* right = static_cast<const T*>(product.right.data);
  auto* out = static_cast<T*>(product.out);
  for (int64_t flat = begin; flat < end; ++flat) {
    const int64_t batch = flat / product.rows, row = flat % product.rows;
    T* target = out + flat * product.cols;
    std::fill(target, target + product.cols, T(0));
    const T* left_row = left + batch * product.left.batch_stride + row * product.left.row_stride;
    const T* right_batch = right + batch * product.right.batch_stride;
    for (int64_t inner = 0; inner < product.inner; ++inner) {
      const T factor = left_row[inner * product.left.col_stride];
      const T* right_row = right_batch + inner * product.right.row_stride;
      for (int64_t col = 0; col < product.cols; ++col) {
        target[col] += factor * right_row[col * product.right.col_stride];
      }
    }
  }
}

Status multiply(void* context, const Gemm& product) {
  const Executor executor{context, threads_for, multiply, nullptr};
  parallel_for(executor, product.batch * product.rows, 8, [&](int64_t begin, int64_t end) {
    if (product.dtype == DType::kFloat32) {
      multiply_rows<float>(product, begin, end);
    } else {
      multiply_rows<double>(product, begin, end);
    }
  });
  return kOk;
}

}  // namespace

#ifndef STRATCORE_CUDA
const char* last_launch_error() { return "this build holds no CUDA kernels"; }
bool is_capturing(const Executor&) { return false; }
#endif

Executor host_executor(int32_t* num_threads) { return {num_threads, threads_for, multiply, nullptr}; }

}  // namespace stratcore

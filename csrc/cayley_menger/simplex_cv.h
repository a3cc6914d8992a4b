#pragma once

#include <cstdint>

#include "../common/element.h"
#include "../common/executor.h"
#include "../common/macros.h"

// Coefficient of variation of the volumes of random simplices, without torch. Legend: n simplices, k order, N
// rows, D dimension, P = k (k + 1) / 2. Formulas: README.md in this folder.
namespace stratcore::simplex_cv {

struct Problem {
  const void* x;  // [N, D]
  Element element;
  int64_t rows, dim;
  int64_t pool;        // vertices are drawn from the first `pool` rows; k + 1 <= pool <= N
  int64_t simplices;   // n
  int32_t order;       // k, 1 .. 8
  double target;       // of the loss (cv - target)^2
  double valid_above;  // a simplex counts where its squared volume is larger
  int64_t min_valid;   // with fewer of them the loss is 0; at least 2
  double eps;          // cv = std / (mean + eps)
};

// What the backward wants besides x and the indices: one array of 4 + n (1 + P) numbers.
template <class Number>
struct StateOf {
  Number* data;
  int64_t simplices;

  // cv, mean and std, NaN where they are not defined, and the count of valid simplices.
  STRATCORE_HOST_DEVICE Number* statistics() const { return data; }
  // [n], rounded as the output of that name.
  STRATCORE_HOST_DEVICE Number* volumes() const { return data + 4; }
  // [n, P] symmetric W with dV/dE = W E, packed lower; 0 where degenerate.
  STRATCORE_HOST_DEVICE Number* weights() const { return data + 4 + simplices; }

  static int64_t size(int64_t simplices, int64_t order) {
    return 4 + simplices * (1 + order * (order + 1) / 2);
  }
};
using State = StateOf<double>;
using SavedState = StateOf<const double>;

// T: float64 for float64 x, else float32; scalars are single numbers.
template <class T>
struct SampleOf {
  T* loss;
  T* cv;  // NaN, as mean and std, where they are not defined
  T* mean;
  T* std;            // unbiased
  int64_t* count;    // valid simplices
  T* volumes;        // [n]
  int64_t* indices;  // [n, k + 1] distinct rows
  State state;
};
using Sample = SampleOf<void>;

template <class T>
struct CotangentsOf {  // of their shapes and types; null: zero
  const T* loss;
  const T* cv;
  const T* mean;
  const T* std;
  const T* volumes;
};
using Cotangents = CotangentsOf<void>;

// The same pointers as code for one type has them.
template <class T>
SampleOf<T> typed(const Sample& any) {
  return {static_cast<T*>(any.loss),
          static_cast<T*>(any.cv),
          static_cast<T*>(any.mean),
          static_cast<T*>(any.std),
          any.count,
          static_cast<T*>(any.volumes),
          any.indices,
          any.state};
}

template <class T>
CotangentsOf<T> typed(const Cotangents& any) {
  return {static_cast<const T*>(any.loss), static_cast<const T*>(any.cv), static_cast<const T*>(any.mean),
          static_cast<const T*>(any.std), static_cast<const T*>(any.volumes)};
}

// `seed`: two int64 on x's device, (seed, offset). `counter`: on a GPU one uint32 on the device that is zero
// before and after the kernel and belongs to no other call meanwhile; else null.
STRATCORE_API Status forward_cpu(const Problem& problem, const int64_t* seed, const Sample& out,
                                 uint32_t* counter, const Executor& executor);
STRATCORE_API Status forward_cuda(const Problem& problem, const int64_t* seed, const Sample& out,
                                  uint32_t* counter, const Executor& executor);

// `grad` [N, D] of x's element type, every entry written, in a fixed order of additions.
STRATCORE_API Status backward_cpu(const Problem& problem, const int64_t* indices, const SavedState& state,
                                  const Cotangents& cotangents, void* grad, const Executor& executor);
STRATCORE_API Status backward_cuda(const Problem& problem, const int64_t* indices, const SavedState& state,
                                   const Cotangents& cotangents, void* grad, const Executor& executor);

}  // namespace stratcore::simplex_cv

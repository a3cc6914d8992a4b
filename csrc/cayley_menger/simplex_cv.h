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

// Float64 for float64 x, else float32, if not said otherwise; scalars are single numbers.
struct Sample {
  void* loss;
  void* cv;  // NaN, as mean and std, where they are not defined
  void* mean;
  void* std;         // unbiased
  int64_t* count;    // valid simplices
  void* volumes;     // [n]
  int64_t* indices;  // [n, k + 1] distinct rows
  double* weights;   // [n, P] symmetric W with dV/dE = W E, packed lower; 0 where degenerate
};

struct Cotangents {  // of their shapes and types; null: zero
  const void* loss;
  const void* cv;
  const void* mean;
  const void* std;
  const void* volumes;
};

// `seed`: two int64 on x's device, (seed, offset). `counter`: on a GPU one uint32 on the device that is zero
// before and after the kernel and belongs to no other call meanwhile; else null.
STRATCORE_API Status forward_cpu(const Problem& problem, const int64_t* seed, const Sample& out,
                                 uint32_t* counter, const Executor& executor);
STRATCORE_API Status forward_cuda(const Problem& problem, const int64_t* seed, const Sample& out,
                                  uint32_t* counter, const Executor& executor);

// `grad` [N, D] of x's element type, every entry written, in a fixed order of additions.
STRATCORE_API Status backward_cpu(const Problem& problem, const Sample& sample, const Cotangents& cotangents,
                                  void* grad, const Executor& executor);
STRATCORE_API Status backward_cuda(const Problem& problem, const Sample& sample, const Cotangents& cotangents,
                                   void* grad, const Executor& executor);

}  // namespace stratcore::simplex_cv

#pragma once

#include <cstdint>

#include "../common/element.h"
#include "../common/executor.h"
#include "../common/macros.h"

// Simplex measures without torch: sizes, pointers, launchers. Legend: B simplices, k order (a simplex has k +
// 1 vertices), P = k (k + 1) / 2 pairs of vertices, D dimension, N rows of a table. Formulas: README.md in
// this folder.
namespace stratcore::cayley_menger {

constexpr int kMaxOrder = 8;

// The vertices: simplex b, vertex j is row (b, j) of `data`, or row indices[b, j] of it.
struct Points {
  const void* data;  // [B, k + 1, D], or the table [N, D]
  const int64_t*
      indices;      // [B, k + 1] rows of the table, or null; a row outside [0, N) makes its simplex NaN
  Element element;  // of `data`
  int64_t simplices, dim;
  int64_t rows;   // N; unused without indices
  int32_t order;  // k, 1 .. kMaxOrder

  int64_t pairs() const { return order * (order + 1) / 2; }
};

// What is wanted of every simplex; null: not wanted. Float64 for float64 points, else float32.
template <class T>
struct MeasuresOf {
  T* volume;             // [B]
  T* log_volume;         // [B]
  T* squared_volume;     // [B]
  T* determinant;        // [B] of the bordered (Cayley-Menger) matrix
  T* squared_distances;  // [B, P], pairs (0, 1), (0, 2), .., (0, k), (1, 2), ..
};
using Measures = MeasuresOf<void>;

// Cotangents of the measures, of their shapes and types; null: zero.
using Cotangents = MeasuresOf<const void>;

// The same pointers as a kernel of one type has them.
template <class T, class Void>
MeasuresOf<T> typed(const MeasuresOf<Void>& any) {
  return {static_cast<T*>(any.volume), static_cast<T*>(any.log_volume), static_cast<T*>(any.squared_volume),
          static_cast<T*>(any.determinant), static_cast<T*>(any.squared_distances)};
}

template <class T>
STRATCORE_HOST_DEVICE inline double at_or_zero(const T* values, int64_t i = 0) {
  return values ? static_cast<double>(values[i]) : 0.0;
}

STRATCORE_API Status forward_cpu(const Points& points, const Measures& out, const Executor& executor);
STRATCORE_API Status forward_cuda(const Points& points, const Measures& out, const Executor& executor);

// Without indices: `grad` is [B, k + 1, D] of the points' element type, every entry written.
// With indices: `grad` is [N, D], float64 for float64 points and else float32, zeroed by the caller, and
// added to. `order` is the permutation [B (k + 1)] that sorts the flat indices stably; null: atomic additions
// in any order (CPU: any order is in order). With `order`, `workspace` holds [B (k + 1), D] numbers of grad's
// type.
STRATCORE_API Status backward_cpu(const Points& points, const Cotangents& cotangents, void* grad,
                                  const int64_t* order, void* workspace, const Executor& executor);
STRATCORE_API Status backward_cuda(const Points& points, const Cotangents& cotangents, void* grad,
                                   const int64_t* order, void* workspace, const Executor& executor);

// The same measures of given squared distances.
struct Distances {
  const void* data;  // [B, P]
  DType dtype;       // of data, of all measures and cotangents
  int64_t simplices;
  int32_t order;
};

// `euclidean` [B]: 1 where points with these distances exist, up to rounding. Where the squared volume is not
// positive: volume 0, log-volume -inf. `out.squared_distances` is not written.
STRATCORE_API Status from_distances_cpu(const Distances& distances, const Measures& out, uint8_t* euclidean,
                                        const Executor& executor);
STRATCORE_API Status from_distances_cuda(const Distances& distances, const Measures& out, uint8_t* euclidean,
                                         const Executor& executor);
STRATCORE_API Status from_distances_backward_cpu(const Distances& distances, const Cotangents& cotangents,
                                                 void* grad, const Executor& executor);
STRATCORE_API Status from_distances_backward_cuda(const Distances& distances, const Cotangents& cotangents,
                                                  void* grad, const Executor& executor);

}  // namespace stratcore::cayley_menger

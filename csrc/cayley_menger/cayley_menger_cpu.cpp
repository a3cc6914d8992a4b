#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

#include "../common/half.h"
#include "../common/instruction_set.h"
#include "cayley_menger.h"
#include "cayley_menger_math.h"
#include "order.h"

// Legend as in cayley_menger.h.
namespace stratcore::cayley_menger {
namespace {

// The loops over a range of simplices, of one order and element type.
template <class T>
struct Loops {
  void (*forward)(const Points&, const Measures&, int64_t begin, int64_t end);
  void (*backward)(const Points&, const Cotangents&, void* grad, int64_t begin, int64_t end);
  void (*matrices)(const Points&, const Cotangents&, double* matrices, int64_t base, int64_t begin,
                   int64_t end);
  void (*scatter)(const Points&, const double* matrices, T* grad, int64_t begin, int64_t end, int64_t column,
                  int64_t count);
};

#define STRATCORE_LANES_FILE "../cayley_menger/cayley_menger_lanes.h"
#include "../common/for_each_instruction_set.h"

template <class T>
Loops<T> best_loops(int32_t order) {
  return STRATCORE_BEST(loops<T>)(order);
}

constexpr int64_t kBlock = 8;           // simplices that the widest loops do side by side
constexpr int64_t kTaskWork = 1 << 18;  // multiplications that are worth a thread
constexpr int64_t kChunk = 2048;        // simplices whose matrices wait for their additions
constexpr int64_t kColumns = 16;        // of a table's gradient, the least share of a thread

int64_t grain_of(int64_t work_each, int64_t multiple) {
  const int64_t count = kTaskWork / std::max<int64_t>(work_each, 1) + 1;
  return (count + multiple - 1) / multiple * multiple;
}

int64_t work_of(const Points& points) {
  return (points.pairs() + points.order) * points.dim + 64 * points.order;
}

// Ranges of whole blocks, so that the lanes are full and do not depend on the number of threads.
template <class Body>
void for_blocks(const Executor& executor, int64_t count, int64_t work_each, const Body& body) {
  const int64_t blocks = (count + kBlock - 1) / kBlock;
  parallel_for(executor, blocks, grain_of(work_each * kBlock, 1),
               [&](int64_t begin, int64_t end) { body(begin * kBlock, std::min(count, end * kBlock)); });
}

template <class T>
void forward(const Points& points, const Measures& out, const Executor& executor) {
  const Loops<T> loops = best_loops<T>(points.order);
  for_blocks(executor, points.simplices, work_of(points),
             [&](int64_t begin, int64_t end) { loops.forward(points, out, begin, end); });
}

// Every thread owns columns of the table's gradient and adds the simplices to them in their order.
template <class T>
void backward_table(const Points& points, const Cotangents& cotangents, T* grad, const Executor& executor) {
  const Loops<T> loops = best_loops<T>(points.order);
  const int64_t pairs = points.pairs(), blocks = (points.dim + kColumns - 1) / kColumns;
  std::vector<double> matrices(std::min(kChunk, points.simplices) * pairs);
  for (int64_t base = 0; base < points.simplices; base += kChunk) {
    const int64_t stop = std::min(points.simplices, base + kChunk);
    for_blocks(executor, stop - base, work_of(points), [&](int64_t begin, int64_t end) {
      loops.matrices(points, cotangents, matrices.data(), base, base + begin, base + end);
    });
    const int64_t work = (stop - base) * points.order * points.order * kColumns;
    parallel_for(executor, blocks, grain_of(work, 1), [&](int64_t begin, int64_t end) {
      const int64_t column = begin * kColumns, last = std::min(points.dim, end * kColumns);
      loops.scatter(points, matrices.data(), grad, base, stop, column, last - column);
    });
  }
}

template <class T>
void backward(const Points& points, const Cotangents& cotangents, void* grad, const Executor& executor) {
  if (points.indices) return backward_table<T>(points, cotangents, static_cast<T*>(grad), executor);
  const Loops<T> loops = best_loops<T>(points.order);
  for_blocks(executor, points.simplices, 2 * work_of(points),
             [&](int64_t begin, int64_t end) { loops.backward(points, cotangents, grad, begin, end); });
}

// ---- from given squared distances

template <int K, class T>
void distances_range(const Distances& distances, const Measures& out, uint8_t* euclidean, int64_t begin,
                     int64_t end) {
  constexpr double kRoundoff = sizeof(T) == 8 ? 0x1p-53 : 0x1p-24;
  const auto put = [](void* target, int64_t simplex, double value) {
    if (target) static_cast<T*>(target)[simplex] = static_cast<T>(value);
  };
  for (int64_t simplex = begin; simplex < end; ++simplex) {
    double given[pairs_of(K)];
    std::copy_n(static_cast<const T*>(distances.data) + simplex * pairs_of(K), pairs_of(K), given);
    const GivenMeasures measures = measure_distances<K>(given, kRoundoff);
    put(out.volume, simplex, measures.volume);
    put(out.log_volume, simplex, measures.log_volume);
    put(out.squared_volume, simplex, measures.squared_volume);
    put(out.determinant, simplex, determinant_coefficient(K) * measures.squared_volume);
    if (euclidean) euclidean[simplex] = measures.euclidean;
  }
}

template <int K, class T>
void distances_backward_range(const Distances& distances, const Cotangents& cotangents, void* grad,
                              int64_t begin, int64_t end) {
  const MeasuresOf<const T> in = typed<const T>(cotangents);
  for (int64_t simplex = begin; simplex < end; ++simplex) {
    double given[pairs_of(K)], gradient[pairs_of(K)];
    std::copy_n(static_cast<const T*>(distances.data) + simplex * pairs_of(K), pairs_of(K), given);
    const Cotangent<double> cotangent{at_or_zero(in.volume, simplex), at_or_zero(in.log_volume, simplex),
                                      at_or_zero(in.squared_volume, simplex),
                                      at_or_zero(in.determinant, simplex)};
    distances_gradient<K>(given, cotangent, gradient);
    std::copy_n(gradient, pairs_of(K), static_cast<T*>(grad) + simplex * pairs_of(K));
  }
}

template <class T, class Body>
void for_distances(const Distances& distances, const Executor& executor, const Body& body) {
  const int64_t work = 16 * distances.order * distances.order * distances.order;
  with_order(distances.order, [&](auto order) {
    parallel_for(executor, distances.simplices, grain_of(work, 1),
                 [&](int64_t begin, int64_t end) { body(order, T(), begin, end); });
  });
}

template <class Body>
void for_distances(const Distances& distances, const Executor& executor, const Body& body) {
  if (distances.dtype == DType::kFloat64) {
    for_distances<double>(distances, executor, body);
  } else {
    for_distances<float>(distances, executor, body);
  }
}

}  // namespace

Status forward_cpu(const Points& points, const Measures& out, const Executor& executor) {
  if (points.element == Element::kFloat64) {
    forward<double>(points, out, executor);
  } else {
    forward<float>(points, out, executor);
  }
  return kOk;
}

Status backward_cpu(const Points& points, const Cotangents& cotangents, void* grad, const int64_t*, void*,
                    const Executor& executor) {
  if (points.element == Element::kFloat64) {
    backward<double>(points, cotangents, grad, executor);
  } else {
    backward<float>(points, cotangents, grad, executor);
  }
  return kOk;
}

Status from_distances_cpu(const Distances& distances, const Measures& out, uint8_t* euclidean,
                          const Executor& executor) {
  for_distances(distances, executor, [&](auto order, auto like, int64_t begin, int64_t end) {
    distances_range<decltype(order)::value, decltype(like)>(distances, out, euclidean, begin, end);
  });
  return kOk;
}

Status from_distances_backward_cpu(const Distances& distances, const Cotangents& cotangents, void* grad,
                                   const Executor& executor) {
  for_distances(distances, executor, [&](auto order, auto like, int64_t begin, int64_t end) {
    distances_backward_range<decltype(order)::value, decltype(like)>(distances, cotangents, grad, begin, end);
  });
  return kOk;
}

}  // namespace stratcore::cayley_menger

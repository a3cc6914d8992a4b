#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <type_traits>
#include <vector>

#include "../common/half.h"
#include "../common/instruction_set.h"
#include "cayley_menger.h"
#include "cayley_menger_math.h"
#include "order.h"
#include "simplex_cv.h"
#include "simplex_cv_math.h"

// Legend as in simplex_cv.h.
namespace stratcore::simplex_cv {
namespace {

using namespace cayley_menger;  // what is its own here hides it: Cotangents, typed, forward_cpu, ..

// Multiplications that are worth a thread, simplices that are measured side by side at most, and columns that
// one thread of the backward owns at least.
constexpr int64_t kGrain = 1 << 18, kGroup = 8, kBlock = 32;

// The loops over a range of simplices, or over all of them for a range of columns, of one order and type.
template <class T>
struct Loops {
  void (*measure)(const Problem&, const int64_t* seed, const Sample&, int64_t begin, int64_t end);
  void (*scatter)(const Points&, const SavedState&, const double* cotangents, T* grad, int64_t column,
                  int64_t count);
};

// The drawn simplices as cayley_menger takes them.
Points points_of(const Problem& problem, const int64_t* indices) {
  return {problem.x, indices, problem.element, problem.simplices, problem.dim, problem.rows, problem.order};
}

#define STRATCORE_LANES_FILE "../cayley_menger/simplex_cv_lanes.h"
#include "../common/for_each_instruction_set.h"

template <class T>
Loops<T> best_loops(int32_t order) {
  return STRATCORE_BEST(loops<T>)(order);
}

// Mean and unbiased standard deviation of the valid volumes in two passes, in the order of the sample.
struct Validity {
  const double* volumes;
  int64_t simplices;
  double least;

  Validity(const Problem& problem, const double* volumes_)
      : volumes(volumes_), simplices(problem.simplices), least(std::sqrt(problem.valid_above)) {}

  bool operator()(int64_t which) const { return volumes[which] > least; }

  // Sum of f(volume) over the valid simplices, in eight parts.
  template <class Function>
  double total(const Function& f) const {
    double lanes[8] = {};
    for (int64_t which = 0; which < simplices; ++which) {
      lanes[which % 8] += (*this)(which) ? f(volumes[which]) : 0.0;
    }
    double total = 0.0;
    for (const double lane : lanes) total += lane;
    return total;
  }
};

template <class T>
void summarize(const Problem& problem, const SampleOf<T>& out) {
  const Validity valid(problem, out.state.volumes());
  const auto count = int64_t(valid.total([](double) { return 1.0; }));
  double cv = std::numeric_limits<double>::quiet_NaN(), mean = cv, deviation = cv, loss = 0.0;
  if (count >= problem.min_valid) {
    mean = valid.total([](double volume) { return volume; }) / double(count);
    const auto square = [=](double volume) { return (volume - mean) * (volume - mean); };
    deviation = std::sqrt(valid.total(square) / double(count - 1));
    cv = deviation / (mean + problem.eps);
    loss = (cv - problem.target) * (cv - problem.target);
  }
  *out.loss = T(loss);
  *out.cv = T(cv);
  *out.mean = T(mean);
  *out.std = T(deviation);
  *out.count = count;
  const double statistics[] = {cv, mean, deviation, double(count)};
  std::copy_n(statistics, 4, out.state.statistics());
}

// Derivative of the loss of the caller with respect to every volume.
template <class T>
std::vector<double> volume_cotangents(const Problem& problem, const SavedState& state,
                                      const CotangentsOf<T>& given) {
  const double* volumes = state.volumes();
  const Validity valid(problem, volumes);
  const Statistics statistics(state);
  const ScalarCotangents scalars{at_or_zero(given.loss), at_or_zero(given.cv), at_or_zero(given.mean),
                                 at_or_zero(given.std)};
  const bool defined = statistics.count >= double(problem.min_valid);
  std::vector<double> cotangents(problem.simplices);
  for (int64_t which = 0; which < problem.simplices; ++which) {
    double& cotangent = cotangents[which];
    cotangent = at_or_zero(given.volumes, which);
    if (defined && valid(which)) {
      cotangent += volume_cotangent(statistics, scalars, problem.target, problem.eps, volumes[which]);
    }
  }
  return cotangents;
}

template <class T>
void forward(const Problem& problem, const int64_t* seed, const Sample& out, const Executor& executor) {
  const Loops<T> loops = best_loops<T>(problem.order);
  const int64_t groups = (problem.simplices + kGroup - 1) / kGroup;
  const int64_t work = kGroup * (pairs_of(problem.order) * problem.dim + 256);
  parallel_for(executor, groups, std::max<int64_t>(1, kGrain / work), [&](int64_t begin, int64_t end) {
    loops.measure(problem, seed, out, begin * kGroup, std::min(problem.simplices, end * kGroup));
  });
  summarize<T>(problem, typed<T>(out));
}

// What narrower types than T are added up in is T.
template <class T>
void backward(const Problem& problem, const int64_t* indices, const SavedState& state,
              const Cotangents& given, void* out, const Executor& executor) {
  const Loops<T> loops = best_loops<T>(problem.order);
  const bool narrow = size_of(problem.element) < int64_t(sizeof(T));
  const int64_t size = problem.rows * problem.dim;
  std::vector<T> sums(narrow ? size : 0);
  T* grad = narrow ? sums.data() : static_cast<T*>(out);
  if (!narrow) {
    parallel_for(executor, size, kGrain,
                 [=](int64_t begin, int64_t end) { std::fill(grad + begin, grad + end, T(0)); });
  }
  const std::vector<double> cotangents = volume_cotangents<T>(problem, state, typed<T>(given));
  const Points points = points_of(problem, indices);
  const int64_t blocks = (problem.dim + kBlock - 1) / kBlock;
  const int64_t work = problem.simplices * (problem.order * problem.order + problem.order) * kBlock;
  parallel_for(executor, blocks, std::max<int64_t>(1, kGrain / work), [&](int64_t begin, int64_t end) {
    const int64_t column = begin * kBlock, last = std::min(end * kBlock, problem.dim);
    loops.scatter(points, state, cotangents.data(), grad, column, last - column);
  });
  if constexpr (sizeof(T) == sizeof(float)) {
    if (!narrow) return;
    parallel_for(executor, size, kGrain, [=](int64_t begin, int64_t end) {
      STRATCORE_BEST(narrow_all)(problem.element, grad + begin, end - begin,
                                 static_cast<uint16_t*>(out) + begin);
    });
  }
}

}  // namespace

Status forward_cpu(const Problem& problem, const int64_t* seed, const Sample& out, uint32_t*,
                   const Executor& executor) {
  if (problem.element == Element::kFloat64) {
    forward<double>(problem, seed, out, executor);
  } else {
    forward<float>(problem, seed, out, executor);
  }
  return kOk;
}

Status backward_cpu(const Problem& problem, const int64_t* indices, const SavedState& state,
                    const Cotangents& cotangents, void* grad, const Executor& executor) {
  if (problem.element == Element::kFloat64) {
    backward<double>(problem, indices, state, cotangents, grad, executor);
  } else {
    backward<float>(problem, indices, state, cotangents, grad, executor);
  }
  return kOk;
}

}  // namespace stratcore::simplex_cv

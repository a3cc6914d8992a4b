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

using namespace cayley_menger;  // what is its own here hides it: Cotangents, forward_cpu, ..

// Multiplications that are worth a thread, simplices that are measured side by side at most, and columns that
// one thread of the backward owns at least.
constexpr int64_t kGrain = 1 << 18, kGroup = 8, kBlock = 32;

// The loops over a range of simplices, or over all of them for a range of columns, of one order and type.
template <class T>
struct Loops {
  void (*measure)(const Problem&, const int64_t* seed, const Sample&, int64_t begin, int64_t end);
  void (*scatter)(const Problem&, const Sample&, const double* cotangents, T* grad, int64_t column,
                  int64_t count);
};

// The drawn simplices as cayley_menger takes them.
Points points_of(const Problem& problem, const Sample& sample) {
  return {problem.x,   sample.indices, problem.element, problem.simplices,
          problem.dim, problem.rows,   problem.order};
}

#define STRATCORE_LANES_FILE "../cayley_menger/simplex_cv_lanes.h"
#include "../common/for_each_instruction_set.h"

template <class T>
Loops<T> best_loops(int32_t order) {
  return STRATCORE_BEST(loops<T>)(order);
}

// Mean and unbiased standard deviation of the valid volumes in two passes, in the order of the sample.
template <class T>
struct Validity {
  const T* volumes;
  int64_t simplices;
  double least;

  explicit Validity(const Problem& problem, const Sample& sample)
      : volumes(static_cast<const T*>(sample.volumes)), simplices(problem.simplices),
        least(std::sqrt(problem.valid_above)) {}

  bool operator()(int64_t which) const { return volumes[which] > least; }

  // Sum of f(volume) over the valid simplices, in eight parts.
  template <class Function>
  double total(const Function& f) const {
    double lanes[8] = {};
    for (int64_t which = 0; which < simplices; ++which) {
      lanes[which % 8] += (*this)(which) ? f(double(volumes[which])) : 0.0;
    }
    double total = 0.0;
    for (const double lane : lanes) total += lane;
    return total;
  }
};

template <class T>
void summarize(const Problem& problem, const Sample& out) {
  const Validity<T> valid(problem, out);
  const auto count = int64_t(valid.total([](double) { return 1.0; }));
  double cv = std::numeric_limits<double>::quiet_NaN(), mean = cv, deviation = cv, loss = 0.0;
  if (count >= problem.min_valid) {
    mean = valid.total([](double volume) { return volume; }) / double(count);
    const auto square = [=](double volume) { return (volume - mean) * (volume - mean); };
    deviation = std::sqrt(valid.total(square) / double(count - 1));
    cv = deviation / (mean + problem.eps);
    loss = (cv - problem.target) * (cv - problem.target);
  }
  *static_cast<T*>(out.loss) = T(loss);
  *static_cast<T*>(out.cv) = T(cv);
  *static_cast<T*>(out.mean) = T(mean);
  *static_cast<T*>(out.std) = T(deviation);
  *out.count = count;
}

// Derivative of the loss of the caller with respect to every volume.
template <class T>
std::vector<double> volume_cotangents(const Problem& problem, const Sample& sample, const Cotangents& given) {
  const auto number = [](const void* pointer) {
    return pointer ? double(*static_cast<const T*>(pointer)) : 0.0;
  };
  const auto* volumes = static_cast<const T*>(sample.volumes);
  const Validity<T> valid(problem, sample);
  const Statistics statistics{number(sample.cv), number(sample.mean), number(sample.std), *sample.count};
  const ScalarCotangents scalars{number(given.loss), number(given.cv), number(given.mean), number(given.std)};
  const bool defined = *sample.count >= problem.min_valid;
  std::vector<double> cotangents(problem.simplices, 0.0);
  for (int64_t which = 0; which < problem.simplices; ++which) {
    double& cotangent = cotangents[which];
    if (given.volumes) cotangent = double(static_cast<const T*>(given.volumes)[which]);
    if (defined && valid(which)) {
      cotangent += volume_cotangent(statistics, scalars, problem.target, problem.eps, double(volumes[which]));
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
  summarize<T>(problem, out);
}

// What narrower types than T are added up in is T.
template <class T>
void backward(const Problem& problem, const Sample& sample, const Cotangents& given, void* out,
              const Executor& executor) {
  const Loops<T> loops = best_loops<T>(problem.order);
  const bool narrow = size_of(problem.element) < int64_t(sizeof(T));
  const int64_t size = problem.rows * problem.dim;
  std::vector<T> sums(narrow ? size : 0);
  T* grad = narrow ? sums.data() : static_cast<T*>(out);
  if (!narrow) {
    parallel_for(executor, size, kGrain,
                 [=](int64_t begin, int64_t end) { std::fill(grad + begin, grad + end, T(0)); });
  }
  const std::vector<double> cotangents = volume_cotangents<T>(problem, sample, given);
  const int64_t blocks = (problem.dim + kBlock - 1) / kBlock;
  const int64_t work = problem.simplices * (problem.order * problem.order + problem.order) * kBlock;
  parallel_for(executor, blocks, std::max<int64_t>(1, kGrain / work), [&](int64_t begin, int64_t end) {
    const int64_t column = begin * kBlock, last = std::min(end * kBlock, problem.dim);
    loops.scatter(problem, sample, cotangents.data(), grad, column, last - column);
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

Status backward_cpu(const Problem& problem, const Sample& sample, const Cotangents& cotangents, void* grad,
                    const Executor& executor) {
  if (problem.element == Element::kFloat64) {
    backward<double>(problem, sample, cotangents, grad, executor);
  } else {
    backward<float>(problem, sample, cotangents, grad, executor);
  }
  return kOk;
}

}  // namespace stratcore::simplex_cv

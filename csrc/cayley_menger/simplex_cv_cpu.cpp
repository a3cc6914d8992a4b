#include <algorithm>
#include <cmath>
#include <limits>
#include <type_traits>
#include <vector>

#include "../common/simd.h"
#include "cayley_menger_math.h"
#include "simplex_cv.h"
#include "simplex_cv_math.h"

namespace stratcore::simplex_cv {
namespace {

using cayley_menger::packed;
using cayley_menger::pairs_of;

// Multiplications that are worth a thread, and columns that one thread of the backward owns at least.
constexpr int64_t kGrain = 1 << 18, kBlock = 32;

template <class Stored>
using Computed = std::conditional_t<std::is_same_v<Stored, double>, double, float>;

// Edges from vertex 0 in columns [at, at + count), count <= kLanes.
template <class Stored, int K, class Vector>
STRATCORE_INLINE void load_edges(const Stored* const (&row)[K + 1], int64_t at, int64_t count,
                                 Vector (&edge)[K]) {
  Vector origin;
  if (count == kLanes) {
    load(row[0] + at, origin);
    for (int j = 0; j < K; ++j) load(row[j + 1] + at, edge[j]);
  } else {
    load_first(row[0] + at, count, origin);
    for (int j = 0; j < K; ++j) load_first(row[j + 1] + at, count, edge[j]);
  }
  for (int j = 0; j < K; ++j) edge[j] -= origin;
}

template <int K>
STRATCORE_INLINE void add_products(const Lanes (&edge)[K], Lanes (&products)[pairs_of(K)]) {
#pragma GCC unroll 8
  for (int i = 0; i < K; ++i) {
#pragma GCC unroll 8
    for (int j = 0; j <= i; ++j) products[packed(i, j)] += edge[i] * edge[j];
  }
}

template <class Stored, int K>
STRATCORE_INLINE void gram_matrix(const Stored* const (&row)[K + 1], int64_t dim,
                                  double (&gram)[pairs_of(K)]) {
  Lanes products[pairs_of(K)] = {}, edge[K];
  int64_t at = 0;
  for (; at + kLanes <= dim; at += kLanes) {
    load_edges<Stored, K>(row, at, kLanes, edge);
    add_products<K>(edge, products);
  }
  if (at < dim) {
    load_edges<Stored, K>(row, at, dim - at, edge);
    add_products<K>(edge, products);
  }
  for (int p = 0; p < pairs_of(K); ++p) gram[p] = sum(products[p]);
}

// Draws `count` <= kLanes simplices from `first` on. Their random bits are made side by side.
template <int K>
STRATCORE_INLINE void draw_group(const int64_t* seed, int64_t pool, int64_t first, int64_t count,
                                 int64_t (*rows)[K + 1]) {
  uint64_t bits[K + 2][kLanes];
  for (int b = 0; b < kBlocks<K>; ++b) {
    for (int lane = 0; lane < kLanes; ++lane) {
      const PhiloxBlock block = random_block<K>(seed[0], seed[1], first + lane, b);
      bits[2 * b][lane] = uint64_t(block.word[1]) << 32 | block.word[0];
      bits[2 * b + 1][lane] = uint64_t(block.word[3]) << 32 | block.word[2];
    }
  }
  for (int64_t lane = 0; lane < count; ++lane) {
    uint64_t own[K + 1];
    for (int j = 0; j <= K; ++j) own[j] = bits[j][lane];
    choose_vertices<K>(own, pool, rows[lane]);
  }
}

// Volumes and W = V G^-1 of kLanes Gram matrices side by side, by the steps of cayley_menger_math.h. A
// simplex is degenerate where a margin is not positive.
template <int K>
STRATCORE_INLINE void measure_group(Lanes (&g)[pairs_of(K)], Lanes& volume, Lanes (&weights)[pairs_of(K)],
                                    Lanes (&margin)[K]) {
  Lanes lower[pairs_of(K)], scaled[K], scale[K];
  volume = Lanes{} + 1.0 / cayley_menger::factorial(K);
#pragma GCC unroll 8
  for (int j = 0; j < K; ++j) {
    Lanes pivot = g[packed(j, j)];
#pragma GCC unroll 8
    for (int p = 0; p < j; ++p) {
      scaled[p] = g[packed(j, p)] * g[packed(p, p)];
      pivot -= g[packed(j, p)] * scaled[p];
    }
    margin[j] = pivot - cayley_menger::kDegenerate * g[packed(j, j)];
    g[packed(j, j)] = pivot;
    scale[j] = 1.0 / pivot;
    take_root(pivot);
    volume *= pivot;
#pragma GCC unroll 8
    for (int i = j + 1; i < K; ++i) {
#pragma GCC unroll 8
      for (int p = 0; p < j; ++p) g[packed(i, j)] -= g[packed(i, p)] * scaled[p];
      g[packed(i, j)] *= scale[j];
    }
  }
#pragma GCC unroll 8
  for (int j = 0; j < K; ++j) {
    lower[packed(j, j)] = Lanes{} + 1.0;
#pragma GCC unroll 8
    for (int i = j + 1; i < K; ++i) {
      lower[packed(i, j)] = -g[packed(i, j)];
#pragma GCC unroll 8
      for (int p = j + 1; p < i; ++p) lower[packed(i, j)] -= g[packed(i, p)] * lower[packed(p, j)];
    }
  }
#pragma GCC unroll 8
  for (int i = 0; i < K; ++i) {
#pragma GCC unroll 8
    for (int j = 0; j <= i; ++j) {
      Lanes entry = {};
#pragma GCC unroll 8
      for (int p = i; p < K; ++p) entry += lower[packed(p, i)] * scale[p] * lower[packed(p, j)];
      weights[packed(i, j)] = volume * entry;
    }
  }
}

// Draws simplices [begin, end), their volumes and W = V G^-1.
template <class Stored, int K>
STRATCORE_SIMD_CLONES void measure(const Problem& problem, const int64_t* seed, const Sample& out,
                                   int64_t begin, int64_t end) {
  const auto* x = static_cast<const Stored*>(problem.x);
  auto* volumes = static_cast<Computed<Stored>*>(out.volumes);
  for (int64_t first = begin; first < end; first += kLanes) {
    const int64_t count = std::min<int64_t>(kLanes, end - first);
    auto* rows = reinterpret_cast<int64_t (*)[K + 1]>(out.indices + first * (K + 1));
    draw_group<K>(seed, problem.pool, first, count, rows);
    Lanes grams[pairs_of(K)] = {}, weights[pairs_of(K)], margin[K], measured;
    for (int64_t lane = 0; lane < count; ++lane) {
      const Stored* row[K + 1];
      for (int j = 0; j <= K; ++j) row[j] = x + rows[lane][j] * problem.dim;
      double gram[pairs_of(K)];
      gram_matrix<Stored, K>(row, problem.dim, gram);
      for (int p = 0; p < pairs_of(K); ++p) grams[p][lane] = gram[p];
    }
    measure_group<K>(grams, measured, weights, margin);
    for (int64_t lane = 0; lane < count; ++lane) {
      bool degenerate = false;
      for (int j = 0; j < K; ++j) degenerate |= margin[j][lane] <= 0.0;
      volumes[first + lane] = degenerate ? 0 : Computed<Stored>(measured[lane]);
      double* own = out.weights + (first + lane) * pairs_of(K);
      for (int p = 0; p < pairs_of(K); ++p) own[p] = degenerate ? 0.0 : weights[p][lane];
    }
  }
}

// Adds the gradient of one simplex in columns [at, at + count) to the gradients of its rows.
template <class Stored, class T, class Number, int K>
STRATCORE_INLINE void add_gradient(const Stored* const (&row)[K + 1], T* const (&target)[K + 1],
                                   const Number (&matrix)[pairs_of(K)], int64_t at, int64_t count) {
  using Vector = std::conditional_t<std::is_same_v<Number, double>, Lanes, FloatLanes>;
  Vector edge[K], origin = {};
  load_edges<Stored, K>(row, at, count, edge);
#pragma GCC unroll 8
  for (int i = 0; i < K; ++i) {
    Vector gradient = edge[0] * matrix[packed(i, 0)];
#pragma GCC unroll 8
    for (int j = 1; j < K; ++j) gradient += edge[j] * matrix[packed(i, j)];
    origin -= gradient;
    count == kLanes ? add_to(target[i + 1] + at, gradient)
                    : add_first_to(target[i + 1] + at, count, gradient);
  }
  count == kLanes ? add_to(target[0] + at, origin) : add_first_to(target[0] + at, count, origin);
}

// The same in columns [begin, end) for the matrix `scale` W, computed in Number.
template <class Stored, class T, class Number, int K>
STRATCORE_INLINE void add_gradients(const Stored* const (&row)[K + 1], T* const (&target)[K + 1],
                                    const double* weights, double scale, int64_t begin, int64_t end) {
  Number matrix[pairs_of(K)];
  for (int p = 0; p < pairs_of(K); ++p) matrix[p] = Number(scale * weights[p]);
  int64_t at = begin;
  for (; at + kLanes <= end; at += kLanes) {
    add_gradient<Stored, T, Number, K>(row, target, matrix, at, kLanes);
  }
  if (at < end) add_gradient<Stored, T, Number, K>(row, target, matrix, at, end - at);
}

// Whether W E loses at most six bits by cancellation, so that float32 will do. The condition number of W is
// bounded through its determinant V^(k - 2) / (k!)^2 and its Frobenius norm (Guggenheimer, Edelman and
// Johnson).
template <int K>
STRATCORE_INLINE bool well_shaped(const double* weights, double volume) {
  double squares = 0.0, bound = 2.0 * cayley_menger::factorial(K) * cayley_menger::factorial(K);
  for (int i = 0; i < K; ++i) {
    for (int j = 0; j <= i; ++j)
      squares += (i == j ? 1.0 : 2.0) * weights[packed(i, j)] * weights[packed(i, j)];
  }
  const double norm = std::sqrt(squares / K);
  for (int i = 0; i < K; ++i) bound *= i < 2 ? norm : norm / volume;
  if (K == 1) bound *= volume;
  return bound < 4096.0;
}

// Gradient in columns [begin, end), simplex by simplex, so that every sum has one order.
template <class Stored, int K>
STRATCORE_SIMD_CLONES void scatter(const Problem& problem, const Sample& sample, const double* cotangents,
                                   Computed<Stored>* grad, int64_t begin, int64_t end) {
  using T = Computed<Stored>;
  const auto* x = static_cast<const Stored*>(problem.x);
  for (int64_t which = 0; which < problem.simplices; ++which) {
    if (cotangents[which] == 0.0) continue;
    const Stored* row[K + 1];
    T* target[K + 1];
    for (int j = 0; j <= K; ++j) {
      const int64_t offset = sample.indices[which * (K + 1) + j] * problem.dim;
      row[j] = x + offset;
      target[j] = grad + offset;
    }
    const double* weights = sample.weights + which * pairs_of(K);
    const double volume = static_cast<const T*>(sample.volumes)[which];
    if (std::is_same_v<T, double> || well_shaped<K>(weights, volume)) {
      add_gradients<Stored, T, T, K>(row, target, weights, cotangents[which], begin, end);
    } else {
      add_gradients<Stored, T, double, K>(row, target, weights, cotangents[which], begin, end);
    }
  }
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

  // Sum of f(volume) over the valid simplices.
  template <class Function>
  double total(const Function& f) const {
    double lanes[kLanes] = {};
    for (int64_t which = 0; which < simplices; ++which) {
      lanes[which % kLanes] += (*this)(which) ? f(double(volumes[which])) : 0.0;
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

template <class Stored, int K>
void forward(const Problem& problem, const int64_t* seed, const Sample& out, const Executor& executor) {
  const int64_t work = pairs_of(K) * problem.dim + 256;
  parallel_for(executor, problem.simplices, std::max<int64_t>(1, kGrain / work),
               [&](int64_t begin, int64_t end) { measure<Stored, K>(problem, seed, out, begin, end); });
  summarize<Computed<Stored>>(problem, out);
}

template <class Stored, int K>
void backward(const Problem& problem, const Sample& sample, const Cotangents& given, void* out,
              const Executor& executor) {
  using T = Computed<Stored>;
  constexpr bool kNarrow = sizeof(Stored) < sizeof(T);
  const int64_t size = problem.rows * problem.dim;
  std::vector<T> sums(kNarrow ? size : 0);
  auto* grad = static_cast<Stored*>(out);
  T* target = kNarrow ? sums.data() : static_cast<T*>(out);
  if (!kNarrow) {
    parallel_for(executor, size, kGrain,
                 [=](int64_t begin, int64_t end) { std::fill(target + begin, target + end, T(0)); });
  }
  const std::vector<double> cotangents = volume_cotangents<T>(problem, sample, given);
  const int64_t blocks = (problem.dim + kBlock - 1) / kBlock;
  const int64_t grain = std::max<int64_t>(1, kGrain / (problem.simplices * (K * K + K) * kBlock));
  parallel_for(executor, blocks, grain, [&](int64_t begin, int64_t end) {
    const int64_t last = std::min(end * kBlock, problem.dim);
    scatter<Stored, K>(problem, sample, cotangents.data(), target, begin * kBlock, last);
  });
  if (kNarrow) {
    parallel_for(executor, size, kGrain, [=](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) store(target[i], grad[i]);
    });
  }
}

// Calls f(tag of the stored type, tag of the order).
template <class Function>
void dispatch(const Problem& problem, const Function& f) {
  const auto with_order = [&](auto stored) {
    switch (problem.order) {
      case 1:
        return f(stored, std::integral_constant<int, 1>());
      case 2:
        return f(stored, std::integral_constant<int, 2>());
      case 3:
        return f(stored, std::integral_constant<int, 3>());
      case 4:
        return f(stored, std::integral_constant<int, 4>());
      case 5:
        return f(stored, std::integral_constant<int, 5>());
      case 6:
        return f(stored, std::integral_constant<int, 6>());
      case 7:
        return f(stored, std::integral_constant<int, 7>());
      default:
        return f(stored, std::integral_constant<int, 8>());
    }
  };
  switch (problem.element) {
    case Element::kFloat64:
      return with_order(double());
    case Element::kFloat32:
      return with_order(float());
    case Element::kBFloat16:
      return with_order(BFloat16());
    case Element::kFloat16:
      return with_order(Float16());
  }
}

}  // namespace

Status forward_cpu(const Problem& problem, const int64_t* seed, const Sample& out, uint32_t*,
                   const Executor& executor) {
  dispatch(problem, [&](auto stored, auto order) {
    forward<decltype(stored), decltype(order)::value>(problem, seed, out, executor);
  });
  return kOk;
}

Status backward_cpu(const Problem& problem, const Sample& sample, const Cotangents& cotangents, void* grad,
                    const Executor& executor) {
  dispatch(problem, [&](auto stored, auto order) {
    backward<decltype(stored), decltype(order)::value>(problem, sample, cotangents, grad, executor);
  });
  return kOk;
}

}  // namespace stratcore::simplex_cv

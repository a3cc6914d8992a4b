#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <type_traits>
#include <vector>

#include "../common/half.h"
#include "tangent_projection.h"
#include "tangent_projection_math.h"

// Rows are normalized and compared with the anchors by one code for all instruction sets: it is inlined into
// one function for each, which the processor chooses at run time.
namespace stratcore::tangent_projection {
namespace {

#define STRATCORE_INLINE [[gnu::always_inline]] inline

constexpr int kPanelBytes = 64;    // anchors that are compared at once with a row: one cache line of them
constexpr int kTilesPerBlock = 8;  // tiles that read a panel of anchors while it is in the cache

// Bytes of a vector register, and rows of which a panel's products stay in registers.
struct Baseline {
  static constexpr int kBytes = 16, kRows = 3;
};
struct Avx2 {
  static constexpr int kBytes = 32, kRows = 6;
};
struct Avx512 {
  static constexpr int kBytes = 64, kRows = 12;
};

template <class T>
constexpr int kPanel = kPanelBytes / static_cast<int>(sizeof(T));

template <class E>
struct ComputeOf {
  using type = float;
};
template <>
struct ComputeOf<double> {
  using type = double;
};

// Row of T from a row of elements: itself where the types are one, else converted into `buffer`.
template <class E, class T>
STRATCORE_INLINE const T* load_row(const E* row, [[maybe_unused]] int64_t dim, [[maybe_unused]] T* buffer) {
  if constexpr (std::is_same<E, T>::value) {
    return row;
  } else {
    for (int64_t d = 0; d < dim; ++d) buffer[d] = widen(row[d]);
    return buffer;
  }
}

template <class E, class T>
STRATCORE_INLINE void store(T value, E& target) {
  if constexpr (std::is_same<E, T>::value) {
    target = value;
  } else {
    narrow(value, target);
  }
}

// Inner products in float64, whatever T: the terms of float32 rows are exact, and neither 1e-30 nor 1e30
// leaves the range. kPairs of them run over one read of the rows.
template <class Isa, int kPairs, class T>
STRATCORE_INLINE void inner_products(const T* const (&left)[kPairs], const T* const (&right)[kPairs],
                                     int64_t dim, double (&sums)[kPairs]) {
  constexpr int kLanes = Isa::kBytes / sizeof(double), kChains = 4 / kPairs > 0 ? 4 / kPairs : 1;
  typedef T Narrow __attribute__((vector_size(kLanes * sizeof(T))));
  typedef double Wide __attribute__((vector_size(Isa::kBytes)));
  Wide partial[kPairs][kChains] = {};
  int64_t d = 0;
  for (; d + kLanes * kChains <= dim; d += kLanes * kChains) {
    for (int pair = 0; pair < kPairs; ++pair) {
      for (int chain = 0; chain < kChains; ++chain) {
        Narrow a, b;
        std::memcpy(&a, left[pair] + d + chain * kLanes, sizeof(Narrow));
        std::memcpy(&b, right[pair] + d + chain * kLanes, sizeof(Narrow));
        partial[pair][chain] += __builtin_convertvector(a, Wide) * __builtin_convertvector(b, Wide);
      }
    }
  }
  for (int pair = 0; pair < kPairs; ++pair) {
    double sum = 0;
    for (int chain = 0; chain < kChains; ++chain) {
      for (int lane = 0; lane < kLanes; ++lane) sum += partial[pair][chain][lane];
    }
    for (int64_t rest = d; rest < dim; ++rest) sum += double(left[pair][rest]) * double(right[pair][rest]);
    sums[pair] = sum;
  }
}

template <class Isa, class T>
STRATCORE_INLINE double square_sum(const T* row, int64_t dim) {
  const T* const rows[1] = {row};
  double sum[1];
  inner_products<Isa>(rows, rows, dim, sum);
  return sum[0];
}

// ---- anchors

// Anchors scaled to length 1, as panels [D + 1, kPanel]: first what the products start from (0; -inf for the
// columns beyond the last anchor, +inf for an anchor that is not finite), then one row for each dimension.
template <class T>
class Panels {
 public:
  template <class E>
  Panels(const E* anchors, int64_t count, int64_t dim)
      : dim_(dim), count_((count + kPanel<T> - 1) / kPanel<T>), data_(count_ * stride(), T(0)) {
    std::vector<T> buffer(dim);
    for (int64_t anchor = 0; anchor < count_ * kPanel<T>; ++anchor) {
      T* column = data_.data() + anchor / kPanel<T> * stride() + anchor % kPanel<T>;
      if (anchor >= count) {
        *column = -std::numeric_limits<T>::infinity();
        continue;
      }
      const T* row = load_row(anchors + anchor * dim, dim, buffer.data());
      const double squares = square_sum<Baseline>(row, dim);
      if (!std::isfinite(squares)) {
        *column = std::numeric_limits<T>::infinity();
        continue;
      }
      const T inverse = squares > 0 ? T(1 / std::sqrt(squares)) : T(0);
      for (int64_t d = 0; d < dim; ++d) column[(d + 1) * kPanel<T>] = row[d] * inverse;
    }
  }

  int64_t count() const { return count_; }
  const T* operator[](int64_t panel) const { return data_.data() + panel * stride(); }

 private:
  int64_t stride() const { return (dim_ + 1) * kPanel<T>; }

  int64_t dim_, count_;
  std::vector<T> data_;
};

// The best of each column of the panels, for one row: which panel it was in, and its cosine.
template <class T>
struct Best {
  alignas(kPanelBytes) T cosine[kPanel<T>];
  alignas(kPanelBytes) typename std::conditional<sizeof(T) == 8, int64_t, int32_t>::type panel[kPanel<T>];
};

// Products of kRows rows with one panel. Every (row, anchor) is summed over D in the same order, wherever it
// stands, so that equal anchors tie exactly.
template <class Isa, class T>
STRATCORE_INLINE void compare_tile(const T* const* rows, int64_t dim, const T* panel, int64_t index,
                                   Best<T>* best) {
  constexpr int kVectors = kPanelBytes / Isa::kBytes, kLanes = Isa::kBytes / sizeof(T);
  typedef T Vector __attribute__((vector_size(Isa::kBytes)));
  typedef typename std::conditional<sizeof(T) == 8, int64_t, int32_t>::type Integer;
  typedef Integer Indices __attribute__((vector_size(Isa::kBytes)));
  Vector sum[Isa::kRows][kVectors], column[kVectors];
  std::memcpy(column, panel, kPanelBytes);
  for (int row = 0; row < Isa::kRows; ++row) {
    for (int v = 0; v < kVectors; ++v) sum[row][v] = column[v];
  }
  for (int64_t d = 0; d < dim; ++d) {
    std::memcpy(column, panel + (d + 1) * kPanel<T>, kPanelBytes);
    for (int row = 0; row < Isa::kRows; ++row) {
      for (int v = 0; v < kVectors; ++v) sum[row][v] += rows[row][d] * column[v];
    }
  }
  for (int row = 0; row < Isa::kRows; ++row) {
    for (int v = 0; v < kVectors; ++v) {
      Vector cosine;
      Indices panels;
      std::memcpy(&cosine, best[row].cosine + v * kLanes, Isa::kBytes);
      std::memcpy(&panels, best[row].panel + v * kLanes, Isa::kBytes);
      const Indices better = sum[row][v] > cosine;
      cosine = better ? sum[row][v] : cosine;
      panels = better ? (Indices{} + static_cast<Integer>(index)) : panels;
      std::memcpy(best[row].cosine + v * kLanes, &cosine, Isa::kBytes);
      std::memcpy(best[row].panel + v * kLanes, &panels, Isa::kBytes);
    }
  }
}

template <class Isa, class T>
STRATCORE_INLINE void compare_block(const T* rows, int64_t count, int64_t dim, const Panels<T>& panels,
                                    int32_t* nearest, T* cosine) {
  constexpr T kInfinity = std::numeric_limits<T>::infinity();
  Best<T> best[Isa::kRows * kTilesPerBlock];
  for (Best<T>& row : best) {
    std::fill(row.cosine, row.cosine + kPanel<T>, -kInfinity);
    std::fill(row.panel, row.panel + kPanel<T>, 0);
  }
  for (int64_t panel = 0; panel < panels.count(); ++panel) {
    for (int64_t first = 0; first < count; first += Isa::kRows) {
      const T* tile[Isa::kRows];  // beyond the last row: that one again
      for (int row = 0; row < Isa::kRows; ++row) tile[row] = rows + std::min(first + row, count - 1) * dim;
      compare_tile<Isa>(tile, dim, panels[panel], panel, best + first);
    }
  }
  for (int64_t row = 0; row < count; ++row) {
    T largest = -kInfinity;
    int64_t index = 0;
    for (int lane = 0; lane < kPanel<T>; ++lane) {
      const T value = best[row].cosine[lane];
      const int64_t anchor = best[row].panel[lane] * kPanel<T> + lane;
      if (value > largest || (value == largest && anchor < index)) {
        largest = value;
        index = anchor;
      }
    }
    nearest[row] = static_cast<int32_t>(index);
    cosine[row] = std::isfinite(largest) ? largest : std::numeric_limits<T>::quiet_NaN();
  }
}

// ---- forward and backward of a range of rows

struct Job {
  const Problem& problem;
  const Output& out;
  const void* panels;  // Panels<T> of the forward, or null
  const void* grad_y;
  void* grad_x;
};

template <class Isa, class E>
STRATCORE_INLINE void forward_rows(const Job& job, int64_t begin, int64_t end) {
  using T = typename ComputeOf<E>::type;
  constexpr int64_t kBlock = Isa::kRows * kTilesPerBlock;
  const int64_t dim = job.problem.dim;
  const auto* panels = static_cast<const Panels<T>*>(job.panels);
  T* norms = static_cast<T*>(job.out.norm);
  std::vector<T> source(std::is_same<E, T>::value ? 0 : dim);
  std::vector<T> unrounded(std::is_same<E, T>::value || !panels ? 0 : kBlock * dim);
  for (int64_t first = begin; first < end; first += kBlock) {
    const int64_t count = std::min(kBlock, end - first);
    for (int64_t i = 0; i < count; ++i) {
      const T* x = load_row(static_cast<const E*>(job.problem.x) + (first + i) * dim, dim, source.data());
      const T norm = T(std::sqrt(square_sum<Isa>(x, dim)));
      const T radius = radius_of(norm, T(job.problem.eps));
      E* y = static_cast<E*>(job.out.y) + (first + i) * dim;
      for (int64_t d = 0; d < dim; ++d) store(x[d] / radius, y[d]);
      if (!unrounded.empty()) {
        for (int64_t d = 0; d < dim; ++d) unrounded[i * dim + d] = x[d] / radius;
      }
      norms[first + i] = norm;
    }
    if (!panels) continue;
    const T* rows = unrounded.data();
    if constexpr (std::is_same<E, T>::value) rows = static_cast<const T*>(job.out.y) + first * dim;
    compare_block<Isa>(rows, count, dim, *panels, job.out.nearest + first,
                       static_cast<T*>(job.out.cosine) + first);
  }
}

template <class Isa, class E>
STRATCORE_INLINE void backward_rows(const Job& job, int64_t begin, int64_t end) {
  using T = typename ComputeOf<E>::type;
  const Problem& problem = job.problem;
  const int64_t dim = problem.dim;
  const bool has_anchor = problem.anchor_count > 0 && problem.separation != 0;
  std::vector<T> buffer(std::is_same<E, T>::value ? 0 : 3 * dim);
  for (int64_t row = begin; row < end; ++row) {
    const T* x = load_row(static_cast<const E*>(problem.x) + row * dim, dim, buffer.data());
    const T* g = load_row(static_cast<const E*>(job.grad_y) + row * dim, dim, buffer.data() + dim);
    E* grad_x = static_cast<E*>(job.grad_x) + row * dim;
    const T norm = static_cast<const T*>(job.out.norm)[row];
    const T radius = radius_of(norm, T(problem.eps));
    if (!has_anchor) {
      double products[1];
      inner_products<Isa>({g}, {x}, dim, products);
      const Combination<T> sum = combine<T>(problem, false, norm, T(0), T(products[0] / radius), T(0));
      for (int64_t d = 0; d < dim; ++d) {
        store(sum.of_gradient * g[d] + sum.of_row * (x[d] / radius), grad_x[d]);
      }
      continue;
    }
    const T* a = load_row(static_cast<const E*>(problem.anchors) + job.out.nearest[row] * dim, dim,
                          buffer.data() + 2 * dim);
    double products[4];
    inner_products<Isa>({g, g, x, a}, {x, a, a, a}, dim, products);
    const T inverse = products[3] == 0 ? T(0) : T(1 / std::sqrt(products[3]));
    const Combination<T> sum = combine<T>(problem, true, norm, T(products[2] / radius * inverse),
                                          T(products[0] / radius), T(products[1] * inverse));
    for (int64_t d = 0; d < dim; ++d) {
      store(sum.of_gradient * g[d] + sum.of_row * (x[d] / radius) + sum.of_anchor * (a[d] * inverse),
            grad_x[d]);
    }
  }
}

template <class Isa>
STRATCORE_INLINE void run_rows(const Job& job, int64_t begin, int64_t end) {
  const auto run = [&](auto element) __attribute__((always_inline)) {
    using E = decltype(element);
    job.grad_y ? backward_rows<Isa, E>(job, begin, end) : forward_rows<Isa, E>(job, begin, end);
  };
  switch (job.problem.element) {
    case Element::kFloat64:
      return run(double());
    case Element::kFloat32:
      return run(float());
    case Element::kBFloat16:
      return run(BFloat16());
    case Element::kFloat16:
      return run(Float16());
  }
}

using RunRows = void (*)(const Job& job, int64_t begin, int64_t end);

void run_baseline(const Job& job, int64_t begin, int64_t end) { run_rows<Baseline>(job, begin, end); }

#if defined(__x86_64__)
[[gnu::target("avx2,fma")]] void run_avx2(const Job& job, int64_t begin, int64_t end) {
  run_rows<Avx2>(job, begin, end);
}

[[gnu::target("avx2,fma,avx512f,avx512bw,avx512dq,avx512vl")]] void run_avx512(const Job& job, int64_t begin,
                                                                               int64_t end) {
  run_rows<Avx512>(job, begin, end);
}
#endif

RunRows chosen() {
#if defined(__x86_64__)
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl")) {
    return run_avx512;
  }
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return run_avx2;
#endif
  return run_baseline;
}

// Some ten microseconds of work: smaller pieces are not worth a thread.
int64_t grain_of(const Problem& problem, int64_t anchors) {
  return std::max<int64_t>(1, (1 << 16) / (std::max<int64_t>(problem.dim, 1) * (1 + anchors / 8)));
}

Status run(const Job& job, const Executor& executor, int64_t anchors) {
  static const RunRows rows = chosen();
  parallel_for(executor, job.problem.rows, grain_of(job.problem, anchors),
               [&](int64_t begin, int64_t end) noexcept { rows(job, begin, end); });
  return kOk;
}

template <class E>
Status forward_with_anchors(const Problem& problem, const Output& out, const Executor& executor) {
  const Panels<typename ComputeOf<E>::type> panels(static_cast<const E*>(problem.anchors),
                                                   problem.anchor_count, problem.dim);
  return run({problem, out, &panels, nullptr, nullptr}, executor, problem.anchor_count);
}

#undef STRATCORE_INLINE

}  // namespace

Status forward_cpu(const Problem& problem, const Output& out, const Executor& executor) {
  if (problem.anchor_count == 0) return run({problem, out, nullptr, nullptr, nullptr}, executor, 0);
  switch (problem.element) {
    case Element::kFloat64:
      return forward_with_anchors<double>(problem, out, executor);
    case Element::kFloat32:
      return forward_with_anchors<float>(problem, out, executor);
    case Element::kBFloat16:
      return forward_with_anchors<BFloat16>(problem, out, executor);
    case Element::kFloat16:
      return forward_with_anchors<Float16>(problem, out, executor);
  }
  return kOk;
}

Status backward_cpu(const Problem& problem, const Output& out, const void* grad_y, void* grad_x,
                    const Executor& executor) {
  return run({problem, out, nullptr, grad_y, grad_x}, executor, 0);
}

}  // namespace stratcore::tangent_projection

// The loops over rows for the instruction set in whose namespace tangent_projection_cpu.cpp includes this: no
// include guard. Legend as in tangent_projection.h; E is the type that is stored, T the one computed in.

constexpr int kBytes = 8 * kLanes;     // of a vector register
constexpr int kRows = 3 * kLanes / 2;  // whose products with a panel stay in registers
constexpr int kBlockRows = kRows * kTilesPerBlock;

// Row of T from a row of elements: itself where the types are one, else converted into `buffer`.
template <class E, class T>
inline const T* load_row(const E* row, [[maybe_unused]] int64_t dim, [[maybe_unused]] T* buffer) {
  if constexpr (std::is_same<E, T>::value) {
    return row;
  } else {
    for (int64_t d = 0; d < dim; ++d) buffer[d] = widen(row[d]);
    return buffer;
  }
}

template <class E, class T>
inline void store_rounded(T value, E& target) {
  if constexpr (std::is_same<E, T>::value) {
    target = value;
  } else {
    narrow(value, target);
  }
}

// Inner products in float64, whatever T: the terms of float32 rows are exact, and neither 1e-30 nor 1e30
// leaves the range. kPairs of them run over one read of the rows.
template <int kPairs, class T>
inline void inner_products(const T* const (&left)[kPairs], const T* const (&right)[kPairs], int64_t dim,
                           double (&sums)[kPairs]) {
  constexpr int kChains = 4 / kPairs > 0 ? 4 / kPairs : 1;
  typedef T Narrow __attribute__((vector_size(kLanes * sizeof(T))));
  typedef double Wide __attribute__((vector_size(kBytes)));
  Wide partial[kPairs][kChains] = {};
  int64_t d = 0;
  for (; d + kLanes * kChains <= dim; d += kLanes * kChains) {
    for (int pair = 0; pair < kPairs; ++pair) {
      for (int chain = 0; chain < kChains; ++chain) {
        Narrow a, b;
        memcpy(&a, left[pair] + d + chain * kLanes, sizeof(Narrow));
        memcpy(&b, right[pair] + d + chain * kLanes, sizeof(Narrow));
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

template <class T>
inline double square_sum(const T* row, int64_t dim) {
  const T* const rows[1] = {row};
  double sum[1];
  inner_products(rows, rows, dim, sum);
  return sum[0];
}

// One row for each dimension and anchor of `panels`, scaled to length 1.
template <class E>
void fill_panels(const E* anchors, Panels<Computed<E>>& panels) {
  using T = Computed<E>;
  const int64_t dim = panels.dim();
  std::vector<T> buffer(dim);
  for (int64_t anchor = 0; anchor < panels.anchors(); ++anchor) {
    T* column = panels.column(anchor);
    const T* row = load_row(anchors + anchor * dim, dim, buffer.data());
    const double squares = square_sum(row, dim);
    if (!std::isfinite(squares)) {
      *column = std::numeric_limits<T>::infinity();
      continue;
    }
    const T inverse = squares > 0 ? T(1 / std::sqrt(squares)) : T(0);
    for (int64_t d = 0; d < dim; ++d) column[(d + 1) * kPanel<T>] = row[d] * inverse;
  }
}

// Products of kRows rows with one panel. Every (row, anchor) is summed over D in the same order, wherever it
// stands, so that equal anchors tie exactly.
template <class T>
inline void compare_tile(const T* const* rows, int64_t dim, const T* panel, int64_t index, Best<T>* best) {
  constexpr int kVectors = kPanelBytes / kBytes, kWidth = kBytes / sizeof(T);
  typedef T Vector __attribute__((vector_size(kBytes)));
  typedef typename std::conditional<sizeof(T) == 8, int64_t, int32_t>::type Integer;
  typedef Integer Indices __attribute__((vector_size(kBytes)));
  Vector sum[kRows][kVectors], column[kVectors];
  memcpy(column, panel, kPanelBytes);
  for (int row = 0; row < kRows; ++row) {
    for (int v = 0; v < kVectors; ++v) sum[row][v] = column[v];
  }
  for (int64_t d = 0; d < dim; ++d) {
    memcpy(column, panel + (d + 1) * kPanel<T>, kPanelBytes);
    for (int row = 0; row < kRows; ++row) {
      for (int v = 0; v < kVectors; ++v) sum[row][v] += rows[row][d] * column[v];
    }
  }
  for (int row = 0; row < kRows; ++row) {
    for (int v = 0; v < kVectors; ++v) {
      Vector cosine;
      Indices panels;
      memcpy(&cosine, best[row].cosine + v * kWidth, kBytes);
      memcpy(&panels, best[row].panel + v * kWidth, kBytes);
      const Indices better = sum[row][v] > cosine;
      cosine = better ? sum[row][v] : cosine;
      panels = better ? (Indices{} + static_cast<Integer>(index)) : panels;
      memcpy(best[row].cosine + v * kWidth, &cosine, kBytes);
      memcpy(best[row].panel + v * kWidth, &panels, kBytes);
    }
  }
}

template <class T>
inline void compare_block(const T* rows, int64_t count, int64_t dim, const Panels<T>& panels,
                          int32_t* nearest, T* cosine) {
  constexpr T kInfinity = std::numeric_limits<T>::infinity();
  Best<T> best[kBlockRows];
  for (Best<T>& row : best) {
    std::fill(row.cosine, row.cosine + kPanel<T>, -kInfinity);
    std::fill(row.panel, row.panel + kPanel<T>, 0);
  }
  for (int64_t panel = 0; panel < panels.count(); ++panel) {
    for (int64_t first = 0; first < count; first += kRows) {
      const T* tile[kRows];  // beyond the last row: that one again
      for (int row = 0; row < kRows; ++row) tile[row] = rows + std::min(first + row, count - 1) * dim;
      compare_tile(tile, dim, panels[panel], panel, best + first);
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

template <class E>
inline void forward_rows(const Job& job, int64_t begin, int64_t end) {
  using T = Computed<E>;
  const int64_t dim = job.problem.dim;
  const auto* panels = static_cast<const Panels<T>*>(job.panels);
  T* norms = static_cast<T*>(job.out.norm);
  std::vector<T> source(std::is_same<E, T>::value ? 0 : dim);
  std::vector<T> unrounded(std::is_same<E, T>::value || !panels ? 0 : kBlockRows * dim);
  for (int64_t first = begin; first < end; first += kBlockRows) {
    const int64_t count = std::min<int64_t>(kBlockRows, end - first);
    for (int64_t i = 0; i < count; ++i) {
      const T* x = load_row(static_cast<const E*>(job.problem.x) + (first + i) * dim, dim, source.data());
      const T norm = T(std::sqrt(square_sum(x, dim)));
      const T radius = radius_of(norm, T(job.problem.eps));
      E* y = static_cast<E*>(job.out.y) + (first + i) * dim;
      for (int64_t d = 0; d < dim; ++d) store_rounded(x[d] / radius, y[d]);
      if (!unrounded.empty()) {
        for (int64_t d = 0; d < dim; ++d) unrounded[i * dim + d] = x[d] / radius;
      }
      norms[first + i] = norm;
    }
    if (!panels) continue;
    const T* rows = unrounded.data();
    if constexpr (std::is_same<E, T>::value) rows = static_cast<const T*>(job.out.y) + first * dim;
    compare_block(rows, count, dim, *panels, job.out.nearest + first,
                  static_cast<T*>(job.out.cosine) + first);
  }
}

template <class E>
inline void backward_rows(const Job& job, int64_t begin, int64_t end) {
  using T = Computed<E>;
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
      inner_products({g}, {x}, dim, products);
      const Combination<T> sum = combine<T>(problem, false, norm, T(0), T(products[0] / radius), T(0));
      for (int64_t d = 0; d < dim; ++d) {
        store_rounded(sum.of_gradient * g[d] + sum.of_row * (x[d] / radius), grad_x[d]);
      }
      continue;
    }
    const T* a = load_row(static_cast<const E*>(problem.anchors) + job.out.nearest[row] * dim, dim,
                          buffer.data() + 2 * dim);
    double products[4];
    inner_products({g, g, x, a}, {x, a, a, a}, dim, products);
    const T inverse = products[3] == 0 ? T(0) : T(1 / std::sqrt(products[3]));
    const Combination<T> sum = combine<T>(problem, true, norm, T(products[2] / radius * inverse),
                                          T(products[0] / radius), T(products[1] * inverse));
    for (int64_t d = 0; d < dim; ++d) {
      store_rounded(sum.of_gradient * g[d] + sum.of_row * (x[d] / radius) + sum.of_anchor * (a[d] * inverse),
                    grad_x[d]);
    }
  }
}

template <class E>
void run_rows(const Job& job, int64_t begin, int64_t end) {
  job.grad_y ? backward_rows<E>(job, begin, end) : forward_rows<E>(job, begin, end);
}

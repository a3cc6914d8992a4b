// The loops over simplices given by their points, for the instruction set in whose namespace
// cayley_menger_cpu.cpp includes this: no include guard. Legend as in cayley_menger.h; T is double for
// float64 points, else float.

#include "simplex_lanes.h"

template <int K, class T>
inline void write_measures(Doubles (&gram)[pairs_of(K)], const Measures& out, int64_t first, int64_t count) {
  const auto put = [&](void* target, Doubles value) __attribute__((always_inline)) {
    if (target) store_first(static_cast<T*>(target) + first, value, count);
  };
  if (out.squared_distances) {
    T* target = static_cast<T*>(out.squared_distances) + first * pairs_of(K);
    for (int i = 0; i < K; ++i) {
      for (int j = i + 1; j <= K; ++j) {
        const Doubles value = squared_distance<K>(gram, i, j);
        T* pair = target + pair_index(K, i, j);
        for (int lane = 0; lane < count; ++lane) pair[lane * pairs_of(K)] = T(value[lane]);
      }
    }
  }
  Pivots<K, Doubles> pivots;
  const DoublesMask full = factor<K>(gram, pivots);
  if (out.volume) put(out.volume, full ? volume<K>(pivots) : Doubles{});
  const Doubles squared = full ? squared_volume<K>(gram) : Doubles{};
  put(out.squared_volume, squared);
  put(out.determinant, determinant_coefficient(K) * squared);
  if (!out.log_volume) return;
  Doubles logarithm = broadcast(-INFINITY);
  for (int lane = 0; lane < count; ++lane) {
    double pivots[K];
    for (int j = 0; j < K; ++j) pivots[j] = gram[packed(j, j)][lane];
    if (full[lane]) logarithm[lane] = log_volume_of_pivots<K>(pivots);
  }
  put(out.log_volume, logarithm);
}

// The matrices M with dL/dE = M E of `count` simplices, lane by lane.
template <int K, class T>
__attribute__((noinline)) void matrix_block(Doubles (&gram)[pairs_of(K)], const Cotangents& cotangents,
                                            int64_t first, int64_t count, Doubles (&matrix)[pairs_of(K)]) {
  const auto get = [&](const void* source) __attribute__((always_inline)) {
    return source ? load_first(static_cast<const T*>(source) + first, count) : Doubles{};
  };
  const Cotangent<Doubles> cotangent{get(cotangents.volume), get(cotangents.log_volume),
                                     get(cotangents.squared_volume), get(cotangents.determinant)};
  gradient_matrix<K>(gram, cotangent, matrix);
  if (!cotangents.squared_distances) return;
  const T* source = static_cast<const T*>(cotangents.squared_distances) + first * pairs_of(K);
  for (int i = 0; i < K; ++i) {
    for (int j = i + 1; j <= K; ++j) {
      const T* pair = source + pair_index(K, i, j);
      Doubles value{};
      for (int lane = 0; lane < count; ++lane) value[lane] = pair[lane * pairs_of(K)];
      add_distance<K>(i, j, value, matrix);
    }
  }
}

template <int K, class T>
void forward_range(const Points& points, const Measures& out, int64_t begin, int64_t end) {
  RowReader<K, T> reader(points, 0, points.dim);
  for (int64_t first = begin; first < end; first += kLanes) {
    const int64_t count = std::min<int64_t>(kLanes, end - first);
    Doubles gram[pairs_of(K)];
    gram_block<K, T>(points, reader, first, count, gram);
    write_measures<K, T>(gram, out, first, count);
  }
}

// Gradients of simplices that do not share rows.
template <int K, class T>
void backward_range(const Points& points, const Cotangents& cotangents, void* grad, int64_t begin,
                    int64_t end) {
  const bool narrow = size_of(points.element) == 2;
  const int64_t size = (K + 1) * points.dim;
  RowReader<K, T> reader(points, 0, points.dim);
  std::vector<T> wide(narrow ? size : 0);
  for (int64_t first = begin; first < end; first += kLanes) {
    const int64_t count = std::min<int64_t>(kLanes, end - first);
    Doubles gram[pairs_of(K)], matrix[pairs_of(K)];
    gram_block<K, T>(points, reader, first, count, gram);
    matrix_block<K, T>(gram, cotangents, first, count, matrix);
    for (int lane = 0; lane < count; ++lane) {
      const T* rows[K + 1] = {};
      T* targets[K + 1];
      double one[pairs_of(K)];
      reader.read(first + lane, rows);
      T* block = narrow ? wide.data() : static_cast<T*>(grad) + (first + lane) * size;
      for (int j = 0; j <= K; ++j) targets[j] = block + j * points.dim;
      pick_lane<K>(matrix, lane, one);
      apply_matrix<K, false, Doubles>(one, rows, points.dim, targets);
      if constexpr (sizeof(T) == sizeof(float)) {
        if (narrow) {
          narrow_all(points.element, block, size, static_cast<uint16_t*>(grad) + (first + lane) * size);
        }
      }
    }
  }
}

// The matrices alone, matrices[simplex - base][P], for a backward whose simplices share rows.
template <int K, class T>
void matrices_range(const Points& points, const Cotangents& cotangents, double* matrices, int64_t base,
                    int64_t begin, int64_t end) {
  RowReader<K, T> reader(points, 0, points.dim);
  for (int64_t first = begin; first < end; first += kLanes) {
    const int64_t count = std::min<int64_t>(kLanes, end - first);
    Doubles gram[pairs_of(K)], matrix[pairs_of(K)];
    gram_block<K, T>(points, reader, first, count, gram);
    matrix_block<K, T>(gram, cotangents, first, count, matrix);
    store_matrices<K>(matrix, count, matrices + (first - base) * pairs_of(K));
  }
}

// Adds the gradients of simplices [begin, end) to columns [column, column + count) of the table's.
template <int K, class T>
void scatter_range(const Points& points, const double* matrices, T* grad, int64_t begin, int64_t end,
                   int64_t column, int64_t count) {
  RowReader<K, T> reader(points, column, count);
  for (int64_t simplex = begin; simplex < end; ++simplex) {
    const T* rows[K + 1] = {};
    T* targets[K + 1];
    double one[pairs_of(K)];
    if (!reader.read(simplex, rows)) continue;
    for (int j = 0; j <= K; ++j) targets[j] = grad + reader.row_of(simplex, j) * points.dim + column;
    memcpy(one, matrices + (simplex - begin) * pairs_of(K), sizeof(one));
    apply_matrix<K, true, Doubles>(one, rows, count, targets);
  }
}

template <int K, class T>
constexpr Loops<T> loops_of() {
  return {forward_range<K, T>, backward_range<K, T>, matrices_range<K, T>, scatter_range<K, T>};
}

template <class T>
Loops<T> loops(int32_t order) {
  return with_order(order, [](auto k) { return loops_of<decltype(k)::value, T>(); });
}

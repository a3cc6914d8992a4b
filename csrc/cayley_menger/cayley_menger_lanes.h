// The loops over simplices given by their points, for the instruction set in whose namespace
// cayley_menger_cpu.cpp includes this: no include guard. kLanes simplices are a block: their Gram matrices
// are summed one after the other and factored side by side, one lane each. Legend as in cayley_menger.h; T is
// double for float64 points, else float.

inline void invert(Doubles value, Doubles& inverse, Doubles& root) {
  inverse = 1.0 / value;
  root = square_root(value);
}

#include "cayley_menger_gram.h"

// Rows of whole vectors, then what is left of them, filled up with zeros: so every loop has one form.
template <int K, class T>
struct Tail {
  T values[K + 1][kLanes];
  const T* rows[K + 1];

  Tail(const T* const (&whole)[K + 1], int64_t dim) {
    const int64_t left = dim % kLanes;
    for (int j = 0; j <= K; ++j) {
      rows[j] = values[j];
      for (int64_t c = 0; c < kLanes; ++c) values[j][c] = c < left ? whole[j][dim - left + c] : T(0);
    }
  }
};

// Adds columns [0, dim), dim a multiple of kLanes, to the entries (i, j), j <= i, of the Gram matrix with i
// in [kRow, kRowEnd) and j in [kCol, kColEnd): as many as stay in registers. sums[entry * kLanes] holds what
// is to be added over the lanes.
template <int K, int kRow, int kRowEnd, int kCol, int kColEnd, class T>
inline void gram_tile(const T* const (&rows)[K + 1], int64_t dim, Doubles* sums) {
  constexpr int kHeight = kRowEnd - kRow, kWidth = kColEnd - kCol;
  constexpr bool kSquare = kRow == kCol;
  Doubles tile[kHeight][kWidth];
  STRATCORE_UNROLL
  for (int i = 0; i < kHeight; ++i) {
    STRATCORE_UNROLL
    for (int j = 0; j < (kSquare ? i + 1 : kWidth); ++j) {
      tile[i][j] = sums[packed(kRow + i, kCol + j) * kLanes];
    }
  }
  for (int64_t column = 0; column < dim; column += kLanes) {
    Doubles left[kHeight], right[kWidth];
    const Doubles base = load(rows[0] + column);
    STRATCORE_UNROLL
    for (int i = 0; i < kHeight; ++i) left[i] = load(rows[kRow + i + 1] + column) - base;
    STRATCORE_UNROLL
    for (int j = 0; j < kWidth; ++j) {
      right[j] = kSquare ? left[j < kHeight ? j : 0] : load(rows[kCol + j + 1] + column) - base;
    }
    STRATCORE_UNROLL
    for (int i = 0; i < kHeight; ++i) {
      STRATCORE_UNROLL
      for (int j = 0; j < (kSquare ? i + 1 : kWidth); ++j) tile[i][j] += left[i] * right[j];
    }
  }
  STRATCORE_UNROLL
  for (int i = 0; i < kHeight; ++i) {
    STRATCORE_UNROLL
    for (int j = 0; j < (kSquare ? i + 1 : kWidth); ++j) {
      sums[packed(kRow + i, kCol + j) * kLanes] = tile[i][j];
    }
  }
}

template <int K, class T>
inline void gram_sums(const T* const (&rows)[K + 1], int64_t dim, Doubles* sums) {
  if constexpr (K <= 5) {
    gram_tile<K, 0, K, 0, K>(rows, dim, sums);
  } else {
    gram_tile<K, 0, 4, 0, 4>(rows, dim, sums);
    gram_tile<K, 4, K, 0, 4>(rows, dim, sums);
    gram_tile<K, 4, K, 4, K>(rows, dim, sums);
  }
}

__attribute__((noinline)) void widen_all(Element element, const uint16_t* from, int64_t count, float* to) {
  if (element == Element::kBFloat16) {
    for (int64_t c = 0; c < count; ++c) to[c] = from_bfloat16(from[c]);
  } else {
    for (int64_t c = 0; c < count; ++c) to[c] = from_float16(from[c]);
  }
}

__attribute__((noinline)) void narrow_all(Element element, const float* from, int64_t count, uint16_t* to) {
  if (element == Element::kBFloat16) {
    for (int64_t c = 0; c < count; ++c) to[c] = to_bfloat16(from[c]);
  } else {
    for (int64_t c = 0; c < count; ++c) to[c] = to_float16(from[c]);
  }
}

// The rows of one simplex, columns [column, column + count), widened to float where they are 16 bits wide.
template <int K, class T>
class RowReader {
 public:
  RowReader(const Points& points, int64_t column, int64_t count)
      : points_(points), column_(column), count_(count) {
    if (size_of(points.element) == 2) widened_.resize((K + 1) * count);
  }

  // False where an index lies outside of the table.
  bool read(int64_t simplex, const T* (&rows)[K + 1]) {
    for (int j = 0; j <= K; ++j) {
      const int64_t row = row_of(simplex, j);
      if (row < 0) return false;
      const int64_t position = row * points_.dim + column_;
      rows[j] = static_cast<const T*>(points_.data) + position;
      if constexpr (sizeof(T) == sizeof(float)) {
        if (widened_.empty()) continue;
        T* target = widened_.data() + j * count_;
        widen_all(points_.element, static_cast<const uint16_t*>(points_.data) + position, count_, target);
        rows[j] = target;
      }
    }
    return true;
  }

  int64_t row_of(int64_t simplex, int vertex) const {
    const int64_t flat = simplex * (K + 1) + vertex;
    if (!points_.indices) return flat;
    const int64_t row = points_.indices[flat];
    return row >= 0 && row < points_.rows ? row : -1;
  }

 private:
  const Points& points_;
  int64_t column_, count_;
  std::vector<T> widened_;
};

// Gram matrices of `count` <= kLanes simplices, lane by lane; the other lanes are 0.
template <int K, class T>
__attribute__((noinline)) void gram_block(const Points& points, RowReader<K, T>& reader, int64_t first,
                                          int64_t count, Doubles (&gram)[pairs_of(K)]) {
  Doubles sums[pairs_of(K) * kLanes];
  for (int lane = 0; lane < kLanes; ++lane) {
    const T* rows[K + 1] = {};
    const bool found = lane >= count || reader.read(first + lane, rows);
    const Doubles start = broadcast(found ? 0.0 : NAN);
    for (int p = 0; p < pairs_of(K); ++p) sums[p * kLanes + lane] = start;
    if (lane >= count || !found) continue;
    const int64_t left = points.dim % kLanes;
    gram_sums<K, T>(rows, points.dim - left, sums + lane);
    if (left > 0) gram_sums<K, T>(Tail<K, T>(rows, points.dim).rows, kLanes, sums + lane);
  }
  for (int p = 0; p < pairs_of(K); ++p) gram[p] = lane_sums(sums + p * kLanes);
}

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

// M E to the rows 1 .. k of the gradient, minus their sum to row 0; added where kAdd. `dim` is a multiple of
// kLanes.
template <int K, bool kAdd, class T>
__attribute__((noinline)) void apply_to_vectors(const double (&matrix)[pairs_of(K)],
                                                const T* const (&rows)[K + 1], int64_t dim,
                                                T* const (&grad)[K + 1]) {
  for (int64_t column = 0; column < dim; column += kLanes) {
    Doubles edges[K], total{};
    const Doubles base = load(rows[0] + column);
    STRATCORE_UNROLL
    for (int j = 0; j < K; ++j) edges[j] = load(rows[j + 1] + column) - base;
    STRATCORE_UNROLL
    for (int i = 0; i < K; ++i) {
      Doubles sum = matrix[packed(i, 0)] * edges[0];
      STRATCORE_UNROLL
      for (int j = 1; j < K; ++j) sum += matrix[packed(i, j)] * edges[j];
      total -= sum;
      T* target = grad[i + 1] + column;
      store(target, kAdd ? load(target) + sum : sum);
    }
    store(grad[0] + column, kAdd ? load(grad[0] + column) + total : total);
  }
}

template <int K, bool kAdd, class T>
inline void apply_matrix(const double (&matrix)[pairs_of(K)], const T* const (&rows)[K + 1], int64_t dim,
                         T* const (&grad)[K + 1]) {
  const int64_t left = dim % kLanes;
  apply_to_vectors<K, kAdd, T>(matrix, rows, dim - left, grad);
  if (left == 0) return;
  T values[K + 1][kLanes], *targets[K + 1];
  for (int j = 0; j <= K; ++j) targets[j] = values[j];
  apply_to_vectors<K, false, T>(matrix, Tail<K, T>(rows, dim).rows, kLanes, targets);
  for (int j = 0; j <= K; ++j) {
    T* target = grad[j] + dim - left;
    for (int64_t c = 0; c < left; ++c) target[c] = kAdd ? target[c] + values[j][c] : values[j][c];
  }
}

template <int K>
inline void pick_lane(const Doubles (&matrix)[pairs_of(K)], int lane, double (&one)[pairs_of(K)]) {
  for (int p = 0; p < pairs_of(K); ++p) one[p] = matrix[p][lane];
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
      apply_matrix<K, false, T>(one, rows, points.dim, targets);
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
    for (int p = 0; p < pairs_of(K); ++p) {
      for (int lane = 0; lane < count; ++lane) {
        matrices[(first + lane - base) * pairs_of(K) + p] = matrix[p][lane];
      }
    }
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
    apply_matrix<K, true, T>(one, rows, count, targets);
  }
}

template <int K, class T>
constexpr Loops<T> loops_of() {
  return {forward_range<K, T>, backward_range<K, T>, matrices_range<K, T>, scatter_range<K, T>};
}

template <class T>
Loops<T> loops(int32_t order) {
  constexpr Loops<T> kByOrder[] = {loops_of<1, T>(), loops_of<2, T>(), loops_of<3, T>(), loops_of<4, T>(),
                                   loops_of<5, T>(), loops_of<6, T>(), loops_of<7, T>(), loops_of<8, T>()};
  return kByOrder[order - 1];
}

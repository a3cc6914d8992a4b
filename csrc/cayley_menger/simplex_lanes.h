// Gram matrices of simplices and the way back to their vertices, for the instruction set in whose namespace
// the loops of an op include this: no include guard. kLanes simplices are a block: their Gram matrices are
// summed one after the other and factored side by side, one lane each. Legend as in cayley_menger.h; T is
// double for float64 points, else float.

inline void invert(Doubles value, Doubles& inverse, Doubles& root) {
  inverse = 1.0 / value;
  root = square_root(value);
}

#include "cayley_menger_gram.h"

// What is left of rows of whole vectors, filled up with zeros: so every loop has one form.
template <int K, class Vector, class T>
struct Tail {
  static constexpr int kWidth = kLanesOf<Vector>;
  T values[K + 1][kWidth];
  const T* rows[K + 1];

  Tail(const T* const (&whole)[K + 1], int64_t dim) {
    const int64_t left = dim % kWidth;
    for (int j = 0; j <= K; ++j) {
      rows[j] = values[j];
      for (int64_t c = 0; c < kWidth; ++c) values[j][c] = c < left ? whole[j][dim - left + c] : T(0);
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

template <class Half>
inline void widen_each(const void* from, int64_t count, float* to) {
  for (int64_t c = 0; c < count; ++c) to[c] = widen(static_cast<const Half*>(from)[c]);
}

__attribute__((noinline)) void widen_all(Element element, const void* from, int64_t count, float* to) {
  element == Element::kBFloat16 ? widen_each<BFloat16>(from, count, to)
                                : widen_each<Float16>(from, count, to);
}

template <class Half>
inline void narrow_each(const float* from, int64_t count, void* to) {
  for (int64_t c = 0; c < count; ++c) narrow(from[c], static_cast<Half*>(to)[c]);
}

__attribute__((noinline)) void narrow_all(Element element, const float* from, int64_t count, void* to) {
  element == Element::kBFloat16 ? narrow_each<BFloat16>(from, count, to)
                                : narrow_each<Float16>(from, count, to);
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
    if (left > 0) gram_sums<K, T>(Tail<K, Doubles, T>(rows, points.dim).rows, kLanes, sums + lane);
  }
  for (int p = 0; p < pairs_of(K); ++p) gram[p] = lane_sums(sums + p * kLanes);
}

// M E to the rows 1 .. k of the gradient, minus their sum to row 0, in U Vectors from `column` on; added
// where kAdd. Each sum waits for its last product: Vectors side by side wait together.
template <int K, bool kAdd, int U, class Vector, class Factor, class T>
__attribute__((always_inline)) inline void apply_step(const Factor (&matrix)[pairs_of(K)],
                                                      const T* const (&rows)[K + 1], int64_t column,
                                                      T* const (&grad)[K + 1]) {
  constexpr int kWidth = kLanesOf<Vector>;
  Vector edges[K][U], total[U] = {};
  STRATCORE_UNROLL
  for (int u = 0; u < U; ++u) {
    const Vector base = load<Vector>(rows[0] + column + u * kWidth);
    STRATCORE_UNROLL
    for (int j = 0; j < K; ++j) edges[j][u] = load<Vector>(rows[j + 1] + column + u * kWidth) - base;
  }
  STRATCORE_UNROLL
  for (int i = 0; i < K; ++i) {
    Vector sum[U];
    STRATCORE_UNROLL
    for (int u = 0; u < U; ++u) sum[u] = matrix[packed(i, 0)] * edges[0][u];
    STRATCORE_UNROLL
    for (int j = 1; j < K; ++j) {
      STRATCORE_UNROLL
      for (int u = 0; u < U; ++u) sum[u] += matrix[packed(i, j)] * edges[j][u];
    }
    STRATCORE_UNROLL
    for (int u = 0; u < U; ++u) {
      total[u] -= sum[u];
      T* target = grad[i + 1] + column + u * kWidth;
      store(target, kAdd ? load<Vector>(target) + sum[u] : sum[u]);
    }
  }
  STRATCORE_UNROLL
  for (int u = 0; u < U; ++u) {
    T* target = grad[0] + column + u * kWidth;
    store(target, kAdd ? load<Vector>(target) + total[u] : total[u]);
  }
}

// All columns, `dim` a multiple of the lanes of a Vector. What the stores might overlap, matrix and pointers,
// is copied first, else every step would load it again; matrices beyond order 5 do not fit into the
// registers.
template <int K, bool kAdd, class Vector, class T, class Number>
__attribute__((noinline)) void apply_to_vectors(const Number (&matrix)[pairs_of(K)],
                                                const T* const (&rows)[K + 1], int64_t dim,
                                                T* const (&grad)[K + 1]) {
  constexpr int kWidth = kLanesOf<Vector>;
  int64_t column = 0;
  if constexpr (K <= 5) {
    constexpr int kSteps = K <= 4 ? 2 : 1;
    Vector factors[pairs_of(K)];
    const T* from[K + 1];
    T* to[K + 1];
    for (int p = 0; p < pairs_of(K); ++p) factors[p] = Vector{} + matrix[p];
    STRATCORE_UNROLL
    for (int j = 0; j <= K; ++j) {
      from[j] = rows[j];
      to[j] = grad[j];
    }
    for (; column + kSteps * kWidth <= dim; column += kSteps * kWidth) {
      apply_step<K, kAdd, kSteps, Vector>(factors, from, column, to);
    }
  }
  for (; column < dim; column += kWidth) apply_step<K, kAdd, 1, Vector>(matrix, rows, column, grad);
}

template <int K, bool kAdd, class Vector, class T, class Number>
inline void apply_matrix(const Number (&matrix)[pairs_of(K)], const T* const (&rows)[K + 1], int64_t dim,
                         T* const (&grad)[K + 1]) {
  constexpr int kWidth = kLanesOf<Vector>;
  const int64_t left = dim % kWidth;
  apply_to_vectors<K, kAdd, Vector>(matrix, rows, dim - left, grad);
  if (left == 0) return;
  T values[K + 1][kWidth], *targets[K + 1];
  for (int j = 0; j <= K; ++j) targets[j] = values[j];
  apply_to_vectors<K, false, Vector>(matrix, Tail<K, Vector, T>(rows, dim).rows, kWidth, targets);
  for (int j = 0; j <= K; ++j) {
    T* target = grad[j] + dim - left;
    for (int64_t c = 0; c < left; ++c) target[c] = kAdd ? target[c] + values[j][c] : values[j][c];
  }
}

// One number a simplex and pair of vertices, from lanes to [simplex, P].
template <int K>
inline void store_matrices(const Doubles (&matrix)[pairs_of(K)], int64_t count, double* to) {
  for (int p = 0; p < pairs_of(K); ++p) {
    for (int lane = 0; lane < count; ++lane) to[lane * pairs_of(K) + p] = matrix[p][lane];
  }
}

template <int K>
inline void pick_lane(const Doubles (&matrix)[pairs_of(K)], int lane, double (&one)[pairs_of(K)]) {
  for (int p = 0; p < pairs_of(K); ++p) one[p] = matrix[p][lane];
}

// The loops of simplex_cv for the instruction set in whose namespace simplex_cv_cpu.cpp includes this: no
// include guard. Legend as in simplex_cv.h; T is double for float64 points, else float.

#include "simplex_lanes.h"

typedef uint64_t Words __attribute__((vector_size(8 * STRATCORE_LANES)));

// Products of the lower halves.
inline Words multiply(Words a, Words b) {
#if defined(__x86_64__) && STRATCORE_LANES == 8
  return (Words)_mm512_maskz_mul_epu32(0xff, (__m512i)a, (__m512i)b);
#elif defined(__x86_64__) && STRATCORE_LANES == 4
  return (Words)_mm256_mul_epu32((__m256i)a, (__m256i)b);
#else
  return (a & 0xFFFFFFFFu) * (b & 0xFFFFFFFFu);
#endif
}

// Blocks number b of kLanes simplices from `first` on, as two random numbers each: random_block side by side.
// What the upper halves of the words hold does not matter.
template <int K>
inline void random_lanes(const int64_t* seed, int64_t first, int b, Words& even, Words& odd) {
  Words counter;
  for (int lane = 0; lane < kLanes; ++lane) counter[lane] = uint64_t(first + lane) * kBlocks<K> + b;
  Words c0 = counter, c1 = counter >> 32, c2 = Words{} + uint64_t(seed[1]), c3 = c2 >> 32;
  uint64_t k0 = uint64_t(seed[0]), k1 = k0 >> 32;
  for (int round = 0; round < 10; ++round) {
    const Words p0 = multiply(c0, Words{} + 0xD2511F53u), p1 = multiply(c2, Words{} + 0xCD9E8D57u);
    c0 = (p1 >> 32) ^ c1 ^ k0;
    c2 = (p0 >> 32) ^ c3 ^ k1;
    c1 = p1;
    c3 = p0;
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
  even = c1 << 32 | (c0 & 0xFFFFFFFFu);
  odd = c3 << 32 | (c2 & 0xFFFFFFFFu);
}

// choose_vertices side by side, for a pool of less than 2^32 rows.
template <int K>
inline void choose_lanes(const Words (&bits)[K + 2], int64_t pool, Words (&rows)[K + 1]) {
  STRATCORE_UNROLL
  for (int j = 0; j <= K; ++j) {
    const Words last = Words{} + uint64_t(pool - K - 1 + j), range = last + 1;
    const Words row = (multiply(bits[j] >> 32, range) + (multiply(bits[j], range) >> 32)) >> 32;
    decltype(row == last) taken{};
    for (int p = 0; p < j; ++p) taken |= rows[p] == row;
    rows[j] = taken ? last : row;
  }
}

// Draws `count` <= kLanes simplices from `first` on.
template <int K>
inline void draw_block(const int64_t* seed, int64_t pool, int64_t first, int64_t count, int64_t* indices) {
  Words bits[K + 2], rows[K + 1];
  for (int b = 0; b < kBlocks<K>; ++b) random_lanes<K>(seed, first, b, bits[2 * b], bits[2 * b + 1]);
  const bool narrow = pool < int64_t(1) << 32;
  if (narrow) choose_lanes<K>(bits, pool, rows);
  for (int64_t lane = 0; lane < count; ++lane) {
    int64_t own[K + 1];
    if (narrow) {
      for (int j = 0; j <= K; ++j) own[j] = int64_t(rows[j][lane]);
    } else {
      uint64_t drawn[K + 1];
      for (int j = 0; j <= K; ++j) drawn[j] = bits[j][lane];
      choose_vertices<K>(drawn, pool, own);
    }
    memcpy(indices + lane * (K + 1), own, sizeof(own));
  }
}

// Draws simplices [begin, end), their volumes and W = V G^-1.
template <int K, class T>
void measure_range(const Problem& problem, const int64_t* seed, const Sample& out, int64_t begin,
                   int64_t end) {
  const Points points = points_of(problem, out.indices);
  RowReader<K, T> reader(points, 0, points.dim);
  for (int64_t first = begin; first < end; first += kLanes) {
    const int64_t count = std::min<int64_t>(kLanes, end - first);
    draw_block<K>(seed, problem.pool, first, count, out.indices + first * (K + 1));
    Doubles gram[pairs_of(K)], weights[pairs_of(K)];
    gram_block<K, T>(points, reader, first, count, gram);
    Pivots<K, Doubles> pivots;
    const DoublesMask full = factor<K>(gram, pivots);
    const Doubles measured = volume<K>(pivots);
    scaled_inverse<K>(gram, pivots, measured, weights);
    for (int p = 0; p < pairs_of(K); ++p) weights[p] = full ? weights[p] : Doubles{};
    T* volumes = static_cast<T*>(out.volumes) + first;
    store_first(volumes, full ? measured : Doubles{}, count);
    std::copy_n(volumes, count, out.state.volumes() + first);
    store_matrices<K>(weights, count, out.state.weights() + first * pairs_of(K));
  }
}

// Whether W E loses at most six bits by cancellation, so that float32 will do. The condition number of W is
// bounded through its determinant V^(k - 2) / (k!)^2 and its Frobenius norm (Guggenheimer, Edelman and
// Johnson): here the square of that bound, which wants no root.
template <int K>
inline bool well_shaped(const double* weights, double volume) {
  double diagonal = 0.0, below = 0.0;
  for (int i = 0; i < K; ++i) {
    diagonal += weights[packed(i, i)] * weights[packed(i, i)];
    for (int j = 0; j < i; ++j) below += weights[packed(i, j)] * weights[packed(i, j)];
  }
  const double norm = (diagonal + 2.0 * below) / K, squared = volume * volume, ratio = norm / squared;
  double bound = 4.0 * factorial(K) * factorial(K) * factorial(K) * factorial(K);
  bound *= K == 1 ? norm * squared : norm * norm;
  for (int i = 2; i < K; ++i) bound *= ratio;
  return bound < 4096.0 * 4096.0;
}

// Adds the gradient of one simplex, M E with M = `scale` W, computed in Vectors.
template <int K, class Vector, class T>
inline void add_gradient(const double* weights, double scale, const T* const (&rows)[K + 1], int64_t count,
                         T* const (&targets)[K + 1]) {
  using Number = std::remove_reference_t<decltype(Vector{}[0])>;
  Number matrix[pairs_of(K)];
  for (int p = 0; p < pairs_of(K); ++p) matrix[p] = static_cast<Number>(scale * weights[p]);
  apply_matrix<K, true, Vector>(matrix, rows, count, targets);
}

// Gradient in columns [column, column + count), simplex by simplex, so that every sum has one order. Their
// shapes are judged a few at a time: a chain of products each that would wait for one another.
template <int K, class T>
void scatter_range(const Points& points, const SavedState& state, const double* cotangents, T* grad,
                   int64_t column, int64_t count) {
  RowReader<K, T> reader(points, column, count);
  for (int64_t first = 0; first < points.simplices; first += kGroup) {
    const int64_t stop = std::min(points.simplices, first + kGroup);
    bool single[kGroup] = {};
    for (int64_t which = first; which < stop && sizeof(T) == sizeof(float); ++which) {
      single[which - first] = well_shaped<K>(state.weights() + which * pairs_of(K), state.volumes()[which]);
    }
    for (int64_t which = first; which < stop; ++which) {
      const T* rows[K + 1] = {};
      T* targets[K + 1];
      if (cotangents[which] == 0.0 || !reader.read(which, rows)) continue;
      for (int j = 0; j <= K; ++j) targets[j] = grad + reader.row_of(which, j) * points.dim + column;
      const double* weights = state.weights() + which * pairs_of(K);
      if constexpr (sizeof(T) == sizeof(float)) {
        if (single[which - first]) {
          add_gradient<K, Singles>(weights, cotangents[which], rows, count, targets);
          continue;
        }
      }
      add_gradient<K, Doubles>(weights, cotangents[which], rows, count, targets);
    }
  }
}

template <class T>
Loops<T> loops(int32_t order) {
  return with_order(order, [](auto k) {
    return Loops<T>{measure_range<decltype(k)::value, T>, scatter_range<decltype(k)::value, T>};
  });
}

#pragma once

#include <cmath>
#include <cstdint>

#include "../common/macros.h"

// One simplex from the Gram matrix of its edges, in float64. Legend as in cayley_menger.h. A symmetric k x k
// matrix is packed by rows of its lower triangle: entry (i, j), i >= j, at i (i + 1) / 2 + j.
namespace stratcore::cayley_menger {

// A pivot below this share of its diagonal entry is rounding: the simplex is degenerate. Its root, 1e-7, is
// the least height over edge length that counts.
constexpr double kDegenerate = 1e-14;

STRATCORE_HOST_DEVICE constexpr int packed(int i, int j) {
  return i >= j ? i * (i + 1) / 2 + j : j * (j + 1) / 2 + i;
}

STRATCORE_HOST_DEVICE constexpr int pairs_of(int k) { return k * (k + 1) / 2; }

STRATCORE_HOST_DEVICE constexpr double factorial(int k) { return k <= 1 ? 1.0 : k * factorial(k - 1); }

// det M = coefficient V^2 for the bordered matrix M of squared distances: (-1)^(k+1) 2^k (k!)^2.
STRATCORE_HOST_DEVICE constexpr double determinant_coefficient(int k) {
  return (k % 2 ? 1.0 : -1.0) * double(1 << k) * factorial(k) * factorial(k);
}

// Position of the pair i < j of k + 1 vertices in the order (0, 1), (0, 2), .., (0, k), (1, 2), ..
STRATCORE_HOST_DEVICE constexpr int pair_index(int k, int i, int j) {
  return i * (2 * k + 1 - i) / 2 + (j - i - 1);
}

// G = L diag(d) L^T in place: d on the diagonal, L (unit diagonal) below. False where a pivot is rounding;
// NaN is not.
template <int K>
STRATCORE_HOST_DEVICE inline bool factor(double (&g)[K * (K + 1) / 2]) {
  bool full = true;
#pragma unroll
  for (int j = 0; j < K; ++j) {
    const double diagonal = g[packed(j, j)];
    double pivot = diagonal, scaled[K] = {};
#pragma unroll
    for (int p = 0; p < j; ++p) {
      scaled[p] = g[packed(j, p)] * g[packed(p, p)];
      pivot -= g[packed(j, p)] * scaled[p];
    }
    if (pivot <= kDegenerate * diagonal) full = false;
    g[packed(j, j)] = pivot;
    const double inverse = 1.0 / pivot;
#pragma unroll
    for (int i = j + 1; i < K; ++i) {
      double sum = g[packed(i, j)];
#pragma unroll
      for (int p = 0; p < j; ++p) sum -= g[packed(i, p)] * scaled[p];
      g[packed(i, j)] = sum * inverse;
    }
  }
  return full;
}

// V^2 = prod d_j / (k!)^2 of a factored Gram matrix of full rank.
template <int K>
STRATCORE_HOST_DEVICE inline double squared_volume(const double (&factored)[K * (K + 1) / 2]) {
  double product = 1.0;
#pragma unroll
  for (int j = 0; j < K; ++j) product *= factored[packed(j, j)];
  return product * (1.0 / (factorial(K) * factorial(K)));
}

// V as the product of heights: no overflow or underflow where V itself has none.
template <int K>
STRATCORE_HOST_DEVICE inline double volume(const double (&factored)[K * (K + 1) / 2]) {
  double product = 1.0 / factorial(K);
#pragma unroll
  for (int j = 0; j < K; ++j) product *= sqrt(factored[packed(j, j)]);
  return product;
}

template <int K>
STRATCORE_HOST_DEVICE inline double log_volume(const double (&factored)[K * (K + 1) / 2]) {
  double sum = 0.0;
#pragma unroll
  for (int j = 0; j < K; ++j) sum += log(factored[packed(j, j)]);
  return 0.5 * sum - log(factorial(K));
}

// |x_i - x_j|^2, in the order of pair_index, of a Gram matrix that is not factored.
template <int K>
STRATCORE_HOST_DEVICE inline double squared_distance(const double (&gram)[K * (K + 1) / 2], int i, int j) {
  if (i == 0) return gram[packed(j - 1, j - 1)];
  const double value =
      gram[packed(i - 1, i - 1)] + gram[packed(j - 1, j - 1)] - 2 * gram[packed(j - 1, i - 1)];
  return value < 0 ? 0.0 : value;
}

// scale G^-1 of a factored Gram matrix of full rank, packed.
template <int K>
STRATCORE_HOST_DEVICE inline void scaled_inverse(const double (&factored)[K * (K + 1) / 2], double scale,
                                                 double (&inverse)[K * (K + 1) / 2]) {
  double lower[K * (K + 1) / 2];  // L^-1, unit diagonal
#pragma unroll
  for (int j = 0; j < K; ++j) {
    lower[packed(j, j)] = 1.0;
#pragma unroll
    for (int i = j + 1; i < K; ++i) {
      double sum = 0.0;
#pragma unroll
      for (int p = j; p < i; ++p) sum -= factored[packed(i, p)] * lower[packed(p, j)];
      lower[packed(i, j)] = sum;
    }
  }
  double weight[K];
#pragma unroll
  for (int p = 0; p < K; ++p) weight[p] = scale / factored[packed(p, p)];
#pragma unroll
  for (int i = 0; i < K; ++i) {
#pragma unroll
    for (int j = 0; j <= i; ++j) {
      double sum = 0.0;
#pragma unroll
      for (int p = i; p < K; ++p) sum += lower[packed(p, i)] * weight[p] * lower[packed(p, j)];
      inverse[packed(i, j)] = sum;
    }
  }
}

// Cotangents of one simplex, without those of the distances.
struct Cotangent {
  double volume, log_volume, squared_volume, determinant;
};

// The symmetric M with dL/dE = M E (E: edges from vertex 0), of all measures but the distances. `gram` is
// factored in place. From d log V / dE = G^-1 E. A degenerate simplex gets 0: right for V^2 and the
// determinant; V and log V have no derivative there.
template <int K>
STRATCORE_HOST_DEVICE inline void gradient_matrix(double (&gram)[K * (K + 1) / 2], const Cotangent& cotangent,
                                                  double (&matrix)[K * (K + 1) / 2]) {
  if (!factor<K>(gram)) {
#pragma unroll
    for (int p = 0; p < K * (K + 1) / 2; ++p) matrix[p] = 0.0;
    return;
  }
  const double squared = cotangent.squared_volume + determinant_coefficient(K) * cotangent.determinant;
  double scale = cotangent.log_volume;
  if (cotangent.volume != 0) scale += cotangent.volume * volume<K>(gram);
  if (squared != 0) scale += 2 * squared * squared_volume<K>(gram);
  scaled_inverse<K>(gram, scale, matrix);
}

// Adds the part of one squared distance |x_i - x_j|^2, i < j, with cotangent `value`, to M.
template <int K>
STRATCORE_HOST_DEVICE inline void add_distance(int i, int j, double value,
                                               double (&matrix)[K * (K + 1) / 2]) {
  matrix[packed(j - 1, j - 1)] += 2 * value;
  if (i == 0) return;
  matrix[packed(i - 1, i - 1)] += 2 * value;
  matrix[packed(j - 1, i - 1)] -= 2 * value;
}

}  // namespace stratcore::cayley_menger

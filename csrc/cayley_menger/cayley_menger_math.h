#pragma once

#include <cmath>
#include <cstdint>

#include "../common/macros.h"

// One simplex from the Gram matrix of its edges or from its squared distances, in float64. Legend as in
// cayley_menger.h. A symmetric k x k matrix is packed by rows of its lower triangle: entry (i, j), i >= j, at
// i (i + 1) / 2 + j.
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

// 1 / value and its root. On the device both come from one approximation of 1 / sqrt(value) to 20 bits and a
// step of third order, without the branches that divisions and roots have there; below the normal numbers
// they are off.
STRATCORE_HOST_DEVICE inline void invert(double value, double& inverse, double& root) {
#ifdef __CUDA_ARCH__
  const double normal = value < 0x1p-1022 ? 0x1p-1022 : value;
  double r;
  asm("rsqrt.approx.ftz.f64 %0, %1;" : "=d"(r) : "d"(normal));
  const double error = fma(-normal, r * r, 1.0);
  r = fma(fma(0.375, error, 0.5) * error, r, r);
  inverse = r * r;
  inverse = fma(fma(-normal, inverse, 1.0), inverse, inverse);
  root = value * r;
#else
  inverse = 1.0 / value;
  root = sqrt(value);
#endif
}
STRATCORE_HOST_DEVICE inline bool any(bool condition) { return condition; }

#include "cayley_menger_gram.h"

// log V of the k pivots of a matrix of full rank, or of its k eigenvalues: one logarithm of the product of
// mantissas, so nothing overflows.
template <int K>
STRATCORE_HOST_DEVICE inline double log_volume_of_pivots(const double (&pivots)[K]) {
  double mantissas = 1.0;
  int exponents = 0;
  STRATCORE_UNROLL
  for (int j = 0; j < K; ++j) {
    int exponent = 0;
    mantissas *= frexp(pivots[j], &exponent);
    exponents += exponent;
  }
  return 0.5 * (log(mantissas) + exponents * 0.693147180559945309) - log(factorial(K));
}

template <int K>
STRATCORE_HOST_DEVICE inline double log_volume(const double (&factored)[K * (K + 1) / 2]) {
  double pivots[K];
  STRATCORE_UNROLL
  for (int j = 0; j < K; ++j) pivots[j] = factored[packed(j, j)];
  return log_volume_of_pivots<K>(pivots);
}

// ---- from given squared distances

// Points with these distances exist where no eigenvalue of G is below -kEuclidean k u largest, u the unit
// roundoff of the given type: distances rounded once move the eigenvalues by at most 6 k u largest.
constexpr double kEuclidean = 32.0;

// Pivots above this share of their diagonal entries: G is positive definite, and its LDL^T as good as its
// eigenvalues.
constexpr double kRegular = 1e-4;

// G_ij = (d_0i + d_0j - d_ij) / 2, G = U diag(values) U^T; column j of U belongs to values[j].
template <int K>
struct Spectrum {
  double values[K], vectors[K][K];
};

template <int K>
STRATCORE_HOST_DEVICE inline void gram_of_distances(const double (&distances)[K * (K + 1) / 2],
                                                    double (&gram)[K][K]) {
  STRATCORE_UNROLL
  for (int i = 0; i < K; ++i) {
    STRATCORE_UNROLL
    for (int j = 0; j <= i; ++j) {
      const double between = j < i ? distances[pair_index(K, j + 1, i + 1)] : 0.0;
      gram[i][j] = gram[j][i] = 0.5 * (distances[i] + distances[j] - between);
    }
  }
}

// Turns the plane (p, q) so that G_pq becomes 0; `u` collects the turns.
template <int K>
STRATCORE_HOST_DEVICE inline void rotate(int p, int q, double (&g)[K][K], double (&u)[K][K]) {
  if (g[p][q] == 0.0) return;
  const double ratio = (g[q][q] - g[p][p]) / (2.0 * g[p][q]);
  const double tangent = copysign(1.0, ratio) / (fabs(ratio) + sqrt(ratio * ratio + 1.0));
  const double cosine = 1.0 / sqrt(tangent * tangent + 1.0), sine = tangent * cosine;
  const double shift = tangent * g[p][q];
  g[p][p] -= shift;
  g[q][q] += shift;
  g[p][q] = g[q][p] = 0.0;
  STRATCORE_UNROLL
  for (int r = 0; r < K; ++r) {
    const double up = u[r][p], uq = u[r][q];
    u[r][p] = cosine * up - sine * uq;
    u[r][q] = sine * up + cosine * uq;
    if (r == p || r == q) continue;
    const double gp = g[r][p], gq = g[r][q];
    g[r][p] = g[p][r] = cosine * gp - sine * gq;
    g[r][q] = g[q][r] = sine * gp + cosine * gq;
  }
}

// Cyclic Jacobi: right for singular and indefinite matrices alike. Anything not finite gives NaN.
template <int K>
STRATCORE_HOST_DEVICE inline Spectrum<K> decompose(const double (&distances)[K * (K + 1) / 2]) {
  constexpr int kSweeps = 12;
  Spectrum<K> spectrum;
  double g[K][K], total = 0.0;
  gram_of_distances<K>(distances, g);
  for (int i = 0; i < K; ++i) {
    for (int j = 0; j < K; ++j) {
      spectrum.vectors[i][j] = i == j ? 1.0 : 0.0;
      total += g[i][j] * g[i][j];
    }
  }
  for (int sweep = 0; sweep < kSweeps; ++sweep) {
    double rest = 0.0;
    for (int i = 1; i < K; ++i) {
      for (int j = 0; j < i; ++j) rest += g[i][j] * g[i][j];
    }
    if (rest <= 1e-36 * total) break;
    for (int p = 0; p < K - 1; ++p) {
      for (int q = p + 1; q < K; ++q) rotate<K>(p, q, g, spectrum.vectors);
    }
  }
  double sum = 0.0;
  for (int p = 0; p < K * (K + 1) / 2; ++p) sum += distances[p];
  const double poison = sum - sum;  // 0, or NaN where a distance is not finite
  for (int j = 0; j < K; ++j) spectrum.values[j] = g[j][j] + poison;
  return spectrum;
}

template <int K>
STRATCORE_HOST_DEVICE inline bool is_euclidean(const Spectrum<K>& spectrum, double roundoff) {
  double least = spectrum.values[0], most = least, sum = 0.0;
  for (int j = 0; j < K; ++j) {
    least = spectrum.values[j] < least ? spectrum.values[j] : least;
    most = spectrum.values[j] > most ? spectrum.values[j] : most;
    sum += spectrum.values[j];
  }
  return sum == sum && least >= -kEuclidean * K * roundoff * most;
}

// With its sign; not positive: there is no volume.
template <int K>
STRATCORE_HOST_DEVICE inline double squared_volume_of(const Spectrum<K>& spectrum) {
  double product = 1.0 / (factorial(K) * factorial(K));
  for (int j = 0; j < K; ++j) product *= spectrum.values[j];
  return product;
}

// Whether the squared volume is positive, also where it underflows. NaN counts, so that it is passed on.
template <int K>
STRATCORE_HOST_DEVICE inline bool has_volume(const Spectrum<K>& spectrum) {
  bool positive = true, zero = false;
  for (int j = 0; j < K; ++j) {
    positive = positive != (spectrum.values[j] < 0.0);
    zero = zero || spectrum.values[j] == 0.0;
  }
  return positive && !zero;
}

template <int K>
STRATCORE_HOST_DEVICE inline double volume_of(const Spectrum<K>& spectrum) {
  double product = has_volume<K>(spectrum) ? 1.0 / factorial(K) : 0.0;
  for (int j = 0; j < K; ++j) product *= sqrt(fabs(spectrum.values[j]));
  return product;
}

template <int K>
STRATCORE_HOST_DEVICE inline double log_volume_of(const Spectrum<K>& spectrum) {
  double magnitudes[K];
  for (int j = 0; j < K; ++j) magnitudes[j] = fabs(spectrum.values[j]);
  return has_volume<K>(spectrum) ? log_volume_of_pivots<K>(magnitudes) : -INFINITY;
}

struct GivenMeasures {
  double volume, log_volume, squared_volume;
  bool euclidean;
};

// G by rows of its lower triangle, factored in place; whether it is safely positive definite.
template <int K>
STRATCORE_HOST_DEVICE inline bool factor_distances(const double (&distances)[K * (K + 1) / 2],
                                                   double (&factored)[K * (K + 1) / 2],
                                                   Pivots<K, double>& pivots) {
  double gram[K][K], sum = 0.0;
  gram_of_distances<K>(distances, gram);
  for (int i = 0; i < K; ++i) {
    for (int j = 0; j <= i; ++j) {
      factored[packed(i, j)] = gram[i][j];
      sum += gram[i][j];
    }
  }
  return factor<K>(factored, pivots, kRegular) && sum - sum == 0.0 && gram[0][0] > 0.0;
}

template <int K>
STRATCORE_HOST_DEVICE inline GivenMeasures measure_distances(const double (&distances)[K * (K + 1) / 2],
                                                             double roundoff) {
  double factored[K * (K + 1) / 2];
  Pivots<K, double> pivots;
  if (factor_distances<K>(distances, factored, pivots)) {
    return {volume<K>(pivots), log_volume<K>(factored), squared_volume<K>(factored), true};
  }
  const Spectrum<K> spectrum = decompose<K>(distances);
  return {volume_of<K>(spectrum), log_volume_of<K>(spectrum), squared_volume_of<K>(spectrum),
          is_euclidean<K>(spectrum, roundoff)};
}

// From dL = tr(W dG), W symmetric and packed, to the distances in G.
template <int K>
STRATCORE_HOST_DEVICE inline void spread_to_distances(const double (&weights)[K * (K + 1) / 2],
                                                      double (&gradient)[K * (K + 1) / 2]) {
  for (int i = 0; i < K; ++i) {
    gradient[i] = 0.0;
    for (int j = 0; j < K; ++j) {
      gradient[i] += weights[packed(i, j)];
      if (j > i) gradient[pair_index(K, i + 1, j + 1)] = -weights[packed(i, j)];
    }
  }
}

// Gradient with respect to the squared distances. d V^2 = adj(G) dG / (k!)^2. Where G is not safely regular,
// the adjugate is U diag(prod of the other eigenvalues) U^T, finite and right for singular G; for V and log
// V, where V^2 > 0, its share 1 / (2 V) and 1 / (2 V^2).
template <int K>
STRATCORE_HOST_DEVICE inline void distances_gradient(const double (&distances)[K * (K + 1) / 2],
                                                     const Cotangent<double>& cotangent,
                                                     double (&gradient)[K * (K + 1) / 2]) {
  double factored[K * (K + 1) / 2];
  Pivots<K, double> pivots;
  if (factor_distances<K>(distances, factored, pivots)) {
    double matrix[K * (K + 1) / 2];
    const double along = cotangent.squared_volume + determinant_coefficient(K) * cotangent.determinant;
    const double half = 0.5 * (cotangent.log_volume + cotangent.volume * volume<K>(pivots));
    scaled_inverse<K>(factored, pivots, half + along * squared_volume<K>(factored), matrix);
    return spread_to_distances<K>(matrix, gradient);
  }
  const Spectrum<K> spectrum = decompose<K>(distances);
  const double logarithmic = cotangent.log_volume + cotangent.volume * volume_of<K>(spectrum);
  const double inner = has_volume<K>(spectrum) ? 0.5 * logarithmic : 0.0;
  const double squared = (cotangent.squared_volume + determinant_coefficient(K) * cotangent.determinant) /
                         (factorial(K) * factorial(K));
  double weights[K], matrix[K * (K + 1) / 2];
  for (int j = 0; j < K; ++j) {
    double others = 1.0;
    for (int i = 0; i < K; ++i) others *= i == j ? 1.0 : spectrum.values[i];
    weights[j] = squared * others + (inner == 0.0 ? 0.0 : inner / spectrum.values[j]);
  }
  for (int i = 0; i < K; ++i) {
    for (int j = 0; j <= i; ++j) {
      double entry = 0.0;
      for (int r = 0; r < K; ++r) entry += spectrum.vectors[i][r] * weights[r] * spectrum.vectors[j][r];
      matrix[packed(i, j)] = entry;
    }
  }
  spread_to_distances<K>(matrix, gradient);
}

}  // namespace stratcore::cayley_menger

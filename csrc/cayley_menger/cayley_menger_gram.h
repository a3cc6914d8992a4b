// What the Gram matrix of the edges of a simplex says, for one simplex (Real = double) or a vector of them.
// No include guard: cayley_menger_math.h includes it for host and device, cayley_menger_lanes.h once more for
// every instruction set, since a template is compiled for the one in which it is defined. The namespace
// around it brings invert(Real, Real& inverse, Real& root) and any(mask). Legend as in cayley_menger.h;
// packing as in cayley_menger_math.h.

// What divisions and heights need of the pivots d: 1 / d and sqrt(d).
template <int K, class Real>
struct Pivots {
  Real inverse[K], root[K];
};

// G = L diag(d) L^T in place: d on the diagonal, L (unit diagonal) below. Returns whether it has full rank:
// false where a pivot is below that share of its diagonal entry. NaN anywhere counts as full rank, so that it
// is passed on.
template <int K, class Real>
STRATCORE_HOST_DEVICE inline auto factor(Real (&g)[K * (K + 1) / 2], Pivots<K, Real>& pivots,
                                         double share = kDegenerate) {
  using Mask = decltype(g[0] <= g[0]);
  Mask full = Mask{} == Mask{};
  Real trace{};
  STRATCORE_UNROLL
  for (int j = 0; j < K; ++j) {
    const Real diagonal = g[packed(j, j)];
    trace += diagonal;
    Real pivot = diagonal, scaled[K];
    STRATCORE_UNROLL
    for (int p = 0; p < j; ++p) {
      scaled[p] = g[packed(j, p)] * g[packed(p, p)];
      pivot -= g[packed(j, p)] * scaled[p];
    }
    full &= !(pivot <= share * diagonal);
    g[packed(j, j)] = pivot;
    invert(pivot, pivots.inverse[j], pivots.root[j]);
    STRATCORE_UNROLL
    for (int i = j + 1; i < K; ++i) {
      Real sum = g[packed(i, j)];
      STRATCORE_UNROLL
      for (int p = 0; p < j; ++p) sum -= g[packed(i, p)] * scaled[p];
      g[packed(i, j)] = sum * pivots.inverse[j];
    }
  }
  full |= trace != trace;
  return full;
}

// V^2 = prod d_j / (k!)^2 of a factored Gram matrix of full rank.
template <int K, class Real>
STRATCORE_HOST_DEVICE inline Real squared_volume(const Real (&factored)[K * (K + 1) / 2]) {
  Real product = factored[0];
  STRATCORE_UNROLL
  for (int j = 1; j < K; ++j) product *= factored[packed(j, j)];
  return product * (1.0 / (factorial(K) * factorial(K)));
}

// V as the product of heights: no overflow or underflow where V itself has none.
template <int K, class Real>
STRATCORE_HOST_DEVICE inline Real volume(const Pivots<K, Real>& pivots) {
  Real product = pivots.root[0];
  STRATCORE_UNROLL
  for (int j = 1; j < K; ++j) product *= pivots.root[j];
  return product * (1.0 / factorial(K));
}

// |x_i - x_j|^2, i < j, of a Gram matrix that is not factored.
template <int K, class Real>
STRATCORE_HOST_DEVICE inline Real squared_distance(const Real* gram, int i, int j) {
  if (i == 0) return gram[packed(j - 1, j - 1)];
  const Real value =
      gram[packed(i - 1, i - 1)] + gram[packed(j - 1, j - 1)] - 2.0 * gram[packed(j - 1, i - 1)];
  return value < 0.0 ? Real{} : value;
}

// scale G^-1 of a factored Gram matrix of full rank, packed.
template <int K, class Real>
STRATCORE_HOST_DEVICE inline void scaled_inverse(const Real (&factored)[K * (K + 1) / 2],
                                                 const Pivots<K, Real>& pivots, Real scale,
                                                 Real (&inverse)[K * (K + 1) / 2]) {
  Real lower[K * (K + 1) / 2];  // L^-1, whose diagonal of ones is not stored
  STRATCORE_UNROLL
  for (int j = 0; j < K; ++j) {
    STRATCORE_UNROLL
    for (int i = j + 1; i < K; ++i) {
      Real sum = -factored[packed(i, j)];
      STRATCORE_UNROLL
      for (int p = j + 1; p < i; ++p) sum -= factored[packed(i, p)] * lower[packed(p, j)];
      lower[packed(i, j)] = sum;
    }
  }
  Real weight[K];
  STRATCORE_UNROLL
  for (int p = 0; p < K; ++p) weight[p] = scale * pivots.inverse[p];
  STRATCORE_UNROLL
  for (int i = 0; i < K; ++i) {
    STRATCORE_UNROLL
    for (int j = 0; j <= i; ++j) {
      Real sum = j == i ? weight[i] : weight[i] * lower[packed(i, j)];
      STRATCORE_UNROLL
      for (int p = i + 1; p < K; ++p) sum += lower[packed(p, i)] * weight[p] * lower[packed(p, j)];
      inverse[packed(i, j)] = sum;
    }
  }
}

// Cotangents of the measures, without those of the distances.
template <class Real>
struct Cotangent {
  Real volume, log_volume, squared_volume, determinant;
};

// The symmetric M with dL/dE = M E (E: edges from vertex 0), of all measures but the distances. `gram` is
// factored in place. From d log V / dE = G^-1 E. A degenerate simplex gets 0: right for V^2 and the
// determinant; V and log V have no derivative there.
template <int K, class Real>
STRATCORE_HOST_DEVICE inline void gradient_matrix(Real (&gram)[K * (K + 1) / 2],
                                                  const Cotangent<Real>& cotangent,
                                                  Real (&matrix)[K * (K + 1) / 2]) {
  Pivots<K, Real> pivots;
  const auto full = factor<K>(gram, pivots);
  const Real squared = cotangent.squared_volume + determinant_coefficient(K) * cotangent.determinant;
  Real scale = cotangent.log_volume;
  if (any(cotangent.volume != 0.0)) scale += cotangent.volume * volume<K>(pivots);
  if (any(squared != 0.0)) scale += 2.0 * squared * squared_volume<K>(gram);
  scaled_inverse<K>(gram, pivots, scale, matrix);
  STRATCORE_UNROLL
  for (int p = 0; p < K * (K + 1) / 2; ++p) matrix[p] = full ? matrix[p] : Real{};
}

// Adds the part of one squared distance |x_i - x_j|^2, i < j, with cotangent `value`, to M.
template <int K, class Real>
STRATCORE_HOST_DEVICE inline void add_distance(int i, int j, Real value, Real* matrix) {
  matrix[packed(j - 1, j - 1)] += 2.0 * value;
  if (i == 0) return;
  matrix[packed(i - 1, i - 1)] += 2.0 * value;
  matrix[packed(j - 1, i - 1)] -= 2.0 * value;
}

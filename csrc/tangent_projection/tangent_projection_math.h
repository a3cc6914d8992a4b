#pragma once

#include "../common/macros.h"
#include "tangent_projection.h"

namespace stratcore::tangent_projection {

// What a row is divided by: max(norm, eps), and NaN for NaN, so that a NaN fills its row and no other.
template <class T>
STRATCORE_HOST_DEVICE inline T radius_of(T norm, T eps) {
  return norm <= eps ? eps : norm;
}

// With y = x / r, r = max(|x|, eps), n the nearest anchor scaled to length 1 and c = cos(y, n), the gradient
// is linear in three vectors: dL/dx = g * of_gradient + y * of_row + n * of_anchor. What it needs are the
// inner products g.y, g.n.
template <class T>
struct Combination {
  T of_gradient, of_row, of_anchor;
};

// g' = g - tangential (g.y) y
// repel:      g'' = g' + separation (n - c y)
// reference:  g'' = g' - separation max(g'.n, 0) n
// dL/dx = g'' / r (tangent), (g'' - (g''.y) y) / r (normalize), g'' (identity)
template <class T>
STRATCORE_HOST_DEVICE inline Combination<T> combine(const Problem& p, bool has_anchor, T norm, T cosine,
                                                    T g_dot_y, T g_dot_n) {
  const T tangential = T(p.tangential), separation = has_anchor ? T(p.separation) : T(0), eps = T(p.eps);
  const bool clamped = norm <= eps;
  // |y|^2: 1, but for rows below eps.
  const T y_dot_y = clamped ? (norm / eps) * (norm / eps) : T(1);
  Combination<T> sum{T(1), -tangential * g_dot_y, T(0)};
  if (separation != T(0)) {
    if (p.sign == SeparationSign::kRepel) {
      sum.of_anchor = separation;
      sum.of_row -= separation * cosine;
    } else {
      const T towards = g_dot_n - tangential * g_dot_y * cosine;
      sum.of_anchor = -separation * (towards > T(0) ? towards : T(0));
    }
  }
  if (p.jacobian == Jacobian::kNormalize && !clamped) {
    sum.of_row -= g_dot_y + sum.of_row * y_dot_y + sum.of_anchor * cosine;
  }
  if (p.jacobian != Jacobian::kIdentity) {
    const T inverse = T(1) / radius_of(norm, eps);
    sum.of_gradient *= inverse;
    sum.of_row *= inverse;
    sum.of_anchor *= inverse;
  }
  return sum;
}

}  // namespace stratcore::tangent_projection

#pragma once

#include <cmath>
#include <cstdint>

#include "../common/macros.h"
#include "lattice.h"
#include "toroidal_attention.h"

// What both devices decide alike: which keys a query sees, and which tiles of scores may be left out. Legend
// as in toroidal_attention.h; the proof of the rule: README.md in this folder.
namespace stratcore::toroidal_attention {

// The keys before this one are visible to the query, the others are not.
STRATCORE_HOST_DEVICE inline int64_t visible_keys(const Problem& problem, int64_t query) {
  if (!problem.causal) return problem.keys;
  const int64_t group = problem.causal_group;
  const int64_t end = ((problem.query_offset + query) / group + 1) * group - problem.key_offset;
  return end < 0 ? 0 : end < problem.keys ? end : problem.keys;
}

// Of a head with these slopes; the bound on a score needs that distance takes off and nothing else adds.
template <class T>
STRATCORE_HOST_DEVICE inline bool may_leave_out_tiles(const Problem& problem, const T* slopes) {
  bool falls = problem.eps > 0;
  falls = falls && (problem.mask.element == MaskElement::kNone || problem.mask.element == MaskElement::kBool);
  for (int part = 0; part < problem.slope_count; ++part) falls = falls && slopes[part] >= T(0);
  return falls;
}

// The least that distance takes off a score of any query in one box with any key in the other; slopes >= 0.
template <class T>
STRATCORE_HOST_DEVICE inline T least_penalty(const Problem& problem, const T* slopes, const Box& queries,
                                             const Box& keys) {
  T steps[kMaxAxes] = {}, parts[kMaxAxes] = {}, sum = 0;
  for (int axis = 0; axis < problem.lattice.axes; ++axis) {
    steps[axis] = static_cast<T>(least_steps(queries, keys, axis, problem.lattice.period[axis]));
  }
  distance_parts(problem.metric, problem.lattice, steps, problem.slope_count, parts);
  for (int part = 0; part < problem.slope_count; ++part) sum += slopes[part] * parts[part];
  return sum;
}

// Upper bound of |scale| |q|, which times the norm of a key bounds a score; what rounding adds is far below
// 1e-4.
template <class T>
STRATCORE_HOST_DEVICE inline T reach_of(const Problem& problem, T query_norm) {
  return static_cast<T>(std::fabs(problem.scale) * (1 + 1e-4)) * query_norm;
}

// Whether a tile of `keys` keys has at most eps / candidates of the probability of every row. `excess`: the
// largest reach * (largest norm of a key) - lse of the rows; where it is not finite, nothing is left out.
template <class T>
STRATCORE_HOST_DEVICE inline bool is_negligible(const Problem& problem, T excess, T penalty, int64_t keys,
                                                int64_t candidates) {
  const T most = excess - penalty + std::log(static_cast<T>(keys));
  return std::fabs(excess) < T(INFINITY) &&
         most <= std::log(static_cast<T>(problem.eps)) - std::log(static_cast<T>(candidates));
}

}  // namespace stratcore::toroidal_attention

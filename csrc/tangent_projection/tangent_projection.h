#pragma once

#include <cstdint>

#include "../common/element.h"
#include "../common/executor.h"
#include "../common/macros.h"

// Normalization onto the sphere with a surrogate gradient, without torch. Legend: N rows, D dimension, A
// anchors. Formulas: README.md in this folder.
namespace stratcore::tangent_projection {

enum class SeparationSign : int32_t { kRepel, kReference };
enum class Jacobian : int32_t { kTangent, kNormalize, kIdentity };

struct Problem {
  const void* x;        // [N, D]
  const void* anchors;  // [A, D], any lengths; null for none
  Element element;      // of x, anchors, y and gradients
  int64_t rows, dim, anchor_count;
  double eps;  // least length that a row is divided by
  double tangential, separation;
  SeparationSign sign;
  Jacobian jacobian;
};

// Norms and cosines: float64 for float64 x, else float32.
struct Output {
  void* y;     // [N, D]
  void* norm;  // [N], not clamped
  int32_t*
      nearest;   // [N] anchor of largest cosine, the lowest of equals, NaN the largest; null without anchors
  void* cosine;  // [N] with it; null without anchors
};

// Bytes of scratch on the device that the forward wants (0 on the CPU).
STRATCORE_API int64_t forward_scratch_cuda(const Problem& problem);

STRATCORE_API Status forward_cpu(const Problem& problem, const Output& out, const Executor& executor);
STRATCORE_API Status forward_cuda(const Problem& problem, const Output& out, void* scratch,
                                  const Executor& executor);

// grad_x [N, D] from grad_y [N, D]; `out` holds norm and nearest of the forward (y and cosine are not read).
STRATCORE_API Status backward_cpu(const Problem& problem, const Output& out, const void* grad_y, void* grad_x,
                                  const Executor& executor);
STRATCORE_API Status backward_cuda(const Problem& problem, const Output& out, const void* grad_y,
                                   void* grad_x, const Executor& executor);

}  // namespace stratcore::tangent_projection

#pragma once

#include <cstdint>

#include "../common/element.h"
#include "../common/executor.h"
#include "../common/macros.h"
#include "lattice.h"

// Attention with a bias that falls with the distance on a torus, without torch. Legend: B batch, H query
// heads, G key heads (each serves H / G query heads), N queries, M keys, E dimension of a head, S slopes a
// head. Formulas: README.md in this folder.
namespace stratcore::toroidal_attention {

enum class MaskElement : int32_t { kNone, kBool, kFloat32, kSame };  // kSame: the element of q

// Elements from one entry to the next along an axis; 0 repeats. The last axis is contiguous.
struct Strides {
  int64_t batch, head, row;
};

struct Mask {
  const void* data;  // [B, H, N, M]; bool: true takes part; else added to the scores
  MaskElement element;
  int64_t batch, head, row, col;  // strides, in elements
};

struct Problem {
  const void *q, *k, *v;  // [B, H, N, E], [B, G, M, E], [B, G, M, E]
  Strides q_strides, k_strides, v_strides;
  Element element;
  int64_t batch, heads, kv_heads, queries, keys, dim;
  double scale;
  const void* slopes;  // [H, S] float64 for float64 q, else float32; S: slope_count, 1 or one an axis (l1,
                       // chordal_sq)
  int32_t slope_count;
  Metric metric;
  Lattice lattice;
  int64_t query_offset, key_offset;  // position of the first query and key
  bool causal;
  int64_t causal_group;  // positions p and r: r is visible to p where r / group <= p / group
  Mask mask;
  double eps;  // most probability that a row may lose by tiles not looked at; 0: all are
};

// A row without visible keys: out 0, lse -infinity.
struct Output {
  void* out;  // [B, H, N, E], element of q
  Strides out_strides;
  void* lse;  // [B, H, N], log of the sum of exp(score); float64 for float64 q, else float32
  int32_t*
      tiles;  // [B, H, 2]: tiles of scores that eps left out, and tiles with a visible key; zeros on entry
};

struct Gradients {
  const void* grad_out;  // [B, H, N, E]
  Strides grad_out_strides;
  const void* grad_lse;            // [B, H, N] contiguous, type of lse; null for none
  void *grad_q, *grad_k, *grad_v;  // contiguous, element of q
  void* grad_slopes;               // [H, S], type of slopes
};

STRATCORE_API Status forward_cpu(const Problem& problem, const Output& out, const Executor& executor);

// `out` holds out and lse of the forward (tiles are not read).
STRATCORE_API Status backward_cpu(const Problem& problem, const Output& out, const Gradients& gradients,
                                  const Executor& executor);

// Bytes of scratch on the current device.
STRATCORE_API int64_t forward_scratch_cuda(const Problem& problem);
STRATCORE_API int64_t backward_scratch_cuda(const Problem& problem, bool deterministic);

STRATCORE_API Status forward_cuda(const Problem& problem, const Output& out, void* scratch,
                                  const Executor& executor);
STRATCORE_API Status backward_cuda(const Problem& problem, const Output& out, const Gradients& gradients,
                                   bool deterministic, void* scratch, const Executor& executor);

}  // namespace stratcore::toroidal_attention

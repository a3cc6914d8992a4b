#pragma once

#include <algorithm>
#include <type_traits>

#include "../common/launch.cuh"
#include "../common/tensor_map.cuh"
#include "planes.cuh"

// What the kernels of sm_90a multiply: rows of the tensors themselves, or of planes of float32 in scratch.
namespace stratcore::toroidal_attention {

// [batch, heads, rows, dim].
struct OperandRows {
  const void* data;
  Strides strides;
  int64_t batch, heads, rows, dim;
};

struct Operands {
  static constexpr int kForward = 3, kBackward = 4;
  OperandRows rows[kBackward];  // q, k, v, and gradients of outputs

  // `gradients`: null in the forward.
  Operands(const Problem& problem, const Gradients* gradients) {
    const auto queries = [&](const void* data, const Strides& strides) {
      return OperandRows{data, strides, problem.batch, problem.heads, problem.queries, problem.dim};
    };
    const auto keys = [&](const void* data, const Strides& strides) {
      return OperandRows{data, strides, problem.batch, problem.kv_heads, problem.keys, problem.dim};
    };
    rows[0] = queries(problem.q, problem.q_strides);
    rows[1] = keys(problem.k, problem.k_strides);
    rows[2] = keys(problem.v, problem.v_strides);
    if (gradients) rows[3] = queries(gradients->grad_out, gradients->grad_out_strides);
  }
};

inline int64_t plane_numbers(const OperandRows& rows) {
  return rows.batch * kPlanes * rows.heads * rows.rows * kPlaneWidth;
}

inline int64_t plane_bytes(const Problem& problem, bool backward) {
  const Gradients none{};
  const Operands operands(problem, backward ? &none : nullptr);
  int64_t bytes = 0;
  for (int i = 0; i < (backward ? Operands::kBackward : Operands::kForward); ++i)
    bytes += plane_numbers(operands.rows[i]) * int64_t(sizeof(__nv_bfloat16));
  return bytes;
}

// The first `count` operands become planes in `scratch`, of plane_bytes.
inline Status split(Operands& operands, int count, void* scratch, cudaStream_t stream) {
  SplitTensors all{};
  int64_t most = 0;
  auto* planes = static_cast<__nv_bfloat16*>(scratch);
  for (int i = 0; i < count; ++i) {
    OperandRows& rows = operands.rows[i];
    all.tensor[i] = {rows.data, rows.strides, rows.batch, rows.heads, rows.rows, rows.dim, planes};
    most = std::max(most, rows.batch * rows.heads * rows.rows);
    const int64_t numbers = plane_numbers(rows), row = kPlaneWidth;
    rows = {planes,
            {rows.heads * rows.rows * row, rows.rows * row, row},
            rows.batch * kPlanes,
            rows.heads,
            rows.rows,
            row};
    planes += numbers;
  }
  const dim3 grid(static_cast<unsigned>((most + kSplitRows - 1) / kSplitRows), static_cast<unsigned>(count));
  split_kernel<<<grid, kSplitThreads, 0, stream>>>(all);
  return launch_status();
}

// Boxes of `box_rows` rows; false where mma.sync has to do it.
template <class S>
bool describe_rows(const OperandRows& rows, int box_rows, CUtensorMap& map) {
  const bool bfloat = std::is_same_v<Multiplied<S>, __nv_bfloat16>;
  const Strides& strides = rows.strides;
  return describe({rows.data,
                   bfloat,
                   rows.batch,
                   rows.heads,
                   rows.rows,
                   rows.dim,
                   {strides.batch, strides.head, strides.row}},
                  box_rows, map);
}

}  // namespace stratcore::toroidal_attention

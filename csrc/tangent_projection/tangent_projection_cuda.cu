#include "../common/launch.cuh"
#include "nearest_exact.cuh"
#include "nearest_tensor.cuh"
#include "rows.cuh"
#include "tangent_projection.h"

// The backward, and which kernel is launched. Legend as in tangent_projection.h.
namespace stratcore::tangent_projection {
namespace {

template <int L, int Q, class S>
__global__ void __launch_bounds__(kWarps* kWarp)
    backward_kernel(Problem problem, const Computed<S>* norms, const int32_t* nearest, const S* grad_y,
                    S* grad_x, bool aligned) {
  using T = Computed<S>;
  const int lane = threadIdx.x % L;
  const int64_t groups = int64_t(gridDim.x) * (kWarps * kWarp / L), dim = problem.dim;
  const int64_t rounds = (problem.rows + groups - 1) / groups;
  int64_t row = (int64_t(blockIdx.x) * blockDim.x + threadIdx.x) / L;
  for (int64_t round = 0; round < rounds; ++round, row += groups) {
    const bool inside = row < problem.rows;
    const int64_t from = inside ? row : problem.rows - 1, offset = from * dim;
    T g[Q][kQuad], x[Q][kQuad], n[Q][kQuad] = {};
    load_row<L, Q, S>(grad_y + offset, lane, dim, aligned, g);
    load_row<L, Q, S>(static_cast<const S*>(problem.x) + offset, lane, dim, aligned, x);
    if (nearest) {
      load_row<L, Q, S>(static_cast<const S*>(problem.anchors) + nearest[from] * dim, lane, dim, aligned, n);
    }
    T gx = 0, gn = 0, xn = 0, nn = 0;
#pragma unroll
    for (int q = 0; q < Q; ++q) {
#pragma unroll
      for (int c = 0; c < kQuad; ++c) {
        gx += g[q][c] * x[q][c];
        gn += g[q][c] * n[q][c];
        xn += x[q][c] * n[q][c];
        nn += n[q][c] * n[q][c];
      }
    }
    gx = sum_over<L>(gx);
    if (nearest) {
      gn = sum_over<L>(gn);
      xn = sum_over<L>(xn);
      nn = sum_over<L>(nn);
    }
    const T norm = norms[from], scale = inverse_radius(norm, problem.eps), unit = inverse_length<S>(nn);
    Combination<T> sum =
        combine<T>(problem, nearest != nullptr, norm, xn * scale * unit, gx * scale, gn * unit);
    sum.of_row *= scale;
    sum.of_anchor *= unit;
    if (!inside) continue;
#pragma unroll
    for (int q = 0; q < Q; ++q) {
#pragma unroll
      for (int c = 0; c < kQuad; ++c) {
        g[q][c] = sum.of_gradient * g[q][c] + sum.of_row * x[q][c] + sum.of_anchor * n[q][c];
      }
      store_quad(grad_x + offset, int64_t(q * L + lane) * kQuad, dim, aligned, g[q]);
    }
  }
}

template <class S>
__global__ void __launch_bounds__(kWarps* kWarp)
    backward_long_kernel(Problem problem, const Computed<S>* norms, const int32_t* nearest, const S* grad_y,
                         S* grad_x) {
  using T = Computed<S>;
  const int lane = threadIdx.x % kWarp;
  const int64_t warps = int64_t(gridDim.x) * kWarps, dim = problem.dim;
  for (int64_t row = int64_t(blockIdx.x) * kWarps + threadIdx.x / kWarp; row < problem.rows; row += warps) {
    const S *g = grad_y + row * dim, *x = static_cast<const S*>(problem.x) + row * dim;
    const S* n = nearest ? static_cast<const S*>(problem.anchors) + nearest[row] * dim : nullptr;
    T gx = 0, gn = 0, xn = 0, nn = 0;
    for (int64_t d = lane; d < dim; d += kWarp) {
      const T gd = number(g[d]), xd = number(x[d]), nd = n ? number(n[d]) : T(0);
      gx += gd * xd;
      gn += gd * nd;
      xn += xd * nd;
      nn += nd * nd;
    }
    gx = sum_over<kWarp>(gx);
    gn = sum_over<kWarp>(gn);
    xn = sum_over<kWarp>(xn);
    nn = sum_over<kWarp>(nn);
    const T norm = norms[row], scale = inverse_radius(norm, problem.eps), unit = inverse_length<S>(nn);
    const Combination<T> sum =
        combine<T>(problem, n != nullptr, norm, xn * scale * unit, gx * scale, gn * unit);
    for (int64_t d = lane; d < dim; d += kWarp) {
      const T along = n ? sum.of_anchor * unit * number(n[d]) : T(0);
      grad_x[row * dim + d] =
          stored<S>(sum.of_gradient * number(g[d]) + sum.of_row * scale * number(x[d]) + along);
    }
  }
}

// Blocks that are resident together go through the rows in rounds.
unsigned blocks_for(int64_t rows, int rows_a_block, int blocks_a_processor) {
  const int64_t wanted = (rows + rows_a_block - 1) / rows_a_block;
  return static_cast<unsigned>(std::min<int64_t>(wanted, int64_t(processors()) * blocks_a_processor));
}

template <int L, int Q>
struct Shape {
  static constexpr int kLanes = L, kQuads = Q;
};

// Runs with the lanes a row and quads a lane for a dimension, or `run_long` where a row does not fit.
template <class Run, class RunLong>
Status with_shape(int64_t dim, const Run& run, const RunLong& run_long) {
  if (dim <= 64) return run(Shape<8, 2>());
  if (dim <= 128) return run(Shape<32, 1>());
  if (dim <= 256) return run(Shape<32, 2>());
  if (dim <= 512) return run(Shape<32, 4>());
  if (dim <= 1024) return run(Shape<32, 8>());
  return run_long();
}

constexpr int64_t kExactWork = int64_t(1) << 26;  // products up to which every score is made exactly

bool use_tensor_cores(const Problem& problem) {
  return problem.element != Element::kFloat64 && problem.anchor_count > 8 &&
         problem.rows * problem.anchor_count * problem.dim > kExactWork;
}

template <class S>
Status launch_normalize(const Problem& problem, const Targets<S>& out, const Executor& executor) {
  const bool aligned = quads_aligned<S>(problem.x, problem.dim) && quads_aligned<S>(out.y, problem.dim);
  const auto in_registers = [&](auto shape) {
    constexpr int kLanes = decltype(shape)::kLanes, kQuads = decltype(shape)::kQuads;
    normalize_kernel<kLanes, kQuads, S><<<blocks_for(problem.rows, kWarps * kWarp / kLanes, 1 << 12),
                                          kWarps * kWarp, 0, stream_of(executor)>>>(problem, out, aligned);
    return launch_status();
  };
  return with_shape(problem.dim, in_registers, [&] {
    normalize_long_kernel<S>
        <<<blocks_for(problem.rows, kWarps, 8), kWarps * kWarp, 0, stream_of(executor)>>>(problem, out);
    return launch_status();
  });
}

template <class S>
Status launch_tensor(const Problem& problem, const Targets<S>& out, void* scratch, const Executor& executor) {
  if constexpr (std::is_same_v<S, double>) {
    return kOk;
  } else {
    const Prepared anchors = prepared(problem, scratch);
    prepare_kernel<S>
        <<<blocks_for(anchors.padded_count, kWarps, 4), kWarps * kWarp, 0, stream_of(executor)>>>(problem,
                                                                                                  anchors);
    const Status status = launch_status();
    if (status != kOk) return status;
    const bool aligned = quads_aligned<S>(problem.x, problem.dim) && quads_aligned<S>(out.y, problem.dim) &&
                         quads_aligned<S>(problem.anchors, problem.dim);
    cudaFuncSetAttribute(tensor_kernel<S>, cudaFuncAttributeMaxDynamicSharedMemorySize, sizeof(Shared));
    tensor_kernel<S><<<blocks_for(problem.rows, kWarps * kTileRows, 2), kWarps * kWarp, sizeof(Shared),
                       stream_of(executor)>>>(problem, anchors, out, aligned);
    return launch_status();
  }
}

template <class S>
Status forward_of(const Problem& problem, const Output& output, void* scratch, const Executor& executor) {
  using T = Computed<S>;
  const Targets<S> out{static_cast<S*>(output.y), static_cast<T*>(output.norm), output.nearest,
                       static_cast<T*>(output.cosine)};
  if (!problem.anchors || problem.anchor_count == 0) return launch_normalize<S>(problem, out, executor);
  if (use_tensor_cores(problem)) return launch_tensor<S>(problem, out, scratch, executor);
  const bool aligned =
      quads_aligned<S>(problem.x, problem.dim) && quads_aligned<S>(problem.anchors, problem.dim);
  exact_kernel<S>
      <<<blocks_for(problem.rows, kExactRows, 16), kWarps * kWarp, 0, stream_of(executor)>>>(problem, out,
                                                                                             aligned);
  return launch_status();
}

template <class S>
Status backward_of(const Problem& problem, const Output& output, const S* grad_y, S* grad_x,
                   const Executor& executor) {
  const bool pushed = problem.anchors && problem.anchor_count > 0 && problem.separation != 0;
  const int32_t* nearest = pushed ? output.nearest : nullptr;
  const auto* norms = static_cast<const Computed<S>*>(output.norm);
  const bool aligned = quads_aligned<S>(problem.x, problem.dim) && quads_aligned<S>(grad_y, problem.dim) &&
                       quads_aligned<S>(grad_x, problem.dim) &&
                       (!pushed || quads_aligned<S>(problem.anchors, problem.dim));
  const auto in_registers = [&](auto shape) {
    constexpr int kLanes = decltype(shape)::kLanes, kQuads = decltype(shape)::kQuads;
    backward_kernel<kLanes, kQuads, S>
        <<<blocks_for(problem.rows, kWarps * kWarp / kLanes, 8), kWarps * kWarp, 0, stream_of(executor)>>>(
            problem, norms, nearest, grad_y, grad_x, aligned);
    return launch_status();
  };
  return with_shape(problem.dim, in_registers, [&] {
    backward_long_kernel<S><<<blocks_for(problem.rows, kWarps, 8), kWarps * kWarp, 0, stream_of(executor)>>>(
        problem, norms, nearest, grad_y, grad_x);
    return launch_status();
  });
}

}  // namespace

int64_t forward_scratch_cuda(const Problem& problem) {
  if (!problem.anchors || !use_tensor_cores(problem)) return 0;
  const Prepared anchors = prepared(problem, nullptr);
  return anchors.padded_dim * anchors.padded_count * int64_t(sizeof(__half)) +
         2 * anchors.padded_count * int64_t(sizeof(float));
}

Status forward_cuda(const Problem& problem, const Output& out, void* scratch, const Executor& executor) {
  if (problem.rows == 0) return kOk;
  return with_element(problem.element, [&](auto element) {
    return forward_of<decltype(element)>(problem, out, scratch, executor);
  });
}

Status backward_cuda(const Problem& problem, const Output& out, const void* grad_y, void* grad_x,
                     const Executor& executor) {
  if (problem.rows == 0) return kOk;
  return with_element(problem.element, [&](auto element) {
    using S = decltype(element);
    return backward_of<S>(problem, out, static_cast<const S*>(grad_y), static_cast<S*>(grad_x), executor);
  });
}

}  // namespace stratcore::tangent_projection

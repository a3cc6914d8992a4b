#include <cmath>

#include "../common/launch.cuh"
#include "finish_rows.cuh"
#include "fused_rows.cuh"
#include "held_rows.cuh"
#include "nearest_exact.cuh"
#include "nearest_tensor.cuh"
#include "nearest_wgmma.cuh"
#include "rows.cuh"
#include "tangent_projection.h"
#include "tensor_map.cuh"

// The backward, and which kernel is launched. Legend as in tangent_projection.h.
namespace stratcore::tangent_projection {
namespace {

template <int L, int Q, class S>
__global__ void __launch_bounds__(kWarps* kWarp)
    backward_kernel(Problem problem, const Computed<S>* norms, const int32_t* nearest, const S* grad_y,
                    S* grad_x, int width) {
  using T = Computed<S>;
  const int lane = threadIdx.x % L;
  const int64_t groups = int64_t(gridDim.x) * (kWarps * kWarp / L), dim = problem.dim;
  const int64_t rounds = (problem.rows + groups - 1) / groups;
  int64_t row = (int64_t(blockIdx.x) * blockDim.x + threadIdx.x) / L;
  for (int64_t round = 0; round < rounds; ++round, row += groups) {
    const bool inside = row < problem.rows;
    const int64_t from = inside ? row : problem.rows - 1, offset = from * dim;
    Run<S> g[Q], x[Q], n[Q] = {};
    load_row<L, Q, S>(grad_y + offset, lane, dim, width, g);
    load_row<L, Q, S>(static_cast<const S*>(problem.x) + offset, lane, dim, width, x);
    if (sizeof(S) == 2 && row + groups < problem.rows) {  // 16-bit rows take long to convert
      prefetch_row<L, Q, S>(grad_y + offset + groups * dim, lane, dim);
      prefetch_row<L, Q, S>(static_cast<const S*>(problem.x) + offset + groups * dim, lane, dim);
    }
    if (nearest) {
      load_row<L, Q, S>(static_cast<const S*>(problem.anchors) + nearest[from] * dim, lane, dim, width, n);
    }
    T gx = 0, gn = 0, xn = 0, nn = 0;
#pragma unroll
    for (int q = 0; q < Q; ++q) {
#pragma unroll
      for (int c = 0; c < kRun<S>; ++c) {
        const T gc = number(g[q].element[c]), xc = number(x[q].element[c]);
        gx += gc * xc;
        if (nearest) {
          const T nc = number(n[q].element[c]);
          gn += gc * nc;
          xn += xc * nc;
          nn += nc * nc;
        }
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
    keep_packed(g);
    keep_packed(x);
    keep_packed(n);
    if (!inside) continue;
    store_row<L, Q, S>(grad_x + offset, lane, dim, width, [&](int q, int c) {
      return sum.of_gradient * T(number(g[q].element[c])) + sum.of_row * T(number(x[q].element[c])) +
             sum.of_anchor * T(number(n[q].element[c]));
    });
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
  static constexpr int kLanes = L, kRuns = Q;
};

// Runs with the lanes a row and runs a lane for a dimension, or `run_long` where a row does not fit.
template <class S, class Run, class RunLong>
Status with_shape(int64_t dim, const Run& run, const RunLong& run_long) {
  constexpr int kWide = kRun<S> / kQuad;
  if (dim <= 64) return run(Shape<8 / kWide, 2>());
  if (dim <= 128) return run(Shape<16 / kWide, 2>());
  if (dim <= 256) return run(Shape<kWide == 1 ? 32 : 8, kWide == 1 ? 2 : 4>());
  if (dim <= 512) return run(Shape<32, 4 / kWide>());
  if (dim <= 1024) return run(Shape<32, 8 / kWide>());
  return run_long();
}

constexpr int64_t kOneKindAnchors = 384;  // up to which warps of one kind are faster than those of three
constexpr int64_t kUnheldAnchors = 352;   // and than blocks that hold the anchors
constexpr int64_t kExactWork = int64_t(1) << 26;  // products up to which every score is made exactly

bool use_tensor_cores(const Problem& problem) {
  return problem.element != Element::kFloat64 && problem.anchor_count > 8 &&
         problem.rows * problem.anchor_count * problem.dim > kExactWork;
}

template <class S>
Status launch_normalize(const Problem& problem, const Targets<S>& out, const Executor& executor) {
  const int width = std::min(width_of<S>(problem.x, problem.dim), width_of<S>(out.y, problem.dim));
  const auto in_registers = [&](auto shape) {
    constexpr int kLanes = decltype(shape)::kLanes, kRuns = decltype(shape)::kRuns;
    normalize_kernel<kLanes, kRuns, S><<<blocks_for(problem.rows, kWarps * kWarp / kLanes, 1 << 12),
                                         kWarps * kWarp, 0, stream_of(executor)>>>(problem, out, width);
    return launch_status();
  };
  return with_shape<S>(problem.dim, in_registers, [&] {
    normalize_long_kernel<S>
        <<<blocks_for(problem.rows, kWarps, 8), kWarps * kWarp, 0, stream_of(executor)>>>(problem, out);
    return launch_status();
  });
}

template <class S, class Place>
Status launch_prepare(const Problem& problem, const Prepared& anchors, const Executor& executor) {
  prepare_kernel<S><<<blocks_for(anchors.padded_count, kWarps, 4), kWarps * kWarp, 0, stream_of(executor)>>>(
      problem, anchors, Place());
  return launch_status();
}

template <class S>
Status launch_tensor(const Problem& problem, const Targets<S>& out, void* scratch, const Executor& executor) {
  const Prepared anchors = prepared<RowMajor>(problem, scratch);
  const Status status = launch_prepare<S, RowMajor>(problem, anchors, executor);
  if (status != kOk) return status;
  const bool aligned = quads_aligned<S>(problem.x, problem.dim) && quads_aligned<S>(out.y, problem.dim) &&
                       quads_aligned<S>(problem.anchors, problem.dim);
  cudaFuncSetAttribute(tensor_kernel<S>, cudaFuncAttributeMaxDynamicSharedMemorySize, sizeof(Shared));
  tensor_kernel<S><<<blocks_for(problem.rows, kWarps * kTileRows, 2), kWarps * kWarp, sizeof(Shared),
                     stream_of(executor)>>>(problem, anchors, out, aligned);
  return launch_status();
}

// Code for other processors than sm_90a is empty: it has no barriers.
template <class Kernel>
bool has_code(Kernel kernel) {
  cudaFuncAttributes attributes;
  if (cudaFuncGetAttributes(&attributes, kernel) == cudaSuccess) return attributes.sharedSizeBytes > 0;
  cudaGetLastError();
  return false;
}

// Launches clusters of two blocks, of which `bytes` of shared memory hold one a processor, for `pairs` of
// tiles.
template <class... Arguments, class... Given>
Status launch_pairs(void (*kernel)(Arguments...), int64_t pairs, int threads, uint32_t bytes,
                    const Executor& executor, const Given&... given) {
  cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes);
  cudaLaunchAttribute cluster{};
  cluster.id = cudaLaunchAttributeClusterDimension;
  cluster.val.clusterDim = {kClusterBlocks, 1, 1};
  cudaLaunchConfig_t config{};
  config.gridDim = unsigned(std::min<int64_t>(pairs, processors() / kClusterBlocks) * kClusterBlocks);
  config.blockDim = threads;
  config.dynamicSmemBytes = bytes;
  config.stream = stream_of(executor);
  config.attrs = &cluster;
  config.numAttrs = 1;
  cudaLaunchKernelEx(&config, kernel, given...);
  return launch_status();
}

int64_t pairs_of(int64_t rows, int tile_rows) {
  return (rows + kClusterBlocks * tile_rows - 1) / (kClusterBlocks * tile_rows);
}

template <class S>
Status launch_finish(const Problem& problem, const Prepared& anchors, int index_bits, const Targets<S>& out,
                     const Executor& executor) {
  const auto launch = [&](auto kernel) {
    kernel<<<blocks_for(problem.rows, kWarps, 8), kWarps * kWarp, 0, stream_of(executor)>>>(problem, anchors,
                                                                                            index_bits, out);
    return launch_status();
  };
  constexpr int kWide = kRun<S> / kQuad;
  if (problem.dim <= 256) return launch(finish_kernel<S, 2 / kWide>);
  if (problem.dim <= 512) return launch(finish_kernel<S, 4 / kWide>);
  return launch(finish_kernel<S, 8 / kWide>);
}

// Scores first, which need no norms; then everything else.
template <class S>
Status launch_scores(const Problem& problem, const Targets<S>& out, void* scratch, const Executor& executor) {
  using Place = SlabPlace<S>;
  const auto kernel = scores_kernel<S>;
  CUtensorMap map;
  if (!has_code(kernel) || !map_rows<S>(problem, kScoreRows, map))
    return launch_tensor<S>(problem, out, scratch, executor);
  const Prepared anchors = prepared<Place>(problem, scratch);
  const Status status = launch_prepare<S, Place>(problem, anchors, executor);
  if (status != kOk) return status;
  const ScorePlan plan{static_cast<uint32_t>(anchors.padded_dim / Place::kColumns),
                       static_cast<uint32_t>(anchors.padded_count / kScoreAnchors),
                       pairs_of(problem.rows, kScoreRows), index_bits_for(problem.anchor_count)};
  const Status launched =
      launch_pairs(kernel, plan.pairs, kScoreThreads, kStages * kStageBytes + kSwizzleBytes, executor, map,
                   problem, anchors, plan, out.y);
  return launched == kOk ? launch_finish<S>(problem, anchors, plan.index_bits, out, executor) : launched;
}

template <class Share, class S>
Status launch_settle(const Problem& problem, const Prepared& anchors, const Targets<S>& out,
                     const Executor& executor) {
  settle_kernel<Share, S>
      <<<blocks_for(problem.rows, kWarps * kWarp, 8), kWarps * kWarp, 0, stream_of(executor)>>>(
          problem, anchors.inverse, out);
  return launch_status();
}

template <class S>
Status launch_fused(const Problem& problem, const Targets<S>& out, void* scratch, const Executor& executor) {
  using Place = FusedPlace<S>;
  const auto kernel = fused_kernel<S>;
  if (!has_code(kernel)) return launch_tensor<S>(problem, out, scratch, executor);
  const Prepared anchors = prepared<Place>(problem, scratch);
  const Status status = launch_prepare<S, Place>(problem, anchors, executor);
  if (status != kOk) return status;
  const FusedPlan plan{static_cast<uint32_t>(anchors.padded_count / kPartAnchors),
                       pairs_of(problem.rows, kFusedRows), index_bits_for(problem.anchor_count)};
  return launch_pairs(kernel, plan.pairs, kFusedThreads, kFusedBytes, executor, problem, anchors, plan, out);
}

template <class S>
Status launch_held(const Problem& problem, const Targets<S>& out, void* scratch, const Executor& executor) {
  using Place = HeldPlace<S>;
  const auto kernel = held_kernel<S>;
  if (!has_code(kernel)) return launch_tensor<S>(problem, out, scratch, executor);
  const Prepared anchors = prepared<Place>(problem, scratch);
  const Status status = launch_prepare<S, Place>(problem, anchors, executor);
  if (status != kOk) return status;
  const int bits = index_bits_for(problem.anchor_count);
  const HeldPlan plan{pairs_of(problem.rows, kOwnRows), bits, std::exp2(float(bits - 23))};
  const Status launched =
      launch_pairs(kernel, plan.pairs, kHeldThreads, kHeldBytes, executor, problem, anchors, plan, out);
  return launched == kOk ? launch_settle<GroupShare>(problem, anchors, out, executor) : launched;
}

template <class S, int Steps>
Status launch_wgmma(const Problem& problem, const Targets<S>& out, void* scratch, const Executor& executor) {
  using Place = ImagePlace<S, Steps>;
  const auto kernel = wgmma_kernel<S, Steps>;
  if (!has_code(kernel)) return launch_tensor<S>(problem, out, scratch, executor);
  const Prepared anchors = prepared<Place>(problem, scratch);
  const Status status = launch_prepare<S, Place>(problem, anchors, executor);
  if (status != kOk) return status;
  const Plan plan = plan_for<S, Steps>(problem);
  const int rows = kRowGroups<S> * kGroupRows;
  const uint32_t bytes = rows / 16 * plan.stages * plan.stage_bytes + plan.slots * Units<Steps>::kBytes;
  cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes);
  kernel<<<blocks_for(problem.rows, rows, 1), kRowGroups<S> * kGroupThreads, bytes, stream_of(executor)>>>(
      problem, anchors, plan, out);
  const Status launched = launch_status();
  return launched == kOk ? launch_settle<void>(problem, anchors, out, executor) : launched;
}

template <class S>
Status launch_many(const Problem& problem, const Targets<S>& out, void* scratch, const Executor& executor) {
  const int width = std::min({width_of<S>(problem.x, problem.dim), width_of<S>(out.y, problem.dim),
                              width_of<S>(problem.anchors, problem.dim)});
  if (problem.anchor_count > kMostImageAnchors || width < kRun<S>)
    return launch_tensor<S>(problem, out, scratch, executor);
  if (problem.dim > 256) return launch_scores<S>(problem, out, scratch, executor);
  if (problem.dim <= 64) return launch_wgmma<S, 4>(problem, out, scratch, executor);
  if (problem.dim <= 128) return launch_wgmma<S, 8>(problem, out, scratch, executor);
  if (problem.dim == kFusedColumns && problem.anchor_count > kUnheldAnchors &&
      problem.anchor_count <= kHeldAnchors) {
    return launch_held<S>(problem, out, scratch, executor);
  }
  if (problem.anchor_count <= kOneKindAnchors) return launch_wgmma<S, 16>(problem, out, scratch, executor);
  return launch_fused<S>(problem, out, scratch, executor);
}

template <class S>
Status forward_of(const Problem& problem, const Output& output, void* scratch, const Executor& executor) {
  using T = Computed<S>;
  const Targets<S> out{static_cast<S*>(output.y), static_cast<T*>(output.norm), output.nearest,
                       static_cast<T*>(output.cosine)};
  if (!problem.anchors || problem.anchor_count == 0) return launch_normalize<S>(problem, out, executor);
  if constexpr (!std::is_same_v<S, double>) {
    if (use_tensor_cores(problem)) return launch_many<S>(problem, out, scratch, executor);
  }
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
  const int width = std::min({width_of<S>(problem.x, problem.dim), width_of<S>(grad_y, problem.dim),
                              width_of<S>(grad_x, problem.dim),
                              pushed ? width_of<S>(problem.anchors, problem.dim) : kRun<S>});
  const auto in_registers = [&](auto shape) {
    constexpr int kLanes = decltype(shape)::kLanes, kRuns = decltype(shape)::kRuns;
    backward_kernel<kLanes, kRuns, S>
        <<<blocks_for(problem.rows, kWarps * kWarp / kLanes, 8), kWarps * kWarp, 0, stream_of(executor)>>>(
            problem, norms, nearest, grad_y, grad_x, width);
    return launch_status();
  };
  return with_shape<S>(problem.dim, in_registers, [&] {
    backward_long_kernel<S><<<blocks_for(problem.rows, kWarps, 8), kWarps * kWarp, 0, stream_of(executor)>>>(
        problem, norms, nearest, grad_y, grad_x);
    return launch_status();
  });
}

}  // namespace

int64_t forward_scratch_cuda(const Problem& problem) {
  if (!problem.anchors || !use_tensor_cores(problem)) return 0;
  const int64_t count = round_up(problem.anchor_count, kHeldAnchors), dim = round_up(problem.dim, kSlab);
  return count * (dim + 2) * int64_t(sizeof(float));
}

Status forward_cuda(const Problem& problem, const Output& out, void* scratch, const Executor& executor) {
  if (problem.rows == 0) return kOk;
  return with_element<__nv_bfloat16, __half>(problem.element, [&](auto element) {
    return forward_of<decltype(element)>(problem, out, scratch, executor);
  });
}

Status backward_cuda(const Problem& problem, const Output& out, const void* grad_y, void* grad_x,
                     const Executor& executor) {
  if (problem.rows == 0) return kOk;
  return with_element<__nv_bfloat16, __half>(problem.element, [&](auto element) {
    using S = decltype(element);
    return backward_of<S>(problem, out, static_cast<const S*>(grad_y), static_cast<S*>(grad_x), executor);
  });
}

}  // namespace stratcore::tangent_projection

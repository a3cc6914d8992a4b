#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <algorithm>
#include <cstddef>
#include <type_traits>

#include "../common/launch.cuh"
#include "backward_keys_planes.cuh"
#include "backward_keys_wgmma.cuh"
#include "backward_mma.cuh"
#include "backward_wgmma.cuh"
#include "forward_mma.cuh"
#include "forward_wgmma.cuh"
#include "operands.cuh"
#include "scalar.cuh"
#include "toroidal_attention.h"

namespace stratcore::toroidal_attention {
namespace {

int64_t row_blocks(int64_t rows) { return (rows + kRows - 1) / kRows; }

// Warps of all blocks of keys of the backward on sm_90a.
int64_t warps_of_keys(int64_t keys) { return (keys + 127) / 128 * 8; }

int64_t rounded(int64_t bytes) { return (bytes + 255) / 256 * 256; }

// Width of the least tile that holds the heads.
int64_t tile_width(int64_t dim) { return dim <= 64 ? 64 : dim <= 128 ? 128 : 256; }

// Whether the backward may take blocks of keys that add to the gradient of the queries.
bool may_add_queries(const Problem& problem, bool deterministic) {
  return !deterministic && problem.dim <= 128 &&
         (problem.element == Element::kBFloat16 || problem.element == Element::kFloat16);
}

// Whether this library holds code of the kernel for the current device; code for others than sm_90a is empty.
template <class Kernel>
bool compiled(Kernel kernel) {
  cudaFuncAttributes attributes;
  const bool runs = cudaFuncGetAttributes(&attributes, kernel) == cudaSuccess;
  cudaGetLastError();
  return runs && attributes.ptxVersion == 90 && attributes.numRegs > 100;
}

// Whether float32 goes by planes on the current device, unless tiles have no pattern.
bool by_planes(const Problem& problem) {
  return problem.element == Element::kFloat32 && problem.dim <= kPlaneWidth &&
         problem.queries >= kFewQueries && problem.keys > 0 &&
         compiled(forward_wgmma_kernel<float, kPlaneWidth, false, false>);
}

int64_t norm_bytes(const Problem& problem) {
  return rounded(problem.batch * problem.kv_heads * sizeof(float));
}

// Parts of the scratch of the backward, in bytes from its start.
struct Scratch {
  int64_t key_norms = 0, lse, delta, excess, empty, slopes, queries, planes, bytes;

  Scratch(const Problem& problem, bool deterministic) {
    const int64_t pairs = problem.batch * problem.heads, rows = pairs * row_blocks(problem.queries) * kRows;
    const bool scalar = problem.element == Element::kFloat64;
    const bool adding = may_add_queries(problem, deterministic);
    const int64_t shares = scalar   ? problem.queries
                           : adding ? std::max(row_blocks(problem.queries), warps_of_keys(problem.keys))
                                    : row_blocks(problem.queries);
    lse = norm_bytes(problem);
    delta = lse + (scalar ? 0 : rounded(rows * sizeof(float)));
    excess = delta + (scalar ? 0 : rounded(rows * sizeof(float)));
    empty = excess + (scalar ? 0 : rounded(pairs * row_blocks(problem.queries) * sizeof(float)));
    slopes = empty + (scalar ? 0 : rounded(pairs * row_blocks(problem.queries) * sizeof(bool)));
    queries =
        slopes + rounded(pairs * shares * problem.slope_count * (scalar ? sizeof(double) : sizeof(float)));
    planes = queries + (adding ? rows * tile_width(problem.dim) * int64_t(sizeof(float)) : 0);
    bytes = planes + (by_planes(problem) ? plane_bytes(problem, true) : 0);
  }
};

// Where planes begin in the scratch of the forward, behind norms of keys.
int64_t plane_start(const Problem& problem) { return problem.eps > 0 ? norm_bytes(problem) : 0; }

template <class T>
T* at(void* scratch, int64_t offset) {
  return reinterpret_cast<T*>(static_cast<char*>(scratch) + offset);
}

template <class Shared>
size_t shared_bytes(const Problem& problem) {
  return problem.mask.element == MaskElement::kNone ? offsetof(Shared, mask) : sizeof(Shared);
}

template <class Kernel>
Status allow_shared(Kernel kernel, size_t bytes) {
  if (bytes > 48 * 1024)
    cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(bytes));
  return launch_status();
}

template <class S>
Status key_norms(const Problem& problem, void* scratch, cudaStream_t stream) {
  const int64_t groups = problem.batch * problem.kv_heads;
  cudaMemsetAsync(scratch, 0, groups * sizeof(float), stream);
  const int64_t blocks = (problem.keys + kNormKeys - 1) / kNormKeys;
  if (blocks == 0) return launch_status();
  const unsigned grid = static_cast<unsigned>(groups * blocks);
  key_norm_kernel<S><<<grid, kBlock, 0, stream>>>(problem, static_cast<unsigned*>(scratch));
  return launch_status();
}

template <class S, int E>
Status forward_rows(const Prepared& problem, const Output& out, void* scratch, cudaStream_t stream) {
  const size_t bytes = shared_bytes<ForwardShared<S, E>>(problem);
  const auto kernel = forward_kernel<S, E>;
  if (const Status status = allow_shared(kernel, bytes)) return status;
  const int64_t grid = row_blocks(problem.queries) * problem.batch * problem.heads;
  kernel<<<static_cast<unsigned>(grid), kBlock, bytes, stream>>>(problem, out,
                                                                 static_cast<const float*>(scratch));
  return launch_status();
}

// Blocks of a kind look after heads of their kind; kLaunchFailed where mma.sync has to do it.
template <class S, int E, bool kRing, bool kSmall>
Status launch_forward(const Prepared& problem, const Operands& operands, const Output& out, void* scratch,
                      cudaStream_t stream) {
  using Shared = ForwardWgmma<S, E, kSmall>;
  const auto kernel = forward_wgmma_kernel<S, E, kRing, kSmall>;
  const auto& [q, k, v, unused] = operands.rows;
  ForwardMaps maps;
  if (!describe_rows<S>(q, Shared::kRows, maps.q) || !describe_rows<S>(k, Shared::kCols, maps.k) ||
      !describe_rows<S>(v, Shared::kCols, maps.v))
    return kLaunchFailed;
  if (const Status status = allow_shared(kernel, sizeof(Shared))) return status;
  const int64_t blocks = (problem.queries + Shared::kRows - 1) / Shared::kRows;
  const unsigned grid = static_cast<unsigned>(blocks * problem.batch * problem.heads);
  kernel<<<grid, Shared::kThreads, sizeof(Shared), stream>>>(problem, out, maps,
                                                             static_cast<const float*>(scratch));
  return launch_status();
}

// kLaunchFailed where mma.sync has to do it. `planes`: scratch of plane_bytes, where they are used.
template <class S, int E>
Status forward_wgmma(const Prepared& problem, const Output& out, void* scratch, void* planes,
                     cudaStream_t stream) {
  if (!compiled(forward_wgmma_kernel<S, E, false, false>) ||
      !one_pattern(problem.lattice, problem.key_offset, problem.keys, ForwardWgmma<S, E, false>::kCols))
    return kLaunchFailed;
  Operands operands(problem, nullptr);
  if constexpr (kInPlanes<S>) {
    if (!by_planes(problem) || split(operands, Operands::kForward, planes, stream)) return kLaunchFailed;
  }
  if (!of_plain_ring(problem))
    return launch_forward<S, E, false, false>(problem, operands, out, scratch, stream);
  const Status status = launch_forward<S, E, true, false>(problem, operands, out, scratch, stream);
  if constexpr (kHasSmall<S, E>) {
    if (status == kOk && problem.eps > 0)
      return launch_forward<S, E, true, true>(problem, operands, out, scratch, stream);
  }
  return status;
}

template <class S, int E>
Status backward_rows(const Prepared& problem, const Gradients& gradients, const RowSums& sums,
                     cudaStream_t stream) {
  const size_t query_bytes = shared_bytes<BackwardShared<S, E, query_kernel_cols<S, E>()>>(problem);
  const size_t key_bytes = shared_bytes<BackwardShared<S, E, key_kernel_cols<S, E>()>>(problem);
  const auto queries = query_kernel<S, E>;
  const auto keys = key_kernel<S, E>;
  if (const Status status = allow_shared(queries, query_bytes)) return status;
  if (const Status status = allow_shared(keys, key_bytes)) return status;
  const int64_t query_grid = row_blocks(problem.queries) * problem.batch * problem.heads;
  const int64_t key_grid = row_blocks(problem.keys) * problem.batch * problem.kv_heads * (E / kept_cols<E>());
  queries<<<static_cast<unsigned>(query_grid), kBlock, query_bytes, stream>>>(problem, gradients, sums);
  if (const Status status = launch_status()) return status;
  keys<<<static_cast<unsigned>(key_grid), kBlock, key_bytes, stream>>>(problem, gradients, sums);
  return launch_status();
}

// A wgmma kernel of the backward, whose block holds rows of tensors a0 and a1 and is passed by those of b0
// and b1.
template <class Shared, class Kernel>
Status launch_backward(Kernel kernel, const Prepared& problem, const Gradients& gradients,
                       const RowSums& sums, const BackwardMaps& maps, int64_t rows, int64_t heads,
                       cudaStream_t stream) {
  if (const Status status = allow_shared(kernel, sizeof(Shared))) return status;
  const int64_t grid = (rows + Shared::kRows - 1) / Shared::kRows * problem.batch * heads;
  kernel<<<static_cast<unsigned>(grid), Shared::kThreads, sizeof(Shared), stream>>>(problem, gradients, sums,
                                                                                    maps);
  return launch_status();
}

// Boxes of rows of both kinds of blocks; false where mma.sync has to do it.
template <class S, class Query, class Key>
bool describe_backward(const Operands& operands, BackwardMaps& query, BackwardMaps& key) {
  const auto& [q, k, v, g] = operands.rows;
  return describe_rows<S>(q, Query::kRows, query.row[0]) && describe_rows<S>(g, Query::kRows, query.row[1]) &&
         describe_rows<S>(k, Query::kCols, query.col[0]) && describe_rows<S>(v, Query::kCols, query.col[1]) &&
         describe_rows<S>(k, Key::kRows, key.row[0]) && describe_rows<S>(v, Key::kRows, key.row[1]) &&
         describe_rows<S>(q, Key::kCols, key.col[0]) && describe_rows<S>(g, Key::kCols, key.col[1]);
}

// The kernel that holds keys, without sums in memory.
template <class S, int E>
auto key_holder() {
  if constexpr (kInPlanes<S>)
    return key_planes_kernel<E>;
  else
    return key_wgmma_kernel<S, E, false, false>;
}

template <class S, int E>
Status add_queries(const Prepared& problem, const Gradients& gradients, const RowSums& sums,
                   const BackwardMaps& key, cudaStream_t stream) {
  const int64_t pairs = problem.batch * problem.heads;
  cudaMemsetAsync(sums.queries, 0, pairs * sums.stride * E * sizeof(float), stream);
  const auto kernel =
      of_plain_ring(problem) ? key_wgmma_kernel<S, E, true, true> : key_wgmma_kernel<S, E, true, false>;
  if (const Status status = launch_backward<KeyWgmma<S, E>>(kernel, problem, gradients, sums, key,
                                                            problem.keys, problem.kv_heads, stream))
    return status;
  query_sums_kernel<S, E><<<static_cast<unsigned>(pairs * row_blocks(problem.queries)), kBlock, 0, stream>>>(
      problem, sums.queries, sums.stride, static_cast<S*>(gradients.grad_q));
  return launch_status();
}

// Shares that the gradient of the slopes has of a head; 0 where mma.sync has to do it. `planes`: scratch of
// plane_bytes, where they are used.
template <class S, int E>
int64_t backward_wgmma(const Prepared& problem, const Gradients& gradients, const RowSums& sums,
                       bool deterministic, void* planes, cudaStream_t stream) {
  using Query = BackwardWgmma<S, E>;
  using Key = KeyWgmma<S, E>;
  BackwardMaps query, key;
  Operands operands(problem, &gradients);
  if (!compiled(query_wgmma_kernel<S, E>) ||
      !one_pattern(problem.lattice, problem.key_offset, problem.keys, Query::kCols) ||
      !one_pattern(problem.lattice, problem.query_offset, problem.queries, Key::kCols))
    return 0;
  if constexpr (kInPlanes<S>) {
    if (!by_planes(problem) || split(operands, Operands::kBackward, planes, stream)) return 0;
  }
  if (!describe_backward<S, Query, Key>(operands, query, key)) return 0;
  if constexpr (!kInPlanes<S>) {
    if (may_add_queries(problem, deterministic))
      return add_queries<S, E>(problem, gradients, sums, key, stream) == kOk ? warps_of_keys(problem.keys)
                                                                             : 0;
  }
  if (launch_backward<Query>(query_wgmma_kernel<S, E>, problem, gradients, sums, query, problem.queries,
                             problem.heads, stream) ||
      launch_backward<Key>(key_holder<S, E>(), problem, gradients, sums, key, problem.keys, problem.kv_heads,
                           stream))
    return 0;
  return (problem.queries + Query::kRows - 1) / Query::kRows;
}

// Calls run with the least width of a tile that holds the heads.
template <class Run>
Status with_width(int64_t dim, const Run& run) {
  if (dim <= 64) return run(std::integral_constant<int, 64>());
  if (dim <= 128) return run(std::integral_constant<int, 128>());
  return run(std::integral_constant<int, 256>());
}

Status forward_scalar(const Problem& problem, const Output& out, const void* scratch, cudaStream_t stream) {
  const int64_t rows = problem.batch * problem.heads * problem.queries;
  forward_scalar_kernel<<<static_cast<unsigned>((rows + 3) / 4), kBlock, 0, stream>>>(
      Prepared(problem), out, static_cast<const float*>(scratch));
  return launch_status();
}

template <class S>
Status forward(const Problem& problem, const Output& out, void* scratch, cudaStream_t stream) {
  if (problem.eps > 0) {
    if (const Status status = key_norms<S>(problem, scratch, stream)) return status;
  }
  if constexpr (std::is_same_v<S, double>) {
    return forward_scalar(problem, out, scratch, stream);
  } else {
    const Prepared prepared(problem);
    return with_width(problem.dim, [&](auto width) {
      constexpr int E = decltype(width)::value;
      if constexpr (sizeof(S) == 2 || E == kPlaneWidth) {
        void* planes = at<void>(scratch, plane_start(problem));
        if (forward_wgmma<S, E>(prepared, out, scratch, planes, stream) == kOk) return kOk;
      }
      return forward_rows<S, E>(prepared, out, scratch, stream);
    });
  }
}

Status backward_scalar(const Problem& problem, const Output& out, const Gradients& gradients, double* shares,
                       cudaStream_t stream) {
  const int64_t queries = problem.batch * problem.heads * problem.queries;
  const int64_t keys = problem.batch * problem.kv_heads * problem.keys;
  query_scalar_kernel<<<static_cast<unsigned>((queries + 3) / 4), kBlock, 0, stream>>>(problem, out,
                                                                                       gradients, shares);
  if (const Status status = launch_status()) return status;
  key_scalar_kernel<<<static_cast<unsigned>((keys + 3) / 4), kBlock, 0, stream>>>(problem, out, gradients);
  return launch_status();
}

template <class T>
Status sum_slopes(const Problem& problem, const T* shares, int64_t blocks, void* grad_slopes,
                  cudaStream_t stream) {
  const int64_t sums = problem.heads * problem.slope_count;
  slope_kernel<T><<<static_cast<unsigned>((sums + 3) / 4), kBlock, 0, stream>>>(problem, shares,
                                                                                static_cast<int>(blocks),
                                                                                static_cast<T*>(grad_slopes));
  return launch_status();
}

template <class S>
Status backward(const Problem& problem, const Output& out, const Gradients& gradients, bool deterministic,
                void* scratch, cudaStream_t stream) {
  const Scratch parts(problem, deterministic);
  if constexpr (std::is_same_v<S, double>) {
    double* shares = at<double>(scratch, parts.slopes);
    if (const Status status = backward_scalar(problem, out, gradients, shares, stream)) return status;
    return sum_slopes(problem, shares, problem.queries, gradients.grad_slopes, stream);
  } else {
    const RowSums sums{at<float>(scratch, parts.lse),      at<float>(scratch, parts.delta),
                       at<float>(scratch, parts.excess),   at<bool>(scratch, parts.empty),
                       at<float>(scratch, parts.slopes),   at<float>(scratch, parts.queries),
                       row_blocks(problem.queries) * kRows};
    if (problem.eps > 0) {
      if (const Status status = key_norms<S>(problem, scratch, stream)) return status;
    }
    int64_t blocks = row_blocks(problem.queries);
    const unsigned grid = static_cast<unsigned>(blocks * problem.batch * problem.heads);
    row_kernel<S>
        <<<grid, kBlock, 0, stream>>>(problem, out, gradients, sums, at<float>(scratch, parts.key_norms));
    if (const Status status = launch_status()) return status;
    const Prepared prepared(problem);
    const Status status = with_width(problem.dim, [&](auto width) {
      constexpr int E = decltype(width)::value;
      if constexpr (sizeof(S) == 2 ? E <= 128 : E == kPlaneWidth) {
        void* planes = at<void>(scratch, parts.planes);
        if (const int64_t wide =
                backward_wgmma<S, E>(prepared, gradients, sums, deterministic, planes, stream)) {
          blocks = wide;
          return kOk;
        }
      }
      return backward_rows<S, E>(prepared, gradients, sums, stream);
    });
    if (status) return status;
    return sum_slopes(problem, sums.slopes, blocks, gradients.grad_slopes, stream);
  }
}

}  // namespace

int64_t forward_scratch_cuda(const Problem& problem) {
  return plane_start(problem) + (by_planes(problem) ? plane_bytes(problem, false) : 0);
}

int64_t backward_scratch_cuda(const Problem& problem, bool deterministic) {
  return Scratch(problem, deterministic).bytes;
}

Status forward_cuda(const Problem& problem, const Output& out, void* scratch, const Executor& executor) {
  return with_element<__nv_bfloat16, __half>(problem.element, [&](auto type) {
    return forward<decltype(type)>(problem, out, scratch, stream_of(executor));
  });
}

Status backward_cuda(const Problem& problem, const Output& out, const Gradients& gradients,
                     bool deterministic, void* scratch, const Executor& executor) {
  return with_element<__nv_bfloat16, __half>(problem.element, [&](auto type) {
    return backward<decltype(type)>(problem, out, gradients, deterministic, scratch, stream_of(executor));
  });
}

}  // namespace stratcore::toroidal_attention

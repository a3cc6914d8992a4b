#include "../common/launch.cuh"
#include "backward_by_thread.cuh"
#include "forward_by_thread.cuh"
#include "forward_gathered.cuh"
#include "forward_in_shared.cuh"
#include "groups.cuh"
#include "reverse_dense.cuh"
#include "reverse_sparse.cuh"
#include "select.cuh"
#include "select_by_warp.cuh"
#include "topk_lista.h"
#include "topk_lista_math.h"
#include "topk_lista_unroll.h"

namespace stratcore::topk_lista {
namespace {

constexpr int kDigitBits = 8;
constexpr int kDigits = 1 << kDigitBits;
static_assert(kDigits == kThreads, "one thread owns one histogram bin");
using Scan = cub::BlockScan<int32_t, kThreads>;

// Radix search for the k-th largest key of the row: 8 bits a round, from the top. Returns the key and, in
// `equal_needed`, how many of the keys equal to it belong to the k largest.
template <class T>
__device__ typename RankKey<T>::type kth_key(const T* row, int64_t atoms, int32_t k, int32_t* histogram,
                                             typename Scan::TempStorage& scan, int32_t* chosen,
                                             int32_t* equal_needed) {
  using Key = typename RankKey<T>::type;
  Key prefix = 0, mask = 0;
  int32_t remaining = k;
  for (int shift = 8 * sizeof(Key) - kDigitBits; shift >= 0; shift -= kDigitBits) {
    histogram[threadIdx.x] = 0;
    __syncthreads();
    for (int64_t i = threadIdx.x; i < atoms; i += kThreads) {
      const Key key = magnitude_key(row[i]);
      if ((key & mask) == prefix) atomicAdd(&histogram[(key >> shift) & (kDigits - 1)], 1);
    }
    __syncthreads();
    // Thread t looks at digit 255 - t, so that the running count starts at the largest digit.
    const int32_t own = histogram[kDigits - 1 - threadIdx.x];
    int32_t above;
    Scan(scan).ExclusiveSum(own, above);
    if (above < remaining && above + own >= remaining) {
      chosen[0] = kDigits - 1 - threadIdx.x;
      chosen[1] = remaining - above;
    }
    __syncthreads();
    prefix |= Key(chosen[0]) << shift;
    mask |= Key(kDigits - 1) << shift;
    remaining = chosen[1];
    __syncthreads();
  }
  *equal_needed = remaining;
  return prefix;
}

// One block a row of any length, read several times.
template <class T>
__global__ void __launch_bounds__(kThreads)
    select_by_digits_kernel(SelectArguments<T, T> args, ExpertWidths widths) {
  using Key = typename RankKey<T>::type;
  __shared__ int32_t histogram[kDigits];
  __shared__ typename Scan::TempStorage scan;
  __shared__ int32_t chosen[2];
  const int64_t end = args.expert_end * args.rows;
  for (int64_t flat = args.expert_begin * args.rows + blockIdx.x; flat < end; flat += gridDim.x) {
    const int64_t expert = args.expert_of(flat), offset = flat * args.atoms;
    const int32_t k = args.k_of(expert, widths);
    T* row = args.dense + offset;
    for (int64_t i = threadIdx.x; i < args.atoms; i += kThreads) row[i] = args.threshold(expert, offset, i);
    int32_t equal_needed;
    const Key kth = kth_key(row, args.atoms, k, histogram, scan, chosen, &equal_needed);
    int32_t equal_before = 0, kept_before = 0;
    for (int64_t start = 0; start < args.atoms; start += kThreads) {
      const int64_t i = start + threadIdx.x;
      const bool inside = i < args.atoms;
      const T value = inside ? row[i] : T(0);
      const Key key = magnitude_key(value);
      int32_t equal_rank, equal_count, kept_rank, kept_count;
      Scan(scan).ExclusiveSum(inside && key == kth ? 1 : 0, equal_rank, equal_count);
      __syncthreads();
      const bool kept = inside && (key > kth || (key == kth && equal_before + equal_rank < equal_needed));
      Scan(scan).ExclusiveSum(kept ? 1 : 0, kept_rank, kept_count);
      __syncthreads();
      if (inside) args.write(flat, i, k, kept, kept_before + kept_rank, value);
      equal_before += equal_count;
      kept_before += kept_count;
    }
    __syncthreads();
  }
}

template <int kLanes, int kPer, class S>
Status by_lanes(const SelectArguments<float, S>& args, const ExpertWidths& widths, cudaStream_t stream) {
  const int64_t rows = (args.expert_end - args.expert_begin) * args.rows;
  select_by_lanes_kernel<kLanes, kPer, S>
      <<<grid_for(rows, kThreads / kLanes), kThreads, 0, stream>>>(args, widths);
  return launch_status();
}

template <int kPer, class S>
Status by_warp(const SelectArguments<float, S>& args, const ExpertWidths& widths, cudaStream_t stream) {
  const int64_t rows = (args.expert_end - args.expert_begin) * args.rows;
  constexpr int kRows = kThreads / kWarp;  // of a block
  const auto blocks = static_cast<unsigned>((rows + kRows - 1) / kRows);
  const auto kernel = args.atoms == kPer * kWarp ? select_by_warp_kernel<kPer, true, S>
                                                 : select_by_warp_kernel<kPer, false, S>;
  kernel<<<blocks, kThreads, 0, stream>>>(args, widths);
  return launch_status();
}

template <int kPer, class S>
Status by_block(const SelectArguments<float, S>& args, const ExpertWidths& widths, cudaStream_t stream) {
  const int64_t rows = (args.expert_end - args.expert_begin) * args.rows;
  select_by_block_kernel<kPer, S><<<grid_for(rows, 1), kRowThreads, 0, stream>>>(args, widths);
  return launch_status();
}

template <class T>
Status by_digits(const SelectArguments<T, T>& args, const ExpertWidths& widths, cudaStream_t stream) {
  const int64_t rows = (args.expert_end - args.expert_begin) * args.rows;
  select_by_digits_kernel<T><<<grid_for(rows, 1), kThreads, 0, stream>>>(args, widths);
  return launch_status();
}

// Rows that fit in registers have kernels of their own; the search of the others reads its row again and
// again.
template <class T, class S>
Status launch_select(const SelectArguments<T, S>& args, const ExpertWidths& widths, cudaStream_t stream) {
  if constexpr (std::is_same_v<T, float>) {
    if (args.atoms <= 32) return by_lanes<8, 4>(args, widths, stream);
    if (args.atoms <= 64) return by_lanes<16, 4>(args, widths, stream);
    if (args.atoms <= 128) return by_lanes<32, 4>(args, widths, stream);
    if (args.atoms <= 256) return by_warp<8>(args, widths, stream);
    if (args.atoms <= 512) return by_warp<16>(args, widths, stream);
    if (args.atoms <= 1024) return by_warp<32>(args, widths, stream);
    if (args.atoms <= 2048) return by_block<4>(args, widths, stream);
    if (args.atoms <= 4096) return by_block<8>(args, widths, stream);
    if (args.atoms <= 8192) return by_block<16>(args, widths, stream);
    static_assert(kMostAtomsOf16Bits == kRowThreads * 32, "the longest row of the block kernel");
    if (args.atoms <= kMostAtomsOf16Bits) return by_block<32>(args, widths, stream);
  }
  if constexpr (std::is_same_v<T, S>) {
    return by_digits<T>(args, widths, stream);
  } else {
    return kLaunchFailed;  // the caller converts such rows to float32
  }
}

template <class T, class S>
Status select_on_device(const Sizes& sizes, const Selection& selection, const Executor& executor) {
  if (sizes.rows == 0) return kOk;
  const bool grouped = sizes.group_expert != nullptr;  // then all k travel with one launch
  if constexpr (std::is_same_v<T, float>) {
    if (runs_wide(sizes, selection)) return run_wide<S>(executor, sizes, selection);
  }
  const int64_t per_launch = grouped ? sizes.experts : kExpertsPerLaunch;
  for (int64_t begin = 0; begin < sizes.experts; begin += per_launch) {
    const int64_t end = std::min<int64_t>(begin + per_launch, sizes.experts);
    const SelectArguments<T, S> args{static_cast<const T*>(selection.first),
                                     static_cast<const T*>(selection.second),
                                     static_cast<const T*>(selection.theta),
                                     static_cast<S*>(selection.dense),
                                     static_cast<T*>(selection.values),
                                     selection.indices,
                                     selection.support,
                                     sizes.rows,
                                     sizes.atoms,
                                     sizes.width,
                                     begin,
                                     end,
                                     sizes.group_expert};
    const ExpertWidths widths =
        grouped ? widths_of(sizes, 0, sizes.group_experts) : widths_of(sizes, begin, end);
    const Status status = launch_select(args, widths, stream_of(executor));
    if (status != kOk) return status;
  }
  return kOk;
}

// Calls `run` with a value of the computed type and one of the factors' type.
template <class Run>
auto with_types(DType dtype, const Run& run) {
  switch (dtype) {
    case DType::kFloat64:
      return run(double(), double());
    case DType::kBFloat16:
      return run(float(), __nv_bfloat16());
    case DType::kFloat16:
      return run(float(), __half());
    default:
      return run(float(), float());
  }
}

constexpr int kStripColumns = 32, kStripLanes = kThreads / kStripColumns;

// One strip of rows of one expert's threshold gradient, its order fixed: each of eight threads of a column
// adds every eighth row, then the eight are added.
template <class T>
__global__ void __launch_bounds__(kThreads)
    threshold_strip_kernel(const T* grad, const int8_t* support, T* partial, int64_t rows, int64_t atoms,
                           int64_t rows_per_strip) {
  __shared__ T sums[kStripLanes][kStripColumns];
  const int column = threadIdx.x % kStripColumns, lane = threadIdx.x / kStripColumns;
  const int64_t atom = int64_t(blockIdx.x) * kStripColumns + column, strip = blockIdx.y, expert = blockIdx.z;
  const int64_t start = strip * rows_per_strip, stop = min(start + rows_per_strip, rows);
  T sum = 0;
  if (atom < atoms) {
    for (int64_t row = start + lane; row < stop; row += kStripLanes) {
      const int64_t i = (expert * rows + row) * atoms + atom;
      if (support[i]) sum += T(support[i]) * grad[i];
    }
  }
  sums[lane][column] = sum;
  __syncthreads();
  if (lane == 0 && atom < atoms) {
    for (int other = 1; other < kStripLanes; ++other) sum += sums[other][column];
    partial[(strip * gridDim.z + expert) * atoms + atom] = sum;
  }
}

// Element-wise passes on the GPU; see UnrolledBackward for what each is for.
class CudaKernels {
 public:
  explicit CudaKernels(const Executor& executor) : executor_(executor) {}

  // What gathers has kernels of its own: forward_gathered.cuh, reverse_dense.cuh, reverse_sparse.cuh.
  static constexpr bool gathers() { return false; }
  static int64_t table_size(const Sizes&) { return 0; }
  template <class... Arguments>
  static void gather(const Sizes&, Arguments&&...) {}
  template <class... Arguments>
  static void scatter(const Sizes&, Arguments&&...) {}

  Status select(const Sizes& sizes, const Selection& selection) const {
    return select_cuda(sizes, selection, executor_);
  }

  template <class T, class S>
  Status subtract_from_input(const Sizes& sizes, const void* x, const T* product, S* residual) const {
    const int64_t count = sizes.rows * sizes.dim;
    const bool shared = sizes.shared_input;
    const auto* input = static_cast<const S*>(x);
    return launch_each(executor_, sizes.experts * count, [=] __device__(int64_t i) {
      residual[i] = stored<S>(number(input[shared ? i % count : i]) - product[i]);
    });
  }

  template <class T>
  Status copy_or_zero(int64_t count, const void* source, void* target) const {
    auto* out = static_cast<T*>(target);
    const auto* in = static_cast<const T*>(source);
    if (!in) {
      const cudaError_t cleared = cudaMemsetAsync(target, 0, count * sizeof(T), stream_of(executor_));
      return cleared == cudaSuccess ? kOk : launch_status();
    }
    return launch_each(executor_, count, [=] __device__(int64_t i) { out[i] = in[i]; });
  }

  template <class S, class T>
  Status add(int64_t count, const S* source, T* target) const {
    return launch_each(executor_, count, [=] __device__(int64_t i) { target[i] += number(source[i]); });
  }

  template <class T, class S>
  Status negate(int64_t count, const T* source, S* target) const {
    return launch_each(executor_, count, [=] __device__(int64_t i) { target[i] = stored<S>(-source[i]); });
  }

  template <class T, class S>
  Status pass(int64_t count, const T* grad, const int8_t* support, T* sum, bool total, S* out) const {
    return launch_each(executor_, count, [=] __device__(int64_t i) {
      T passed = support[i] ? grad[i] : T(0);
      if (sum) {
        const T all = sum[i] + passed;
        sum[i] = all;
        if (total) passed = all;
      }
      out[i] = stored<S>(passed);
    });
  }

  // The indices of one row are distinct, so no two threads write one element.
  template <class T, class S>
  Status add_at(const Sizes& sizes, const void* values, const int32_t* indices, S* dense,
                T sign = T(1)) const {
    const auto* v = static_cast<const T*>(values);
    const int64_t atoms = sizes.atoms, width = sizes.width;
    return launch_each(executor_, sizes.experts * sizes.rows * width, [=] __device__(int64_t slot) {
      S& target = dense[slot / width * atoms + indices[slot]];
      target = stored<S>(number(target) + sign * v[slot]);
    });
  }

  template <class T, class S>
  Status expand(const Sizes& sizes, const void* values, const int32_t* indices, S* dense) const {
    const int64_t atoms = sizes.atoms, width = sizes.width;
    const cudaError_t cleared =
        cudaMemsetAsync(dense, 0, sizes.experts * sizes.rows * atoms * sizeof(S), stream_of(executor_));
    if (cleared != cudaSuccess) return launch_status();
    const auto* v = static_cast<const T*>(values);
    return launch_each(executor_, sizes.experts * sizes.rows * width, [=] __device__(int64_t slot) {
      dense[slot / width * atoms + indices[slot]] = stored<S>(v[slot]);
    });
  }

  template <class T>
  Status expand_signs(const Sizes& sizes, const void* values, const int32_t* indices, int8_t* signs) const {
    const Status status = launch_each(executor_, sizes.experts * sizes.rows * sizes.atoms,
                                      [=] __device__(int64_t i) { signs[i] = 0; });
    if (status != kOk) return status;
    const auto* v = static_cast<const T*>(values);
    const int64_t atoms = sizes.atoms, width = sizes.width;
    return launch_each(executor_, sizes.experts * sizes.rows * width, [=] __device__(int64_t slot) {
      signs[slot / width * atoms + indices[slot]] = threshold_sign(v[slot], T(0));
    });
  }

  template <class T>
  Status reduce_threshold(const Sizes& sizes, const T* grad, const int8_t* support, T* partial,
                          T* target) const {
    const int64_t atoms = sizes.atoms;
    const int64_t wanted = std::min<int64_t>((sizes.rows + kFewestStripRows - 1) / kFewestStripRows, kStrips);
    const int64_t per_strip = (sizes.rows + wanted - 1) / wanted,
                  strips = (sizes.rows + per_strip - 1) / per_strip;
    for (int64_t begin = 0; begin < sizes.experts; begin += kMaxGridZ) {
      const int64_t count = std::min<int64_t>(kMaxGridZ, sizes.experts - begin);
      const dim3 grid(static_cast<unsigned>((atoms + kStripColumns - 1) / kStripColumns),
                      static_cast<unsigned>(strips), static_cast<unsigned>(count));
      const int64_t offset = begin * sizes.rows * atoms;
      threshold_strip_kernel<T><<<grid, kThreads, 0, stream_of(executor_)>>>(grad + offset, support + offset,
                                                                             partial, sizes.rows, atoms,
                                                                             per_strip);
      Status status = launch_status();
      if (status != kOk) return status;
      T* out = target + begin * atoms;
      status = launch_each(executor_, count * atoms, [=] __device__(int64_t i) {
        T sum = 0;
        for (int64_t strip = 0; strip < strips; ++strip) sum += partial[strip * count * atoms + i];
        out[i] -= sum;
      });
      if (status != kOk) return status;
    }
    return kOk;
  }

  template <class T>
  Status fold_experts(const Sizes& sizes, const T* grad_input, void* target) const {
    const int64_t count = sizes.rows * sizes.dim, experts = sizes.experts;
    auto* out = static_cast<T*>(target);
    if (!sizes.shared_input) return copy_or_zero<T>(experts * count, grad_input, target);
    return launch_each(executor_, count, [=] __device__(int64_t i) {
      T sum = 0;
      for (int64_t expert = 0; expert < experts; ++expert) sum += grad_input[expert * count + i];
      out[i] = sum;
    });
  }

 private:
  static constexpr int64_t kMaxGridZ = 65535, kStrips = 256, kFewestStripRows = 32;
  const Executor& executor_;
};

// `scratch` holds the gradients of a shared input by expert, then the sums of the blocks.
Status backward_by_thread(const Sizes& sizes, const Parameters& in, const Codes& codes,
                          const Gradients& gradients, void* scratch, const BackwardGrid& by_thread,
                          const Executor& executor, const CudaKernels& kernels) {
  const bool folds_input = gradients.x && sizes.shared_input && sizes.experts > 1;
  float* by_expert = static_cast<float*>(scratch);
  float* partial = by_expert + (folds_input ? sizes.experts * sizes.rows * sizes.dim : 0);
  const BackwardArguments args{static_cast<const float*>(gradients.codes),
                               static_cast<const float*>(gradients.values),
                               static_cast<const float*>(in.x),
                               static_cast<const float*>(in.encoder),
                               static_cast<const float*>(in.recurrent),
                               static_cast<const float*>(codes.values),
                               codes.indices,
                               codes.support,
                               folds_input ? by_expert : static_cast<float*>(gradients.x),
                               partial,
                               sizes.rows,
                               sizes.experts,
                               static_cast<int32_t>(sizes.atoms),
                               static_cast<int32_t>(sizes.dim),
                               static_cast<int32_t>(sizes.width),
                               static_cast<int32_t>(sizes.num_steps),
                               sizes.shared_input,
                               sizes.threshold_per_step,
                               gradients.encoder != nullptr,
                               gradients.recurrent != nullptr,
                               gradients.theta != nullptr};
  const SumsLayout sums = sums_layout(sizes);
  const auto bytes = static_cast<int>(BackwardLayout{sums}.bytes(by_thread.warps));
  const auto kernel = backward_by_thread_kernel;
  if (cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes) != cudaSuccess) {
    return launch_status();
  }
  const dim3 grid(static_cast<unsigned>(by_thread.blocks), static_cast<unsigned>(sizes.experts));
  kernel<<<grid, by_thread.warps * kWarp, bytes, stream_of(executor)>>>(args);
  Status status = launch_status();
  if (status != kOk) return status;
  const SumTargets targets{static_cast<float*>(gradients.encoder), static_cast<float*>(gradients.recurrent),
                           static_cast<float*>(gradients.theta)};
  const dim3 squares(static_cast<unsigned>(sums.size() / kWarp), grid.y);
  add_partial_kernel<<<squares, kThreads, 0, stream_of(executor)>>>(partial, targets, sums,
                                                                    static_cast<int32_t>(by_thread.blocks),
                                                                    args.atoms, sizes.experts);
  status = launch_status();
  if (status != kOk || !folds_input) return status;
  return kernels.fold_experts(sizes, by_expert, gradients.x);
}

}  // namespace

Status select_cuda(const Sizes& sizes, const Selection& selection, const Executor& executor) {
  return with_types(sizes.dtype, [&](auto computed, auto factor) {
    return select_on_device<decltype(computed), decltype(factor)>(sizes, selection, executor);
  });
}

Status gather_groups_cuda(const Grouping& grouping, const void* parameter, void* gathered,
                          const Executor& executor) {
  return with_types(grouping.dtype, [&](auto, auto factor) {
    using S = decltype(factor);
    if (quads_aligned<float4>(parameter, kQuad) && grouping.inner * sizeof(S) % sizeof(float4) == 0) {
      return gather_words<float4>(grouping, grouping.inner * sizeof(S) / sizeof(float4), parameter, gathered,
                                  executor);
    }
    return gather_words<S>(grouping, grouping.inner, parameter, gathered, executor);
  });
}

Status add_groups_cuda(const Grouping& grouping, const void* gathered, void* parameter,
                       const Executor& executor) {
  return with_types(grouping.dtype, [&](auto, auto factor) {
    return add_groups<decltype(factor)>(grouping, gathered, parameter, executor);
  });
}

Status forward_cuda(const Sizes& sizes, const Parameters& in, const Codes& out, void* scratch,
                    const Executor& executor) {
  if (fits_in_threads(sizes, in)) return forward_by_thread(sizes, in, out, executor);
  if (fits_in_shared<8>(sizes, in)) return forward_in_shared<8>(sizes, in, out, executor);
  if (fits_in_shared<16>(sizes, in)) return forward_in_shared<16>(sizes, in, out, executor);
  if (fits_in_shared<32>(sizes, in)) return forward_in_shared<32>(sizes, in, out, executor);
  const CudaKernels kernels(executor);
  return with_types(sizes.dtype, [&](auto computed, auto factor) {
    using S = decltype(factor);
    if constexpr (std::is_same_v<decltype(computed), float>) {
      if (gathers_forward(sizes)) return GatheredForward<S>(sizes, scratch).run(in, out, executor, kernels);
    }
    return unroll_forward<decltype(computed), S>(sizes, in, out, scratch, executor, kernels);
  });
}

int64_t forward_scratch_cuda(const Sizes& sizes) {
  return with_types(sizes.dtype, [&](auto computed, auto factor) -> int64_t {
    if (gathers_forward(sizes)) return GatheredForward<decltype(factor)>(sizes, nullptr).bytes();
    return forward_scratch(sizes) * static_cast<int64_t>(sizeof(computed));
  });
}

int64_t backward_scratch_cuda(const Sizes& sizes, bool straight_through) {
  return with_types(sizes.dtype, [&](auto computed, auto factor) -> int64_t {
    using S = decltype(factor);
    const bool gathers = gathers_backward(sizes, straight_through);
    if constexpr (std::is_same_v<decltype(computed), float>) {
      const int64_t by_thread = thread_backward_scratch(sizes);
      if (gathers && !straight_through) return std::max(by_thread, SparseReverse<S>(sizes, nullptr).bytes());
      return std::max(by_thread, DenseReverse<S>(sizes, gathers, nullptr, nullptr).bytes());
    }
    return backward_scratch(sizes) * static_cast<int64_t>(sizeof(computed));
  });
}

Status backward_cuda(const Sizes& sizes, const Parameters& in, const Codes& codes, const Gradients& gradients,
                     void* scratch, int8_t* signs, const Executor& executor) {
  const CudaKernels kernels(executor);
  if (const BackwardGrid by_thread = backward_grid(sizes); by_thread.blocks > 0 && aligned_input(in)) {
    return backward_by_thread(sizes, in, codes, gradients, scratch, by_thread, executor, kernels);
  }
  return with_types(sizes.dtype, [&](auto computed, auto factor) {
    using T = decltype(computed);
    using S = decltype(factor);
    const bool gathers = gathers_backward(sizes, codes.support != nullptr);
    if constexpr (std::is_same_v<T, float>) {
      if (gathers && !codes.support) {
        return SparseReverse<S>(sizes, scratch).run(in, codes, gradients, executor);
      }
      return DenseReverse<S>(sizes, gathers, scratch, signs).run(in, codes, gradients, executor, kernels);
    } else {
      return UnrolledBackward<T, S, CudaKernels>(sizes, in, codes, gradients, scratch, signs, executor,
                                                 kernels)
          .run();
    }
  });
}

}  // namespace stratcore::topk_lista

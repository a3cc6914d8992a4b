#pragma once

#include "../common/warp.cuh"
#include "reverse.cuh"

// Masked reverse: the gradient of u has the entries of the code and no others, so nothing is of size [B, m].
// Legend as in topk_lista.h; N = T + 1.
namespace stratcore::topk_lista {

// One step of g_u at the kept entries. Fillers and entries that the threshold stopped have value 0.
struct SparseStep {
  const float* values;       // [E, B, K] of this step
  const int32_t* indices;    // [E, B, K]
  const float* grad_values;  // [E, B, K] or null
  const float* later_grad;   // g_u of the next step [E, B, K] ...
  const int32_t* later;      // ... at these indices
  float* out;                // [E, B, K]
  int64_t experts, rows, width, atoms, dim;
};

template <class S>
Status last_sparse_step(const Executor& executor, const SparseStep& args, const S* grad_codes) {
  return launch_each(executor, args.experts * args.rows * args.width, [=] __device__(int64_t slot) {
    float sum = args.grad_values ? args.grad_values[slot] : 0.0f;
    if (grad_codes) sum += number(grad_codes[slot / args.width * args.atoms + args.indices[slot]]);
    args.out[slot] = args.values[slot] != 0.0f ? sum : 0.0f;
  });
}

// g_u S at the entries of the code before, a warp a row.
template <class S>
__global__ void __launch_bounds__(kThreads) sparse_classic_kernel(SparseStep args, const S* recurrent) {
  const int lane = threadIdx.x % 32;
  const int64_t stride = int64_t(gridDim.x) * (kThreads / 32);
  for (int64_t flat = int64_t(blockIdx.x) * (kThreads / 32) + threadIdx.x / 32;
       flat < args.experts * args.rows; flat += stride) {
    const S* table = recurrent + flat / args.rows * args.atoms * args.atoms;
    for (int64_t first = 0; first < args.width; first += 32) {
      const int64_t own = flat * args.width + first + lane;
      const bool inside = first + lane < args.width;
      const bool passes = inside && args.values[own] != 0.0f;
      const int64_t column = passes ? args.indices[own] : 0;
      float sum = inside && args.grad_values ? args.grad_values[own] : 0.0f;
      for (int64_t other = 0; other < args.width; other += 32) {
        const bool there = other + lane < args.width;
        const float grad = there ? args.later_grad[flat * args.width + other + lane] : 0.0f;
        const int32_t row = there ? args.later[flat * args.width + other + lane] : 0;
        const int count = static_cast<int>(min(args.width - other, int64_t(32)));
#pragma unroll 8
        for (int i = 0; i < count; ++i) {
          const float weight = __shfl_sync(~0u, grad, i);
          const int64_t from = __shfl_sync(~0u, row, i);
          if (weight != 0.0f && passes) sum += weight * number(table[from * args.atoms + column]);
        }
      }
      if (inside) args.out[own] = passes ? sum : 0.0f;
    }
  }
}

// g_u - g_r D at the entries of the code before, a warp an entry; rows of D^T [m, d].
template <bool kAligned, class S>
__global__ void __launch_bounds__(kThreads)
    sparse_coupled_kernel(SparseStep args, const S* dictionary_t, const S* grad_r, int64_t grad_r_stride) {
  const int lane = threadIdx.x % 32;
  const int64_t stride = int64_t(gridDim.x) * (kThreads / 32);
  for (int64_t slot = int64_t(blockIdx.x) * (kThreads / 32) + threadIdx.x / 32;
       slot < args.experts * args.rows * args.width; slot += stride) {
    const int64_t flat = slot / args.width, expert = flat / args.rows, row = flat % args.rows;
    const int32_t atom = args.indices[slot];
    float sum = 0;
    if (args.values[slot] != 0.0f) {
      const S* column = dictionary_t + (expert * args.atoms + atom) * args.dim;
      const S* grad = grad_r + expert * grad_r_stride + row * args.dim;
      for (int64_t at = lane * kEight; at < args.dim; at += 32 * kEight) {
        float a[kEight], b[kEight];
        load_eight<kAligned>(column, at, args.dim, a);
        load_eight<kAligned>(grad, at, args.dim, b);
#pragma unroll
        for (int i = 0; i < kEight; ++i) sum -= a[i] * b[i];
      }
      for (int64_t s = lane; s < args.width; s += 32) {
        if (args.later[flat * args.width + s] == atom) sum += args.later_grad[flat * args.width + s];
      }
    }
    sum = sum_over<32>(sum);
    if (lane == 0) {
      if (args.grad_values) sum += args.grad_values[slot];
      args.out[slot] = args.values[slot] != 0.0f ? sum : 0.0f;
    }
  }
}

constexpr int kColumnsInShared = 16384;

// Gradient of S: row i is the sum over the entries (t, e, b, s) of atom i of g_u times the code before, in
// their order. Each warp of the block has its columns.
template <class S>
struct SparseProduct {
  Entries entries;
  const float *grads, *values;  // [T + 1, E, B, K]
  const int32_t* indices;       // [T + 1, E, B, K]
  S* out;                       // [segments from `begin` on, m]
  int64_t experts, rows, width, atoms, begin;
};

template <class S>
__global__ void __launch_bounds__(kThreads) sparse_product_kernel(SparseProduct<S> args) {
  extern __shared__ float row_sum[];
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int64_t segment = args.begin + blockIdx.x, first_column = int64_t(blockIdx.y) * kColumnsInShared;
  const auto columns = static_cast<int>(min(args.atoms - first_column, int64_t(kColumnsInShared)));
  for (int i = threadIdx.x; i < columns; i += kThreads) row_sum[i] = 0.0f;
  __syncthreads();
  const int64_t per_step = args.experts * args.rows * args.width;
  const int32_t stop = args.entries.starts[segment + 1];
  const auto blocks = static_cast<int>((args.width + 31) / 32);
  for (int32_t start = args.entries.starts[segment]; start < stop; start += 32) {
    float grad = 0.0f;
    int64_t before = 0;  // where the code before starts
    if (start + lane < stop) {
      const int64_t slot = args.entries.order[start + lane];
      if (slot >= per_step) grad = args.grads[slot], before = (slot - per_step) / args.width * args.width;
    }
    const uint32_t used = __ballot_sync(~0u, grad != 0.0f);
    const int jobs = used ? (32 - __clz(used)) * blocks : 0;
    constexpr int kAhead = 8;
    for (int job = 0; job < jobs; job += kAhead) {
      float part[kAhead];
      int column[kAhead];
#pragma unroll
      for (int i = 0; i < kAhead; ++i) {
        const int entry = min((job + i) / blocks, 31), s = (job + i) % blocks * 32 + lane;
        const float weight = __shfl_sync(~0u, grad, entry);
        const int64_t from = __shfl_sync(~0u, before, entry) + s;
        const bool inside = job + i < jobs && weight != 0.0f && s < args.width;
        column[i] = inside ? static_cast<int>(args.indices[from] - first_column) : -1;
        part[i] = inside ? weight * args.values[from] : 0.0f;
      }
#pragma unroll
      for (int i = 0; i < kAhead; ++i) {
        const bool owned = column[i] / 32 % (kThreads / 32) == warp;
        if (column[i] >= 0 && column[i] < columns && owned) row_sum[column[i]] += part[i];
        __syncwarp();
      }
    }
  }
  __syncthreads();
  S* target = args.out + int64_t(blockIdx.x) * args.atoms + first_column;
  for (int i = threadIdx.x; i < columns; i += kThreads) target[i] = stored<S>(row_sum[i]);
}

template <class S>
Status sparse_product(const Executor& executor, const SparseProduct<S>& args, int64_t segments) {
  const int64_t bytes = std::min<int64_t>(args.atoms, kColumnsInShared) * 4;
  const auto kernel = sparse_product_kernel<S>;
  if (cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(bytes)) !=
      cudaSuccess) {
    return launch_status();
  }
  const dim3 grid(static_cast<unsigned>(segments),
                  static_cast<unsigned>((args.atoms + kColumnsInShared - 1) / kColumnsInShared));
  kernel<<<grid, kThreads, bytes, stream_of(executor)>>>(args);
  return launch_status();
}

// d theta[segment] = -sum over its entries of sign(u) g_u, a warp an atom.
inline __global__ void __launch_bounds__(kThreads)
    sparse_threshold_kernel(Entries entries, const float* values, const float* grads, float* out) {
  const int lane = threadIdx.x % 32;
  const int64_t stride = int64_t(gridDim.x) * (kThreads / 32);
  for (int64_t segment = int64_t(blockIdx.x) * (kThreads / 32) + threadIdx.x / 32; segment < entries.segments;
       segment += stride) {
    float sum = 0;
    for (int32_t at = entries.starts[segment] + lane; at < entries.starts[segment + 1]; at += 32) {
      const int32_t slot = entries.order[at];
      sum += values[slot] < 0.0f ? -grads[slot] : grads[slot];
    }
    sum = sum_over<32>(sum);
    if (lane == 0) out[segment] = -sum;
  }
}

template <class S>
class SparseReverse {
 public:
  // Without memory: only bytes() is meant.
  SparseReverse(const Sizes& sizes, void* scratch)
      : sizes_(sizes), coupled_(sizes.form == Form::kCoupled), memory_(scratch), sorted_(sizes, memory_) {
    const int64_t input = sizes.experts * sizes.rows * sizes.dim;
    const int64_t recurrents = std::max<int64_t>(sizes.recurrent_per_step ? sizes.num_steps : 1, 1);
    const int64_t dictionary = recurrents * sizes.experts * sizes.recurrent_size();
    grads_ = memory_.take<float>(steps_ * layout_.slots);
    grad_r_ = memory_.take<S>((coupled_ ? steps_ : 1) * input);
    input_ = memory_.take<S>(coupled_ ? steps_ * input : 0);
    dictionary_t_ = memory_.take<S>(coupled_ ? dictionary : 0);
    transposed_ = memory_.take<S>(coupled_ ? dictionary : 0);
  }

  int64_t bytes() const { return memory_.used(); }

  Status run(const Parameters& in, const Codes& codes, const Gradients& gradients, const Executor& executor) {
    in_ = &in, codes_ = &codes, gradients_ = &gradients, executor_ = &executor;
    if (coupled_ && sizes_.num_steps > 0) {
      const int64_t count = (sizes_.recurrent_per_step ? sizes_.num_steps : 1) * sizes_.experts;
      STRATCORE_TRY(transpose(executor, static_cast<const S*>(in.recurrent), dictionary_t_, count, sizes_.dim,
                              sizes_.atoms));
    }
    STRATCORE_TRY(last_sparse_step<S>(executor, at(sizes_.num_steps),
                                      static_cast<const S*>(gradients.codes)));
    for (int64_t step = sizes_.num_steps; step > 0; --step) STRATCORE_TRY(go_back(step));
    if (gradients.theta) STRATCORE_TRY(finish_threshold());
    if (gradients.x) STRATCORE_TRY(finish_input());
    if (gradients.encoder) STRATCORE_TRY(finish_encoder());
    return gradients.recurrent ? finish_recurrent() : kOk;
  }

 private:
  int64_t input_size() const { return sizes_.rows * sizes_.dim; }
  const float* values() const { return static_cast<const float*>(codes_->values); }
  const S* dictionary_t(int64_t step) const {
    return dictionary_t_ + (sizes_.recurrent_per_step ? (step - 1) * layout_.recurrent : 0);
  }

  SparseStep at(int64_t step) const {
    const int64_t offset = step * layout_.slots, next = offset + layout_.slots;
    const auto* grad_values = static_cast<const float*>(gradients_->values);
    return {values() + offset,
            codes_->indices + offset,
            grad_values ? grad_values + offset : nullptr,
            grads_ + next,
            codes_->indices + next,
            grads_ + offset,
            sizes_.experts,
            sizes_.rows,
            sizes_.width,
            sizes_.atoms,
            sizes_.dim};
  }

  // Rows of W [m, d] at the entries of `steps` gradients of u from `step` on, summed.
  Status encoder_rows(int64_t step, int64_t steps, S* out, int64_t out_stride) const {
    RowSums<S> sums{grads_ + step * layout_.slots,
                    codes_->indices + step * layout_.slots,
                    layout_.at(in_->encoder, step, sizes_.encoder_per_step, layout_.encoder),
                    nullptr,
                    out,
                    0,
                    out_stride,
                    sizes_.experts,
                    sizes_.rows,
                    sizes_.width,
                    sizes_.atoms,
                    sizes_.dim,
                    1.0f,
                    eights_aligned(in_->encoder, sizes_.dim)};
    sums.steps = steps, sums.table_per_step = sizes_.encoder_per_step;
    return row_sums(*executor_, sums);
  }

  Status go_back(int64_t step) const {
    const SparseStep args = at(step - 1);
    if (!coupled_) {
      const S* table = layout_.at(in_->recurrent, step - 1, sizes_.recurrent_per_step, layout_.recurrent);
      const int64_t rows = sizes_.experts * sizes_.rows;
      sparse_classic_kernel<S>
          <<<grid_for(rows, kThreads / 32), kThreads, 0, stream_of(*executor_)>>>(args, table);
      return launch_status();
    }
    S* grad_r = grad_r_ + step * input_size();
    STRATCORE_TRY(encoder_rows(step, 1, grad_r, steps_ * input_size()));
    const auto kernel =
        eights_aligned(grad_r, sizes_.dim) ? sparse_coupled_kernel<true, S> : sparse_coupled_kernel<false, S>;
    kernel<<<grid_for(layout_.slots, kThreads / 32), kThreads, 0, stream_of(*executor_)>>>(
        args, dictionary_t(step), grad_r, steps_ * input_size());
    return launch_status();
  }

  Status finish_threshold() {
    Entries entries;
    STRATCORE_TRY(sorted_.get(*executor_, codes_->indices, sizes_.threshold_per_step, &entries));
    sparse_threshold_kernel<<<grid_for(entries.segments, kThreads / 32), kThreads, 0,
                              stream_of(*executor_)>>>(entries, values(), grads_,
                                                       static_cast<float*>(gradients_->theta));
    return launch_status();
  }

  Status finish_input() const {
    const int64_t steps = coupled_ ? 1 : steps_, parts = coupled_ ? steps_ : 1;
    STRATCORE_TRY(encoder_rows(0, steps, grad_r_, parts * input_size()));
    return sum_parts<S>(*executor_, sizes_, grad_r_, parts, static_cast<S*>(gradients_->x));
  }

  Status finish_encoder() {
    Entries entries;
    STRATCORE_TRY(sorted_.get(*executor_, codes_->indices, sizes_.encoder_per_step, &entries));
    const auto* table = static_cast<const S*>(in_->x);
    int64_t expert_stride = sizes_.shared_input ? 0 : sizes_.rows, step_stride = 0;
    if (coupled_) {
      table = input_, expert_stride = steps_ * sizes_.rows, step_stride = sizes_.rows;
      STRATCORE_TRY(copy_input<S>(*executor_, sizes_, in_->x, input_, steps_ * input_size()));
      for (int64_t step = 1; step < steps_; ++step) {
        STRATCORE_TRY(gather_residual<S>(*executor_, sizes_, in_->x, *codes_, step, dictionary_t(step),
                                         input_ + step * input_size(), steps_ * input_size()));
      }
    }
    return atom_sums<S>(*executor_,
                        {entries, grads_, table, static_cast<S*>(gradients_->encoder), sizes_.experts,
                         sizes_.rows, sizes_.width, sizes_.dim, expert_stride, step_stride, 0, 0,
                         sizes_.num_steps, 0, entries.segments, 1.0f, eights_aligned(table, sizes_.dim)});
  }

  Status finish_recurrent() {
    auto* target = static_cast<S*>(gradients_->recurrent);
    const int64_t parts = (sizes_.recurrent_per_step ? sizes_.num_steps : 1) * sizes_.experts;
    if (sizes_.num_steps == 0) {
      const int64_t bytes = parts * sizes_.recurrent_size() * sizeof(S);
      return cudaMemsetAsync(target, 0, bytes, stream_of(*executor_)) == cudaSuccess ? kOk : launch_status();
    }
    if (coupled_) {
      return RecurrentSums<S>{grad_r_, sizes_.dim, -1.0f, transposed_, target}.run(*executor_, sizes_,
                                                                                   *codes_, sorted_);
    }
    Entries entries;
    STRATCORE_TRY(sorted_.get(*executor_, codes_->indices, sizes_.recurrent_per_step, &entries));
    const int64_t begin = sizes_.recurrent_per_step ? sizes_.experts * sizes_.atoms : 0;
    return sparse_product<S>(*executor_,
                             {entries, grads_, values(), codes_->indices, target, sizes_.experts, sizes_.rows,
                              sizes_.width, sizes_.atoms, begin},
                             parts * sizes_.atoms);
  }

  const Sizes& sizes_;
  const bool coupled_;
  const Layout<float, S> layout_{sizes_};
  const int64_t steps_ = sizes_.num_steps + 1;
  Memory memory_;
  SortedEntries sorted_;
  float* grads_;                   // g_u [T + 1, E, B, K] at the entries of the codes
  S *grad_r_, *input_;             // [E, 1 or N, B, d], [E, N, B, d]
  S *dictionary_t_, *transposed_;  // [P, E, m, d]
  const Parameters* in_ = nullptr;
  const Codes* codes_ = nullptr;
  const Gradients* gradients_ = nullptr;
  const Executor* executor_ = nullptr;
};

}  // namespace stratcore::topk_lista

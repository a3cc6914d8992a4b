#pragma once

#include <optional>

#include "reverse.cuh"

// Reverse with dense gradients of u, which are kept for all steps: one product, or one sum over the entries
// of the codes, for each gradient of a parameter. Legend as in topk_lista.h; N = T + 1.
namespace stratcore::topk_lista {

constexpr int kPassColumns = 32 * kEight, kPassRows = kThreads / 32, kLeastStrip = 32, kMostStrips = 256;

// g_u = g_z where u passed the threshold, and the sums over a strip of rows for the gradient of theta.
template <class S>
struct Pass {
  const S* grad;          // [E, B, m] or null for zero; g_z, or with `before` what is taken from it
  const S* before;        // [E, N, B, m] or null
  const int8_t* support;  // [E, B, m]
  S* out;                 // [E, ., B, m]
  int64_t out_stride;     // between experts
  const S* later;         // of [E, N, B, m]: gradients of later steps to be added to what is written, or null
  int64_t later_steps;
  float* partial;  // [strips, E, m] or null
  bool accumulate;
  int64_t experts, rows, atoms, steps, rows_per_strip;
};

template <bool kAligned, class S>
__global__ void __launch_bounds__(kThreads) pass_kernel(Pass<S> args) {
  __shared__ float sums[kPassRows][kPassColumns];
  const int lane = threadIdx.x % 32, y = threadIdx.x / 32;
  const int64_t at = int64_t(blockIdx.x) * kPassColumns + lane * kEight;
  const int64_t start = blockIdx.y * args.rows_per_strip, stop = min(start + args.rows_per_strip, args.rows);
  const int64_t step_size = args.rows * args.atoms;
  for (int64_t expert = blockIdx.z; expert < args.experts; expert += gridDim.z) {
    float sum[kEight] = {};
#pragma unroll 2
    for (int64_t row = start + y; row < stop; row += kPassRows) {
      const int64_t offset = (expert * args.rows + row) * args.atoms;
      const int64_t stepped = expert * args.steps * step_size + row * args.atoms;
      float value[kEight] = {}, before[kEight] = {};
      int8_t sign[kEight];
      if (args.grad) load_eight<kAligned>(args.grad + offset, at, args.atoms, value);
      load_signs<kAligned>(args.support + offset, at, args.atoms, sign);
      if (args.before) load_eight<kAligned>(args.before + stepped, at, args.atoms, before);
#pragma unroll
      for (int i = 0; i < kEight; ++i) {
        value[i] = args.before ? before[i] - value[i] : value[i];
        if (sign[i] == 0) value[i] = 0.0f;
        sum[i] += sign[i] < 0 ? -value[i] : value[i];
      }
#pragma unroll 4
      for (int64_t step = 0; step < args.later_steps; ++step) {
        float later[kEight];
        load_eight<kAligned>(args.later + stepped + step * step_size, at, args.atoms, later);
#pragma unroll
        for (int i = 0; i < kEight; ++i) value[i] += later[i];
      }
      store_eight<kAligned>(args.out + expert * args.out_stride + row * args.atoms, at, args.atoms, value);
    }
    if (!args.partial) continue;
#pragma unroll
    for (int i = 0; i < kEight; ++i) sums[y][lane * kEight + i] = sum[i];
    __syncthreads();
    float total = 0;
#pragma unroll
    for (int other = 0; other < kPassRows; ++other) total += sums[other][threadIdx.x];
    const int64_t atom = int64_t(blockIdx.x) * kPassColumns + threadIdx.x;
    if (atom < args.atoms) {
      float* target = args.partial + (blockIdx.y * args.experts + expert) * args.atoms + atom;
      *target = args.accumulate ? *target + total : total;
    }
    __syncthreads();
  }
}

template <class S>
class DenseReverse {
 public:
  // Without memory: only bytes() is meant.
  DenseReverse(const Sizes& sizes, bool gathers, void* scratch, int8_t* signs)
      : sizes_(sizes), coupled_(sizes.form == Form::kCoupled), gathers_(gathers), signs_(signs),
        memory_(scratch) {
    if (gathers) sorted_.emplace(sizes, memory_);
    const int64_t code = sizes.experts * sizes.rows * sizes.atoms;
    const int64_t input = sizes.experts * sizes.rows * sizes.dim;
    const int64_t encoders = sizes.encoder_per_step ? steps_ : 1;
    const int64_t recurrents = std::max<int64_t>(sizes.recurrent_per_step ? sizes.num_steps : 1, 1);
    const int64_t recurrent = recurrents * sizes.experts * sizes.recurrent_size();
    grad_u_ = memory_.take<S>(steps_ * code);
    product_ = memory_.take<S>(std::max(code, input));
    grad_r_ = memory_.take<S>(grad_r_steps_ * input);
    input_ = memory_.take<S>(coupled_ ? steps_ * input : 0);
    encoder_t_ = memory_.take<S>(kCopies ? encoders * sizes.experts * sizes.atoms * sizes.dim : 0);
    recurrent_t_ = memory_.take<S>(kCopies || coupled_ ? recurrent : 0);
    transposed_ = memory_.take<S>(gathers_ ? recurrent : 0);
    codes_ = memory_.take<S>(gathers_ ? 0 : sizes.num_steps * code);
    strip_ = std::max<int64_t>(kLeastStrip, (sizes.rows + kMostStrips - 1) / kMostStrips);
    strips_ = (sizes.rows + strip_ - 1) / strip_;
    partial_ = memory_.take<float>(strips_ * sizes.experts * sizes.atoms);
  }

  int64_t bytes() const { return memory_.used(); }

  template <class Kernels>
  Status run(const Parameters& in, const Codes& codes, const Gradients& gradients, const Executor& executor,
             const Kernels& kernels) {
    in_ = &in, codes_in_ = &codes, gradients_ = &gradients, executor_ = &executor;
    STRATCORE_TRY(copy_parameters());
    for (int64_t step = sizes_.num_steps; step >= 0; --step) STRATCORE_TRY(reverse(step, kernels));
    STRATCORE_TRY(finish_encoder());
    if (gradients.recurrent) STRATCORE_TRY(finish_recurrent());
    if (!gradients.x || writes_input_) return kOk;
    return sum_parts<S>(executor, sizes_, grad_r_, grad_r_steps_, static_cast<S*>(gradients.x));
  }

 private:
  // The matrix units take float32 only where it is contiguous along the sum.
  static constexpr bool kCopies = std::is_same_v<S, float>;

  int64_t code_size() const { return sizes_.rows * sizes_.atoms; }
  int64_t input_size() const { return sizes_.rows * sizes_.dim; }
  MatrixBatch grad_u(int64_t step) const {
    return {grad_u_ + step * code_size(), steps_ * code_size(), sizes_.atoms, 1};
  }
  MatrixBatch grad_r(int64_t step) const {
    return {grad_r_ + step * input_size(), grad_r_steps_ * input_size(), sizes_.dim, 1};
  }
  MatrixBatch input(int64_t step) const {
    if (coupled_) return {input_ + step * input_size(), steps_ * input_size(), sizes_.dim, 1};
    return layout_.x(in_->x);
  }
  // -z for the coupled form, z for the other
  MatrixBatch code(int64_t step) const {
    return {codes_ + step * code_size(), sizes_.num_steps * code_size(), sizes_.atoms, 1};
  }
  // W [m, d] and S [m, m] or D [d, m], in the order that their product with a gradient likes
  MatrixBatch encoder(int64_t step) const {
    if (!kCopies) return layout_.encoder_at(in_->encoder, step);
    const S* at = encoder_t_ + (sizes_.encoder_per_step ? step * layout_.encoder : 0);
    return MatrixBatch{at, sizes_.atoms * sizes_.dim, sizes_.atoms, 1}.transposed();
  }
  const S* recurrent_t(int64_t step) const {
    return recurrent_t_ + (sizes_.recurrent_per_step ? (step - 1) * layout_.recurrent : 0);
  }
  MatrixBatch recurrent(int64_t step) const {
    if (!kCopies && !coupled_) return layout_.recurrent_at(in_->recurrent, step);
    const int64_t rows = coupled_ ? sizes_.dim : sizes_.atoms;
    return MatrixBatch{recurrent_t(step), sizes_.recurrent_size(), rows, 1}.transposed();
  }

  Status multiply(int64_t rows, int64_t cols, int64_t inner, MatrixBatch left, MatrixBatch right, void* out,
                  int64_t out_stride = 0) const {
    return executor_->gemm(executor_->context, {sizes_.dtype, sizes_.experts, rows, cols, inner, left, right,
                                                out, true, out_stride});
  }

  Status copy_parameters() {
    if (kCopies) {
      const int64_t count = (sizes_.encoder_per_step ? steps_ : 1) * sizes_.experts;
      STRATCORE_TRY(transpose(*executor_, static_cast<const S*>(in_->encoder), encoder_t_, count,
                              sizes_.atoms, sizes_.dim));
    }
    if (sizes_.num_steps == 0) return kOk;
    if (kCopies || coupled_) {
      const int64_t count = (sizes_.recurrent_per_step ? sizes_.num_steps : 1) * sizes_.experts;
      STRATCORE_TRY(transpose(*executor_, static_cast<const S*>(in_->recurrent), recurrent_t_, count,
                              coupled_ ? sizes_.dim : sizes_.atoms, sizes_.atoms));
    }
    if (gathers_) return kOk;
    const int64_t slots = layout_.slots, experts = sizes_.experts, rows = sizes_.rows, width = sizes_.width;
    const int64_t atoms = sizes_.atoms, steps = sizes_.num_steps;
    const cudaError_t cleared =
        cudaMemsetAsync(codes_, 0, steps * experts * rows * atoms * sizeof(S), stream_of(*executor_));
    if (cleared != cudaSuccess) return launch_status();
    const float sign = coupled_ ? -1.0f : 1.0f;
    const auto* values = static_cast<const float*>(codes_in_->values);
    const auto* indices = codes_in_->indices;
    S* dense = codes_;
    return expand_codes(values, indices, dense, slots, experts, rows, width, atoms, steps, sign);
  }

 public:  // a lambda of a private member function cannot run on the device
  Status expand_codes(const float* values, const int32_t* indices, S* dense, int64_t slots, int64_t experts,
                      int64_t rows, int64_t width, int64_t atoms, int64_t steps, float sign) const {
    return launch_each(*executor_, steps * slots, [=] __device__(int64_t slot) {
      const int64_t flat = slot / width, row = flat % rows, group = flat / rows;
      const int64_t step = group / experts, expert = group % experts;
      dense[((expert * steps + step) * rows + row) * atoms + indices[slot]] = stored<S>(sign * values[slot]);
    });
  }

  Status add_codes_of(const S* product, int64_t product_stride, S* out, int64_t out_stride) const {
    const int64_t count = sizes_.rows * sizes_.dim;
    const bool shared = sizes_.shared_input;
    const auto* x = static_cast<const S*>(in_->x);
    return launch_each(*executor_, sizes_.experts * count, [=] __device__(int64_t i) {
      const int64_t expert = i / count, at = i % count;
      out[expert * out_stride + at] =
          stored<S>(number(x[shared ? at : i]) + number(product[expert * product_stride + at]));
    });
  }

  Status reduce_threshold(float* target) const {
    const int64_t count = sizes_.experts * sizes_.atoms, strips = strips_;
    const float* partial = partial_;
    return launch_each(*executor_, count, [=] __device__(int64_t i) {
      float sum = 0;
      for (int64_t strip = 0; strip < strips; ++strip) sum += partial[strip * count + i];
      target[i] = -sum;
    });
  }

 private:
  // What the pass of a step starts from; gradients of its values are added to it.
  template <class Kernels>
  Status arrive(int64_t step, const Kernels& kernels, const S** grad) {
    const bool last = step == sizes_.num_steps;
    *grad = last ? static_cast<const S*>(gradients_->codes) : product_;
    if (!gradients_->values) return kOk;
    if (last) STRATCORE_TRY(kernels.template copy_or_zero<S>(layout_.code, *grad, product_));
    *grad = product_;
    const float* values = static_cast<const float*>(gradients_->values) + step * layout_.slots;
    const bool taken = coupled_ && !last;  // the pass subtracts what is there
    return kernels.template add_at<float>(sizes_, values, codes_in_->indices + step * layout_.slots, product_,
                                          taken ? -1.0f : 1.0f);
  }

  template <class Kernels>
  Status reverse(int64_t step, const Kernels& kernels) {
    const S* grad;
    STRATCORE_TRY(arrive(step, kernels, &grad));
    const int8_t* support = signs_;
    if (codes_in_->support) {
      support = codes_in_->support + step * layout_.code;
    } else {
      const void* values = static_cast<const float*>(codes_in_->values) + step * layout_.slots;
      STRATCORE_TRY(kernels.template expand_signs<float>(sizes_, values,
                                                         codes_in_->indices + step * layout_.slots, signs_));
    }
    const bool last = step == sizes_.num_steps, total = step == 0 && summed_;
    Pass<S> pass{};
    pass.grad = grad;
    if (coupled_ && !last) pass.before = grad_u_ + (step + 1) * code_size();
    pass.support = support;
    pass.out = total ? product_ : grad_u_ + step * code_size();
    pass.out_stride = (total ? 1 : steps_) * code_size();
    if (total) pass.later = grad_u_ + code_size(), pass.later_steps = sizes_.num_steps;
    if (gradients_->theta) pass.partial = partial_;
    pass.accumulate = !sizes_.threshold_per_step && !last;
    STRATCORE_TRY(launch(pass));
    if (gradients_->theta && (sizes_.threshold_per_step || step == 0)) {
      float* target = static_cast<float*>(gradients_->theta);
      STRATCORE_TRY(reduce_threshold(target + (sizes_.threshold_per_step ? step * layout_.theta : 0)));
    }
    return step > 0 ? go_back(step) : kOk;
  }

  Status launch(Pass<S>& pass) const {
    pass.experts = sizes_.experts, pass.rows = sizes_.rows, pass.atoms = sizes_.atoms;
    pass.steps = steps_, pass.rows_per_strip = strip_;
    const dim3 grid(static_cast<unsigned>((sizes_.atoms + kPassColumns - 1) / kPassColumns),
                    static_cast<unsigned>(strips_),
                    static_cast<unsigned>(std::min<int64_t>(sizes_.experts, 65535)));
    const bool aligned =
        eights_aligned(pass.grad, sizes_.atoms) && eights_aligned(pass.support, sizes_.atoms);
    const auto kernel = aligned ? pass_kernel<true, S> : pass_kernel<false, S>;
    kernel<<<grid, kThreads, 0, stream_of(*executor_)>>>(pass);
    return launch_status();
  }

  // From the gradient of u to that of the code before.
  Status go_back(int64_t step) {
    const int64_t rows = sizes_.rows, atoms = sizes_.atoms, dim = sizes_.dim;
    if (!coupled_) return multiply(rows, atoms, atoms, grad_u(step), recurrent(step), product_);
    STRATCORE_TRY(multiply(rows, dim, atoms, grad_u(step), encoder(step), grad_r_ + step * input_size(),
                           grad_r_steps_ * input_size()));
    return multiply(rows, atoms, dim, grad_r(step), recurrent(step), product_);
  }

  // r = x - D z of every step; that of the first is x.
  Status find_inputs() {
    STRATCORE_TRY(copy_input<S>(*executor_, sizes_, in_->x, input_, steps_ * input_size()));
    for (int64_t step = 1; step < steps_; ++step) {
      S* out = input_ + step * input_size();
      if (gathers_) {
        STRATCORE_TRY(gather_residual<S>(*executor_, sizes_, in_->x, *codes_in_, step, recurrent_t(step), out,
                                         steps_ * input_size()));
        continue;
      }
      STRATCORE_TRY(multiply(sizes_.rows, sizes_.dim, sizes_.atoms, code(step - 1),
                             layout_.recurrent_at(in_->recurrent, step).transposed(), product_));
      STRATCORE_TRY(add_codes_of(product_, input_size(), out, steps_ * input_size()));
    }
    return kOk;
  }

  Status encoder_product(MatrixBatch grad, MatrixBatch with, int64_t steps, int64_t step) const {
    S* target = static_cast<S*>(gradients_->encoder) + step * layout_.encoder;
    return multiply(sizes_.atoms, sizes_.dim, steps * sizes_.rows, grad.transposed(), with, target);
  }

  Status finish_encoder() {
    const MatrixBatch sum = layout_.rows_of_atoms(product_);
    const bool by_step = sizes_.encoder_per_step;
    if (gradients_->x) {
      S* target = writes_input_ ? static_cast<S*>(gradients_->x) : grad_r_;
      const int64_t stride = writes_input_ ? 0 : grad_r_steps_ * input_size();
      for (int64_t step = 0; step < (coupled_ || !by_step ? 1 : steps_); ++step) {
        STRATCORE_TRY(multiply(sizes_.rows, sizes_.dim, sizes_.atoms, summed_ ? sum : grad_u(step),
                               encoder(step), target + step * input_size(), stride));
      }
    }
    if (!gradients_->encoder) return kOk;
    if (summed_) return encoder_product(sum, layout_.x(in_->x), 1, 0);
    if (coupled_) STRATCORE_TRY(find_inputs());
    if (!by_step) return encoder_product(grad_u(0), input(0), steps_, 0);
    for (int64_t step = 0; step < steps_; ++step) {
      STRATCORE_TRY(encoder_product(grad_u(step), input(step), 1, step));
    }
    return kOk;
  }

  Status finish_recurrent() {
    const int64_t columns = coupled_ ? sizes_.dim : sizes_.atoms, steps = sizes_.num_steps;
    auto* target = static_cast<S*>(gradients_->recurrent);
    if (steps == 0) {
      const int64_t count = sizes_.recurrent_per_step ? 0 : layout_.recurrent;
      return cudaMemsetAsync(target, 0, count * sizeof(S), stream_of(*executor_)) == cudaSuccess
                 ? kOk
                 : launch_status();
    }
    if (gathers_) {
      return RecurrentSums<S>{coupled_ ? grad_r_ : grad_u_, columns, coupled_ ? -1.0f : 1.0f, transposed_,
                              target}
          .run(*executor_, sizes_, *codes_in_, *sorted_);
    }
    const auto product = [&](int64_t first, int64_t count, S* out) {
      const MatrixBatch grad = coupled_ ? grad_r(first) : grad_u(first);
      return multiply(columns, sizes_.atoms, count * sizes_.rows, grad.transposed(), code(first - 1), out);
    };
    if (!sizes_.recurrent_per_step) return product(1, steps, target);
    for (int64_t step = 1; step <= steps; ++step) {
      STRATCORE_TRY(product(step, 1, target + (step - 1) * layout_.recurrent));
    }
    return kOk;
  }

  const Sizes& sizes_;
  const bool coupled_, gathers_;
  const Layout<float, S> layout_{sizes_};
  const int64_t steps_ = sizes_.num_steps + 1;
  // With one encoder for all steps of u = W x + S z, W meets the sum of their gradients once.
  const bool summed_ = !coupled_ && !sizes_.encoder_per_step;
  const int64_t grad_r_steps_ = summed_ ? 1 : steps_;
  // One product is the gradient of x then.
  const bool writes_input_ = grad_r_steps_ == 1 && (sizes_.experts == 1 || !sizes_.shared_input);
  int8_t* const signs_;
  Memory memory_;
  std::optional<SortedEntries> sorted_;
  S *grad_u_, *product_;         // [E, N, B, m], [E, B, m or d]
  S *grad_r_, *input_;           // [E, 1 or N, B, d], [E, N, B, d]
  S *encoder_t_, *recurrent_t_;  // [P, E, d, m], [P, E, m, m or d]
  S *transposed_, *codes_;       // [P, E, m, m or d], [E, T, B, m]
  float* partial_;
  int64_t strip_, strips_;
  const Parameters* in_ = nullptr;
  const Codes* codes_in_ = nullptr;
  const Gradients* gradients_ = nullptr;
  const Executor* executor_ = nullptr;
};

}  // namespace stratcore::topk_lista

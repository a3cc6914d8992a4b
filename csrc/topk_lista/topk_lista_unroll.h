#pragma once

#include <algorithm>

#include "topk_lista.h"

// The recurrence and its reverse, once for all devices: `Kernels` brings the element-wise passes of a device
// and, where kernels.gathers(), products with codes; the executor brings matrix products. S is the type of
// the factors of products, T the type that is computed in and that products have. Legend as in topk_lista.h.
namespace stratcore::topk_lista {

template <class T, class S>
struct Layout {
  const Sizes& sizes;
  int64_t code = sizes.experts * sizes.rows * sizes.atoms;
  int64_t input = sizes.experts * sizes.rows * sizes.dim;
  int64_t slots = sizes.experts * sizes.rows * sizes.width;
  int64_t encoder = sizes.experts * sizes.atoms * sizes.dim;
  int64_t recurrent = sizes.experts * sizes.recurrent_size();
  int64_t theta = sizes.experts * sizes.atoms;

  static const S* at(const void* data, int64_t step, bool per_step, int64_t size) {
    return static_cast<const S*>(data) + (per_step ? step * size : 0);
  }
  const T* theta_at(const void* data, int64_t step) const {
    return static_cast<const T*>(data) + (sizes.threshold_per_step ? step * theta : 0);
  }
  MatrixBatch x(const void* data) const {
    return {data, sizes.shared_input ? 0 : sizes.rows * sizes.dim, sizes.dim, 1};
  }
  MatrixBatch rows_of_atoms(const void* data) const {
    return {data, sizes.rows * sizes.atoms, sizes.atoms, 1};
  }
  MatrixBatch rows_of_dim(const void* data) const { return {data, sizes.rows * sizes.dim, sizes.dim, 1}; }
  MatrixBatch encoder_at(const void* data, int64_t step) const {
    return {at(data, step, sizes.encoder_per_step, encoder), sizes.atoms * sizes.dim, sizes.dim, 1};
  }
  // Entry t - 1 belongs to step t = 1..T: the first code has no recurrent product.
  MatrixBatch recurrent_at(const void* data, int64_t step) const {
    return {at(data, step - 1, sizes.recurrent_per_step, recurrent), sizes.recurrent_size(), sizes.atoms, 1};
  }
  Status multiply(const Executor& executor, int64_t rows, int64_t cols, int64_t inner, MatrixBatch left,
                  MatrixBatch right, void* out) const {
    return executor.gemm(executor.context, {sizes.dtype, sizes.experts, rows, cols, inner, left, right, out});
  }
};

#define STRATCORE_TRY(expression)        \
  do {                                   \
    const Status status_ = (expression); \
    if (status_ != kOk) return status_;  \
  } while (0)

template <class T, class S, class Kernels>
Status unroll_forward(const Sizes& sizes, const Parameters& in, const Codes& out, void* scratch,
                      const Executor& executor, const Kernels& kernels) {
  const Layout<T, S> layout{sizes};
  const int64_t rows = sizes.rows, dim = sizes.dim, atoms = sizes.atoms;
  T* encoded = static_cast<T*>(scratch);
  // Where rows are gathered, nothing reads the dense code before it is made.
  T* product = kernels.gathers() ? static_cast<T*>(out.dense) : encoded + layout.code;
  T* decoded = encoded + 2 * layout.code;
  S* residual = reinterpret_cast<S*>(decoded + layout.input);
  T* table = sizes.form == Form::kClassic ? decoded : reinterpret_cast<T*>(residual + layout.input);
  const auto encode = [&](int64_t step, MatrixBatch input, T* target) {
    return layout.multiply(executor, rows, atoms, dim, input,
                           layout.encoder_at(in.encoder, step).transposed(), target);
  };
  const auto values_at = [&](int64_t step) { return static_cast<T*>(out.values) + step * layout.slots; };
  const auto indices_at = [&](int64_t step) { return out.indices + step * layout.slots; };
  const auto select = [&](int64_t step, const T* first, const T* second) {
    int8_t* support = out.support ? out.support + step * layout.code : nullptr;
    void* dense =
        kernels.gathers() && step < sizes.num_steps ? nullptr : out.dense;  // read by products alone
    const T* theta = layout.theta_at(in.theta, step);
    return kernels.select(sizes, {first, second, theta, dense, values_at(step), indices_at(step), support});
  };
  const auto gather = [&](int64_t step, const void* start, bool shared, auto* target) {
    kernels.gather(sizes, step, layout.recurrent_at(in.recurrent, step).data, values_at(step - 1),
                   indices_at(step - 1), start, shared, table, target);
  };
  STRATCORE_TRY(encode(0, layout.x(in.x), encoded));
  STRATCORE_TRY(select(0, encoded, nullptr));
  for (int64_t step = 1; step <= sizes.num_steps; ++step) {
    const MatrixBatch recurrent = layout.recurrent_at(in.recurrent, step).transposed();
    if (sizes.form == Form::kClassic) {
      if (sizes.encoder_per_step) STRATCORE_TRY(encode(step, layout.x(in.x), encoded));
      if (kernels.gathers()) {
        gather(step, encoded, false, product);
        STRATCORE_TRY(select(step, product, nullptr));
      } else {
        STRATCORE_TRY(layout.multiply(executor, rows, atoms, atoms, layout.rows_of_atoms(out.dense),
                                      recurrent, product));
        STRATCORE_TRY(select(step, encoded, product));
      }
    } else {
      if (kernels.gathers()) {
        gather(step, in.x, sizes.shared_input, residual);
      } else {
        STRATCORE_TRY(layout.multiply(executor, rows, dim, atoms, layout.rows_of_atoms(out.dense), recurrent,
                                      decoded));
        STRATCORE_TRY((kernels.template subtract_from_input<T, S>(sizes, in.x, decoded, residual)));
      }
      STRATCORE_TRY(encode(step, layout.rows_of_dim(residual), product));
      STRATCORE_TRY(kernels.template add_at<T>(sizes, values_at(step - 1), indices_at(step - 1), product));
      STRATCORE_TRY(select(step, product, nullptr));
    }
  }
  return kOk;
}

// Reverse of the recurrence. grad_code holds the gradient with respect to the code of the current step.
template <class T, class S, class Kernels>
class UnrolledBackward {
 public:
  UnrolledBackward(const Sizes& sizes, const Parameters& in, const Codes& codes, const Gradients& gradients,
                   void* scratch, int8_t* signs, const Executor& executor, const Kernels& kernels)
      : sizes_(sizes), in_(in), codes_(codes), gradients_(gradients), signs_(signs), executor_(executor),
        kernels_(kernels), layout_{sizes} {
    grad_code_ = static_cast<T*>(scratch);
    grad_sum_ = grad_code_ + layout_.code;
    grad_input_ = grad_sum_ + layout_.code;
    grad_residual_ = grad_input_ + layout_.input;
    weight_ = grad_residual_ + layout_.input;
    partial_ = weight_ + sizes.experts * sizes.atoms * std::max(sizes.atoms, sizes.dim);
    code_ = reinterpret_cast<S*>(partial_);
    grad_u_ = reinterpret_cast<S*>(partial_ + layout_.code);
    input_ = grad_u_ + layout_.code;
    table_ = reinterpret_cast<T*>(input_ + layout_.input);
  }

  Status run() {
    STRATCORE_TRY(kernels_.template copy_or_zero<T>(layout_.code, gradients_.codes, grad_code_));
    if (summed_) STRATCORE_TRY(kernels_.template copy_or_zero<T>(layout_.code, nullptr, grad_sum_));
    const bool adds_x = gradients_.x && !writes_x_;
    if (adds_x) STRATCORE_TRY(kernels_.template copy_or_zero<T>(layout_.input, nullptr, grad_input_));
    STRATCORE_TRY(clear(summed_ ? nullptr : gradients_.encoder, layout_.encoder, sizes_.encoder_per_step,
                        sizes_.num_steps + 1));
    STRATCORE_TRY(clear(gradients_.recurrent, layout_.recurrent, sizes_.recurrent_per_step,
                        sizes_.num_steps));
    STRATCORE_TRY(clear(gradients_.theta, layout_.theta, sizes_.threshold_per_step, sizes_.num_steps + 1));
    for (int64_t step = sizes_.num_steps; step >= 0; --step) STRATCORE_TRY(reverse(step));
    if (adds_x) STRATCORE_TRY(kernels_.template fold_experts<T>(sizes_, grad_input_, gradients_.x));
    return kOk;
  }

 private:
  Status clear(void* target, int64_t size, bool per_step, int64_t steps) {
    if (!target) return kOk;
    return kernels_.template copy_or_zero<T>(per_step ? size * steps : size, nullptr, target);
  }

  Status reverse(int64_t step) {
    const void* values = static_cast<const T*>(codes_.values) + step * layout_.slots;
    const int32_t* indices = codes_.indices + step * layout_.slots;
    if (gradients_.values) {
      const void* grad_values = static_cast<const T*>(gradients_.values) + step * layout_.slots;
      STRATCORE_TRY(kernels_.template add_at<T>(sizes_, grad_values, indices, grad_code_));
    }
    const int8_t* support = signs_;
    if (codes_.support) {
      support = codes_.support + step * layout_.code;
    } else {
      STRATCORE_TRY(kernels_.template expand_signs<T>(sizes_, values, indices, signs_));
    }
    T* sum = summed_ ? grad_sum_ : nullptr;
    STRATCORE_TRY(kernels_.pass(layout_.code, grad_code_, support, sum, step == 0, grad_u_));
    if (gradients_.theta) {
      T* target = static_cast<T*>(gradients_.theta) + (sizes_.threshold_per_step ? step * layout_.theta : 0);
      STRATCORE_TRY(kernels_.template reduce_threshold<T>(sizes_, grad_code_, support, partial_, target));
    }
    if (step == 0) return reverse_encoder(0, layout_.x(in_.x), grad_input_, true);
    return sizes_.form == Form::kClassic ? reverse_classic(step) : reverse_coupled(step);
  }

  // u = W input: adds to the gradient of W and adds (or writes) that of its input.
  Status reverse_encoder(int64_t step, MatrixBatch input, T* grad_input, bool accumulate) {
    if (gradients_.encoder) {
      T* target =
          static_cast<T*>(gradients_.encoder) + (sizes_.encoder_per_step ? step * layout_.encoder : 0);
      T* part = summed_ ? target : weight_;
      STRATCORE_TRY(layout_.multiply(executor_, sizes_.atoms, sizes_.dim, sizes_.rows,
                                     layout_.rows_of_atoms(grad_u_).transposed(), input, part));
      if (!summed_) STRATCORE_TRY(kernels_.add(layout_.encoder, weight_, target));
    }
    if (accumulate && !gradients_.x) return kOk;
    const bool adds = accumulate && !writes_x_;
    T* target = adds ? grad_residual_ : accumulate ? static_cast<T*>(gradients_.x) : grad_input;
    STRATCORE_TRY(layout_.multiply(executor_, sizes_.rows, sizes_.dim, sizes_.atoms,
                                   layout_.rows_of_atoms(grad_u_), layout_.encoder_at(in_.encoder, step),
                                   target));
    return adds ? kernels_.add(layout_.input, target, grad_input) : kOk;
  }

  const T* previous_values(int64_t step) const {
    return static_cast<const T*>(codes_.values) + (step - 1) * layout_.slots;
  }
  const int32_t* previous_indices(int64_t step) const { return codes_.indices + (step - 1) * layout_.slots; }

  Status expand_previous(int64_t step) {
    if (kernels_.gathers()) return kOk;
    return kernels_.template expand<T, S>(sizes_, previous_values(step), previous_indices(step), code_);
  }

  Status add_recurrent(int64_t step, int64_t rows, const S* grad) {
    T* target = static_cast<T*>(gradients_.recurrent) +
                (sizes_.recurrent_per_step ? (step - 1) * layout_.recurrent : 0);
    if (kernels_.gathers()) {
      kernels_.scatter(sizes_, step, previous_values(step), previous_indices(step), grad, table_, target);
      return kOk;
    }
    const MatrixBatch grad_rows{grad, sizes_.rows * rows, rows, 1};
    STRATCORE_TRY(layout_.multiply(executor_, rows, sizes_.atoms, sizes_.rows, grad_rows.transposed(),
                                   layout_.rows_of_atoms(code_), weight_));
    return kernels_.add(layout_.recurrent, weight_, target);
  }

  // r = x - D z of the step before, into input_
  Status rebuild_residual(int64_t step, const MatrixBatch& dictionary) {
    if (kernels_.gathers()) {
      kernels_.gather(sizes_, sizes_.num_steps - step + 1, dictionary.data, previous_values(step),
                      previous_indices(step), in_.x, sizes_.shared_input,
                      table_ + (gradients_.recurrent ? kernels_.table_size(sizes_) : 0), input_);
      return kOk;
    }
    T* decoded = grad_residual_;
    STRATCORE_TRY(layout_.multiply(executor_, sizes_.rows, sizes_.dim, sizes_.atoms,
                                   layout_.rows_of_atoms(code_), dictionary.transposed(), decoded));
    return kernels_.template subtract_from_input<T, S>(sizes_, in_.x, decoded, input_);
  }

  // u = W x + S z
  Status reverse_classic(int64_t step) {
    if (!summed_) STRATCORE_TRY(reverse_encoder(step, layout_.x(in_.x), grad_input_, true));
    if (gradients_.recurrent) {
      STRATCORE_TRY(expand_previous(step));
      STRATCORE_TRY(add_recurrent(step, sizes_.atoms, grad_u_));
    }
    return layout_.multiply(executor_, sizes_.rows, sizes_.atoms, sizes_.atoms,
                            layout_.rows_of_atoms(grad_u_), layout_.recurrent_at(in_.recurrent, step),
                            grad_code_);
  }

  // u = z + W r, r = x - D z; the gradient of r is W^T grad_u
  Status reverse_coupled(int64_t step) {
    STRATCORE_TRY(expand_previous(step));
    const MatrixBatch dictionary = layout_.recurrent_at(in_.recurrent, step);
    if (gradients_.encoder) STRATCORE_TRY(rebuild_residual(step, dictionary));
    STRATCORE_TRY(reverse_encoder(step, layout_.rows_of_dim(input_), grad_residual_, false));
    if (gradients_.x) STRATCORE_TRY(kernels_.add(layout_.input, grad_residual_, grad_input_));
    S* minus = input_;
    STRATCORE_TRY((kernels_.template negate<T, S>(layout_.input, grad_residual_, minus)));
    if (gradients_.recurrent) STRATCORE_TRY(add_recurrent(step, sizes_.dim, minus));
    STRATCORE_TRY(layout_.multiply(executor_, sizes_.rows, sizes_.atoms, sizes_.dim,
                                   layout_.rows_of_dim(minus), dictionary, grad_code_));
    return kernels_.add(layout_.code, grad_u_, grad_code_);
  }

  const Sizes& sizes_;
  const Parameters& in_;
  const Codes& codes_;
  const Gradients& gradients_;
  int8_t* signs_;
  const Executor& executor_;
  const Kernels& kernels_;
  const Layout<T, S> layout_;
  // With one encoder for all steps of u = W x + S z, W meets the sum of their gradients once, at step 0.
  const bool summed_ = sizes_.form == Form::kClassic && !sizes_.encoder_per_step;
  // The gradient of x is then that one product, where it needs no sum over experts.
  const bool writes_x_ = summed_ && (sizes_.experts == 1 || !sizes_.shared_input);
  T *grad_code_, *grad_sum_;        // [E, B, m]
  T *grad_input_, *grad_residual_;  // [E, B, d]
  T* weight_;                       // [E, m, max(m, d)]
  T* partial_;                      // [E, B, m] sums over parts of the rows, before
  S* code_;                         // [E, B, m] takes their place
  S* grad_u_;                       // [E, B, m]
  S* input_;                        // [E, B, d]
  T* table_;                        // as kernels.gather wants it: of d S or d D, then of D
};

#undef STRATCORE_TRY

}  // namespace stratcore::topk_lista

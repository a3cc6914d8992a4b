#pragma once

#include "reverse.cuh"
#include "select_wide.cuh"

// Forward of many atoms of which few are kept: codes stay sparse, their products gather rows of S^T or D^T.
// Legend as in topk_lista.h.
namespace stratcore::topk_lista {

// Whether the kernel of long rows takes these.
inline bool runs_wide(const Sizes& sizes, const Selection& selection) {
  return sizes.width <= most_wide_width(sizes.atoms) && eights_aligned(selection.first, sizes.atoms) &&
         eights_aligned(selection.second, sizes.atoms) && eights_aligned(selection.theta, sizes.atoms) &&
         eights_aligned(selection.dense, sizes.atoms) && eights_aligned(selection.support, sizes.atoms);
}

// One selection of all rows; with a table u += S z of the code `before` at first.
template <class S>
Status run_wide(const Executor& executor, const Sizes& sizes, const Selection& selection,
                const S* table = nullptr, const float* values_before = nullptr,
                const int32_t* indices_before = nullptr) {
  const int64_t atoms = sizes.atoms;
  WideStep<S> step{static_cast<const float*>(selection.first),
                   static_cast<const float*>(selection.second),
                   static_cast<const float*>(selection.theta),
                   table,
                   values_before,
                   indices_before,
                   static_cast<S*>(selection.dense),
                   static_cast<float*>(selection.values),
                   selection.indices,
                   selection.support,
                   sizes.rows,
                   atoms,
                   sizes.width,
                   0,
                   0,
                   sizes.group_expert};
  const bool grouped = sizes.group_expert != nullptr;  // then all k travel with one launch
  const int64_t per_launch = grouped ? sizes.experts : kExpertsPerLaunch;
  for (int64_t begin = 0; begin < sizes.experts; begin += per_launch) {
    const int64_t end = std::min<int64_t>(begin + per_launch, sizes.experts);
    step.expert_begin = begin, step.expert_end = end;
    const ExpertWidths widths =
        grouped ? widths_of(sizes, 0, sizes.group_experts) : widths_of(sizes, begin, end);
    STRATCORE_TRY(select_wide(step, widths, stream_of(executor)));
  }
  return kOk;
}

template <class S>
class GatheredForward {
 public:
  // Without memory: only bytes() is meant.
  GatheredForward(const Sizes& sizes, void* scratch)
      : sizes_(sizes), coupled_(sizes.form == Form::kCoupled), memory_(scratch) {
    const int64_t parts = sizes.recurrent_per_step ? sizes.num_steps : 1;
    product_ = memory_.take<float>(layout_.code);
    table_ = memory_.take<S>(parts * layout_.recurrent);
    residual_ = memory_.take<S>(coupled_ ? layout_.input : 0);
  }

  int64_t bytes() const { return memory_.used(); }

  template <class Kernels>
  Status run(const Parameters& in, const Codes& out, const Executor& executor, const Kernels& kernels) {
    if (sizes_.num_steps > 0) {
      const int64_t parts = (sizes_.recurrent_per_step ? sizes_.num_steps : 1) * sizes_.experts;
      STRATCORE_TRY(transpose(executor, static_cast<const S*>(in.recurrent), table_, parts,
                              coupled_ ? sizes_.dim : sizes_.atoms, sizes_.atoms));
    }
    for (int64_t step = 0; step <= sizes_.num_steps; ++step) {
      const float* before = static_cast<const float*>(out.values) + (step - 1) * layout_.slots;
      const int32_t* atoms_before = out.indices + (step - 1) * layout_.slots;
      const S* table = table_ + (sizes_.recurrent_per_step ? (step - 1) * layout_.recurrent : 0);
      if (coupled_ && step > 0) {
        STRATCORE_TRY(gather_residual<S>(executor, sizes_, in.x, out, step, table, residual_,
                                         sizes_.rows * sizes_.dim));
        STRATCORE_TRY(encode(in, executor, step, layout_.rows_of_dim(residual_)));
        STRATCORE_TRY(kernels.template add_at<float>(sizes_, before, atoms_before, product_));
      } else if (step == 0 || sizes_.encoder_per_step) {
        STRATCORE_TRY(encode(in, executor, step, layout_.x(in.x)));
      }
      const bool gather = !coupled_ && step > 0;
      const Selection selection{product_,
                                nullptr,
                                layout_.theta_at(in.theta, step),
                                step == sizes_.num_steps ? out.dense : nullptr,
                                static_cast<float*>(out.values) + step * layout_.slots,
                                out.indices + step * layout_.slots,
                                out.support ? out.support + step * layout_.code : nullptr};
      STRATCORE_TRY(run_wide<S>(executor, sizes_, selection, gather ? table : nullptr, before, atoms_before));
    }
    return kOk;
  }

 private:
  Status encode(const Parameters& in, const Executor& executor, int64_t step, MatrixBatch input) const {
    return layout_.multiply(executor, sizes_.rows, sizes_.atoms, sizes_.dim, input,
                            layout_.encoder_at(in.encoder, step).transposed(), product_);
  }

  const Sizes& sizes_;
  const bool coupled_;
  const Layout<float, S> layout_{sizes_};
  Memory memory_;
  float* product_;  // [E, B, m] W x or W r
  S* table_;        // [P, E, m, m or d] S^T or D^T
  S* residual_;     // [E, B, d]
};

}  // namespace stratcore::topk_lista

#pragma once

#include "gather.cuh"
#include "topk_lista_unroll.h"

// What both reverses on the GPU share: memory, products with 16-bit results, the last sums. Legend as in
// topk_lista.h; N = T + 1.
namespace stratcore::topk_lista {

#define STRATCORE_TRY(expression)        \
  do {                                   \
    const Status status_ = (expression); \
    if (status_ != kOk) return status_;  \
  } while (0)

// Parts of one block of memory; without a block it only adds up what is asked for.
class Memory {
 public:
  explicit Memory(void* start) : start_(static_cast<char*>(start)) {}

  template <class T>
  T* take(int64_t count) {
    char* part = start_ ? start_ + used_ : nullptr;
    used_ += (count * static_cast<int64_t>(sizeof(T)) + 255) / 256 * 256;
    return reinterpret_cast<T*>(part);
  }
  int64_t used() const { return used_; }

 private:
  char* start_;
  int64_t used_ = 0;
};

// The entries of all codes, sorted by atom once for parameters of all steps and once for those of each.
class SortedEntries {
 public:
  SortedEntries(const Sizes& sizes, Memory& memory)
      : sizes_(sizes), tied_(sizes, false), by_step_(sizes, true) {
    tied_memory_ = memory.take<char>(tied_.bytes);
    step_memory_ = memory.take<char>(any_per_step() ? by_step_.bytes : 0);
  }

  Status get(const Executor& executor, const int32_t* indices, bool per_step, Entries* entries) {
    Entries& kept = per_step ? step_entries_ : tied_entries_;
    if (!kept.order) {
      const EntrySort& sort = per_step ? by_step_ : tied_;
      STRATCORE_TRY(sort.run(executor, sizes_, indices, per_step ? step_memory_ : tied_memory_, &kept));
    }
    *entries = kept;
    return kOk;
  }

 private:
  bool any_per_step() const {
    return sizes_.encoder_per_step || sizes_.recurrent_per_step || sizes_.threshold_per_step;
  }

  const Sizes& sizes_;
  EntrySort tied_, by_step_;
  char *tied_memory_ = nullptr, *step_memory_ = nullptr;
  Entries tied_entries_{}, step_entries_{};
};

// out[e or 0, b, i] = sum over the parts [E, N, B, d] of an expert, and of all experts that share the input
template <class S>
Status sum_parts(const Executor& executor, const Sizes& sizes, const S* parts, int64_t per_expert, S* out) {
  const int64_t count = sizes.rows * sizes.dim;
  const int64_t terms = (sizes.shared_input ? sizes.experts : 1) * per_expert;
  return launch_each(executor, sizes.shared_input ? count : sizes.experts * count, [=] __device__(int64_t i) {
    const S* from = parts + i / count * terms * count + i % count;
    float sum = 0;
    for (int64_t term = 0; term < terms; ++term) sum += number(from[term * count]);
    out[i] = stored<S>(sum);
  });
}

template <class S>
Status copy_input(const Executor& executor, const Sizes& sizes, const void* x, S* out, int64_t stride) {
  const int64_t count = sizes.rows * sizes.dim;
  const bool shared = sizes.shared_input;
  const auto* input = static_cast<const S*>(x);
  return launch_each(executor, sizes.experts * count, [=] __device__(int64_t i) {
    out[i / count * stride + i % count] = input[shared ? i % count : i];
  });
}

// Residuals x - D z of the code before `step`, from rows of D^T [m, d].
template <class S>
Status gather_residual(const Executor& executor, const Sizes& sizes, const void* x, const Codes& codes,
                       int64_t step, const S* dictionary_t, S* out, int64_t out_stride) {
  const int64_t slots = sizes.experts * sizes.rows * sizes.width;
  const bool aligned = eights_aligned(x, sizes.dim) && eights_aligned(out, out_stride);
  return row_sums<S>(executor,
                     {static_cast<const float*>(codes.values) + (step - 1) * slots,
                      codes.indices + (step - 1) * slots, dictionary_t, static_cast<const S*>(x), out,
                      sizes.shared_input ? 0 : sizes.rows * sizes.dim, out_stride, sizes.experts, sizes.rows,
                      sizes.width, sizes.atoms, sizes.dim, -1.0f, aligned});
}

// Gradient of S or D from sparse codes and dense gradients of u or r (with `sign`), entries of all rows of an
// atom together: its transpose first.
template <class S>
struct RecurrentSums {
  const S* grads;  // [E, N, B, n]
  int64_t columns;
  float sign;
  S* transposed;  // [P, E, m, n]
  S* out;         // [P, E, n, m]

  Status run(const Executor& executor, const Sizes& sizes, const Codes& codes, SortedEntries& sorted) const {
    Entries entries;
    STRATCORE_TRY(sorted.get(executor, codes.indices, sizes.recurrent_per_step, &entries));
    const int64_t parts = (sizes.recurrent_per_step ? sizes.num_steps : 1) * sizes.experts;
    STRATCORE_TRY(atom_sums<S>(
        executor, {entries, static_cast<const float*>(codes.values), grads, transposed, sizes.experts,
                   sizes.rows, sizes.width, columns, (sizes.num_steps + 1) * sizes.rows, sizes.rows, 1, 0,
                   sizes.num_steps - 1, 0, parts * sizes.atoms, sign, eights_aligned(grads, columns)}));
    return transpose(executor, transposed, out, parts, sizes.atoms, columns);
  }
};

}  // namespace stratcore::topk_lista

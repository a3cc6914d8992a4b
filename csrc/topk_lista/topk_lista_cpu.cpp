#include <algorithm>
#include <cstring>
#include <vector>

#include "code_rows_cpu.h"
#include "loops_cpu.h"
#include "topk_lista.h"
#include "topk_lista_unroll.h"

namespace stratcore::topk_lista {
namespace {

// The kept indices of a ranked row, ascending; where fewer than k entries are not 0, the lowest zeros fill
// up, as a stable sort by magnitude would have it.
template <class T>
void keep(const RowRanks<T>& ranked, int64_t k, std::vector<int32_t>& kept) {
  kept.clear();
  for (int64_t i = 0; i < ranked.count; ++i) {
    if (ranked.ranks[i] >= ranked.least) kept.push_back(index_of<T>(ranked.ranks[i]));
  }
  const auto found = static_cast<int64_t>(kept.size());
  if (found == k) return;
  for (int32_t atom = 0; static_cast<int64_t>(kept.size()) < k; ++atom) {
    if (ranked.row[atom] == T(0)) kept.push_back(atom);
  }
  std::inplace_merge(kept.begin(), kept.begin() + found, kept.end());
}

// Writes the kept entries, then the lowest unused indices up to `width`, these with value 0.
template <class T>
void write_slots(const T* row, const std::vector<int32_t>& kept, int64_t width, T* values, int32_t* indices) {
  const auto k = static_cast<int64_t>(kept.size());
  for (int64_t slot = 0; slot < k; ++slot) {
    values[slot] = row[kept[slot]];
    indices[slot] = kept[slot];
  }
  int64_t slot = k;
  for (int32_t atom = 0, used = 0; slot < width; ++atom) {
    if (used < k && kept[used] == atom) {
      ++used;
    } else {
      values[slot] = T(0);
      indices[slot++] = atom;
    }
  }
}

template <class T>
void select_rows(const Sizes& sizes, const Selection& selection, int64_t begin, int64_t end) {
  const auto rank = STRATCORE_BEST(rank_row<T>);
  const int64_t atoms = sizes.atoms, width = sizes.width;
  RowRanks<T> ranked(atoms);
  std::vector<int32_t> kept;
  kept.reserve(width);
  const auto row_of = [](const void* data, int64_t row, int64_t size) {
    return data ? static_cast<const T*>(data) + row * size : nullptr;
  };
  for (int64_t flat = begin; flat < end; ++flat) {
    const int64_t expert = flat / sizes.rows, k = sizes.k_of(expert);
    const ThresholdedRow<T> in{row_of(selection.first, flat, atoms), row_of(selection.second, flat, atoms),
                               row_of(selection.theta, expert, atoms), atoms};
    rank(in, k, selection.support ? selection.support + flat * atoms : nullptr, ranked);
    keep(ranked, k, kept);
    write_slots(ranked.row.data(), kept, width, static_cast<T*>(selection.values) + flat * width,
                selection.indices + flat * width);
    if (!selection.dense) continue;
    T* dense = static_cast<T*>(selection.dense) + flat * atoms;
    std::fill_n(dense, atoms, T(0));
    for (const int32_t atom : kept) dense[atom] = ranked.row[atom];
  }
}

// Element-wise passes on the CPU; see UnrolledBackward for what each is for.
class CpuKernels {
 public:
  CpuKernels(const Sizes& sizes, const Executor& executor)
      : gathers_(gathers_on_cpu(sizes)), executor_(executor) {}

  // Whether products with codes are sums of rows, in tables made of the parameters.
  bool gathers() const { return gathers_; }

  int64_t table_size(const Sizes& sizes) const { return topk_lista::table_size(sizes, columns_of(sizes)); }

  // classic: target = start + S z; coupled: target = start - D z, with z the code of the step before. The
  // table is made at step 1, or at every step that has a parameter of its own.
  template <class T>
  void gather(const Sizes& sizes, int64_t step, const void* parameter, const void* values,
              const int32_t* indices, const void* start, bool shared_start, T* table, T* target) const {
    const int64_t columns = columns_of(sizes);
    if (step == 1 || sizes.recurrent_per_step) {
      to_table(sizes, columns, static_cast<const T*>(parameter), table, executor_);
    }
    add_gathered(sizes, columns, values, indices, table, static_cast<const T*>(start), shared_start,
                 T(sizes.form == Form::kClassic ? 1 : -1), target, executor_);
  }

  // target = grad^T z, added up from the last step on down to step 1, or of every step for itself.
  template <class T>
  void scatter(const Sizes& sizes, int64_t step, const void* values, const int32_t* indices, const T* grad,
               T* table, T* target) const {
    const int64_t columns = columns_of(sizes);
    if (step == sizes.num_steps || sizes.recurrent_per_step) {
      copy_or_zero<T>(table_size(sizes), nullptr, table);
    }
    add_scattered(sizes, columns, values, indices, grad, table, executor_);
    if (step == 1 || sizes.recurrent_per_step) from_table(sizes, columns, table, target, executor_);
  }

  Status select(const Sizes& sizes, const Selection& selection) const {
    return select_cpu(sizes, selection, executor_);
  }

  template <class T, class S>
  Status subtract_from_input(const Sizes& sizes, const void* x, const T* product, S* residual) const {
    const int64_t count = sizes.rows * sizes.dim;
    const auto* input = static_cast<const S*>(x);
    return each(sizes.experts * count, [=, shared = sizes.shared_input](int64_t i) {
      residual[i] = input[shared ? i % count : i] - product[i];
    });
  }

  template <class T>
  Status copy_or_zero(int64_t count, const void* source, void* target) const {
    auto* out = static_cast<T*>(target);
    const auto* in = static_cast<const T*>(source);
    return each(count, [=](int64_t i) { out[i] = in ? in[i] : T(0); });
  }

  template <class S, class T>
  Status add(int64_t count, const S* source, T* target) const {
    return each(count, [=](int64_t i) { target[i] += source[i]; });
  }

  template <class T, class S>
  Status negate(int64_t count, const T* source, S* target) const {
    return each(count, [=](int64_t i) { target[i] = -source[i]; });
  }

  template <class T>
  Status pass(int64_t count, const T* grad, const int8_t* support, T* sum, bool total, T* out) const {
    const auto range = STRATCORE_BEST(pass_range<T>);
    parallel_for(executor_, count, 1 << 14, [&](int64_t begin, int64_t end) noexcept {
      range(grad, support, sum, total, out, begin, end);
    });
    return kOk;
  }

  template <class T>
  Status add_at(const Sizes& sizes, const void* values, const int32_t* indices, T* dense) const {
    return slots(sizes, [=, v = static_cast<const T*>(values), &sizes](int64_t flat, int64_t slot) {
      dense[flat * sizes.atoms + indices[slot]] += v[slot];
    });
  }

  template <class T, class S>
  Status expand(const Sizes& sizes, const void* values, const int32_t* indices, S* dense) const {
    copy_or_zero<S>(sizes.experts * sizes.rows * sizes.atoms, nullptr, dense);
    return slots(sizes, [=, v = static_cast<const T*>(values), &sizes](int64_t flat, int64_t slot) {
      dense[flat * sizes.atoms + indices[slot]] = v[slot];
    });
  }

  template <class T>
  Status expand_signs(const Sizes& sizes, const void* values, const int32_t* indices, int8_t* signs) const {
    each(sizes.experts * sizes.rows * sizes.atoms, [=](int64_t i) { signs[i] = 0; });
    return slots(sizes, [=, v = static_cast<const T*>(values), &sizes](int64_t flat, int64_t slot) {
      signs[flat * sizes.atoms + indices[slot]] = threshold_sign(v[slot], T(0));
    });
  }

  // d loss / d theta = -sum over rows of sign(u) grad where u passes: rows of a block in order, then the
  // blocks
  template <class T>
  Status reduce_threshold(const Sizes& sizes, const T* grad, const int8_t* support, T* partial,
                          T* target) const {
    constexpr int64_t kBlock = 256;
    const int64_t atoms = sizes.atoms, blocks = (sizes.rows + kBlock - 1) / kBlock;
    const auto subtract = STRATCORE_BEST(subtract_signed_rows<T>);
    parallel_for(executor_, sizes.experts * blocks, 1, [&](int64_t begin, int64_t end) noexcept {
      for (int64_t task = begin; task < end; ++task) {
        const int64_t row = task % blocks * kBlock, at = (task / blocks * sizes.rows + row) * atoms;
        std::fill_n(partial + task * atoms, atoms, T(0));
        subtract(grad + at, support + at, partial + task * atoms, atoms, std::min(kBlock, sizes.rows - row));
      }
    });
    return each(sizes.experts * atoms, [=](int64_t i) {
      const T* sums = partial + i / atoms * blocks * atoms + i % atoms;
      for (int64_t block = 0; block < blocks; ++block) target[i] += sums[block * atoms];
    });
  }

  template <class T>
  Status fold_experts(const Sizes& sizes, const T* grad_input, void* target) const {
    const int64_t count = sizes.rows * sizes.dim;
    auto* out = static_cast<T*>(target);
    if (!sizes.shared_input) return copy_or_zero<T>(sizes.experts * count, grad_input, target);
    return each(count, [=, experts = sizes.experts](int64_t i) {
      T sum = 0;
      for (int64_t expert = 0; expert < experts; ++expert) sum += grad_input[expert * count + i];
      out[i] = sum;
    });
  }

 private:
  template <class Body>
  Status each(int64_t count, const Body& body) const {
    parallel_for(executor_, count, 1 << 14, [&](int64_t begin, int64_t end) noexcept {
      for (int64_t i = begin; i < end; ++i) body(i);
    });
    return kOk;
  }

  template <class Body>
  Status slots(const Sizes& sizes, const Body& body) const {
    parallel_for(executor_, sizes.experts * sizes.rows, 64, [&](int64_t begin, int64_t end) noexcept {
      for (int64_t flat = begin; flat < end; ++flat) {
        for (int64_t slot = flat * sizes.width; slot < (flat + 1) * sizes.width; ++slot) body(flat, slot);
      }
    });
    return kOk;
  }

  static int64_t columns_of(const Sizes& sizes) {
    return sizes.form == Form::kClassic ? sizes.atoms : sizes.dim;
  }

  const bool gathers_;
  const Executor& executor_;
};

int64_t gather_ratio(const Sizes& sizes) {
  const int64_t bytes = sizes.atoms * sizes.atoms * (sizes.dtype == DType::kFloat32 ? 4 : 2);
  return sizes.form == Form::kCoupled || bytes <= kNearBytes ? kGatherRatio : kFarGatherRatio;
}

}  // namespace

bool gathers_forward(const Sizes& sizes) {
  if (sizes.dtype == DType::kFloat64 || sizes.group_expert || sizes.width > most_wide_width(sizes.atoms)) {
    return false;
  }
  if (sizes.regime != Regime::kAuto) return sizes.regime == Regime::kGather;
  return sizes.atoms >= gather_ratio(sizes) * sizes.width;
}

bool gathers_backward(const Sizes& sizes, bool straight_through) {
  constexpr int64_t kMost = int64_t(1) << 30;  // entries and atoms of all steps are counted in 32 bits
  const int64_t groups = (sizes.num_steps + 1) * sizes.experts;
  if (sizes.dtype == DType::kFloat64 || groups * std::max(sizes.rows * sizes.width, sizes.atoms) >= kMost) {
    return false;
  }
  if (sizes.regime != Regime::kAuto) return sizes.regime == Regime::kGather;
  return sizes.atoms >= (straight_through ? gather_ratio(sizes) : kMaskedGatherRatio) * sizes.width;
}

bool gathers_on_cpu(const Sizes& sizes) {
  if (sizes.dtype != DType::kFloat32) return false;
  if (sizes.regime != Regime::kAuto) return sizes.regime == Regime::kGather;
  return sizes.atoms >= kCpuGatherRatio * sizes.width;
}

int64_t forward_scratch(const Sizes& sizes) {
  const bool coupled = sizes.form == Form::kCoupled;
  const int64_t table = gathers_on_cpu(sizes) ? table_size(sizes, coupled ? sizes.dim : sizes.atoms) : 0;
  return sizes.experts * sizes.rows * 2 * (sizes.atoms + (coupled ? sizes.dim : 0)) + table;
}

int64_t backward_scratch(const Sizes& sizes) {
  const bool coupled = sizes.form == Form::kCoupled;
  const int64_t table = coupled ? 2 * table_size(sizes, sizes.dim) : table_size(sizes, sizes.atoms);
  return sizes.experts * sizes.rows * (4 * sizes.atoms + 3 * sizes.dim) +
         sizes.experts * sizes.atoms * std::max(sizes.atoms, sizes.dim) + (gathers_on_cpu(sizes) ? table : 0);
}

Status select_cpu(const Sizes& sizes, const Selection& selection, const Executor& executor) {
  parallel_for(executor, sizes.experts * sizes.rows, 16, [&](int64_t begin, int64_t end) noexcept {
    if (sizes.dtype == DType::kFloat32) {
      select_rows<float>(sizes, selection, begin, end);
    } else {
      select_rows<double>(sizes, selection, begin, end);
    }
  });
  return kOk;
}

Status forward_cpu(const Sizes& sizes, const Parameters& in, const Codes& out, void* scratch,
                   const Executor& executor) {
  const CpuKernels kernels(sizes, executor);
  return sizes.dtype == DType::kFloat32
             ? unroll_forward<float, float>(sizes, in, out, scratch, executor, kernels)
             : unroll_forward<double, double>(sizes, in, out, scratch, executor, kernels);
}

Status backward_cpu(const Sizes& sizes, const Parameters& in, const Codes& codes, const Gradients& gradients,
                    void* scratch, int8_t* signs, const Executor& executor) {
  const CpuKernels kernels(sizes, executor);
  if (sizes.dtype == DType::kFloat32) {
    return UnrolledBackward<float, float, CpuKernels>(sizes, in, codes, gradients, scratch, signs, executor,
                                                      kernels)
        .run();
  }
  return UnrolledBackward<double, double, CpuKernels>(sizes, in, codes, gradients, scratch, signs, executor,
                                                      kernels)
      .run();
}

Status gather_groups_cpu(const Grouping& grouping, const void* parameter, void* gathered,
                         const Executor& executor) {
  const int64_t size =
      grouping.inner * (grouping.dtype == DType::kFloat64 ? int64_t(sizeof(double)) : int64_t(sizeof(float)));
  const auto* source = static_cast<const char*>(parameter);
  auto* target = static_cast<char*>(gathered);
  parallel_for(executor, grouping.outer * grouping.groups, 1, [=](int64_t begin, int64_t end) {
    for (int64_t at = begin; at < end; ++at) {
      const int64_t outer = at / grouping.groups, expert = grouping.expert[at % grouping.groups];
      std::memcpy(target + at * size, source + (outer * grouping.experts + expert) * size, size);
    }
  });
  return kOk;
}

Status add_groups_cpu(const Grouping& grouping, const void* gathered, void* parameter,
                      const Executor& executor) {
  const auto add = [&](auto zero) {
    using T = decltype(zero);
    const auto* source = static_cast<const T*>(gathered);
    auto* target = static_cast<T*>(parameter);
    const int64_t inner = grouping.inner;
    parallel_for(executor, grouping.outer * grouping.experts, 1, [=](int64_t begin, int64_t end) {
      for (int64_t at = begin; at < end; ++at) {
        const int64_t outer = at / grouping.experts, expert = at % grouping.experts;
        std::fill_n(target + at * inner, inner, zero);
        for (int64_t group = 0; group < grouping.groups; ++group) {
          if (grouping.expert[group] != expert) continue;
          const T* from = source + (outer * grouping.groups + group) * inner;
          for (int64_t i = 0; i < inner; ++i) target[at * inner + i] += from[i];
        }
      }
    });
  };
  if (grouping.dtype == DType::kFloat64) {
    add(double(0));
  } else {
    add(float(0));
  }
  return kOk;
}

}  // namespace stratcore::topk_lista

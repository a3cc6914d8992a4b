#include <algorithm>
#include <cstring>
#include <vector>

#include "topk_lista.h"
#include "topk_lista_math.h"
#include "topk_lista_unroll.h"

namespace stratcore::topk_lista {
namespace {

template <class T>
struct Ranked {
  typename RankKey<T>::type key;
  int32_t index;
};

// Larger magnitude first, then the lower index.
template <class T>
bool outranks(const Ranked<T>& a, const Ranked<T>& b) {
  return a.key != b.key ? a.key > b.key : a.index < b.index;
}

// Keeps the k first of `ranked` (the non-zeros of a row of `atoms`) and marks them in `kept`; when there are
// fewer, the lowest zeros fill up, as a stable sort by magnitude would have it.
template <class T>
void mark_largest(std::vector<Ranked<T>>& ranked, int64_t k, std::vector<uint8_t>& kept) {
  std::fill(kept.begin(), kept.end(), 0);
  const auto count = static_cast<int64_t>(ranked.size());
  if (count > k) std::nth_element(ranked.begin(), ranked.begin() + (k - 1), ranked.end(), outranks<T>);
  for (int64_t i = 0; i < std::min(count, k); ++i) kept[ranked[i].index] = 1;
}

// Writes the k kept indices ascending, then the lowest unused ones up to `width`, these with value 0.
template <class T>
void write_slots(const T* row, const std::vector<uint8_t>& kept, int64_t k, int64_t width, T* values,
                 int32_t* indices) {
  int64_t used = 0, spare = k;
  for (int32_t atom = 0; used + spare - k < width; ++atom) {
    if (kept[atom]) {
      values[used] = row[atom];
      indices[used++] = atom;
    } else if (spare < width) {
      values[spare] = T(0);
      indices[spare++] = atom;
    }
  }
}

template <class T>
void select_rows(const Sizes& sizes, const Selection& selection, int64_t begin, int64_t end) {
  const int64_t atoms = sizes.atoms, width = sizes.width;
  std::vector<Ranked<T>> ranked;
  ranked.reserve(atoms);
  std::vector<uint8_t> kept(atoms);
  for (int64_t flat = begin; flat < end; ++flat) {
    const int64_t expert = flat / sizes.rows, k = sizes.k_of(expert);
    const T* first = static_cast<const T*>(selection.first) + flat * atoms;
    const T* second = selection.second ? static_cast<const T*>(selection.second) + flat * atoms : nullptr;
    const T* theta = selection.theta ? static_cast<const T*>(selection.theta) + expert * atoms : nullptr;
    int8_t* support = selection.support ? selection.support + flat * atoms : nullptr;
    T* row = static_cast<T*>(selection.dense) + flat * atoms;
    ranked.clear();
    for (int32_t atom = 0; atom < atoms; ++atom) {
      const T u = second ? first[atom] + second[atom] : first[atom];
      row[atom] = theta ? soft_threshold(u, theta[atom]) : u;
      if (support) support[atom] = threshold_sign(u, theta ? theta[atom] : T(0));
      if (row[atom] != T(0)) ranked.push_back({magnitude_key(row[atom]), atom});
    }
    mark_largest(ranked, k, kept);
    int64_t missing = k - std::min<int64_t>(k, ranked.size());
    for (int64_t atom = 0; missing > 0; ++atom) {
      if (!kept[atom] && row[atom] == T(0)) {
        kept[atom] = 1;
        --missing;
      }
    }
    for (int64_t atom = 0; atom < atoms; ++atom) {
      if (!kept[atom]) row[atom] = T(0);
    }
    write_slots(row, kept, k, width, static_cast<T*>(selection.values) + flat * width,
                selection.indices + flat * width);
  }
}

// Element-wise passes on the CPU; see UnrolledBackward for what each is for.
class CpuKernels {
 public:
  explicit CpuKernels(const Executor& executor) : executor_(executor) {}

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

  template <class T, class S>
  Status pass(int64_t count, const T* grad, const int8_t* support, T* sum, bool total, S* out) const {
    return each(count, [=](int64_t i) {
      const T passed = support[i] ? grad[i] : T(0);
      if (sum) sum[i] += passed;
      out[i] = total && sum ? sum[i] : passed;
    });
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

  // d loss / d theta = -sum over rows of sign(u) grad where u passes, rows in order
  template <class T>
  Status reduce_threshold(const Sizes& sizes, const T* grad, const int8_t* support, T* /* partial */,
                          T* target) const {
    parallel_for(executor_, sizes.experts, 1, [&](int64_t begin, int64_t end) noexcept {
      for (int64_t flat = begin * sizes.rows; flat < end * sizes.rows; ++flat) {
        T* out = target + flat / sizes.rows * sizes.atoms;
        for (int64_t atom = 0; atom < sizes.atoms; ++atom) {
          const int64_t i = flat * sizes.atoms + atom;
          if (support[i]) out[atom] -= T(support[i]) * grad[i];
        }
      }
    });
    return kOk;
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

int64_t forward_scratch(const Sizes& sizes) {
  return sizes.experts * sizes.rows * 2 * (sizes.atoms + (sizes.form == Form::kCoupled ? sizes.dim : 0));
}

int64_t backward_scratch(const Sizes& sizes) {
  return sizes.experts * sizes.rows * (4 * sizes.atoms + 3 * sizes.dim) +
         sizes.experts * sizes.atoms * std::max(sizes.atoms, sizes.dim);
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
  const CpuKernels kernels(executor);
  return sizes.dtype == DType::kFloat32
             ? unroll_forward<float, float>(sizes, in, out, scratch, executor, kernels)
             : unroll_forward<double, double>(sizes, in, out, scratch, executor, kernels);
}

Status backward_cpu(const Sizes& sizes, const Parameters& in, const Codes& codes, const Gradients& gradients,
                    void* scratch, int8_t* signs, const Executor& executor) {
  const CpuKernels kernels(executor);
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

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <type_traits>
#include <vector>

#include "../common/half.h"
#include "../common/instruction_set.h"
#include "tangent_projection.h"
#include "tangent_projection_math.h"

// Legend as in tangent_projection.h.
namespace stratcore::tangent_projection {
namespace {

constexpr int kPanelBytes = 64;    // anchors that are compared at once with a row: one cache line of them
constexpr int kTilesPerBlock = 8;  // tiles that read a panel of anchors while it is in the cache

template <class T>
constexpr int kPanel = kPanelBytes / static_cast<int>(sizeof(T));

// Anchors scaled to length 1, as panels [D + 1, kPanel]: first what the products start from (0; -inf for the
// columns beyond the last anchor, +inf for an anchor that is not finite), then one row for each dimension.
template <class T>
class Panels {
 public:
  Panels(int64_t anchors, int64_t dim)
      : anchors_(anchors), dim_(dim), count_((anchors + kPanel<T> - 1) / kPanel<T>),
        data_(count_ * stride(), T(0)) {
    for (int64_t beyond = anchors; beyond < count_ * kPanel<T>; ++beyond) {
      *column(beyond) = -std::numeric_limits<T>::infinity();
    }
  }

  int64_t anchors() const { return anchors_; }
  int64_t dim() const { return dim_; }
  int64_t count() const { return count_; }
  const T* operator[](int64_t panel) const { return data_.data() + panel * stride(); }
  T* column(int64_t anchor) { return data_.data() + anchor / kPanel<T> * stride() + anchor % kPanel<T>; }

 private:
  int64_t stride() const { return (dim_ + 1) * kPanel<T>; }

  int64_t anchors_, dim_, count_;
  std::vector<T> data_;
};

// The best of each column of the panels, for one row: which panel it was in, and its cosine.
template <class T>
struct Best {
  alignas(kPanelBytes) T cosine[kPanel<T>];
  alignas(kPanelBytes) typename std::conditional<sizeof(T) == 8, int64_t, int32_t>::type panel[kPanel<T>];
};

// A range of rows of it is a call of run_rows, forward or, with `grad_y`, backward.
struct Job {
  const Problem& problem;
  const Output& out;
  const void* panels;  // Panels<T> of the forward, or null
  const void* grad_y;
  void* grad_x;
};

#define STRATCORE_LANES_FILE "../tangent_projection/tangent_projection_lanes.h"
#include "../common/for_each_instruction_set.h"

// Some ten microseconds of work: smaller pieces are not worth a thread.
int64_t grain_of(const Problem& problem, int64_t anchors) {
  return std::max<int64_t>(1, (1 << 16) / (std::max<int64_t>(problem.dim, 1) * (1 + anchors / 8)));
}

template <class E>
void run(const Job& job, const Executor& executor, int64_t anchors) {
  const auto rows = STRATCORE_BEST(run_rows<E>);
  parallel_for(executor, job.problem.rows, grain_of(job.problem, anchors),
               [&](int64_t begin, int64_t end) noexcept { rows(job, begin, end); });
}

template <class E>
void forward(const Problem& problem, const Output& out, const Executor& executor) {
  if (problem.anchor_count == 0) return run<E>({problem, out, nullptr, nullptr, nullptr}, executor, 0);
  Panels<Computed<E>> panels(problem.anchor_count, problem.dim);
  STRATCORE_BEST(fill_panels<E>)(static_cast<const E*>(problem.anchors), panels);
  run<E>({problem, out, &panels, nullptr, nullptr}, executor, problem.anchor_count);
}

}  // namespace

Status forward_cpu(const Problem& problem, const Output& out, const Executor& executor) {
  with_element<BFloat16, Float16>(problem.element,
                                  [&](auto stored) { forward<decltype(stored)>(problem, out, executor); });
  return kOk;
}

Status backward_cpu(const Problem& problem, const Output& out, const void* grad_y, void* grad_x,
                    const Executor& executor) {
  with_element<BFloat16, Float16>(problem.element, [&](auto stored) {
    run<decltype(stored)>({problem, out, nullptr, grad_y, grad_x}, executor, 0);
  });
  return kOk;
}

}  // namespace stratcore::tangent_projection

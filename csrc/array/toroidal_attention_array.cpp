#include <nanobind/stl/optional.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <optional>
#include <vector>

#include "../toroidal_attention/toroidal_attention.h"
#include "array_binding.h"

namespace stratcore::array {
namespace {

using namespace toroidal_attention;

// At any strides: NumPy broadcasts with strides of 0.
template <class M>
using MaskInput = std::optional<nb::ndarray<const M, nb::ndim<4>, nb::device::cpu>>;

template <class M>
void set_mask(Problem& problem, const MaskInput<M>& mask, MaskElement element) {
  if (mask) {
    problem.mask = {mask->data(),    element,         mask->stride(0),
                    mask->stride(1), mask->stride(2), mask->stride(3)};
  }
}

Strides strides_of(int64_t heads, int64_t rows, int64_t dim) { return {heads * rows * dim, rows * dim, dim}; }

// Sizes and positions; stratcore/array has checked them. `positions`: causal, causal_group, query_offset,
// key_offset.
template <class T>
Problem problem_of(const Input<T>& q, const Input<T>& k, const Input<T>& v, const Input<T>& slopes,
                   const std::vector<int32_t>& lattice, const std::vector<int64_t>& positions) {
  Problem problem{};
  problem.q = q.data();
  problem.k = k.data();
  problem.v = v.data();
  problem.batch = q.shape(0);
  problem.heads = q.shape(1);
  problem.queries = q.shape(2);
  problem.dim = q.shape(3);
  problem.kv_heads = k.shape(1);
  problem.keys = k.shape(2);
  problem.q_strides = strides_of(problem.heads, problem.queries, problem.dim);
  problem.k_strides = problem.v_strides = strides_of(problem.kv_heads, problem.keys, problem.dim);
  problem.element = sizeof(T) == sizeof(double) ? Element::kFloat64 : Element::kFloat32;
  problem.slopes = slopes.data();
  problem.slope_count = static_cast<int32_t>(slopes.shape(1));
  problem.lattice = {static_cast<int32_t>(lattice.size() / 2), {1, 1, 1}, {1, 1, 1}};
  for (int32_t axis = 0; axis < problem.lattice.axes; ++axis) {
    problem.lattice.period[axis] = lattice[axis];
    problem.lattice.block[axis] = lattice[problem.lattice.axes + axis];
  }
  problem.causal = positions[0] != 0;
  problem.causal_group = positions[1];
  problem.query_offset = positions[2];
  problem.key_offset = positions[3];
  return problem;
}

// q [B, H, N, E], k and v [B, G, M, E], slopes [H, S], masks [B, H, N, M]; `lattice`: periods, then blocks.
// Returns out, lse, tiles.
template <class T>
std::tuple<Written<T>, Written<T>, Written<int32_t>> run(
    Input<T> q, Input<T> k, Input<T> v, Input<T> slopes, MaskInput<bool> takes_part, MaskInput<T> added,
    std::vector<int32_t> lattice, int32_t metric, double scale, std::vector<int64_t> positions, double eps) {
  Problem problem = problem_of(q, k, v, slopes, lattice, positions);
  problem.metric = static_cast<Metric>(metric);
  problem.scale = scale;
  problem.eps = eps;
  set_mask(problem, takes_part, MaskElement::kBool);
  set_mask(problem, added, MaskElement::kSame);
  const size_t batch = q.shape(0), heads = q.shape(1), queries = q.shape(2);
  array::Output<T> out({batch, heads, queries, q.shape(3)}), lse({batch, heads, queries});
  array::Output<int32_t> tiles({batch, heads, 2});
  std::fill(tiles.data.get(), tiles.data.get() + batch * heads * 2, 0);
  if (batch > 0 && queries > 0) {
    nb::gil_scoped_release unlocked;
    const ThreadedExecutor executor;
    forward_cpu(problem, {out.data.get(), problem.q_strides, lse.data.get(), tiles.data.get()},
                executor.get());
  }
  return {out.release(), lse.release(), tiles.release()};
}

template <class T>
void bind(nb::module_& module) {
  module.def("toroidal_attention", &run<T>, nb::arg("q").noconvert(), nb::arg("k").noconvert(),
             nb::arg("v").noconvert(), nb::arg("slopes").noconvert(),
             nb::arg("takes_part").noconvert().none(), nb::arg("added").noconvert().none(),
             nb::arg("lattice"), nb::arg("metric"), nb::arg("scale"), nb::arg("positions"), nb::arg("eps"));
}

}  // namespace

void bind_toroidal_attention(nb::module_& module) {
  bind<float>(module);
  bind<double>(module);
}

}  // namespace stratcore::array

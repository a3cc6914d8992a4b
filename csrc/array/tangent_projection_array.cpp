#include <nanobind/stl/tuple.h>

#include "../tangent_projection/tangent_projection.h"
#include "array_binding.h"

namespace stratcore::array {
namespace {

using namespace tangent_projection;

// x [N, D], anchors [A, D] with A = 0 for none; stratcore/array has checked them. Returns y, nearest,
// cosine.
template <class T>
std::tuple<Written<T>, Written<int32_t>, Written<T>> run(Input<T> x, Input<T> anchors, double eps) {
  Problem problem{};
  problem.x = x.data();
  problem.rows = x.shape(0);
  problem.dim = x.shape(1);
  problem.anchor_count = anchors.shape(0);
  problem.anchors = problem.anchor_count > 0 ? anchors.data() : nullptr;
  problem.element = sizeof(T) == sizeof(double) ? Element::kFloat64 : Element::kFloat32;
  problem.eps = eps;
  const size_t rows = problem.rows, compared = problem.anchor_count > 0 ? rows : 0;
  array::Output<T> y({rows, static_cast<size_t>(problem.dim)}), norm({rows}), cosine({compared});
  array::Output<int32_t> nearest({compared});
  {
    nb::gil_scoped_release unlocked;
    const ThreadedExecutor executor;
    forward_cpu(problem, {y.data.get(), norm.data.get(), nearest.data.get(), cosine.data.get()},
                executor.get());
  }
  return {y.release(), nearest.release(), cosine.release()};
}

template <class T>
void bind(nb::module_& module) {
  module.def("sphere_normalize", &run<T>, nb::arg("x").noconvert(), nb::arg("anchors").noconvert(),
             nb::arg("eps"));
}

}  // namespace

void bind_tangent_projection(nb::module_& module) {
  bind<float>(module);
  bind<double>(module);
}

}  // namespace stratcore::array

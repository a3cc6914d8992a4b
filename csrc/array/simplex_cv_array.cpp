#include <nanobind/stl/tuple.h>

#include "../cayley_menger/simplex_cv.h"
#include "array_binding.h"

namespace stratcore::array {
namespace {

using namespace simplex_cv;

// loss, cv, mean, std, count, volumes [n], indices [n, k + 1]; stratcore/array has checked the arguments.
template <class T>
using SampleArrays = std::tuple<double, double, double, double, int64_t, Written<T>, Written<int64_t>>;

template <class T>
SampleArrays<T> run(Input<T> x, Input<int64_t> seed, int32_t order, int64_t num_simplices, int64_t pool,
                    double target, double valid_above, int64_t min_valid, double eps) {
  Problem problem{};
  problem.x = x.data();
  problem.element = sizeof(T) == sizeof(double) ? Element::kFloat64 : Element::kFloat32;
  problem.rows = x.shape(0);
  problem.dim = x.shape(1);
  problem.pool = pool;
  problem.simplices = num_simplices;
  problem.order = order;
  problem.target = target;
  problem.valid_above = valid_above;
  problem.min_valid = min_valid;
  problem.eps = eps;
  const auto simplices = static_cast<size_t>(num_simplices), vertices = static_cast<size_t>(order) + 1;
  Output<T> volumes({simplices});
  Output<int64_t> indices({simplices, vertices});
  T loss, cv, mean, deviation;
  int64_t count;
  {
    nb::gil_scoped_release unlocked;
    const std::unique_ptr<double[]> state(new double[State::size(num_simplices, order)]);
    const ThreadedExecutor executor;
    const Sample out{&loss,
                     &cv,
                     &mean,
                     &deviation,
                     &count,
                     volumes.data.get(),
                     indices.data.get(),
                     {state.get(), num_simplices}};
    forward_cpu(problem, seed.data(), out, nullptr, executor.get());
  }
  return {loss, cv, mean, deviation, count, volumes.release(), indices.release()};
}

template <class T>
void bind(nb::module_& module) {
  module.def("simplex_cv", &run<T>, nb::arg("x").noconvert(), nb::arg("seed").noconvert(), nb::arg("order"),
             nb::arg("num_simplices"), nb::arg("pool"), nb::arg("target"), nb::arg("valid_above"),
             nb::arg("min_valid"), nb::arg("eps"));
}

}  // namespace

void bind_simplex_cv(nb::module_& module) {
  bind<float>(module);
  bind<double>(module);
}

}  // namespace stratcore::array

#include <nanobind/stl/array.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/tuple.h>

#include <array>
#include <optional>

#include "../cayley_menger/cayley_menger.h"
#include "array_binding.h"

namespace stratcore::array {
namespace {

using namespace cayley_menger;

template <class T>
using MeasureArrays = std::tuple<Written<T>, Written<T>, Written<T>, Written<T>, Written<T>>;

// Points [B, k + 1, D], or a table [N, D] and indices [B, k + 1] within it; stratcore/array has checked
// them. Measures that are not wanted have size 0.
template <class T>
MeasureArrays<T> run(nb::ndarray<const T, nb::c_contig, nb::device::cpu> points,
                     std::optional<Input<int64_t>> indices, std::array<bool, 5> wanted) {
  Points problem{};
  problem.data = points.data();
  problem.element = sizeof(T) == sizeof(double) ? Element::kFloat64 : Element::kFloat32;
  problem.dim = points.shape(points.ndim() - 1);
  problem.simplices = indices ? indices->shape(0) : points.shape(0);
  problem.order = static_cast<int32_t>((indices ? indices->shape(1) : points.shape(1)) - 1);
  problem.indices = indices ? indices->data() : nullptr;
  problem.rows = points.shape(0);
  const size_t count = problem.simplices, pairs = problem.pairs();
  const auto size = [&](int which) { return wanted[which] ? count : 0; };
  Output<T> volume({size(0)}), log_volume({size(1)}), squared_volume({size(2)}), determinant({size(3)});
  Output<T> squared_distances({size(4), pairs});
  const auto pointer = [&](int which, Output<T>& output) {
    return wanted[which] ? output.data.get() : nullptr;
  };
  const Measures out{pointer(0, volume), pointer(1, log_volume), pointer(2, squared_volume),
                     pointer(3, determinant), pointer(4, squared_distances)};
  if (count > 0) {
    nb::gil_scoped_release unlocked;
    const ThreadedExecutor executor;
    forward_cpu(problem, out, executor.get());
  }
  return {volume.release(), log_volume.release(), squared_volume.release(), determinant.release(),
          squared_distances.release()};
}

template <class T>
using DistanceArrays = std::tuple<Written<T>, Written<T>, Written<T>, Written<T>, Written<bool>>;

// Squared distances [B, P] of simplices of order k; likewise checked.
template <class T>
DistanceArrays<T> run_distances(Input<T> squared_distances, int32_t k) {
  const size_t count = squared_distances.shape(0);
  Output<T> volume({count}), log_volume({count}), squared_volume({count}), determinant({count});
  Output<bool> euclidean({count});
  if (count > 0) {
    nb::gil_scoped_release unlocked;
    const ThreadedExecutor executor;
    from_distances_cpu({squared_distances.data(), dtype_of<T>(), static_cast<int64_t>(count), k},
                       {volume.data.get(), log_volume.data.get(), squared_volume.data.get(),
                        determinant.data.get(), nullptr},
                       reinterpret_cast<uint8_t*>(euclidean.data.get()), executor.get());
  }
  return {volume.release(), log_volume.release(), squared_volume.release(), determinant.release(),
          euclidean.release()};
}

template <class T>
void bind(nb::module_& module) {
  module.def("cayley_menger", &run<T>, nb::arg("points").noconvert(), nb::arg("indices").none(),
             nb::arg("wanted"));
  module.def("cayley_menger_distances", &run_distances<T>, nb::arg("squared_distances").noconvert(),
             nb::arg("k"));
}

}  // namespace

void bind_cayley_menger(nb::module_& module) {
  bind<float>(module);
  bind<double>(module);
}

}  // namespace stratcore::array

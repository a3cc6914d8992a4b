#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <algorithm>

#include "../topk_lista/topk_lista.h"
#include "array_binding.h"

namespace stratcore::array {
namespace {

using namespace topk_lista;

template <class T>
using DenseAndSparse = std::tuple<Written<T>, Written<T>, Written<int32_t>>;

// Shapes as in topk_lista.h; stratcore/array has checked them.
template <class T>
DenseAndSparse<T> run(Input<T> x, Input<T> encoder, Input<T> recurrent, Input<T> theta,
                      const std::vector<int64_t>& k, const std::string& form, int64_t num_steps) {
  Sizes sizes{};
  sizes.experts = encoder.shape(1);
  sizes.atoms = encoder.shape(2);
  sizes.dim = encoder.shape(3);
  sizes.rows = x.shape(1);
  sizes.width = *std::max_element(k.begin(), k.end());
  sizes.num_steps = num_steps;
  sizes.k = k.data();
  sizes.form = form == "classic" ? Form::kClassic : Form::kCoupled;
  sizes.shared_input = x.shape(0) == 1;
  sizes.encoder_per_step = encoder.shape(0) != 1;
  sizes.recurrent_per_step = recurrent.shape(0) != 1;
  sizes.threshold_per_step = theta.shape(0) != 1;
  sizes.dtype = dtype_of<T>();
  const size_t steps = num_steps + 1, experts = sizes.experts, rows = sizes.rows, width = sizes.width;
  Output<T> dense({experts, rows, static_cast<size_t>(sizes.atoms)}), values({steps, experts, rows, width});
  Output<int32_t> indices({steps, experts, rows, width});
  if (rows > 0) {
    nb::gil_scoped_release unlocked;
    const std::unique_ptr<T[]> scratch(new T[forward_scratch(sizes)]);
    const ThreadedExecutor executor;
    forward_cpu(sizes, {x.data(), encoder.data(), recurrent.data(), theta.data()},
                {dense.data.get(), values.data.get(), indices.data.get(), nullptr}, scratch.get(),
                executor.get());
  }
  return {dense.release(), values.release(), indices.release()};
}

// x [B, m] -> dense [B, m], values [B, k], indices [B, k]; likewise checked by stratcore/array.
template <class T>
DenseAndSparse<T> select(Input<T> x, int64_t k) {
  Sizes sizes{};
  sizes.experts = 1;
  sizes.rows = x.shape(0);
  sizes.atoms = x.shape(1);
  sizes.width = k;
  sizes.k = &k;
  sizes.dtype = dtype_of<T>();
  const size_t rows = sizes.rows, width = k;
  Output<T> dense({rows, static_cast<size_t>(sizes.atoms)}), values({rows, width});
  Output<int32_t> indices({rows, width});
  if (rows > 0) {
    nb::gil_scoped_release unlocked;
    const ThreadedExecutor executor;
    select_cpu(sizes,
               {x.data(), nullptr, nullptr, dense.data.get(), values.data.get(), indices.data.get(), nullptr},
               executor.get());
  }
  return {dense.release(), values.release(), indices.release()};
}

template <class T>
void bind(nb::module_& module) {
  module.def("topk_lista", &run<T>, nb::arg("x").noconvert(), nb::arg("encoder").noconvert(),
             nb::arg("recurrent").noconvert(), nb::arg("theta").noconvert(), nb::arg("k"), nb::arg("form"),
             nb::arg("num_steps"));
  module.def("topk", &select<T>, nb::arg("x").noconvert(), nb::arg("k"));
}

}  // namespace

void bind_topk_lista(nb::module_& module) {
  bind<float>(module);
  bind<double>(module);
}

}  // namespace stratcore::array

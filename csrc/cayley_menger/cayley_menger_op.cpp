#include <algorithm>
#include <array>
#include <tuple>

#include "../common/torch_op.h"
#include "cayley_menger.h"

// The torch side of the slice: schemas, checks, allocation. Legend as in cayley_menger.h.
namespace stratcore::cayley_menger {
namespace {

constexpr const char* kOp = "cayley_menger";

int32_t check_order(int64_t vertices) {
  STD_TORCH_CHECK(vertices >= 2 && vertices <= kMaxOrder + 1, kOp, ": expected 2 to ", kMaxOrder + 1,
                  " vertices a simplex, got ", vertices);
  return static_cast<int32_t>(vertices - 1);
}

Points check(const Tensor& points, const OptionalTensor& indices) {
  check_floating(kOp, "points", points);
  check_dim(kOp, "points", points, indices ? 2 : 3);
  Points problem{};
  problem.element = element_of(points);
  problem.dim = points.size(-1);
  if (!indices) {
    problem.simplices = points.size(0);
    problem.order = check_order(points.size(1));
    return problem;
  }
  check_dim(kOp, "indices", *indices, 2);
  check_int64(kOp, "indices", *indices);
  STD_TORCH_CHECK(indices->device() == points.device(), kOp,
                  ": expected indices on the device of the first argument");
  problem.simplices = indices->size(0);
  problem.order = check_order(indices->size(1));
  problem.rows = points.size(0);
  return problem;
}

// On the CPU an index outside of the table is named; a GPU would have to be waited for and writes NaN
// instead.
void check_range(const Points& points) {
  const int64_t count = points.simplices * (points.order + 1);
  const auto outside = [&](int64_t row) { return row < 0 || row >= points.rows; };
  const int64_t* found = std::find_if(points.indices, points.indices + count, outside);
  if (found == points.indices + count) return;
  STD_TORCH_CHECK(false, kOp, ": expected indices in [0, ", points.rows, "), got ", *found, " in simplex ",
                  (found - points.indices) / (points.order + 1));
}

// Contiguous; must outlive the pointers that it writes into `problem`.
struct Inputs {
  Tensor points;
  OptionalTensor indices;

  Inputs(const Tensor& points_, const OptionalTensor& indices_, Points& problem)
      : points(row_major(points_)) {
    problem.data = points.const_data_ptr();
    if (!indices_) return;
    indices = row_major(*indices_);
    problem.indices = indices->const_data_ptr<int64_t>();
  }
};

struct Cpu {
  static constexpr auto forward = &forward_cpu;
  static constexpr auto backward = &backward_cpu;
  static constexpr auto from_distances = &from_distances_cpu;
  static constexpr auto from_distances_backward = &from_distances_backward_cpu;
};

#ifdef STRATCORE_CUDA
struct Cuda {
  static constexpr auto forward = &forward_cuda;
  static constexpr auto backward = &backward_cuda;
  static constexpr auto from_distances = &from_distances_cuda;
  static constexpr auto from_distances_backward = &from_distances_backward_cuda;
};
#endif

using Outputs = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor>;

template <class Device>
Outputs forward(const Tensor& points, OptionalTensor indices, bool volume, bool log_volume,
                bool squared_volume, bool determinant, bool squared_distances,
                bool /* deterministic: for the gradient */) {
  Points problem = check(points, indices);
  const ScalarType type = compute_type(points);
  const auto output = [&](bool wanted, const Shape& shape) {
    return empty(points, wanted ? shape : Shape{0}, type);
  };
  const Shape each{problem.simplices};
  Tensor volumes = output(volume, each), logarithms = output(log_volume, each);
  Tensor squares = output(squared_volume, each), determinants = output(determinant, each);
  Tensor distances = output(squared_distances, {problem.simplices, problem.pairs()});
  if (problem.simplices > 0) {
    const Inputs inputs(points, indices, problem);
    if (problem.indices && !points.is_cuda()) check_range(problem);
    const Measures out{data_of(volume, volumes), data_of(log_volume, logarithms),
                       data_of(squared_volume, squares), data_of(determinant, determinants),
                       data_of(squared_distances, distances)};
    const TorchExecutor executor(points);
    executor.check(kOp, Device::forward(problem, out, executor.get()));
  }
  return {volumes, logarithms, squares, determinants, distances};
}

// The given cotangents, contiguous and of the type of the measures; must outlive the pointers.
class CotangentTensors {
 public:
  CotangentTensors(std::array<OptionalTensor, 5> grads, int64_t simplices, int64_t pairs, ScalarType type) {
    constexpr const char* kNames[] = {"grad_volume", "grad_log_volume", "grad_squared_volume",
                                      "grad_determinant", "grad_squared_distances"};
    for (size_t i = 0; i < grads.size(); ++i) {
      if (!grads[i]) continue;
      check_shape(kOp, kNames[i], *grads[i], i < 4 ? Shape{simplices} : Shape{simplices, pairs});
      held_[i] = contiguous_as(*grads[i], type);
    }
  }

  Cotangents pointers() const {
    return {data_of(held_[0]), data_of(held_[1]), data_of(held_[2]), data_of(held_[3]), data_of(held_[4])};
  }

 private:
  std::array<OptionalTensor, 5> held_;
};

template <class Device>
Tensor backward(OptionalTensor grad_volume, OptionalTensor grad_log_volume,
                OptionalTensor grad_squared_volume, OptionalTensor grad_determinant,
                OptionalTensor grad_squared_distances, const Tensor& points, OptionalTensor indices,
                OptionalTensor order) {
  Points problem = check(points, indices);
  const ScalarType type = compute_type(points);
  const CotangentTensors cotangents({grad_volume, grad_log_volume, grad_squared_volume, grad_determinant,
                                     grad_squared_distances},
                                    problem.simplices, problem.pairs(), type);
  Tensor grad =
      indices ? zeros(points, shape_of(points), type) : empty(points, shape_of(points), points.scalar_type());
  if (problem.simplices > 0 && problem.dim > 0) {
    const Inputs inputs(points, indices, problem);
    const int64_t vertices = problem.simplices * (problem.order + 1);
    OptionalTensor sorted, workspace;
    if (indices && order) {
      check_shape(kOp, "order", *order, {vertices});
      check_int64(kOp, "order", *order);
      STD_TORCH_CHECK(order->device() == points.device(), kOp,
                      ": expected order on the device of the first argument");
      sorted = row_major(*order);
      if (points.is_cuda()) workspace = empty(points, {vertices, problem.dim}, type);
    }
    const TorchExecutor executor(points);
    executor.check(kOp,
                   Device::backward(problem, cotangents.pointers(), grad.mutable_data_ptr(),
                                    sorted ? sorted->const_data_ptr<int64_t>() : nullptr,
                                    workspace ? workspace->mutable_data_ptr() : nullptr, executor.get()));
  }
  return cast(grad, points.scalar_type());
}

// ---- from given squared distances

constexpr const char* kDistancesOp = "cayley_menger_distances";

Distances check_distances(const Tensor& squared_distances, int64_t k) {
  check_floating(kDistancesOp, "squared_distances", squared_distances);
  check_dim(kDistancesOp, "squared_distances", squared_distances, 2);
  STD_TORCH_CHECK(k >= 1 && k <= kMaxOrder, kDistancesOp, ": expected k in [1, ", kMaxOrder, "], got ", k);
  check_shape(kDistancesOp, "squared_distances", squared_distances,
              {squared_distances.size(0), k * (k + 1) / 2});
  return {nullptr, compute_dtype(squared_distances), squared_distances.size(0), static_cast<int32_t>(k)};
}

template <class Device>
Outputs from_distances(const Tensor& squared_distances, int64_t k) {
  Distances problem = check_distances(squared_distances, k);
  const ScalarType type = compute_type(squared_distances);
  const Shape each{problem.simplices};
  std::array<Tensor, 4> out{empty(squared_distances, each, type), empty(squared_distances, each, type),
                            empty(squared_distances, each, type), empty(squared_distances, each, type)};
  Tensor euclidean = empty(squared_distances, each, ScalarType::Bool);
  if (problem.simplices > 0) {
    const Tensor given = contiguous_as(squared_distances, type);
    problem.data = given.const_data_ptr();
    const TorchExecutor executor(squared_distances);
    const Measures measures{out[0].mutable_data_ptr(), out[1].mutable_data_ptr(), out[2].mutable_data_ptr(),
                            out[3].mutable_data_ptr(), nullptr};
    auto* flags = static_cast<uint8_t*>(euclidean.mutable_data_ptr());
    executor.check(kDistancesOp, Device::from_distances(problem, measures, flags, executor.get()));
  }
  return {out[0], out[1], out[2], out[3], euclidean};
}

template <class Device>
Tensor from_distances_backward(OptionalTensor grad_volume, OptionalTensor grad_log_volume,
                               OptionalTensor grad_squared_volume, OptionalTensor grad_determinant,
                               const Tensor& squared_distances, int64_t k) {
  Distances problem = check_distances(squared_distances, k);
  const ScalarType type = compute_type(squared_distances);
  const CotangentTensors cotangents({grad_volume, grad_log_volume, grad_squared_volume, grad_determinant,
                                     std::nullopt},
                                    problem.simplices, 0, type);
  Tensor grad = empty(squared_distances, shape_of(squared_distances), type);
  if (problem.simplices > 0) {
    const Tensor given = contiguous_as(squared_distances, type);
    problem.data = given.const_data_ptr();
    const TorchExecutor executor(squared_distances);
    executor.check(kDistancesOp, Device::from_distances_backward(problem, cotangents.pointers(),
                                                                 grad.mutable_data_ptr(), executor.get()));
  }
  return cast(grad, squared_distances.scalar_type());
}

template <class Device>
void implement(Library& m) {
  m.impl("cayley_menger", TORCH_BOX(&forward<Device>));
  m.impl("cayley_menger_backward", TORCH_BOX(&backward<Device>));
  m.impl("cayley_menger_distances", TORCH_BOX(&from_distances<Device>));
  m.impl("cayley_menger_distances_backward", TORCH_BOX(&from_distances_backward<Device>));
}

}  // namespace
}  // namespace stratcore::cayley_menger

STABLE_TORCH_LIBRARY_FRAGMENT(stratcore, m) {
  m.def(
      "cayley_menger(Tensor points, Tensor? indices, bool volume, bool log_volume, bool squared_volume, "
      "bool determinant, bool squared_distances, bool deterministic) -> (Tensor volume, Tensor log_volume, "
      "Tensor squared_volume, Tensor determinant, Tensor squared_distances)");
  m.def(
      "cayley_menger_backward(Tensor? grad_volume, Tensor? grad_log_volume, Tensor? grad_squared_volume, "
      "Tensor? grad_determinant, Tensor? grad_squared_distances, Tensor points, Tensor? indices, "
      "Tensor? order) -> Tensor");
  m.def(
      "cayley_menger_distances(Tensor squared_distances, int k) -> (Tensor volume, Tensor log_volume, "
      "Tensor squared_volume, Tensor determinant, Tensor euclidean)");
  m.def(
      "cayley_menger_distances_backward(Tensor? grad_volume, Tensor? grad_log_volume, "
      "Tensor? grad_squared_volume, Tensor? grad_determinant, Tensor squared_distances, int k) -> Tensor");
}

STRATCORE_REGISTER(cayley_menger)

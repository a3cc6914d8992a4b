#include <map>
#include <mutex>
#include <tuple>
#include <utility>

#include "../common/torch_op.h"
#include "simplex_cv.h"

// The torch side of simplex_cv: schemas, checks, allocation. Legend as in simplex_cv.h.
namespace stratcore::simplex_cv {
namespace {

constexpr const char* kOp = "simplex_cv";
constexpr int64_t kMaxOrder = 8;

struct Options {
  double target, valid_above;
  int64_t min_valid;
  double eps;
};

Problem check(const Tensor& x, int64_t order, int64_t simplices, int64_t pool, const Options& options) {
  check_floating(kOp, "x", x);
  check_dim(kOp, "x", x, 2);
  STD_TORCH_CHECK(order >= 1 && order <= kMaxOrder, kOp, ": expected k in [1, ", kMaxOrder, "], got ", order);
  STD_TORCH_CHECK(x.size(1) >= 1, kOp, ": expected x with at least one column, got ", to_string(shape_of(x)));
  STD_TORCH_CHECK(simplices >= 1, kOp, ": expected num_simplices >= 1, got ", simplices);
  STD_TORCH_CHECK(pool > order && pool <= x.size(0), kOp, ": expected pool in [k + 1, rows of x] = [",
                  order + 1, ", ", x.size(0), "], got ", pool);
  STD_TORCH_CHECK(options.valid_above >= 0, kOp, ": expected valid_above >= 0, got ", options.valid_above);
  STD_TORCH_CHECK(options.min_valid >= 2, kOp, ": expected min_valid >= 2, got ", options.min_valid);
  STD_TORCH_CHECK(options.eps >= 0, kOp, ": expected eps >= 0, got ", options.eps);
  Problem problem{};
  problem.element = element_of(x);
  problem.rows = x.size(0);
  problem.dim = x.size(1);
  problem.pool = pool;
  problem.simplices = simplices;
  problem.order = static_cast<int32_t>(order);
  problem.target = options.target;
  problem.valid_above = options.valid_above;
  problem.min_valid = options.min_valid;
  problem.eps = options.eps;
  return problem;
}

void check_seed(const Tensor& seed, const Tensor& x) {
  check_shape(kOp, "seed", seed, {2});
  check_int64(kOp, "seed", seed);
  STD_TORCH_CHECK(seed.device() == x.device(), kOp, ": expected seed on the device of x");
}

struct Cpu {
  static constexpr auto forward = &forward_cpu;
  static constexpr auto backward = &backward_cpu;
};

#ifdef STRATCORE_CUDA
struct Cuda {
  static constexpr auto forward = &forward_cuda;
  static constexpr auto backward = &backward_cuda;
};
#endif

// The counter of a forward on a GPU. The kernel leaves it at zero and kernels of a stream follow each other,
// so there is one for every stream, kept for good: its memory must not outlive the CUDA context in a
// destructor. What is captured may be run on any stream, and gets its own.
Tensor counter_for(const Tensor& x, const Executor& executor) {
  static std::mutex mutex;
  static auto& counters = *new std::map<std::pair<int64_t, void*>, Tensor>();
  if (is_capturing(executor)) return zeros(x, {1}, ScalarType::Int);
  const std::lock_guard<std::mutex> lock(mutex);
  const std::pair<int64_t, void*> key{x.get_device_index(), executor.stream};
  const auto found = counters.find(key);
  return found != counters.end() ? found->second
                                 : counters.emplace(key, zeros(x, {1}, ScalarType::Int)).first->second;
}

using Outputs = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;

template <class Device>
Outputs forward(const Tensor& x, const Tensor& seed, int64_t order, int64_t num_simplices, int64_t pool,
                double target, double valid_above, int64_t min_valid, double eps) {
  Problem problem = check(x, order, num_simplices, pool, {target, valid_above, min_valid, eps});
  check_seed(seed, x);
  const Tensor rows = row_major(x), pair = row_major(seed);
  problem.x = rows.const_data_ptr();
  const ScalarType type = compute_type(x);
  Tensor loss = empty(x, {}, type), cv = empty(x, {}, type), mean = empty(x, {}, type);
  Tensor deviation = empty(x, {}, type), count = empty(x, {}, ScalarType::Long);
  Tensor volumes = empty(x, {num_simplices}, type);
  Tensor indices = empty(x, {num_simplices, order + 1}, ScalarType::Long);
  Tensor state = empty(x, {State::size(num_simplices, order)}, ScalarType::Double);
  const Sample out{loss.mutable_data_ptr(),
                   cv.mutable_data_ptr(),
                   mean.mutable_data_ptr(),
                   deviation.mutable_data_ptr(),
                   count.mutable_data_ptr<int64_t>(),
                   volumes.mutable_data_ptr(),
                   indices.mutable_data_ptr<int64_t>(),
                   {state.mutable_data_ptr<double>(), num_simplices}};
  const TorchExecutor executor(x);
  OptionalTensor counter;
  if (x.is_cuda()) counter = counter_for(x, executor.get());
  auto* count_blocks = counter ? static_cast<uint32_t*>(counter->mutable_data_ptr()) : nullptr;
  executor.check(kOp,
                 Device::forward(problem, pair.const_data_ptr<int64_t>(), out, count_blocks, executor.get()));
  return {loss, cv, mean, deviation, count, volumes, indices, state};
}

// Contiguous cotangent of the compute type.
OptionalTensor prepared(const char* name, const OptionalTensor& grad, const Shape& shape, ScalarType type) {
  if (grad) check_shape(kOp, name, *grad, shape);
  return contiguous_as(grad, type);
}

template <class Device>
Tensor backward(OptionalTensor grad_loss, OptionalTensor grad_cv, OptionalTensor grad_mean,
                OptionalTensor grad_std, OptionalTensor grad_volumes, const Tensor& x, const Tensor& indices,
                const Tensor& state, double target, double valid_above, int64_t min_valid, double eps) {
  check_dim(kOp, "indices", indices, 2);
  Problem problem =
      check(x, indices.size(1) - 1, indices.size(0), x.size(0), {target, valid_above, min_valid, eps});
  check_int64(kOp, "indices", indices);
  check_shape(kOp, "state", state, {State::size(problem.simplices, problem.order)});
  check_dtype(kOp, "state", state, ScalarType::Double, "float64");
  const ScalarType type = compute_type(x);
  const OptionalTensor loss = prepared("grad_loss", grad_loss, {}, type);
  const OptionalTensor cv = prepared("grad_cv", grad_cv, {}, type);
  const OptionalTensor mean = prepared("grad_mean", grad_mean, {}, type);
  const OptionalTensor std = prepared("grad_std", grad_std, {}, type);
  const OptionalTensor volumes = prepared("grad_volumes", grad_volumes, {problem.simplices}, type);
  const Cotangents cotangents{data_of(loss), data_of(cv), data_of(mean), data_of(std), data_of(volumes)};
  const Tensor rows = row_major(x), vertices = row_major(indices), saved = row_major(state);
  problem.x = rows.const_data_ptr();
  Tensor grad = empty(x, {problem.rows, problem.dim}, x.scalar_type());
  const TorchExecutor executor(x);
  executor.check(kOp, Device::backward(problem, vertices.const_data_ptr<int64_t>(),
                                       {saved.const_data_ptr<double>(), problem.simplices}, cotangents,
                                       grad.mutable_data_ptr(), executor.get()));
  return grad;
}

template <class Device>
void implement(Library& m) {
  m.impl("simplex_cv", TORCH_BOX(&forward<Device>));
  m.impl("simplex_cv_backward", TORCH_BOX(&backward<Device>));
}

}  // namespace
}  // namespace stratcore::simplex_cv

STABLE_TORCH_LIBRARY_FRAGMENT(stratcore, m) {
  m.def(
      "simplex_cv(Tensor x, Tensor seed, int order, int num_simplices, SymInt pool, float target, "
      "float valid_above, int min_valid, float eps) -> (Tensor loss, Tensor cv, Tensor mean, Tensor std, "
      "Tensor count, Tensor volumes, Tensor indices, Tensor state)");
  m.def(
      "simplex_cv_backward(Tensor? grad_loss, Tensor? grad_cv, Tensor? grad_mean, Tensor? grad_std, "
      "Tensor? grad_volumes, Tensor x, Tensor indices, Tensor state, float target, float valid_above, "
      "int min_valid, float eps) -> Tensor");
}

STRATCORE_REGISTER(simplex_cv)

#include <tuple>

#include "../common/torch_op.h"
#include "simplex_cv.h"

// The torch side of simplex_cv: schemas, checks, allocation. Legend as in simplex_cv.h.
namespace stratcore::simplex_cv {
namespace {

constexpr const char* kOp = "simplex_cv";
constexpr int64_t kMaxOrder = 8;

Element element_of(const Tensor& tensor) {
  switch (tensor.scalar_type()) {
    case ScalarType::Double:
      return Element::kFloat64;
    case ScalarType::BFloat16:
      return Element::kBFloat16;
    case ScalarType::Half:
      return Element::kFloat16;
    default:
      return Element::kFloat32;
  }
}

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
  STD_TORCH_CHECK(seed.scalar_type() == ScalarType::Long, kOp, ": expected seed of dtype int64");
  STD_TORCH_CHECK(seed.device() == x.device(), kOp, ": expected seed on the device of x");
}

using Forward = Status (*)(const Problem&, const int64_t*, const Sample&, uint32_t*, const Executor&);
using Outputs = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;

template <Forward kForward>
Outputs forward(const Tensor& x, const Tensor& seed, int64_t order, int64_t num_simplices, int64_t pool,
                double target, double valid_above, int64_t min_valid, double eps) {
  Problem problem = check(x, order, num_simplices, pool, {target, valid_above, min_valid, eps});
  check_seed(seed, x);
  const Tensor rows = torch::stable::contiguous(x), pair = torch::stable::contiguous(seed);
  problem.x = rows.const_data_ptr();
  const ScalarType type = compute_type(x);
  Tensor loss = empty(x, {}, type), cv = empty(x, {}, type), mean = empty(x, {}, type);
  Tensor deviation = empty(x, {}, type), count = empty(x, {}, ScalarType::Long);
  Tensor volumes = empty(x, {num_simplices}, type);
  Tensor indices = empty(x, {num_simplices, order + 1}, ScalarType::Long);
  Tensor weights = empty(x, {num_simplices, order * (order + 1) / 2}, ScalarType::Double);
  std::optional<Tensor> counter;
  if (x.is_cuda()) counter = zeros(x, {1}, ScalarType::Int);
  const Sample out{loss.mutable_data_ptr(),
                   cv.mutable_data_ptr(),
                   mean.mutable_data_ptr(),
                   deviation.mutable_data_ptr(),
                   count.mutable_data_ptr<int64_t>(),
                   volumes.mutable_data_ptr(),
                   indices.mutable_data_ptr<int64_t>(),
                   weights.mutable_data_ptr<double>()};
  const TorchExecutor executor(x);
  auto* ticket = counter ? static_cast<uint32_t*>(counter->mutable_data_ptr()) : nullptr;
  executor.check(kOp, kForward(problem, pair.const_data_ptr<int64_t>(), out, ticket, executor.get()));
  return {loss, cv, mean, deviation, count, volumes, indices, weights};
}

using Given = std::optional<Tensor>;

// Contiguous cotangent of the compute type, of the shape of `like`.
Given prepared(const char* name, const Given& grad, const Tensor& like, ScalarType type) {
  if (!grad) return std::nullopt;
  check_shape(kOp, name, *grad, shape_of(like));
  return contiguous_as(*grad, type);
}

const void* pointer(const Given& tensor) { return tensor ? tensor->const_data_ptr() : nullptr; }

void check_sample(const Problem& problem, const Tensor& volumes, const Tensor& weights,
                  const Tensor& indices) {
  check_shape(kOp, "volumes", volumes, {problem.simplices});
  check_shape(kOp, "indices", indices, {problem.simplices, problem.order + 1});
  check_shape(kOp, "weights", weights, {problem.simplices, problem.order * (problem.order + 1) / 2});
  STD_TORCH_CHECK(indices.scalar_type() == ScalarType::Long, kOp, ": expected indices of dtype int64");
  STD_TORCH_CHECK(weights.scalar_type() == ScalarType::Double, kOp, ": expected weights of dtype float64");
}

using Backward = Status (*)(const Problem&, const Sample&, const Cotangents&, void*, const Executor&);

template <Backward kBackward>
Tensor backward(Given grad_loss, Given grad_cv, Given grad_mean, Given grad_std, Given grad_volumes,
                const Tensor& x, const Tensor& cv, const Tensor& mean, const Tensor& std, const Tensor& count,
                const Tensor& volumes, const Tensor& indices, const Tensor& weights, double target,
                double valid_above, int64_t min_valid, double eps) {
  check_dim(kOp, "indices", indices, 2);
  Problem problem =
      check(x, indices.size(1) - 1, indices.size(0), x.size(0), {target, valid_above, min_valid, eps});
  check_sample(problem, volumes, weights, indices);
  STD_TORCH_CHECK(count.scalar_type() == ScalarType::Long, kOp, ": expected count of dtype int64");
  const ScalarType type = compute_type(x);
  const Given loss = prepared("grad_loss", grad_loss, cv, type),
              ratio = prepared("grad_cv", grad_cv, cv, type);
  const Given average = prepared("grad_mean", grad_mean, mean, type);
  const Given deviation = prepared("grad_std", grad_std, std, type);
  const Given each = prepared("grad_volumes", grad_volumes, volumes, type);
  const Tensor rows = torch::stable::contiguous(x);
  problem.x = rows.const_data_ptr();
  const Tensor saved[] = {
      contiguous_as(cv, type),      contiguous_as(mean, type),          contiguous_as(std, type),
      contiguous_as(volumes, type), torch::stable::contiguous(indices), torch::stable::contiguous(weights)};
  const auto read = [](const Tensor& tensor) { return const_cast<void*>(tensor.const_data_ptr()); };
  const Sample sample{nullptr,
                      read(saved[0]),
                      read(saved[1]),
                      read(saved[2]),
                      static_cast<int64_t*>(read(count)),
                      read(saved[3]),
                      static_cast<int64_t*>(read(saved[4])),
                      static_cast<double*>(read(saved[5]))};
  const Cotangents cotangents{pointer(loss), pointer(ratio), pointer(average), pointer(deviation),
                              pointer(each)};
  Tensor grad = empty(x, {problem.rows, problem.dim}, x.scalar_type());
  const TorchExecutor executor(x);
  executor.check(kOp, kBackward(problem, sample, cotangents, grad.mutable_data_ptr(), executor.get()));
  return grad;
}

}  // namespace
}  // namespace stratcore::simplex_cv

STABLE_TORCH_LIBRARY_FRAGMENT(stratcore, m) {
  m.def(
      "simplex_cv(Tensor x, Tensor seed, int order, int num_simplices, SymInt pool, float target, "
      "float valid_above, int min_valid, float eps) -> (Tensor loss, Tensor cv, Tensor mean, Tensor std, "
      "Tensor count, Tensor volumes, Tensor indices, Tensor weights)");
  m.def(
      "simplex_cv_backward(Tensor? grad_loss, Tensor? grad_cv, Tensor? grad_mean, Tensor? grad_std, "
      "Tensor? grad_volumes, Tensor x, Tensor cv, Tensor mean, Tensor std, Tensor count, Tensor volumes, "
      "Tensor indices, Tensor weights, float target, float valid_above, int min_valid, float eps) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(stratcore, CPU, m) {
  using namespace stratcore::simplex_cv;
  m.impl("simplex_cv", TORCH_BOX(&forward<forward_cpu>));
  m.impl("simplex_cv_backward", TORCH_BOX(&backward<backward_cpu>));
}

#ifdef STRATCORE_CUDA
STABLE_TORCH_LIBRARY_IMPL(stratcore, CUDA, m) {
  using namespace stratcore::simplex_cv;
  m.impl("simplex_cv", TORCH_BOX(&forward<forward_cuda>));
  m.impl("simplex_cv_backward", TORCH_BOX(&backward<backward_cuda>));
}
#endif

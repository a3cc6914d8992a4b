#include <cmath>
#include <tuple>

#include "../common/torch_op.h"
#include "tangent_projection.h"

// The torch side of the slice: schemas, checks, allocation. Legend as in tangent_projection.h.
namespace stratcore::tangent_projection {
namespace {

constexpr const char* kOp = "tangent_projection";
// Below it, squares leave the range of float32.
constexpr double kLeastEps = 1e-18;

SeparationSign parse_sign(const std::string& sign) {
  STD_TORCH_CHECK(sign == "repel" || sign == "reference", kOp,
                  ": expected separation_sign to be one of repel, reference, got '", sign, "'");
  return sign == "repel" ? SeparationSign::kRepel : SeparationSign::kReference;
}

Jacobian parse_jacobian(const std::string& jacobian) {
  if (jacobian == "tangent") return Jacobian::kTangent;
  if (jacobian == "normalize") return Jacobian::kNormalize;
  STD_TORCH_CHECK(jacobian == "identity", kOp,
                  ": expected jacobian to be one of tangent, normalize, identity, got '", jacobian, "'");
  return Jacobian::kIdentity;
}

struct Options {
  double tangential, separation;
  const std::string& separation_sign;
  const std::string& jacobian;
  double eps;
};

// Checked sizes; the pointers are set once the tensors are contiguous.
Problem check(const Tensor& x, const OptionalTensor& anchors, const Options& options) {
  check_floating(kOp, "x", x);
  check_dim(kOp, "x", x, 2);
  Problem problem{};
  problem.element = element_of(x);
  problem.rows = x.size(0);
  problem.dim = x.size(1);
  STD_TORCH_CHECK(problem.dim > 0, kOp, ": expected x with at least one dimension a row, got ",
                  to_string(shape_of(x)));
  if (anchors) {
    check_dim(kOp, "anchors", *anchors, 2);
    check_like(kOp, "anchors", *anchors, x);
    problem.anchor_count = anchors->size(0);
    STD_TORCH_CHECK(problem.anchor_count > 0 && anchors->size(1) == problem.dim, kOp,
                    ": expected anchors of shape [A, ", problem.dim, "] with A >= 1, got ",
                    to_string(shape_of(*anchors)));
  }
  STD_TORCH_CHECK(std::isfinite(options.tangential) && std::isfinite(options.separation), kOp,
                  ": expected finite tangential and separation, got ", options.tangential, " and ",
                  options.separation);
  STD_TORCH_CHECK(std::isfinite(options.eps) && options.eps >= kLeastEps, kOp,
                  ": expected a finite eps >= ", kLeastEps, ", got ", options.eps);
  problem.eps = options.eps;
  problem.tangential = options.tangential;
  problem.separation = options.separation;
  problem.sign = parse_sign(options.separation_sign);
  problem.jacobian = parse_jacobian(options.jacobian);
  return problem;
}

// Contiguous tensors of the problem; must outlive its pointers.
struct Inputs {
  Tensor x;
  OptionalTensor anchors;

  Inputs(const Tensor& x_, const OptionalTensor& anchors_, Problem& problem) : x(row_major(x_)) {
    if (anchors_) anchors = row_major(*anchors_);
    problem.x = x.const_data_ptr();
    problem.anchors = data_of(anchors);
  }
};

struct Cpu {
  static int64_t scratch(const Problem&) { return 0; }
  static Status forward(const Problem& problem, const Output& out, void*, const Executor& executor) {
    return forward_cpu(problem, out, executor);
  }
  static constexpr auto backward = &backward_cpu;
};

#ifdef STRATCORE_CUDA
struct Cuda {
  static constexpr auto scratch = &forward_scratch_cuda;
  static constexpr auto forward = &forward_cuda;
  static constexpr auto backward = &backward_cuda;
};
#endif

template <class Device>
std::tuple<Tensor, Tensor, Tensor, Tensor> forward(const Tensor& x, OptionalTensor anchors, double tangential,
                                                   double separation, std::string separation_sign,
                                                   std::string jacobian, double eps) {
  Problem problem = check(x, anchors, {tangential, separation, separation_sign, jacobian, eps});
  const ScalarType type = compute_type(x);
  const Shape compared{anchors ? problem.rows : 0};
  Tensor y = empty(x, {problem.rows, problem.dim}, x.scalar_type()), norm = empty(x, {problem.rows}, type);
  Tensor nearest = empty(x, compared, ScalarType::Int), cosine = empty(x, compared, type);
  if (problem.rows > 0) {
    const Inputs inputs(x, anchors, problem);
    const Output out{y.mutable_data_ptr(), norm.mutable_data_ptr(),
                     anchors ? nearest.mutable_data_ptr<int32_t>() : nullptr,
                     data_of(anchors.has_value(), cosine)};
    const int64_t bytes = Device::scratch(problem);
    OptionalTensor scratch;
    if (bytes > 0) scratch = empty(x, {bytes}, ScalarType::Byte);
    const TorchExecutor executor(x);
    executor.check(kOp, Device::forward(problem, out, scratch ? scratch->mutable_data_ptr() : nullptr,
                                        executor.get()));
  }
  return {y, norm, nearest, cosine};
}

template <class Device>
Tensor backward(const Tensor& grad_y, const Tensor& x, OptionalTensor anchors, const Tensor& norm,
                const Tensor& nearest, double tangential, double separation, std::string separation_sign,
                std::string jacobian, double eps) {
  Problem problem = check(x, anchors, {tangential, separation, separation_sign, jacobian, eps});
  check_like(kOp, "grad_y", grad_y, x);
  check_shape(kOp, "grad_y", grad_y, {problem.rows, problem.dim});
  check_shape(kOp, "norm", norm, {problem.rows});
  STD_TORCH_CHECK(norm.scalar_type() == compute_type(x) && norm.device() == x.device(), kOp,
                  ": expected norm as the forward returned it");
  if (anchors) {
    check_shape(kOp, "nearest", nearest, {problem.rows});
    STD_TORCH_CHECK(nearest.scalar_type() == ScalarType::Int && nearest.device() == x.device(), kOp,
                    ": expected nearest as the forward returned it");
  }
  Tensor grad_x = empty(x, {problem.rows, problem.dim}, x.scalar_type());
  if (problem.rows > 0) {
    const Inputs inputs(x, anchors, problem);
    const Tensor gradient = row_major(grad_y), norms = row_major(norm);
    const Tensor indices = row_major(nearest);
    const Output out{nullptr, read_only(norms), anchors ? read_only<int32_t>(indices) : nullptr, nullptr};
    const TorchExecutor executor(x);
    executor.check(kOp, Device::backward(problem, out, gradient.const_data_ptr(), grad_x.mutable_data_ptr(),
                                         executor.get()));
  }
  return grad_x;
}

template <class Device>
void implement(Library& m) {
  m.impl("tangent_projection", TORCH_BOX(&forward<Device>));
  m.impl("tangent_projection_backward", TORCH_BOX(&backward<Device>));
}

}  // namespace
}  // namespace stratcore::tangent_projection

STABLE_TORCH_LIBRARY_FRAGMENT(stratcore, m) {
  m.def(
      "tangent_projection(Tensor x, Tensor? anchors, float tangential, float separation, str separation_sign, "
      "str jacobian, float eps) -> (Tensor y, Tensor norm, Tensor nearest, Tensor cosine)");
  m.def(
      "tangent_projection_backward(Tensor grad_y, Tensor x, Tensor? anchors, Tensor norm, Tensor nearest, "
      "float tangential, float separation, str separation_sign, str jacobian, float eps) -> Tensor");
}

STRATCORE_REGISTER(tangent_projection)

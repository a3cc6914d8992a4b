#include <cmath>
#include <tuple>

#include "../common/torch_op.h"
#include "toroidal_attention.h"

// The torch side of the slice: schemas, checks, allocation. Legend as in toroidal_attention.h.
namespace stratcore::toroidal_attention {
namespace {

constexpr const char* kOp = "toroidal_attention";
constexpr int64_t kMostDim = 256;
constexpr int64_t kMostPosition = int64_t(1) << 60;  // so that sums of positions stay in int64

struct Options {
  const Shape& lattice;
  const Shape& block;
  const std::string& metric;
  double scale;
  bool causal;
  int64_t causal_group, query_offset, key_offset;
  double eps;
};

Metric parse_metric(const std::string& metric) {
  if (metric == "l1") return Metric::kL1;
  if (metric == "l2") return Metric::kL2;
  if (metric == "linf") return Metric::kLinf;
  if (metric == "chordal") return Metric::kChordal;
  STD_TORCH_CHECK(metric == "chordal_sq", kOp,
                  ": expected metric to be one of l1, l2, linf, chordal, chordal_sq, got '", metric, "'");
  return Metric::kChordalSquared;
}

Lattice check_lattice(const Shape& lattice, const Shape& block) {
  const auto axes = static_cast<int32_t>(lattice.size());
  bool fits = axes >= 1 && axes <= kMaxAxes;
  double sites = 1;
  for (const int64_t period : lattice) {
    fits = fits && period >= 1 && period <= kMostPeriod;
    sites *= static_cast<double>(period);
  }
  STD_TORCH_CHECK(fits && sites <= static_cast<double>(kMostPosition), kOp,
                  ": expected lattice of 1 to 3 periods from 1 to 2^24, at most 2^60 sites, got ",
                  to_string(lattice));
  Lattice result{axes, {1, 1, 1}, {1, 1, 1}};
  bool divides = block.size() == lattice.size();
  for (int32_t axis = 0; axis < axes && divides; ++axis) {
    divides = block[axis] >= 1 && block[axis] <= lattice[axis] && lattice[axis] % block[axis] == 0;
    result.period[axis] = static_cast<int32_t>(lattice[axis]);
    result.block[axis] = static_cast<int32_t>(block[axis]);
  }
  STD_TORCH_CHECK(divides, kOp, ": expected block of sizes that divide lattice ", to_string(lattice),
                  ", got ", to_string(block));
  return result;
}

void check_range(const char* name, int64_t value, int64_t least) {
  STD_TORCH_CHECK(least <= value && value <= kMostPosition, kOp, ": expected ", name, " from ", least,
                  " to 2^60, got ", value);
}

void check_mask(const Tensor& q, const Tensor& mask, const Problem& problem) {
  const ScalarType type = mask.scalar_type();
  STD_TORCH_CHECK(type == ScalarType::Bool || type == ScalarType::Float || type == q.scalar_type(), kOp,
                  ": expected mask of dtype bool, float32 or that of q");
  check_shape(kOp, "mask", mask, {problem.batch, problem.heads, problem.queries, problem.keys});
  STD_TORCH_CHECK(mask.device() == q.device(), kOp, ": expected mask on the device of the first argument");
}

// Sizes of q, k and v.
void check_tensors(const Tensor& q, const Tensor& k, const Tensor& v, Problem& problem) {
  check_floating(kOp, "q", q);
  check_dim(kOp, "q", q, 4);
  check_dim(kOp, "k", k, 4);
  check_like(kOp, "k", k, q);
  check_like(kOp, "v", v, q);
  problem.element = element_of(q);
  problem.batch = q.size(0);
  problem.heads = q.size(1);
  problem.queries = q.size(2);
  problem.dim = q.size(3);
  problem.kv_heads = k.size(1);
  problem.keys = k.size(2);
  STD_TORCH_CHECK(problem.heads >= 1 && 1 <= problem.dim && problem.dim <= kMostDim, kOp,
                  ": expected q with at least one head, of dimension 1 to 256, got ", to_string(shape_of(q)));
  STD_TORCH_CHECK(k.size(0) == problem.batch && k.size(3) == problem.dim && problem.kv_heads >= 1 &&
                      problem.heads % problem.kv_heads == 0,
                  kOp, ": expected k of shape [", problem.batch, ", G, M, ", problem.dim,
                  "] with G a divisor of ", problem.heads, ", got ", to_string(shape_of(k)));
  check_shape(kOp, "v", v, shape_of(k));
}

// Checked sizes and options; the pointers are set once the tensors are laid out.
Problem check(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& slopes,
              const OptionalTensor& mask, const Options& options) {
  Problem problem{};
  check_tensors(q, k, v, problem);
  problem.lattice = check_lattice(options.lattice, options.block);
  problem.metric = parse_metric(options.metric);
  check_dtype(kOp, "slopes", slopes, compute_type(q), "float32 (float64 for float64 q)");
  const bool per_axis = problem.metric == Metric::kL1 || problem.metric == Metric::kChordalSquared;
  problem.slope_count = slopes.dim() == 2 && slopes.size(1) != 1 ? problem.lattice.axes : 1;
  const Shape wanted{problem.heads, problem.slope_count};
  STD_TORCH_CHECK(shape_of(slopes) == wanted && (per_axis || problem.slope_count == 1), kOp,
                  ": expected slopes of shape [", problem.heads, ", 1], or [", problem.heads, ", ",
                  problem.lattice.axes, "] with metric l1 or chordal_sq, got ", to_string(shape_of(slopes)));
  STD_TORCH_CHECK(slopes.device() == q.device(), kOp,
                  ": expected slopes on the device of the first argument");
  if (mask) check_mask(q, *mask, problem);
  STD_TORCH_CHECK(std::isfinite(options.scale), kOp, ": expected a finite scale, got ", options.scale);
  STD_TORCH_CHECK(0 <= options.eps && options.eps < 1, kOp, ": expected eps in [0, 1), got ", options.eps);
  check_range("causal_group", options.causal_group, 1);
  check_range("query_offset", options.query_offset, 0);
  check_range("key_offset", options.key_offset, 0);
  problem.scale = options.scale;
  problem.causal = options.causal;
  problem.causal_group = options.causal_group;
  problem.query_offset = options.query_offset;
  problem.key_offset = options.key_offset;
  problem.eps = options.eps;
  return problem;
}

// The tensor itself where its last axis is contiguous.
Tensor laid_out(const Tensor& tensor) {
  return tensor.size(3) == 1 || tensor.stride(3) == 1 ? tensor : torch::stable::contiguous(tensor);
}

Strides strides_of(const Tensor& tensor) { return {tensor.stride(0), tensor.stride(1), tensor.stride(2)}; }

// What the problem points to; must outlive it.
struct Inputs {
  Tensor q, k, v, slopes;
  OptionalTensor mask;

  Inputs(const Tensor& q_, const Tensor& k_, const Tensor& v_, const Tensor& slopes_,
         const OptionalTensor& mask_, Problem& problem)
      : q(laid_out(q_)), k(laid_out(k_)), v(laid_out(v_)), slopes(row_major(slopes_)), mask(mask_) {
    problem.q = q.const_data_ptr();
    problem.k = k.const_data_ptr();
    problem.v = v.const_data_ptr();
    problem.q_strides = strides_of(q);
    problem.k_strides = strides_of(k);
    problem.v_strides = strides_of(v);
    problem.slopes = slopes.const_data_ptr();
    problem.mask = {nullptr, MaskElement::kNone, 0, 0, 0, 0};
    if (!mask) return;
    const ScalarType type = mask->scalar_type();
    const MaskElement element = type == ScalarType::Bool  ? MaskElement::kBool
                                : type == q.scalar_type() ? MaskElement::kSame
                                                          : MaskElement::kFloat32;
    problem.mask = {mask->const_data_ptr(), element,         mask->stride(0),
                    mask->stride(1),        mask->stride(2), mask->stride(3)};
  }
};

struct Cpu {
  static int64_t forward_scratch(const Problem&) { return 0; }
  static int64_t backward_scratch(const Problem&, bool) { return 0; }
  static Status forward(const Problem& problem, const Output& out, void*, const Executor& executor) {
    return forward_cpu(problem, out, executor);
  }
  static Status backward(const Problem& problem, const Output& out, const Gradients& gradients, bool, void*,
                         const Executor& executor) {
    return backward_cpu(problem, out, gradients, executor);
  }
};

#ifdef STRATCORE_CUDA
struct Cuda {
  static constexpr auto forward_scratch = &forward_scratch_cuda;
  static constexpr auto backward_scratch = &backward_scratch_cuda;
  static constexpr auto forward = &forward_cuda;
  static constexpr auto backward = &backward_cuda;
};
#endif

OptionalTensor scratch_of(const Tensor& like, int64_t bytes) {
  return bytes > 0 ? OptionalTensor(empty(like, {bytes}, ScalarType::Byte)) : std::nullopt;
}

void* pointer_of(OptionalTensor& scratch) { return scratch ? scratch->mutable_data_ptr() : nullptr; }

// Of the shape of q: contiguous, or [B, N, H, E] in memory where q has its heads within its rows.
Tensor empty_like_query(const Tensor& q) {
  if (q.stride(1) >= q.stride(2)) return empty(q, shape_of(q), q.scalar_type());
  const Tensor rows = empty(q, {q.size(0), q.size(2), q.size(1), q.size(3)}, q.scalar_type());
  return torch::stable::transpose(rows, 1, 2);
}

template <class Device>
std::tuple<Tensor, Tensor, Tensor> forward(const Tensor& q, const Tensor& k, const Tensor& v,
                                           const Tensor& slopes, OptionalTensor mask, Shape lattice,
                                           Shape block, std::string metric, double scale, bool causal,
                                           int64_t causal_group, int64_t query_offset, int64_t key_offset,
                                           double eps, bool) {
  Problem problem =
      check(q, k, v, slopes, mask,
            {lattice, block, metric, scale, causal, causal_group, query_offset, key_offset, eps});
  Tensor out = empty_like_query(q);
  Tensor lse = empty(q, {problem.batch, problem.heads, problem.queries}, compute_type(q));
  Tensor tiles = zeros(q, {problem.batch, problem.heads, 2}, ScalarType::Int);
  if (problem.batch > 0 && problem.queries > 0) {
    const Inputs inputs(q, k, v, slopes, mask, problem);
    const Output output{out.mutable_data_ptr(), strides_of(out), lse.mutable_data_ptr(),
                        tiles.mutable_data_ptr<int32_t>()};
    const TorchExecutor executor(q);  // first: the scratch depends on the device that is current
    OptionalTensor scratch = scratch_of(q, Device::forward_scratch(problem));
    executor.check(kOp, Device::forward(problem, output, pointer_of(scratch), executor.get()));
  }
  return {out, lse, tiles};
}

// The gradients and outputs of the forward that a backward was given.
void check_backward(const Problem& problem, const Tensor& q, const Tensor& grad_out,
                    const OptionalTensor& grad_lse, const Tensor& out, const Tensor& lse) {
  for (const auto& [name, tensor] : {std::pair{"grad_out", grad_out}, std::pair{"out", out}}) {
    check_like(kOp, name, tensor, q);
    check_shape(kOp, name, tensor, shape_of(q));
  }
  const Shape rows{problem.batch, problem.heads, problem.queries};
  for (const auto& [name, tensor] :
       {std::pair{"lse", OptionalTensor(lse)}, std::pair{"grad_lse", grad_lse}}) {
    if (!tensor) continue;
    check_shape(kOp, name, *tensor, rows);
    STD_TORCH_CHECK(tensor->scalar_type() == compute_type(q) && tensor->device() == q.device(), kOp,
                    ": expected ", name, " of the dtype and device of the forward's lse");
  }
}

template <class Device>
std::tuple<Tensor, Tensor, Tensor, Tensor> backward(
    const Tensor& grad_out, OptionalTensor grad_lse, const Tensor& q, const Tensor& k, const Tensor& v,
    const Tensor& slopes, OptionalTensor mask, const Tensor& out, const Tensor& lse, Shape lattice,
    Shape block, std::string metric, double scale, bool causal, int64_t causal_group, int64_t query_offset,
    int64_t key_offset, double eps, bool deterministic) {
  Problem problem =
      check(q, k, v, slopes, mask,
            {lattice, block, metric, scale, causal, causal_group, query_offset, key_offset, eps});
  check_backward(problem, q, grad_out, grad_lse, out, lse);
  if (problem.batch == 0 || problem.queries == 0 || problem.keys == 0) {
    const auto none = [](const Tensor& like) { return zeros(like, shape_of(like), like.scalar_type()); };
    return {none(q), none(k), none(v), none(slopes)};
  }
  Tensor grad_q = empty(q, shape_of(q), q.scalar_type()), grad_k = empty(k, shape_of(k), k.scalar_type());
  Tensor grad_v = empty(v, shape_of(v), v.scalar_type());
  Tensor grad_slopes = empty(slopes, shape_of(slopes), slopes.scalar_type());
  const Inputs inputs(q, k, v, slopes, mask, problem);
  const Tensor grad_rows = laid_out(grad_out), out_rows = laid_out(out), sums = row_major(lse);
  const OptionalTensor grad_sums = contiguous_as(grad_lse, compute_type(q));
  const Output output{read_only(out_rows), strides_of(out_rows), read_only(sums), nullptr};
  const Gradients gradients{
      grad_rows.const_data_ptr(),    strides_of(grad_rows),     data_of(grad_sums),
      grad_q.mutable_data_ptr(),     grad_k.mutable_data_ptr(), grad_v.mutable_data_ptr(),
      grad_slopes.mutable_data_ptr()};
  const TorchExecutor executor(q);  // first: the scratch depends on the device that is current
  OptionalTensor scratch = scratch_of(q, Device::backward_scratch(problem, deterministic));
  executor.check(kOp, Device::backward(problem, output, gradients, deterministic, pointer_of(scratch),
                                       executor.get()));
  return {grad_q, grad_k, grad_v, grad_slopes};
}

template <class Device>
void implement(Library& m) {
  m.impl("toroidal_attention", TORCH_BOX(&forward<Device>));
  m.impl("toroidal_attention_backward", TORCH_BOX(&backward<Device>));
}

}  // namespace
}  // namespace stratcore::toroidal_attention

#define STRATCORE_TOROIDAL_OPTIONS                                                                             \
  "int[] lattice, int[] block, str metric, float scale, bool causal, int causal_group, int query_offset, int " \
  "key_offset, float eps, bool deterministic"

STABLE_TORCH_LIBRARY_FRAGMENT(stratcore, m) {
  m.def(
      "toroidal_attention(Tensor q, Tensor k, Tensor v, Tensor slopes, Tensor? mask, " STRATCORE_TOROIDAL_OPTIONS
      ") -> (Tensor out, Tensor lse, Tensor tiles)");
  m.def(
      "toroidal_attention_backward(Tensor grad_out, Tensor? grad_lse, Tensor q, Tensor k, Tensor v, Tensor slopes, "
      "Tensor? mask, Tensor out, Tensor lse, " STRATCORE_TOROIDAL_OPTIONS
      ") -> (Tensor grad_q, Tensor grad_k, Tensor grad_v, Tensor grad_slopes)");
}

STRATCORE_REGISTER(toroidal_attention)

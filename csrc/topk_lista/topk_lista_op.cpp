#include <algorithm>
#include <tuple>
#if defined(__linux__)
#include <sys/mman.h>
#endif

#include "../common/torch_op.h"
#include "topk_lista.h"

// The torch side of the slice: schemas, checks, allocation. Legend as in topk_lista.h.
namespace stratcore::topk_lista {
namespace {

constexpr const char* kOp = "topk_lista";
using Tensors = std::tuple<Tensor, Tensor, Tensor, Tensor>;

Form parse_form(const std::string& form) {
  STD_TORCH_CHECK(form == "classic" || form == "coupled", kOp,
                  ": expected form 'classic' or 'coupled', got '", form, "'");
  return form == "classic" ? Form::kClassic : Form::kCoupled;
}

Regime parse_regime(const std::string& regime) {
  STD_TORCH_CHECK(regime == "auto" || regime == "dense" || regime == "gather", kOp,
                  ": expected regime 'auto', 'dense' or 'gather', got '", regime, "'");
  return regime == "auto" ? Regime::kAuto : regime == "dense" ? Regime::kDense : Regime::kGather;
}

bool check_steps(const char* name, const Tensor& tensor, int64_t steps) {
  STD_TORCH_CHECK(tensor.size(0) == 1 || tensor.size(0) == steps, kOp, ": expected ", name,
                  " with 1 (tied) or ", steps, " (per step) leading entries, got ", tensor.size(0));
  return tensor.size(0) != 1;
}

DType stored_dtype(const Tensor& tensor) {
  if (tensor.scalar_type() == ScalarType::BFloat16) return DType::kBFloat16;
  return tensor.scalar_type() == ScalarType::Half ? DType::kFloat16 : compute_dtype(tensor);
}

// 16-bit factors stay as they are on the GPU, whose products of them are in float32.
DType factor_dtype(const Tensor& x, int64_t atoms) {
  return x.is_cuda() && atoms <= kMostAtomsOf16Bits ? stored_dtype(x) : compute_dtype(x);
}

void check_groups(const Tensor& x, const Tensor& group_expert, int64_t experts) {
  check_dtype(kOp, "group_expert", group_expert, ScalarType::Int, "int32");
  check_shape(kOp, "group_expert", group_expert, {x.size(0)});
  bool contiguous = false;
  TORCH_ERROR_CODE_CHECK(aoti_torch_is_contiguous(group_expert.get(), &contiguous));
  STD_TORCH_CHECK(contiguous && group_expert.device() == x.device() && x.size(0) > 0, kOp,
                  ": expected group_expert contiguous, not empty, on the device of x");
  STD_TORCH_CHECK(!x.is_cuda() || experts <= kMostGroupExperts, kOp, ": expected at most ", kMostGroupExperts,
                  " experts with groups of rows on a GPU, got ", experts);
}

Sizes check(const Tensor& x, const Tensor& encoder, const Tensor& recurrent, const Tensor& theta,
            const std::vector<int64_t>& k, const std::string& form, int64_t num_steps,
            const std::string& regime, const OptionalTensor& group_expert) {
  check_floating(kOp, "x", x);
  check_dim(kOp, "x", x, 3);
  check_dim(kOp, "encoder", encoder, 4);
  check_dim(kOp, "recurrent", recurrent, 4);
  check_dim(kOp, "theta", theta, 3);
  check_like(kOp, "encoder", encoder, x);
  check_like(kOp, "recurrent", recurrent, x);
  check_like(kOp, "theta", theta, x);
  STD_TORCH_CHECK(num_steps >= 0, kOp, ": expected num_steps >= 0, got ", num_steps);
  Sizes sizes{};
  sizes.form = parse_form(form);
  sizes.regime = parse_regime(regime);
  sizes.num_steps = num_steps;
  sizes.encoder_per_step = check_steps("encoder", encoder, num_steps + 1);
  sizes.recurrent_per_step = check_steps("recurrent", recurrent, num_steps);
  sizes.threshold_per_step = check_steps("theta", theta, num_steps + 1);
  sizes.experts = encoder.size(1);
  sizes.atoms = encoder.size(2);
  sizes.dim = encoder.size(3);
  sizes.rows = x.size(1);
  sizes.shared_input = x.size(0) == 1;
  sizes.dtype = factor_dtype(x, sizes.atoms);
  STD_TORCH_CHECK(sizes.experts > 0 && sizes.atoms > 0 && sizes.dim > 0, kOp,
                  ": expected at least one expert, atom and input dimension, got encoder ",
                  to_string(shape_of(encoder)));
  if (group_expert) {
    check_groups(x, *group_expert, sizes.experts);
  } else {
    STD_TORCH_CHECK(sizes.shared_input || x.size(0) == sizes.experts, kOp, ": expected x with 1 or ",
                    sizes.experts, " leading entries, got ", x.size(0));
  }
  check_shape(kOp, "x", x, {x.size(0), sizes.rows, sizes.dim});
  check_shape(kOp, "recurrent", recurrent,
              {recurrent.size(0), sizes.experts, sizes.form == Form::kClassic ? sizes.atoms : sizes.dim,
               sizes.atoms});
  check_shape(kOp, "theta", theta, {theta.size(0), sizes.experts, sizes.atoms});
  STD_TORCH_CHECK(static_cast<int64_t>(k.size()) == sizes.experts, kOp, ": expected k with ", sizes.experts,
                  " entries, got ", k.size());
  for (const int64_t width : k) {
    STD_TORCH_CHECK(width >= 1 && width <= sizes.atoms, kOp, ": expected every k in [1, ", sizes.atoms,
                    "], got ", width);
  }
  sizes.width = *std::max_element(k.begin(), k.end());
  sizes.k = k.data();
  if (group_expert) {
    sizes.group_expert = group_expert->const_data_ptr<int32_t>();
    sizes.group_experts = sizes.experts;
    sizes.experts = group_expert->size(0);
    sizes.shared_input = false;
  }
  return sizes;
}

ScalarType factor_type(const Tensor& x, const Sizes& sizes) {
  return sizes.dtype == compute_dtype(x) ? compute_type(x) : x.scalar_type();
}

struct Cpu {
  static constexpr auto forward = &forward_cpu;
  static constexpr auto backward = &backward_cpu;
  static constexpr auto select = &select_cpu;
  static constexpr auto gather_groups = &gather_groups_cpu;
  static constexpr auto add_groups = &add_groups_cpu;
  static int64_t bytes_of_number(const Sizes& sizes) { return sizes.dtype == DType::kFloat64 ? 8 : 4; }
  static int64_t forward_bytes(const Sizes& sizes) { return forward_scratch(sizes) * bytes_of_number(sizes); }
  static int64_t backward_bytes(const Sizes& sizes, bool) {
    return backward_scratch(sizes) * bytes_of_number(sizes);
  }
  static bool gathers(const Sizes&, bool) { return false; }
};

#ifdef STRATCORE_CUDA
struct Cuda {
  static constexpr auto forward = &forward_cuda;
  static constexpr auto backward = &backward_cuda;
  static constexpr auto select = &select_cuda;
  static constexpr auto gather_groups = &gather_groups_cuda;
  static constexpr auto add_groups = &add_groups_cuda;
  static constexpr auto forward_bytes = &forward_scratch_cuda;
  static constexpr auto backward_bytes = &backward_scratch_cuda;
  static constexpr auto gathers = &gathers_backward;
};
#endif

// On the CPU in huge pages, where the system has them on request: to touch small ones for the first time
// costs more than a pass over what they hold.
Tensor scratch_like(const Tensor& x, int64_t bytes) {
  Tensor scratch = empty(x, {bytes}, ScalarType::Byte);
#if defined(__linux__)
  constexpr uintptr_t kPage = 2 << 20;
  const auto data = reinterpret_cast<uintptr_t>(scratch.mutable_data_ptr());
  const uintptr_t begin = (data + kPage - 1) / kPage * kPage, end = (data + bytes) / kPage * kPage;
  if (!x.is_cuda() && end > begin) madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
#endif
  return scratch;
}

Shape grouped_shape(const Tensor& parameter, const Sizes& sizes) {
  Shape shape = shape_of(parameter);
  shape[1] = sizes.experts;
  return shape;
}

Grouping grouping(const Sizes& sizes, const Tensor& parameter, DType dtype) {
  const Shape shape = shape_of(parameter);
  int64_t inner = 1;
  for (size_t axis = 2; axis < shape.size(); ++axis) inner *= shape[axis];
  return {dtype, sizes.group_expert, sizes.experts, sizes.group_experts, shape[0], inner};
}

// Contiguous, the factors in their type and theta in the computed one; must outlive the pointers.
struct Inputs {
  Tensor x, encoder, recurrent, theta;

  Inputs(const Tensor& x_, const Tensor& encoder_, const Tensor& recurrent_, const Tensor& theta_,
         ScalarType factor)
      : x(contiguous_as(x_, factor)), encoder(contiguous_as(encoder_, factor)),
        recurrent(contiguous_as(recurrent_, factor)),
        theta(aligned(contiguous_as(theta_, compute_type(x_)))) {}

  // From here on [P, groups, ...].
  template <class Device>
  void gather(const Sizes& sizes, const Executor& executor) {
    for (Tensor* parameter : {&encoder, &recurrent, &theta}) {
      const DType dtype = parameter == &theta ? compute_dtype(*parameter) : sizes.dtype;
      Tensor gathered = empty(x, grouped_shape(*parameter, sizes), parameter->scalar_type());
      Device::gather_groups(grouping(sizes, *parameter, dtype), parameter->const_data_ptr(),
                            gathered.mutable_data_ptr(), executor);
      *parameter = gathered;
    }
  }

  Parameters pointers() const {
    return {x.const_data_ptr(), encoder.const_data_ptr(), recurrent.const_data_ptr(), theta.const_data_ptr()};
  }
};

template <class Device>
Tensors forward(const Tensor& x, const Tensor& encoder, const Tensor& recurrent, const Tensor& theta,
                std::vector<int64_t> k, std::string form, int64_t num_steps, bool dense, bool save_support,
                std::string regime, OptionalTensor group_expert) {
  const Sizes sizes = check(x, encoder, recurrent, theta, k, form, num_steps, regime, group_expert);
  const ScalarType type = compute_type(x), factor = factor_type(x, sizes);
  const Shape code{sizes.experts, sizes.rows, sizes.atoms};
  const Shape slots{num_steps + 1, sizes.experts, sizes.rows, sizes.width};
  Tensor codes = empty(x, code, factor), values = empty(x, slots, type);
  Tensor indices = empty(x, slots, ScalarType::Int);
  Tensor support =
      empty(x, save_support ? Shape{num_steps + 1, code[0], code[1], code[2]} : Shape{0}, ScalarType::Char);
  if (sizes.rows > 0) {
    Inputs inputs(x, encoder, recurrent, theta, factor);
    const TorchExecutor executor(x);
    if (group_expert) inputs.gather<Device>(sizes, executor.get());
    Tensor scratch = scratch_like(x, Device::forward_bytes(sizes));
    const Codes out{codes.mutable_data_ptr(), values.mutable_data_ptr(), indices.mutable_data_ptr<int32_t>(),
                    save_support ? support.mutable_data_ptr<int8_t>() : nullptr};
    executor.check(kOp, Device::forward(sizes, inputs.pointers(), out, scratch.mutable_data_ptr(),
                                        executor.get()));
  }
  return {dense ? cast(codes, x.scalar_type()) : empty(x, {0}, x.scalar_type()),
          cast(values, x.scalar_type()), indices, support};
}

void check_codes(const Sizes& sizes, const Tensor& values, const Tensor& indices, const Tensor& support,
                 const OptionalTensor& grad_codes, const OptionalTensor& grad_values) {
  const Shape code{sizes.experts, sizes.rows, sizes.atoms};
  const Shape slots{sizes.num_steps + 1, sizes.experts, sizes.rows, sizes.width};
  check_shape(kOp, "values", values, slots);
  check_shape(kOp, "indices", indices, slots);
  check_dtype(kOp, "indices", indices, ScalarType::Int, "int32");
  check_dtype(kOp, "support", support, ScalarType::Char, "int8");
  if (support.dim() != 1) check_shape(kOp, "support", support, {slots[0], code[0], code[1], code[2]});
  if (grad_codes) check_shape(kOp, "grad_codes", *grad_codes, code);
  if (grad_values) check_shape(kOp, "grad_values", *grad_values, slots);
}

// Gradients of encoder, recurrent and theta: where groups share experts, those of the groups come first.
template <class Device>
class GroupedGradients {
 public:
  GroupedGradients(const Sizes& sizes, Tensor& encoder, Tensor& recurrent, Tensor& theta)
      : sizes_(sizes), target_{&encoder, &recurrent, &theta} {}

  void* data_of(bool wanted, int which) {
    Tensor& target = *target_[which];
    if (!wanted || !sizes_.group_expert) return stratcore::data_of(wanted, target);
    by_group_[which] = empty(target, grouped_shape(target, sizes_), target.scalar_type());
    return by_group_[which]->mutable_data_ptr();
  }

  Status add(const Executor& executor) {
    for (int which = 0; which < 3; ++which) {
      if (!by_group_[which]) continue;
      Tensor& target = *target_[which];
      const Status status =
          Device::add_groups(grouping(sizes_, target, stored_dtype(target)),
                             by_group_[which]->const_data_ptr(), target.mutable_data_ptr(), executor);
      if (status != kOk) return status;
    }
    return kOk;
  }

 private:
  const Sizes& sizes_;
  Tensor* target_[3];
  OptionalTensor by_group_[3];
};

template <class Device>
Tensors backward(OptionalTensor grad_codes, OptionalTensor grad_values, const Tensor& x,
                 const Tensor& encoder, const Tensor& recurrent, const Tensor& theta, const Tensor& values,
                 const Tensor& indices, const Tensor& support, std::vector<int64_t> k, std::string form,
                 bool need_x, bool need_encoder, bool need_recurrent, bool need_theta, std::string regime,
                 OptionalTensor group_expert) {
  const int64_t num_steps = values.size(0) - 1;
  const Sizes sizes = check(x, encoder, recurrent, theta, k, form, num_steps, regime, group_expert);
  check_codes(sizes, values, indices, support, grad_codes, grad_values);
  const ScalarType type = compute_type(x), factor = factor_type(x, sizes);
  const bool straight_through = support.dim() == 4;
  const auto output = [&](bool wanted, const Tensor& like, ScalarType dtype) {
    const Shape shape = wanted ? shape_of(like) : Shape{0};
    return sizes.rows > 0 ? empty(x, shape, dtype) : zeros(x, shape, dtype);
  };
  Tensor grad_x = output(need_x, x, factor), grad_encoder = output(need_encoder, encoder, factor);
  Tensor grad_recurrent = output(need_recurrent, recurrent, factor);
  Tensor grad_theta = output(need_theta, theta, type);
  if (sizes.rows > 0) {
    Inputs inputs(x, encoder, recurrent, theta, factor);
    const TorchExecutor executor(x);
    if (group_expert) inputs.gather<Device>(sizes, executor.get());
    GroupedGradients<Device> grouped(sizes, grad_encoder, grad_recurrent, grad_theta);
    const OptionalTensor from_codes = contiguous_as(grad_codes, factor);
    const OptionalTensor from_values = contiguous_as(grad_values, type);
    const Tensor saved_values = contiguous_as(values, type);
    const Tensor saved_indices = row_major(indices), saved_support = row_major(support);
    const Codes codes{nullptr, read_only(saved_values), read_only<int32_t>(saved_indices),
                      straight_through ? read_only<int8_t>(saved_support) : nullptr};
    const Gradients gradients{data_of(from_codes),
                              data_of(from_values),
                              data_of(need_x, grad_x),
                              grouped.data_of(need_encoder, 0),
                              grouped.data_of(need_recurrent, 1),
                              grouped.data_of(need_theta, 2)};
    Tensor scratch = scratch_like(x, Device::backward_bytes(sizes, straight_through));
    const bool expands = !straight_through && !Device::gathers(sizes, false);
    Tensor signs = empty(x, {expands ? sizes.experts * sizes.rows * sizes.atoms : 0}, ScalarType::Char);
    executor.check(kOp,
                   Device::backward(sizes, inputs.pointers(), codes, gradients, scratch.mutable_data_ptr(),
                                    expands ? signs.mutable_data_ptr<int8_t>() : nullptr, executor.get()));
    executor.check(kOp, grouped.add(executor.get()));
  }
  const ScalarType out = x.scalar_type();
  return {cast(grad_x, out), cast(grad_encoder, out), cast(grad_recurrent, out), cast(grad_theta, out)};
}

template <class Device>
std::tuple<Tensor, Tensor, Tensor> topk_ste(const Tensor& x, int64_t k, bool /* masked: for the gradient */) {
  constexpr const char* kName = "topk_ste";
  check_floating(kName, "x", x);
  check_dim(kName, "x", x, 2);
  STD_TORCH_CHECK(k >= 1 && k <= x.size(1), kName, ": expected k in [1, ", x.size(1), "], got ", k);
  const ScalarType type = compute_type(x);
  Sizes sizes{};
  sizes.experts = 1;
  sizes.rows = x.size(0);
  sizes.atoms = x.size(1);
  sizes.width = k;
  sizes.k = &k;
  sizes.dtype = compute_dtype(x);
  const Tensor input = contiguous_as(x, type);
  Tensor dense = empty(x, {sizes.rows, sizes.atoms}, type), values = empty(x, {sizes.rows, k}, type);
  Tensor indices = empty(x, {sizes.rows, k}, ScalarType::Int);
  if (sizes.rows > 0) {
    const TorchExecutor executor(x);
    const Selection selection{input.const_data_ptr(),
                              nullptr,
                              nullptr,
                              dense.mutable_data_ptr(),
                              values.mutable_data_ptr(),
                              indices.mutable_data_ptr<int32_t>(),
                              nullptr};
    executor.check(kName, Device::select(sizes, selection, executor.get()));
  }
  return {cast(dense, x.scalar_type()), cast(values, x.scalar_type()), indices};
}

template <class Device>
void implement(Library& m) {
  m.impl("topk_lista", TORCH_BOX(&forward<Device>));
  m.impl("topk_lista_backward", TORCH_BOX(&backward<Device>));
  m.impl("topk_ste", TORCH_BOX(&topk_ste<Device>));
}

}  // namespace
}  // namespace stratcore::topk_lista

STABLE_TORCH_LIBRARY_FRAGMENT(stratcore, m) {
  m.def(
      "topk_lista(Tensor x, Tensor encoder, Tensor recurrent, Tensor theta, int[] k, str form, int num_steps, "
      "bool dense, bool save_support, str regime='auto', Tensor? group_expert=None) -> (Tensor codes, "
      "Tensor values, Tensor indices, Tensor support)");
  m.def(
      "topk_lista_backward(Tensor? grad_codes, Tensor? grad_values, Tensor x, Tensor encoder, Tensor recurrent, "
      "Tensor theta, Tensor values, Tensor indices, Tensor support, int[] k, str form, bool need_x, "
      "bool need_encoder, bool need_recurrent, bool need_theta, str regime='auto', Tensor? group_expert=None) "
      "-> (Tensor, Tensor, Tensor, Tensor)");
  m.def("topk_ste(Tensor x, int k, bool masked) -> (Tensor dense, Tensor values, Tensor indices)");
}

STRATCORE_REGISTER(topk_lista)

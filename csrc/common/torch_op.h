#pragma once

#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/device.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/macros.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include <algorithm>
#include <exception>
#include <initializer_list>
#include <optional>
#include <string>
#include <vector>

#include "element.h"
#include "executor.h"

#ifdef STRATCORE_CUDA
// Absent from a CPU build of torch; weak, so that one library loads there too.
#pragma weak aoti_torch_get_current_cuda_stream
#endif

// What the torch side of every op shares: checks with one wording, compute dtypes, and the executor that
// gives the torch-free algorithms torch's threads, matrix products and stream.
namespace stratcore {

using torch::headeronly::ScalarType;
using Library = torch::stable::detail::StableLibrary;
using torch::stable::Tensor;
using OptionalTensor = std::optional<Tensor>;
using Shape = std::vector<int64_t>;

inline std::string to_string(const Shape& shape) {
  std::string text = "[";
  for (size_t i = 0; i < shape.size(); ++i) text += (i ? ", " : "") + std::to_string(shape[i]);
  return text + "]";
}

inline Shape shape_of(const Tensor& tensor) {
  Shape shape;
  for (int64_t i = 0; i < tensor.dim(); ++i) shape.push_back(tensor.size(i));
  return shape;
}

inline void check_shape(const char* op, const char* name, const Tensor& tensor, const Shape& expected) {
  STD_TORCH_CHECK(shape_of(tensor) == expected, op, ": expected ", name, " of shape ", to_string(expected),
                  ", got ", to_string(shape_of(tensor)));
}

inline void check_dim(const char* op, const char* name, const Tensor& tensor, int64_t expected) {
  STD_TORCH_CHECK(tensor.dim() == expected, op, ": expected ", name, " with ", expected, " dimensions, got ",
                  to_string(shape_of(tensor)));
}

inline void check_floating(const char* op, const char* name, const Tensor& tensor) {
  const ScalarType type = tensor.scalar_type();
  STD_TORCH_CHECK(type == ScalarType::Double || type == ScalarType::Float || type == ScalarType::BFloat16 ||
                      type == ScalarType::Half,
                  op, ": expected ", name, " of dtype float64, float32, bfloat16 or float16");
}

inline void check_like(const char* op, const char* name, const Tensor& tensor, const Tensor& first) {
  STD_TORCH_CHECK(tensor.scalar_type() == first.scalar_type(), op, ": expected ", name,
                  " of the dtype of the first argument");
  STD_TORCH_CHECK(tensor.device() == first.device(), op, ": expected ", name,
                  " on the device of the first argument");
}

inline void check_dtype(const char* op, const char* name, const Tensor& tensor, ScalarType type,
                        const char* type_name) {
  STD_TORCH_CHECK(tensor.scalar_type() == type, op, ": expected ", name, " of dtype ", type_name);
}

inline void check_int64(const char* op, const char* name, const Tensor& tensor) {
  check_dtype(op, name, tensor, ScalarType::Long, "int64");
}

// Of a tensor that check_floating has let through.
inline Element element_of(const Tensor& tensor) {
  const ScalarType type = tensor.scalar_type();
  if (type == ScalarType::Double) return Element::kFloat64;
  if (type == ScalarType::Float) return Element::kFloat32;
  return type == ScalarType::BFloat16 ? Element::kBFloat16 : Element::kFloat16;
}

// float64 is computed in float64, everything else in float32.
inline ScalarType compute_type(const Tensor& tensor) {
  return tensor.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}

inline DType compute_dtype(const Tensor& tensor) {
  return tensor.scalar_type() == ScalarType::Double ? DType::kFloat64 : DType::kFloat32;
}

// The tensor itself where it is contiguous; asking first costs a tenth of calling the operator.
inline Tensor row_major(const Tensor& tensor) {
  bool already = false;
  TORCH_ERROR_CODE_CHECK(aoti_torch_is_contiguous(tensor.get(), &already));
  return already ? tensor : torch::stable::contiguous(tensor);
}

inline Tensor contiguous_as(const Tensor& tensor, ScalarType type) {
  const Tensor dense = row_major(tensor);
  return tensor.scalar_type() == type ? dense : torch::stable::to(dense, type);
}

inline OptionalTensor contiguous_as(const OptionalTensor& tensor, ScalarType type) {
  return tensor ? OptionalTensor(contiguous_as(*tensor, type)) : std::nullopt;
}

// For kernels that read 16 bytes at a time: what is contiguous may still start anywhere.
inline Tensor aligned(const Tensor& tensor) {
  return reinterpret_cast<uintptr_t>(tensor.const_data_ptr()) % 16 == 0 ? tensor
                                                                        : torch::stable::clone(tensor);
}

inline const void* data_of(const OptionalTensor& tensor) {
  return tensor ? tensor->const_data_ptr() : nullptr;
}

// Null where the output is not wanted.
inline void* data_of(bool wanted, Tensor& output) { return wanted ? output.mutable_data_ptr() : nullptr; }

// A tensor that a struct of outputs points to, but which is only read.
template <class T = void>
T* read_only(const Tensor& tensor) {
  return static_cast<T*>(const_cast<void*>(tensor.const_data_ptr()));
}

inline Tensor cast(const Tensor& tensor, ScalarType type) {
  return tensor.scalar_type() == type ? tensor : torch::stable::to(tensor, type);
}

// On a GPU, where launches wait for the host, without the dispatcher's boxes; on the CPU with them, as only
// they fill fresh memory with NaN for the tests.
inline Tensor empty(const Tensor& like, const Shape& shape, ScalarType type) {
  if (!like.is_cuda()) return torch::stable::new_empty(like, shape, type);
  int32_t device_type;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_type(like.get(), &device_type));
  Shape strides(shape.size(), 1);
  for (size_t i = shape.size(); i-- > 1;) strides[i - 1] = strides[i] * std::max<int64_t>(shape[i], 1);
  const auto dtype = torch::stable::detail::to<int32_t>(torch::stable::detail::from(type));
  AtenTensorHandle made;
  TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(static_cast<int64_t>(shape.size()), shape.data(),
                                                  strides.data(), dtype, device_type, like.get_device_index(),
                                                  &made));
  return Tensor(made);
}

inline Tensor zeros(const Tensor& like, const Shape& shape, ScalarType type) {
  return torch::stable::new_zeros(like, shape, type);
}

// Threads, products and stream of torch. An exception of torch inside a product is kept here and thrown again
// by check(): the algorithms in between return statuses.
class TorchExecutor {
 public:
  explicit TorchExecutor(const Tensor& tensor) : device_(tensor.device()), guard_(guard_for(tensor)) {
    executor_ = {this, &TorchExecutor::threads, &TorchExecutor::multiply, stream_for(tensor)};
  }
  TorchExecutor(const TorchExecutor&) = delete;

  const Executor& get() const { return executor_; }

  void check(const char* op, Status status) const {
    if (error_) std::rethrow_exception(error_);
    STD_TORCH_CHECK(status == kOk, op, ": CUDA kernel launch failed: ", last_launch_error());
  }

 private:
  static std::optional<torch::stable::accelerator::DeviceGuard> guard_for(const Tensor& tensor) {
    if (!tensor.is_cuda()) return std::nullopt;
    return std::optional<torch::stable::accelerator::DeviceGuard>(std::in_place, tensor.get_device_index());
  }

  static void* stream_for([[maybe_unused]] const Tensor& tensor) {
    void* stream = nullptr;
#ifdef STRATCORE_CUDA
    if (tensor.is_cuda()) {
      TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(tensor.get_device_index(), &stream));
    }
#endif
    return stream;
  }

  static void threads(void*, int64_t begin, int64_t end, int64_t grain,
                      void (*body)(void* argument, int64_t begin, int64_t end), void* argument) {
    torch::stable::parallel_for(begin, end, grain,
                                [=](int64_t from, int64_t to) { body(argument, from, to); });
  }

  static Status multiply(void* context, const Gemm& product) {
    auto* self = static_cast<TorchExecutor*>(context);
    try {
      self->call_bmm(product);
      return kOk;
    } catch (...) {
      self->error_ = std::current_exception();
      return kGemmFailed;
    }
  }

  Tensor wrap(const MatrixBatch& matrix, int64_t batch, int64_t rows, int64_t cols, ScalarType type) const {
    const Shape sizes{batch, rows, cols}, strides{matrix.batch_stride, matrix.row_stride, matrix.col_stride};
    return torch::stable::from_blob(const_cast<void*>(matrix.data), sizes, strides, device_, type);
  }

  static ScalarType type_of(DType dtype) {
    switch (dtype) {
      case DType::kFloat64:
        return ScalarType::Double;
      case DType::kBFloat16:
        return ScalarType::BFloat16;
      case DType::kFloat16:
        return ScalarType::Half;
      default:
        return ScalarType::Float;
    }
  }

  void call_bmm(const Gemm& product) const {
    using torch::stable::detail::from;
    const ScalarType type = type_of(product.dtype);
    const bool widens = (type == ScalarType::BFloat16 || type == ScalarType::Half) && !product.narrow;
    const ScalarType wide = widens ? ScalarType::Float : type;
    const int64_t size = product.rows * product.cols;
    const MatrixBatch target{product.out, product.out_batch_stride ? product.out_batch_stride : size,
                             product.cols, 1};
    const Tensor left = wrap(product.left, product.batch, product.rows, product.inner, type);
    const Tensor right = wrap(product.right, product.batch, product.inner, product.cols, type);
    const Tensor out = wrap(target, product.batch, product.rows, product.cols, wide);
    std::vector<StableIValue> stack{from(left), from(right)};
    if (widens) stack.push_back(from(wide));
    stack.push_back(from(out));
    TORCH_ERROR_CODE_CHECK(torch_call_dispatcher("aten::bmm", widens ? "dtype_out" : "out", stack.data(),
                                                 TORCH_ABI_VERSION));
    torch::stable::detail::to<Tensor>(stack[0]);  // takes back the reference that the call returned
  }

  torch::stable::Device device_;
  std::optional<torch::stable::accelerator::DeviceGuard> guard_;
  Executor executor_;
  std::exception_ptr error_;
};

}  // namespace stratcore

// Registers a slice on each device: in its namespace, `template <class Device> void implement(Library&)`
// names the functions, and the structs Cpu and, in CUDA builds, Cuda hold what differs between the devices.
#ifdef STRATCORE_CUDA
#define STRATCORE_REGISTER_CUDA(slice) \
  STABLE_TORCH_LIBRARY_IMPL(stratcore, CUDA, m) { stratcore::slice::implement<stratcore::slice::Cuda>(m); }
#else
#define STRATCORE_REGISTER_CUDA(slice)
#endif
#define STRATCORE_REGISTER(slice)                                                                         \
  STABLE_TORCH_LIBRARY_IMPL(stratcore, CPU, m) { stratcore::slice::implement<stratcore::slice::Cpu>(m); } \
  STRATCORE_REGISTER_CUDA(slice)

// Kernels without torch's dispatcher: a benchmark subtracts these times from those of the ops to see what the
// dispatcher and Python cost. Pointers and the stream arrive as integers (tensor.data_ptr(),
// stream.cuda_stream).
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <cstdint>
#include <stdexcept>
#include <vector>

#include "../../csrc/topk_lista/topk_lista.h"

namespace py = pybind11;
using namespace stratcore;

namespace {

template <class T>
T* pointer(uintptr_t address) {
  return reinterpret_cast<T*>(address);
}

// One pass over [experts, rows, atoms] float32: threshold (none where theta is 0) and selection.
void select_rows(uintptr_t first, uintptr_t theta, uintptr_t dense, uintptr_t values, uintptr_t indices,
                 int64_t rows, int64_t atoms, const std::vector<int64_t>& k, uintptr_t stream, bool cuda,
                 int32_t threads) {
  topk_lista::Sizes sizes{};
  sizes.experts = static_cast<int64_t>(k.size());
  sizes.rows = rows;
  sizes.atoms = atoms;
  sizes.k = k.data();
  sizes.width = *std::max_element(k.begin(), k.end());
  sizes.dtype = DType::kFloat32;
  const topk_lista::Selection selection{
      pointer<void>(first),      nullptr, pointer<void>(theta), pointer<void>(dense), pointer<void>(values),
      pointer<int32_t>(indices), nullptr};
  Executor executor = host_executor(&threads);
  executor.stream = pointer<void>(stream);
  Status status = kOk;
  if (cuda) {
#ifdef STRATCORE_CUDA
    status = topk_lista::select_cuda(sizes, selection, executor);
#else
    throw std::runtime_error("bench/native was built without CUDA kernels");
#endif
  } else {
    status = topk_lista::select_cpu(sizes, selection, executor);
  }
  if (status != kOk) throw std::runtime_error(last_launch_error());
}

}  // namespace

PYBIND11_MODULE(_native, module) {
  module.def("topk_lista_select", &select_rows, py::arg("first"), py::arg("theta"), py::arg("dense"),
             py::arg("values"), py::arg("indices"), py::arg("rows"), py::arg("atoms"), py::arg("k"),
             py::arg("stream") = 0, py::arg("cuda") = false, py::arg("threads") = 1,
             py::call_guard<py::gil_scoped_release>());
}

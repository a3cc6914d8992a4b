#pragma once

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>

#include <algorithm>
#include <cstdint>
#include <initializer_list>
#include <memory>
#include <thread>
#include <vector>

#include "../common/executor.h"

// What the array side of every op shares: row-major NumPy inputs, owned outputs, an executor of plain
// threads.
namespace stratcore::array {

namespace nb = nanobind;

template <class T>
using Input = nb::ndarray<const T, nb::c_contig, nb::device::cpu>;

template <class T>
using Written = nb::ndarray<nb::numpy, T>;

template <class T>
struct Output {
  std::unique_ptr<T[]> data;
  std::vector<size_t> shape;

  explicit Output(std::initializer_list<size_t> sizes) : shape(sizes) {
    size_t count = 1;
    for (const size_t size : shape) count *= size;
    data.reset(new T[count]);  // not make_unique, which would write zeros first
  }

  Written<T> release() {
    T* raw = data.release();
    nb::capsule owner(raw, [](void* pointer) noexcept { delete[] static_cast<T*>(pointer); });
    return Written<T>(raw, shape.size(), shape.data(), owner);
  }
};

template <class T>
constexpr DType dtype_of() {
  return sizeof(T) == sizeof(double) ? DType::kFloat64 : DType::kFloat32;
}

class ThreadedExecutor {
 public:
  ThreadedExecutor() : executor_(host_executor(&threads_)) {}
  ThreadedExecutor(const ThreadedExecutor&) = delete;
  const Executor& get() const { return executor_; }

 private:
  int32_t threads_ = static_cast<int32_t>(std::max(1u, std::thread::hardware_concurrency()));
  Executor executor_;
};

void bind_cayley_menger(nb::module_& module);
void bind_topk_lista(nb::module_& module);
void bind_tangent_projection(nb::module_& module);
void bind_simplex_cv(nb::module_& module);
void bind_toroidal_attention(nb::module_& module);

}  // namespace stratcore::array

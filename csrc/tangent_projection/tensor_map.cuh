#pragma once

#include <cuda.h>
#include <cuda_runtime.h>

#include "rows.cuh"

// Matrices as the copy engine of sm_90 sees them. Legend as in tangent_projection.h.
namespace stratcore::tangent_projection {

// Of the driver: the runtime finds it, so that nothing is linked with it.
inline decltype(&cuTensorMapEncodeTiled) tensor_map_encoder() {
  void* found = nullptr;
  cudaDriverEntryPointQueryResult result{};
  if (cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &found, 12000, cudaEnableDefault, &result) !=
      cudaSuccess) {
    cudaGetLastError();
    return nullptr;
  }
  return reinterpret_cast<decltype(&cuTensorMapEncodeTiled)>(found);
}

template <class S>
constexpr CUtensorMapDataType kMapType = std::is_same_v<S, float>    ? CU_TENSOR_MAP_DATA_TYPE_FLOAT32
                                         : std::is_same_v<S, __half> ? CU_TENSOR_MAP_DATA_TYPE_FLOAT16
                                                                     : CU_TENSOR_MAP_DATA_TYPE_BFLOAT16;

// x [N, D] in boxes of `box_rows` rows by 128 bytes; of row r the 16 bytes number i come to stand at i ^ r %
// 8, and beyond the matrix there are zeros. False where the driver cannot.
template <class S>
inline bool map_rows(const Problem& problem, uint32_t box_rows, CUtensorMap& map) {
  static const auto encode = tensor_map_encoder();
  if (!encode) return false;
  const cuuint64_t sizes[2] = {cuuint64_t(problem.dim), cuuint64_t(problem.rows)};
  const cuuint64_t strides[1] = {cuuint64_t(problem.dim) * sizeof(S)};
  const cuuint32_t box[2] = {128 / sizeof(S), box_rows}, steps[2] = {1, 1};
  return encode(&map, kMapType<S>, 2, const_cast<void*>(problem.x), sizes, strides, box, steps,
                CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B, CU_TENSOR_MAP_L2_PROMOTION_L2_128B,
                CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE) == CUDA_SUCCESS;
}

}  // namespace stratcore::tangent_projection

#pragma once

#include <cuda.h>
#include <cuda_runtime.h>

#include <cstdint>

namespace stratcore {

// Rows of 16-bit elements [batch, head, row, col], the columns contiguous, in `strides` elements (batch,
// head, row).
struct TensorRows {
  const void* data;
  bool bfloat;
  int64_t batch, heads, rows, cols;
  int64_t strides[3];
};

// Describes `tensor` to bulk copies of boxes of `box_rows` rows by 64 columns, which leave chunks of 16 bytes
// swapped in rows of 128 bytes. False where the layout or the driver does not allow it.
inline bool describe(const TensorRows& tensor, int box_rows, CUtensorMap& map) {
  using Encode = CUresult (*)(CUtensorMap*, CUtensorMapDataType, cuuint32_t, void*, const cuuint64_t*,
                              const cuuint64_t*, const cuuint32_t*, const cuuint32_t*, CUtensorMapInterleave,
                              CUtensorMapSwizzle, CUtensorMapL2promotion, CUtensorMapFloatOOBfill);
  static const Encode encode = [] {
    void* entry = nullptr;
    cudaDriverEntryPointQueryResult found;
    const bool ok = cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &entry, 12000,
                                                     cudaEnableDefault, &found) == cudaSuccess &&
                    found == cudaDriverEntryPointSuccess;
    cudaGetLastError();
    return ok ? reinterpret_cast<Encode>(entry) : nullptr;
  }();
  if (!encode || reinterpret_cast<uintptr_t>(tensor.data) % 16 != 0) return false;
  cuuint64_t strides[3];  // in bytes, from the row to the batch
  for (int i = 0; i < 3; ++i) {
    strides[i] = static_cast<cuuint64_t>(tensor.strides[2 - i]) * 2;
    if (tensor.strides[2 - i] < 0 || strides[i] % 16 != 0 || strides[i] >= uint64_t(1) << 40) return false;
  }
  const cuuint64_t sizes[4] = {static_cast<cuuint64_t>(tensor.cols), static_cast<cuuint64_t>(tensor.rows),
                               static_cast<cuuint64_t>(tensor.heads), static_cast<cuuint64_t>(tensor.batch)};
  const cuuint32_t box[4] = {64, static_cast<cuuint32_t>(box_rows), 1, 1}, steps[4] = {1, 1, 1, 1};
  return encode(&map, tensor.bfloat ? CU_TENSOR_MAP_DATA_TYPE_BFLOAT16 : CU_TENSOR_MAP_DATA_TYPE_FLOAT16, 4,
                const_cast<void*>(tensor.data), sizes, strides, box, steps, CU_TENSOR_MAP_INTERLEAVE_NONE,
                CU_TENSOR_MAP_SWIZZLE_128B, CU_TENSOR_MAP_L2_PROMOTION_L2_128B,
                CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE) == CUDA_SUCCESS;
}

}  // namespace stratcore

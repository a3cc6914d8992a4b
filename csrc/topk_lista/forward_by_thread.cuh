#pragma once

#include <algorithm>

#include "forward_in_shared.cuh"
#include "row_by_thread.cuh"

// Forward of at most 32 atoms and many rows: a thread a row, all steps in one kernel, the parameters of an
// expert in shared memory. Legend as in topk_lista.h.
namespace stratcore::topk_lista {

constexpr int kForwardThreads = 128, kForwardWarps = kForwardThreads / kWarp;

// Shared memory in numbers: W^T [d, 32], S^T [32, 32], theta [steps, 32], a tile a warp.
struct ForwardLayout {
  int dim, thresholds;

  __host__ __device__ int padded_dim() const { return (dim + kQuad - 1) / kQuad * kQuad; }
  __host__ __device__ int recurrent() const { return padded_dim() * kFewAtoms; }
  __host__ __device__ int theta() const { return recurrent() + kFewAtoms * kFewAtoms; }
  __host__ __device__ int tiles() const { return theta() + thresholds * kFewAtoms; }
  __host__ __device__ int64_t bytes() const { return (int64_t(tiles()) + kForwardWarps * kRowTile) * 4; }
};

// Transposed, zeros beyond the atoms and the input.
__device__ inline void load_parameters(const ForwardArguments& args, const ForwardLayout& layout,
                                       int64_t expert, float* shared) {
  const float* encoder = args.encoder + expert * args.atoms * args.dim;
  for (int at = threadIdx.x; at < layout.recurrent(); at += kForwardThreads) {
    const int d = at / kFewAtoms, atom = at % kFewAtoms;
    shared[at] = d < args.dim && atom < args.atoms ? encoder[atom * args.dim + d] : 0.0f;
  }
  const float* recurrent = args.recurrent + expert * args.atoms * args.atoms;
  for (int at = threadIdx.x; at < kFewAtoms * kFewAtoms; at += kForwardThreads) {
    const int from = at / kFewAtoms, atom = at % kFewAtoms;
    const bool inside = from < args.atoms && atom < args.atoms;
    shared[layout.recurrent() + at] = inside ? recurrent[atom * args.atoms + from] : 0.0f;
  }
  for (int at = threadIdx.x; at < layout.thresholds * kFewAtoms; at += kForwardThreads) {
    const int step = at / kFewAtoms, atom = at % kFewAtoms;
    shared[layout.theta() + at] =
        atom < args.atoms ? args.theta[(step * args.experts + expert) * args.atoms + atom] : 0.0f;
  }
}

// Four bits as four bytes 0 or 1.
__device__ inline uint32_t bytes_of(uint32_t bits) { return (bits & 15) * 0x00204081u & 0x01010101u; }

// What the threshold passes is not 0, and has the sign of u.
__device__ inline void store_support(const float (&h)[kFewAtoms], int8_t* support, int atoms) {
  uint32_t passed = 0, negative = 0;
#pragma unroll
  for (int i = kFewAtoms; i-- > 0;) {
    passed |= h[i] == 0.0f ? 0 : 1u << i;
    negative = __funnelshift_l(__float_as_uint(h[i]), negative, 1);
  }
  uint32_t word[kFewAtoms / kQuad];
#pragma unroll
  for (int w = 0; w < kFewAtoms / kQuad; ++w) {  // a byte -1 is 1 and 254
    word[w] = bytes_of(passed >> kQuad * w) + 254 * bytes_of(negative >> kQuad * w);
  }
  if (atoms == kFewAtoms) {
    reinterpret_cast<uint4*>(support)[0] = make_uint4(word[0], word[1], word[2], word[3]);
    reinterpret_cast<uint4*>(support)[1] = make_uint4(word[4], word[5], word[6], word[7]);
    return;
  }
#pragma unroll
  for (int i = 0; i < kFewAtoms; ++i) {
    if (i < atoms) support[i] = static_cast<int8_t>(word[i / kQuad] >> 8 * (i % kQuad) & 0xff);
  }
}

// The kept entries of a row, in order, then the lowest unused ones (where the row has 0) up to `width`.
__device__ inline void store_slots(const float* row, uint32_t kept, int32_t k, int32_t width, float* values,
                                   int32_t* indices) {
  uint32_t unused = ~kept;
  for (int begin = 0; begin < width; begin += kQuad) {
    float value[kQuad];
    int32_t index[kQuad];
#pragma unroll
    for (int i = 0; i < kQuad; ++i) {
      const bool filler = begin + i >= k;
      const uint32_t from = filler ? unused : kept, rest = from & (from - 1);
      index[i] = (__ffs(from) - 1) & (kFewAtoms - 1);
      value[i] = row[index[i]];
      kept = filler ? kept : rest;
      unused = filler ? rest : unused;
    }
    if (width % kQuad == 0) {
      *reinterpret_cast<float4*>(values + begin) = make_float4(value[0], value[1], value[2], value[3]);
      *reinterpret_cast<int4*>(indices + begin) = make_int4(index[0], index[1], index[2], index[3]);
      continue;
    }
#pragma unroll
    for (int i = 0; i < kQuad; ++i) {
      if (begin + i < width) values[begin + i] = value[i], indices[begin + i] = index[i];
    }
  }
}

// Code of one step from u; its dense row is left in the tile.
template <int kTop>
__device__ inline void finish_step(const ForwardArguments& args, float (&u)[kFewAtoms],
                                   const float* theta_row, int64_t flat, bool present, int32_t k,
                                   float* own) {
#pragma unroll
  for (int i = 0; i < kFewAtoms; i += kQuad) {
    const float4 quad = *reinterpret_cast<const float4*>(theta_row + i);
    const float theta[kQuad] = {quad.x, quad.y, quad.z, quad.w};
#pragma unroll
    for (int j = 0; j < kQuad; ++j) {
      const float left_over = copysignf(fabsf(u[i + j]) - theta[j], u[i + j]);
      u[i + j] = fabsf(u[i + j]) <= theta[j] ? 0.0f : left_over;
    }
  }
  if (args.support && present) store_support(u, args.support + flat * args.atoms, args.atoms);
  const uint32_t kept = keep_largest<kTop>(u, k);
  write_row(u, own);
  const auto width = static_cast<int32_t>(args.width);
  if (present) store_slots(own, kept, k, width, args.values + flat * width, args.indices + flat * width);
}

template <int kTop>
__global__ void __launch_bounds__(kForwardThreads, 4)
    forward_by_thread_kernel(ForwardArguments args, ExpertWidths widths, int64_t expert_begin) {
  extern __shared__ float4 aligned_memory[];
  float* shared = reinterpret_cast<float*>(aligned_memory);
  const ForwardLayout layout{args.dim, args.threshold_per_step ? args.num_steps + 1 : 1};
  const int64_t expert = expert_begin + blockIdx.y;
  const int32_t k = widths.k[blockIdx.y];
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  float* tile = shared + layout.tiles() + warp * kRowTile;
  float* own = tile + lane * kPitch;
  load_parameters(args, layout, expert, shared);
  __syncthreads();
  const float* x = args.x + (args.shared_input ? 0 : expert * args.rows * args.dim);
  const bool x_aligned = args.dim % kQuad == 0, code_aligned = args.atoms % kQuad == 0;
  for (int64_t start = int64_t(blockIdx.x) * kForwardThreads + warp * kLaneRows; start < args.rows;
       start += int64_t(gridDim.x) * kForwardThreads) {
    const int present = rows_present(args.rows - start, 0);
    float c[1][kFewAtoms] = {};
    for (int first = 0; first < args.dim; first += kFewAtoms) {
      __syncwarp();
      load_tile(x + start * args.dim, args.dim, first, present, x_aligned, lane, tile);
      __syncwarp();
      add_product(c, own, min(layout.padded_dim() - first, kFewAtoms), shared + first * kFewAtoms, kFewAtoms);
    }
    for (int step = 0; step <= args.num_steps; ++step) {
      float u[1][kFewAtoms];
#pragma unroll
      for (int i = 0; i < kFewAtoms; ++i) u[0][i] = c[0][i];
      if (step > 0) add_product(u, own, kFewAtoms, shared + layout.recurrent(), kFewAtoms);
      const float* theta = shared + layout.theta() + (args.threshold_per_step ? step : 0) * kFewAtoms;
      const int64_t flat = (step * args.experts + expert) * args.rows + start + lane;
      finish_step<kTop>(args, u[0], theta, flat, lane < present, k, own);
    }
    __syncwarp();
    float* dense = args.dense + (expert * args.rows + start) * args.atoms;
    store_tile(tile, dense, args.atoms, 0, present, code_aligned, lane);
  }
}

// Whether a thread a row pays: float32, `classic`, one set of parameters for all steps, and rows for all
// processors.
inline bool fits_in_threads(const Sizes& sizes, const Parameters& in) {
  constexpr int64_t kFewestRows = 8192, kMostInputs = 256, kMostThresholds = 64;
  return sizes.dtype == DType::kFloat32 && !sizes.group_expert && sizes.form == Form::kClassic &&
         !sizes.encoder_per_step && !sizes.recurrent_per_step && sizes.atoms <= kFewAtoms &&
         sizes.dim <= kMostInputs && sizes.num_steps < kMostThresholds &&
         sizes.rows * sizes.experts >= kFewestRows && reinterpret_cast<uintptr_t>(in.x) % 16 == 0;
}

inline Status forward_by_thread(const Sizes& sizes, const Parameters& in, const Codes& out,
                                const Executor& executor) {
  const ForwardArguments args = forward_arguments(sizes, in, out);
  const ForwardLayout layout{args.dim, args.threshold_per_step ? args.num_steps + 1 : 1};
  const auto bytes = static_cast<int>(layout.bytes());
  const int64_t tiles = (sizes.rows + kForwardThreads - 1) / kForwardThreads;
  for (int64_t begin = 0; begin < sizes.experts; begin += kExpertsPerLaunch) {
    const int64_t end = std::min<int64_t>(begin + kExpertsPerLaunch, sizes.experts);
    const ExpertWidths widths = widths_of(sizes, begin, end);
    const bool few = *std::max_element(sizes.k + begin, sizes.k + end) <= 8;
    const auto kernel = few ? forward_by_thread_kernel<8> : forward_by_thread_kernel<kFewAtoms>;
    if (cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes) != cudaSuccess) {
      return launch_status();
    }
    const int64_t blocks = std::min<int64_t>(tiles, std::max<int64_t>(1, 4 * processors() / (end - begin)));
    const dim3 grid(static_cast<unsigned>(blocks), static_cast<unsigned>(end - begin));
    kernel<<<grid, kForwardThreads, bytes, stream_of(executor)>>>(args, widths, begin);
    const Status status = launch_status();
    if (status != kOk) return status;
  }
  return kOk;
}

}  // namespace stratcore::topk_lista

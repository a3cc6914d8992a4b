#pragma once

#include <algorithm>

#include "select.cuh"

// Forward of few atoms: all steps of a row in one kernel, the parameters of an expert in shared memory, the
// row's u in registers. Legend as in topk_lista.h.
namespace stratcore::topk_lista {

struct ForwardArguments {
  const float* x;          // [1 or E, B, d]
  const float* encoder;    // [E, m, d]
  const float* recurrent;  // S [E, m, m]
  const float* theta;      // [1 or T + 1, E, m]
  float* dense;            // [E, B, m]
  float* values;           // [T + 1, E, B, K]
  int32_t* indices;        // [T + 1, E, B, K]
  int8_t* support;         // [T + 1, E, B, m] or null
  int64_t rows, experts, width;
  int32_t atoms, dim, num_steps;
  bool shared_input, threshold_per_step;
};

inline ForwardArguments forward_arguments(const Sizes& sizes, const Parameters& in, const Codes& out) {
  return {static_cast<const float*>(in.x),
          static_cast<const float*>(in.encoder),
          static_cast<const float*>(in.recurrent),
          static_cast<const float*>(in.theta),
          static_cast<float*>(out.dense),
          static_cast<float*>(out.values),
          out.indices,
          out.support,
          sizes.rows,
          sizes.experts,
          sizes.width,
          static_cast<int32_t>(sizes.atoms),
          static_cast<int32_t>(sizes.dim),
          static_cast<int32_t>(sizes.num_steps),
          sizes.shared_input,
          sizes.threshold_per_step};
}

constexpr int kRowsPerGroup = 4;  // that one load of the encoder serves

// Shared memory of a block, in numbers: W^T [d, M], S^T [m, M], x of its rows, a list of kept entries for
// each group; M is the number of atoms that the lanes of a group hold.
template <int kLanes>
struct SharedLayout {
  static constexpr int kAtoms = kLanes * kQuad, kGroups = kThreads / kLanes, kRows = kGroups * kRowsPerGroup;
  int dim, atoms;

  __host__ __device__ int encoder() const { return 0; }
  __host__ __device__ int recurrent() const { return dim * kAtoms; }
  __host__ __device__ int input() const { return recurrent() + atoms * kAtoms; }
  __host__ __device__ int lists() const { return input() + kRows * dim; }
  __host__ __device__ int64_t bytes() const { return (int64_t(lists()) + kGroups * kAtoms * 2) * 4; }
};

// Which entries of a lane's quad are among the k of the row, and how many of the row's kept ones come before
// the quad.
struct KeptQuad {
  uint32_t bits;
  int32_t before;
};

template <int kLanes>
__device__ int32_t count_before(const bool (&flag)[kQuad], int lane, int shift) {
  const uint32_t before = (1u << lane) - 1;  // lane < kLanes <= 32
  int32_t count = 0;
#pragma unroll
  for (int c = 0; c < kQuad; ++c) count += __popc(__ballot_sync(~0u, flag[c]) >> shift & before);
  return count;
}

template <int kLanes>
__device__ KeptQuad select_quad(const float (&h)[kQuad], int32_t k, int lane, int shift) {
  uint32_t key[kQuad], largest = 0;
#pragma unroll
  for (int c = 0; c < kQuad; ++c) {
    key[c] = magnitude_key(h[c]);
    largest = max(largest, key[c]);
  }
  Bracket bracket(group_max<kLanes>(largest), kLanes * kQuad, k);
  uint32_t pivot = 1;
  while (__any_sync(~0u, bracket.open())) {
    int32_t count = 0;
#pragma unroll
    for (int c = 0; c < kQuad; ++c) count += key[c] >= pivot;
    count = group_sum<kLanes>(count);
    if (bracket.open()) bracket.narrow(pivot, count);
    pivot = bracket.next_pivot();
  }
  bool inside[kQuad], kept[kQuad];
#pragma unroll
  for (int c = 0; c < kQuad; ++c) inside[c] = key[c] >= bracket.low && key[c] < bracket.high;
  int32_t rank = count_before<kLanes>(inside, lane, shift);
  KeptQuad result{0, 0};
#pragma unroll
  for (int c = 0; c < kQuad; ++c) {
    kept[c] = key[c] >= bracket.high || (inside[c] && rank < bracket.room());
    rank += inside[c];
    result.bits |= uint32_t(kept[c]) << c;
  }
  result.before = count_before<kLanes>(kept, lane, shift);
  return result;
}

// Parameters of one expert into shared memory, transposed, zeros beyond the atoms.
template <int kLanes>
__device__ void load_parameters(const ForwardArguments& args, const SharedLayout<kLanes>& layout,
                                int64_t expert, float* shared) {
  constexpr int kAtoms = SharedLayout<kLanes>::kAtoms;
  const float* encoder = args.encoder + expert * args.atoms * args.dim;
  for (int at = threadIdx.x; at < kAtoms * args.dim; at += kThreads) {
    const int atom = at / args.dim, d = at % args.dim;
    shared[layout.encoder() + d * kAtoms + atom] = atom < args.atoms ? encoder[at] : 0.0f;
  }
  const float* recurrent = args.recurrent + expert * args.atoms * args.atoms;
  for (int at = threadIdx.x; at < kAtoms * args.atoms; at += kThreads) {
    const int atom = at / args.atoms, from = at % args.atoms;
    shared[layout.recurrent() + from * kAtoms + atom] = atom < args.atoms ? recurrent[at] : 0.0f;
  }
}

// c = W x of a group's rows: [kRowsPerGroup][4] a lane.
template <int kLanes>
__device__ void encode(const SharedLayout<kLanes>& layout, const float* shared, int group, int lane,
                       float (&c)[kRowsPerGroup][kQuad]) {
  const float* x = shared + layout.input() + group * kRowsPerGroup * layout.dim;
  const float* weight = shared + layout.encoder() + lane * kQuad;
#pragma unroll
  for (int r = 0; r < kRowsPerGroup; ++r) {
#pragma unroll
    for (int i = 0; i < kQuad; ++i) c[r][i] = 0.0f;
  }
  for (int d = 0; d < layout.dim; d += kQuad) {
    float4 from[kRowsPerGroup];
#pragma unroll
    for (int r = 0; r < kRowsPerGroup; ++r)
      from[r] = *reinterpret_cast<const float4*>(x + r * layout.dim + d);
#pragma unroll
    for (int part = 0; part < kQuad; ++part) {
      const float4 w = *reinterpret_cast<const float4*>(weight + (d + part) * layout.kAtoms);
#pragma unroll
      for (int r = 0; r < kRowsPerGroup; ++r) {
        const float factor = part == 0   ? from[r].x
                             : part == 1 ? from[r].y
                             : part == 2 ? from[r].z
                                         : from[r].w;
        c[r][0] += factor * w.x, c[r][1] += factor * w.y, c[r][2] += factor * w.z, c[r][3] += factor * w.w;
      }
    }
  }
}

// One row through all steps. `list` holds the kept entries (value, atom) of the step before.
template <int kLanes>
__device__ void run_row(const ForwardArguments& args, const float* recurrent, float2* list, int64_t expert,
                        int64_t row, bool present, int32_t k, int lane, int shift, const float (&c)[kQuad]) {
  constexpr int kAtoms = SharedLayout<kLanes>::kAtoms;
  const int first = lane * kQuad;
  for (int step = 0; step <= args.num_steps; ++step) {
    float u[kQuad] = {c[0], c[1], c[2], c[3]};
    for (int s = 0; step > 0 && s < k; ++s) {
      const float2 entry = list[s];
      const float4 column =
          *reinterpret_cast<const float4*>(recurrent + __float_as_int(entry.y) * kAtoms + first);
      u[0] += entry.x * column.x, u[1] += entry.x * column.y;
      u[2] += entry.x * column.z, u[3] += entry.x * column.w;
    }
    const float* theta =
        args.theta + ((args.threshold_per_step ? step : 0) * args.experts + expert) * args.atoms;
    const int64_t flat = (step * args.experts + expert) * args.rows + row;
    float h[kQuad];
#pragma unroll
    for (int i = 0; i < kQuad; ++i) {
      const int atom = first + i;
      const float bound = atom < args.atoms ? theta[atom] : 0.0f;
      h[i] = atom < args.atoms ? soft_threshold(u[i], bound) : 0.0f;
      if (args.support && present && atom < args.atoms) {
        args.support[flat * args.atoms + atom] = threshold_sign(u[i], bound);
      }
    }
    const KeptQuad kept = select_quad<kLanes>(h, k, lane, shift);
    __syncwarp();  // the list has been read
    int32_t rank = kept.before;
#pragma unroll
    for (int i = 0; i < kQuad; ++i) {
      const int atom = first + i;
      const bool taken = kept.bits >> i & 1;
      if (taken) list[rank] = make_float2(h[i], __int_as_float(atom));
      const int64_t slot = taken ? rank : k + (atom - rank);
      if (present && atom < args.atoms) {
        if (slot < args.width) {
          args.values[flat * args.width + slot] = taken ? h[i] : 0.0f;
          args.indices[flat * args.width + slot] = atom;
        }
        if (step == args.num_steps) {
          args.dense[(expert * args.rows + row) * args.atoms + atom] = taken ? h[i] : 0.0f;
        }
      }
      rank += taken;
    }
    __syncwarp();
  }
}

template <int kLanes>
__global__ void __launch_bounds__(kThreads)
    forward_in_shared_kernel(ForwardArguments args, ExpertWidths widths, int64_t expert_begin) {
  using Layout = SharedLayout<kLanes>;
  extern __shared__ float4 aligned[];
  float* shared = reinterpret_cast<float*>(aligned);
  const Layout layout{args.dim, args.atoms};
  const int64_t expert = expert_begin + blockIdx.y;
  const int32_t k = widths.k[blockIdx.y];
  const int lane = threadIdx.x % kLanes, group = threadIdx.x / kLanes;
  const int shift = threadIdx.x % 32 / kLanes * kLanes;
  auto* list = reinterpret_cast<float2*>(shared + layout.lists()) + group * Layout::kAtoms;
  load_parameters<kLanes>(args, layout, expert, shared);
  const float* x = args.x + (args.shared_input ? 0 : expert * args.rows * args.dim);
  for (int64_t tile = int64_t(blockIdx.x) * Layout::kRows; tile < args.rows;
       tile += gridDim.x * Layout::kRows) {
    __syncthreads();
    const int quads = static_cast<int>(min(args.rows - tile, int64_t(Layout::kRows))) * args.dim / kQuad;
    auto* target = reinterpret_cast<float4*>(shared + layout.input());
    const auto* source = reinterpret_cast<const float4*>(x + tile * args.dim);
    for (int at = threadIdx.x; at < quads; at += kThreads) target[at] = source[at];
    __syncthreads();
    float c[kRowsPerGroup][kQuad];
    encode<kLanes>(layout, shared, group, lane, c);
#pragma unroll
    for (int r = 0; r < kRowsPerGroup; ++r) {
      const int64_t row = tile + group * kRowsPerGroup + r;
      run_row<kLanes>(args, shared + layout.recurrent(), list, expert, row, row < args.rows, k, lane, shift,
                      c[r]);
    }
  }
}

// Whether all steps run in one kernel: float32, `classic`, one set of parameters for all steps that fits in
// shared memory beside the rows.
template <int kLanes>
bool fits_in_shared(const Sizes& sizes, const Parameters& in) {
  constexpr int64_t kMostBytes = 200 << 10;
  return sizes.dtype == DType::kFloat32 && !sizes.group_expert && sizes.form == Form::kClassic &&
         !sizes.encoder_per_step && !sizes.recurrent_per_step &&
         sizes.atoms <= SharedLayout<kLanes>::kAtoms && quads_aligned<float>(in.x, sizes.dim) &&
         sizes.dim <= 1024 &&
         SharedLayout<kLanes>{static_cast<int>(sizes.dim), static_cast<int>(sizes.atoms)}.bytes() <=
             kMostBytes;
}

template <int kLanes>
Status forward_in_shared(const Sizes& sizes, const Parameters& in, const Codes& out,
                         const Executor& executor) {
  const ForwardArguments args = forward_arguments(sizes, in, out);
  const SharedLayout<kLanes> layout{args.dim, args.atoms};
  const auto bytes = static_cast<int>(layout.bytes());
  const auto kernel = forward_in_shared_kernel<kLanes>;
  if (cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes) != cudaSuccess) {
    return launch_status();
  }
  const int64_t tiles = (sizes.rows + layout.kRows - 1) / layout.kRows;
  const int64_t resident = std::max<int64_t>(1, (220 << 10) / (bytes + 1024)) * processors();
  for (int64_t begin = 0; begin < sizes.experts; begin += kExpertsPerLaunch) {
    const int64_t end = std::min<int64_t>(begin + kExpertsPerLaunch, sizes.experts);
    const ExpertWidths widths = widths_of(sizes, begin, end);
    const int64_t blocks = std::min(tiles, std::max<int64_t>(1, resident / (end - begin)));
    const dim3 grid(static_cast<unsigned>(blocks), static_cast<unsigned>(end - begin));
    kernel<<<grid, kThreads, bytes, stream_of(executor)>>>(args, widths, begin);
    const Status status = launch_status();
    if (status != kOk) return status;
  }
  return kOk;
}

}  // namespace stratcore::topk_lista

#pragma once

#include <algorithm>

#include "../common/launch.cuh"
#include "row_by_thread.cuh"

// Backward of `classic` with at most 32 atoms: a thread carries the gradient of a row through all steps; the
// gradients of the parameters are added up in registers and shared memory, by block in a second pass, always
// in the same order. Legend as in topk_lista.h.
namespace stratcore::topk_lista {

struct BackwardArguments {
  const float* grad_codes;   // [E, B, m] or null
  const float* grad_values;  // [T + 1, E, B, K] or null
  const float* x;            // [1 or E, B, d]
  const float* encoder;      // [E, m, d]
  const float* recurrent;    // S [E, m, m]
  const float* values;       // [T + 1, E, B, K]
  const int32_t* indices;    // [T + 1, E, B, K]
  const int8_t* support;     // [T + 1, E, B, m] or null: then the kept entries' signs
  float* grad_x;             // [E, B, d] or null
  float* partial;            // [E, blocks, numbers of SumsLayout]
  int64_t rows, experts;
  int32_t atoms, dim, width, num_steps;
  bool shared_input, threshold_per_step, need_encoder, need_recurrent, need_theta;
};

constexpr int kBackwardThreads = 256, kBackwardWarps = kBackwardThreads / kWarp;
constexpr int kOuter = kFewAtoms;  // numbers of a 32 x 32 sum that a lane holds

// Sums of a warp or block, in numbers: S [32, 32], W in chunks of 32 columns, theta [steps, 32]. Number
// `element` of lane l of a square lies at element * 32 + l.
struct SumsLayout {
  int dim, thresholds;

  __host__ __device__ int chunks() const { return (dim + kFewAtoms - 1) / kFewAtoms; }
  __host__ __device__ int encoder() const { return kFewAtoms * kFewAtoms; }
  __host__ __device__ int theta() const { return encoder() + chunks() * kFewAtoms * kFewAtoms; }
  __host__ __device__ int size() const { return theta() + thresholds * kFewAtoms; }
};

// Shared memory: S [32, 32], W [32, padded d], then for each warp its sums and two tiles.
struct BackwardLayout {
  SumsLayout sums;

  __host__ __device__ int pitch() const { return sums.chunks() * kFewAtoms; }  // of W
  __host__ __device__ int encoder() const { return kFewAtoms * kFewAtoms; }
  __host__ __device__ int warps() const { return encoder() + kFewAtoms * pitch(); }
  __host__ __device__ int per_warp() const { return sums.size() + 2 * kTile; }
  __host__ __device__ int64_t bytes() const { return (int64_t(warps()) + kBackwardWarps * per_warp()) * 4; }
};

// sum[i][j] += left[r][i] right[r][j] over the rows of two tiles: a lane has 4 x 8 of the numbers.
__device__ inline void add_outer(const float* left, const float* right, int lane, float (&sum)[kOuter]) {
  const float* from_left = left + lane / 4 * 4;
  const float* from_right = right + lane % 4 * 8;
#pragma unroll 4
  for (int r = 0; r < kTileRows; ++r) {
    const float4 a = *reinterpret_cast<const float4*>(from_left + r * kPitch);
    const float4 low = *reinterpret_cast<const float4*>(from_right + r * kPitch);
    const float4 high = *reinterpret_cast<const float4*>(from_right + r * kPitch + kQuad);
    const float factor[4] = {a.x, a.y, a.z, a.w};
    const float term[8] = {low.x, low.y, low.z, low.w, high.x, high.y, high.z, high.w};
#pragma unroll
    for (int i = 0; i < 4; ++i) {
#pragma unroll
      for (int j = 0; j < 8; ++j) sum[i * 8 + j] += factor[i] * term[j];
    }
  }
}

// Where number `element` of `lane` of such a sum stands.
__device__ inline int2 outer_place(int element, int lane) {
  return make_int2(lane / 4 * 4 + element / 8, lane % 4 * 8 + element % 8);
}

// One warp's tile of rows: gradient of the current code in registers, of u in the tile `grads`, a code in
// the tile `codes`.
class TileBackward {
 public:
  __device__ TileBackward(const BackwardArguments& args, int64_t expert, int64_t start, float* grads,
                          float* codes)
      : args_(args), expert_(expert), start_(start), lane_(threadIdx.x % kWarp),
        present_(static_cast<int>(min(args.rows - start, int64_t(kTileRows)))), grads_(grads), codes_(codes) {}

  // Through all steps. In the end `grads` holds the sum of the gradients of u over the steps.
  __device__ void run(const float* recurrent, float (&recurrent_sum)[kOuter], float* theta_sum) {
    float grad[kFewAtoms] = {}, total[kFewAtoms] = {};
    if (args_.grad_codes) {
      const float* source = args_.grad_codes + (expert_ * args_.rows + start_) * args_.atoms;
      load_tile(source, args_.atoms, 0, present_, args_.atoms % kQuad == 0, lane_, grads_);
      __syncwarp();
      read_row(own(grads_), grad);
    }
    if (!args_.support) expand(args_.num_steps);
    for (int step = args_.num_steps; step >= 0; --step) {
      if (args_.grad_values) add_at_slots(step, grad);
      uint32_t passed, negative;
      signs(step, passed, negative);
#pragma unroll
      for (int i = 0; i < kFewAtoms; ++i) {
        grad[i] = passed >> i & 1 ? grad[i] : 0.0f;
        total[i] += grad[i];
      }
      if (args_.need_theta) {
        theta_sum[(args_.threshold_per_step ? step : 0) * kFewAtoms + lane_] += signed_columns(grad, negative);
      }
      if (step == 0) break;
      __syncwarp();  // the tiles have been read
      write_row(grad, own(grads_));
      expand(step - 1);
      __syncwarp();
      if (args_.need_recurrent) add_outer(grads_, codes_, lane_, recurrent_sum);
#pragma unroll
      for (int i = 0; i < kFewAtoms; ++i) grad[i] = 0.0f;
      add_product(grad, own(grads_), kFewAtoms, recurrent, kFewAtoms);
    }
    __syncwarp();
    write_row(total, own(grads_));
    __syncwarp();
  }

  // What meets W and x once: d x = total W and d W += total^T x.
  __device__ void finish(const float* encoder, int pitch, float* encoder_sum) {
    const bool aligned = args_.dim % kQuad == 0;
    const float* x = args_.x + ((args_.shared_input ? 0 : expert_ * args_.rows) + start_) * args_.dim;
    for (int first = 0; first < args_.dim; first += kFewAtoms) {
      if (args_.grad_x) {
        float sum[kFewAtoms] = {};
        add_product(sum, own(grads_), kFewAtoms, encoder + first, pitch);
        write_row(sum, own(codes_));
        __syncwarp();
        float* target = args_.grad_x + (expert_ * args_.rows + start_) * args_.dim;
        store_tile(codes_, target, args_.dim, first, present_, aligned, lane_);
        __syncwarp();
      }
      if (args_.need_encoder) {
        load_tile(x, args_.dim, first, present_, aligned, lane_, codes_);
        __syncwarp();
        float sum[kOuter] = {};
        add_outer(grads_, codes_, lane_, sum);
        float* target = encoder_sum + first * kFewAtoms + lane_;
#pragma unroll
        for (int e = 0; e < kOuter; ++e) target[e * kWarp] += sum[e];
        __syncwarp();
      }
    }
  }

 private:
  __device__ float* own(float* tile) const { return tile + lane_ * kPitch; }

  __device__ int64_t flat(int step) const {
    return (step * args_.experts + expert_) * args_.rows + start_ + lane_;
  }

  // The code of a step into the tile `codes`, each lane its row.
  __device__ void expand(int step) {
    float zero[kFewAtoms] = {};
    float* row = own(codes_);
    write_row(zero, row);
    if (lane_ >= present_) return;
    const int64_t slot = flat(step) * args_.width;
    if (args_.width % kQuad == 0) {
      for (int s = 0; s < args_.width; s += kQuad) {
        const float4 value = *reinterpret_cast<const float4*>(args_.values + slot + s);
        const int4 index = *reinterpret_cast<const int4*>(args_.indices + slot + s);
        row[index.x] = value.x, row[index.y] = value.y, row[index.z] = value.z, row[index.w] = value.w;
      }
      return;
    }
    for (int s = 0; s < args_.width; ++s) row[args_.indices[slot + s]] = args_.values[slot + s];
  }

  // Registers have no address: by way of the tile, each lane its row.
  __device__ void add_at_slots(int step, float (&grad)[kFewAtoms]) {
    __syncwarp();
    float* row = own(grads_);
    write_row(grad, row);
    const int64_t slot = flat(step) * args_.width;
    for (int s = 0; lane_ < present_ && s < args_.width; ++s) {
      row[args_.indices[slot + s]] += args_.grad_values[slot + s];
    }
    read_row(row, grad);
  }

  // Which entries have passed the threshold, and which of them are negative. Of the kept ones (masked) the
  // values are in the tile.
  __device__ void signs(int step, uint32_t& passed, uint32_t& negative) const {
    passed = negative = 0;
    if (!args_.support) {
      float value[kFewAtoms];
      read_row(codes_ + lane_ * kPitch, value);
#pragma unroll
      for (int i = 0; i < kFewAtoms; ++i) {
        const int8_t sign = threshold_sign(value[i], 0.0f);
        passed |= sign ? 1u << i : 0, negative |= sign < 0 ? 1u << i : 0;
      }
      return;
    }
    if (lane_ >= present_) return;
    const int8_t* row = args_.support + flat(step) * args_.atoms;
    if (args_.atoms == kFewAtoms) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const uint4 quad = reinterpret_cast<const uint4*>(row)[half];
        const uint32_t word[4] = {quad.x, quad.y, quad.z, quad.w};
#pragma unroll
        for (int w = 0; w < 4; ++w) {  // a byte is -1, 0 or 1: its low bit and its sign bit, gathered by a product
          const int shift = half * 16 + w * 4;
          passed |= ((word[w] & 0x01010101u) * 0x01020408u >> 24 & 15) << shift;
          negative |= ((word[w] >> 7 & 0x01010101u) * 0x01020408u >> 24 & 15) << shift;
        }
      }
      return;
    }
    for (int i = 0; i < args_.atoms; ++i) {
      passed |= row[i] ? 1u << i : 0, negative |= row[i] < 0 ? 1u << i : 0;
    }
  }

  // Lane l: the sum of column l over the rows, negative entries with the other sign.
  __device__ float signed_columns(const float (&grad)[kFewAtoms], uint32_t negative) const {
    float column[kFewAtoms];
#pragma unroll
    for (int i = 0; i < kFewAtoms; ++i) column[i] = negative >> i & 1 ? -grad[i] : grad[i];
    int base = 0, count = kFewAtoms;
    reduce_scatter<kFewAtoms, kWarp>(column, lane_, base, count);
    return column[0];
  }

  const BackwardArguments& args_;
  const int64_t expert_, start_;
  const int lane_, present_;
  float *grads_, *codes_;
};

__global__ void __launch_bounds__(kBackwardThreads, 1)
    backward_by_thread_kernel(const __grid_constant__ BackwardArguments args) {
  extern __shared__ float4 aligned_memory[];
  float* shared = reinterpret_cast<float*>(aligned_memory);
  const SumsLayout sums{args.dim, args.threshold_per_step ? args.num_steps + 1 : 1};
  const BackwardLayout layout{sums};
  const int64_t expert = blockIdx.y;
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp, pitch = layout.pitch();
  const float* recurrent = args.recurrent + expert * args.atoms * args.atoms;
  for (int at = threadIdx.x; at < kFewAtoms * kFewAtoms; at += kBackwardThreads) {
    const int to = at / kFewAtoms, from = at % kFewAtoms;
    shared[at] = to < args.atoms && from < args.atoms ? recurrent[to * args.atoms + from] : 0.0f;
  }
  const float* encoder = args.encoder + expert * args.atoms * args.dim;
  for (int at = threadIdx.x; at < kFewAtoms * pitch; at += kBackwardThreads) {
    const int atom = at / pitch, d = at % pitch;
    shared[layout.encoder() + at] = atom < args.atoms && d < args.dim ? encoder[atom * args.dim + d] : 0.0f;
  }
  float* own = shared + layout.warps() + warp * layout.per_warp();
  for (int at = lane; at < sums.size(); at += kWarp) own[at] = 0.0f;
  __syncthreads();
  float recurrent_sum[kOuter] = {};
  float* grads = own + sums.size();
  const int64_t tiles = (args.rows + kTileRows - 1) / kTileRows;
  for (int64_t tile = blockIdx.x + int64_t(gridDim.x) * warp; tile < tiles;
       tile += int64_t(gridDim.x) * kBackwardWarps) {
    TileBackward rows(args, expert, tile * kTileRows, grads, grads + kTile);
    rows.run(shared, recurrent_sum, own + sums.theta());
    if (args.grad_x || args.need_encoder) rows.finish(shared + layout.encoder(), pitch, own + sums.encoder());
  }
#pragma unroll
  for (int e = 0; e < kOuter; ++e) own[e * kWarp + lane] = recurrent_sum[e];
  __syncthreads();
  float* target = args.partial + (expert * gridDim.x + blockIdx.x) * sums.size();
  for (int at = threadIdx.x; at < sums.size(); at += kBackwardThreads) {
    float sum = 0.0f;
    for (int other = 0; other < kBackwardWarps; ++other) {
      sum += shared[layout.warps() + other * layout.per_warp() + at];
    }
    target[at] = sum;
  }
}

struct SumTargets {
  float *encoder, *recurrent, *theta;  // gradients [E, m, d], [E, m, m], [steps, E, m], or null
};

// Adds the blocks' sums: eight strips of blocks a number, then the strips.
__global__ void __launch_bounds__(kThreads)
    add_partial_kernel(const float* partial, SumTargets target, SumsLayout sums, int32_t blocks, int32_t atoms,
                       int64_t experts) {
  constexpr int kStrips = kThreads / kWarp;
  __shared__ float strips[kStrips][kWarp];
  const int lane = threadIdx.x % kWarp, strip = threadIdx.x / kWarp, at = blockIdx.x * kWarp + lane;
  const int64_t expert = blockIdx.y;
  float sum = 0.0f;
#pragma unroll 4
  for (int block = strip; block < blocks; block += kStrips) {
    sum += partial[(expert * blocks + block) * sums.size() + at];
  }
  strips[strip][lane] = sum;
  __syncthreads();
  if (strip > 0) return;
  for (int other = 1; other < kStrips; ++other) sum += strips[other][lane];
  const int2 place = outer_place(at / kWarp % kOuter, lane);
  if (at < sums.encoder()) {
    const bool inside = place.x < atoms && place.y < atoms;
    if (target.recurrent && inside) target.recurrent[(expert * atoms + place.x) * atoms + place.y] = sum;
  } else if (at < sums.theta()) {
    const int d = (at / kWarp - kOuter) / kOuter * kFewAtoms + place.y;
    if (target.encoder && place.x < atoms && d < sums.dim) {
      target.encoder[(expert * atoms + place.x) * sums.dim + d] = sum;
    }
  } else if (target.theta && lane < atoms) {
    const int step = (at - sums.theta()) / kFewAtoms;
    target.theta[(step * experts + expert) * atoms + lane] = -sum;
  }
}

// Blocks an expert of the backward with a thread a row; 0 where the sizes do not fit it.
inline int64_t thread_backward_blocks(const Sizes& sizes, const Parameters& in, bool folds_input,
                                      int64_t scratch) {
  constexpr int64_t kMostBytes = 227 << 10, kMostInputs = 128, kMostThresholds = 64, kMostExperts = 65535;
  const bool fits = sizes.dtype == DType::kFloat32 && sizes.form == Form::kClassic &&
                    !sizes.encoder_per_step && !sizes.recurrent_per_step && sizes.atoms <= kFewAtoms &&
                    sizes.dim <= kMostInputs && sizes.num_steps < kMostThresholds &&
                    sizes.experts <= kMostExperts && reinterpret_cast<uintptr_t>(in.x) % 16 == 0;
  if (!fits) return 0;
  const SumsLayout sums{static_cast<int>(sizes.dim),
                        static_cast<int>(sizes.threshold_per_step ? sizes.num_steps + 1 : 1)};
  if (BackwardLayout{sums}.bytes() > kMostBytes) return 0;
  const int64_t left = scratch - (folds_input ? sizes.experts * sizes.rows * sizes.dim : 0);
  const int64_t tiles = (sizes.rows + kTileRows - 1) / kTileRows;
  const int64_t wanted = std::min<int64_t>(tiles, std::max<int64_t>(1, processors() / sizes.experts));
  return std::min(wanted, left / (sizes.experts * sums.size()));
}

}  // namespace stratcore::topk_lista

#pragma once

#include <algorithm>

#include "../common/launch.cuh"
#include "row_by_thread.cuh"

// Backward of `classic` with at most 32 atoms: a thread carries the gradients of two rows through all steps;
// the gradients of the parameters are added up in registers and shared memory, by block in a second pass,
// always in the same order. Legend as in topk_lista.h.
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

constexpr int kSets = 2;  // rows of a lane, from as many tiles: what it loads of a matrix serves both
constexpr int kWarpRows = kSets * kLaneRows;
constexpr int kMostBackwardWarps = 8;  // of a block
constexpr int kOuter = kFewAtoms;      // numbers of a 32 x 32 sum that a lane holds

// Sums of a warp or block, in numbers: S [32, 32], W in chunks of 32 columns, theta [steps, 32]. Number
// `element` of lane l of a square lies at element * 32 + l.
struct SumsLayout {
  int dim, thresholds;

  __host__ __device__ int chunks() const { return (dim + kFewAtoms - 1) / kFewAtoms; }
  __host__ __device__ int encoder() const { return kFewAtoms * kFewAtoms; }
  __host__ __device__ int theta() const { return encoder() + chunks() * kFewAtoms * kFewAtoms; }
  __host__ __device__ int size() const { return theta() + thresholds * kFewAtoms; }
};

inline SumsLayout sums_layout(const Sizes& sizes) {
  return {static_cast<int>(sizes.dim), static_cast<int>(sizes.threshold_per_step ? sizes.num_steps + 1 : 1)};
}

// Shared memory: S [32, 32], W [32, padded d], then for each warp its sums (those of S take the place of the
// tiles, in the end), two tiles of gradients and one of codes or inputs.
struct BackwardLayout {
  SumsLayout sums;

  __host__ __device__ int pitch() const { return sums.chunks() * kFewAtoms; }  // of W
  __host__ __device__ int encoder() const { return kFewAtoms * kFewAtoms; }
  __host__ __device__ int warps() const { return encoder() + kFewAtoms * pitch(); }
  __host__ __device__ int tiles() const { return sums.size() - sums.encoder(); }
  __host__ __device__ int per_warp() const { return tiles() + (kSets + 1) * kRowTile; }
  __host__ __device__ int64_t bytes(int warps_) const { return (int64_t(warps()) + warps_ * per_warp()) * 4; }
};

// sum[i][j] += left[r][i] right[r][j] over the rows of two tiles: a lane has 4 x 8 of the numbers.
__device__ inline void add_outer(const float* left, const float* right, int lane, float (&sum)[kOuter]) {
  const float* from_left = left + lane / 4 * 4;
  const float* from_right = right + lane % 4 * 8;
#pragma unroll 4
  for (int r = 0; r < kLaneRows; ++r) {
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

// One warp's rows: gradients of the current code in registers, of u in the two tiles from `grads` on; then a
// tile for codes or inputs.
class RowsBackward {
 public:
  __device__ RowsBackward(const BackwardArguments& args, int64_t expert, int64_t start, float* grads)
      : args_(args), expert_(expert), start_(start), lane_(threadIdx.x % kWarp), grads_(grads),
        other_(grads + kSets * kRowTile) {}

  // Through all steps. In the end the tiles hold the sums of the gradients of u over the steps.
  __device__ void run(const float* recurrent, float (&recurrent_sum)[kOuter], float* theta_sum) {
    float grad[kSets][kFewAtoms] = {}, total[kSets][kFewAtoms] = {};
    if (args_.grad_codes) load_gradients(grad);
    for (int step = args_.num_steps; step >= 0; --step) {
      float column[kFewAtoms] = {};
#pragma unroll
      for (int set = 0; set < kSets; ++set) {
        if (args_.grad_values) add_at_slots(set, step, grad[set]);
        uint32_t passed, negative;
        signs(set, step, passed, negative);
#pragma unroll
        for (int i = 0; i < kFewAtoms; ++i) {
          grad[set][i] = passed >> i & 1 ? grad[set][i] : 0.0f;
          total[set][i] += grad[set][i];
          column[i] += negative >> i & 1 ? -grad[set][i] : grad[set][i];
        }
      }
      if (args_.need_theta) {
        theta_sum[(args_.threshold_per_step ? step : 0) * kFewAtoms + lane_] += sum_of_columns(column);
      }
      if (step == 0) break;
      __syncwarp();  // the tiles have been read
      write_rows(grad);
      if (args_.need_recurrent) add_recurrent(step, recurrent_sum);
      clear(grad);
      add_product(grad, own(grads_), kFewAtoms, recurrent, kFewAtoms);
    }
    __syncwarp();
    write_rows(total);
    __syncwarp();
  }

  // What meets W and x once: d x = total W and d W += total^T x.
  __device__ void finish(const float* encoder, int pitch, float* encoder_sum) {
    const bool aligned = args_.dim % kQuad == 0;
    const float* x = args_.x + ((args_.shared_input ? 0 : expert_ * args_.rows) + start_) * args_.dim;
    for (int first = 0; first < args_.dim; first += kFewAtoms) {
      if (args_.grad_x) {
        float sum[kSets][kFewAtoms] = {};
        add_product(sum, own(grads_), kFewAtoms, encoder + first, pitch);
        float* target = args_.grad_x + (expert_ * args_.rows + start_) * args_.dim;
#pragma unroll
        for (int set = 0; set < kSets; ++set) {
          write_row(sum[set], own(other_));
          __syncwarp();
          store_tile(other_, target + set * kLaneRows * args_.dim, args_.dim, first, present(set), aligned,
                     lane_);
          __syncwarp();
        }
      }
      if (args_.need_encoder) {
        float sum[kOuter] = {};
#pragma unroll 1
        for (int set = 0; set < kSets; ++set) {
          load_tile(x + set * kLaneRows * args_.dim, args_.dim, first, present(set), aligned, lane_, other_);
          __syncwarp();
          add_outer(grads_ + set * kRowTile, other_, lane_, sum);
          __syncwarp();
        }
        float* target = encoder_sum + first * kFewAtoms + lane_;
#pragma unroll
        for (int e = 0; e < kOuter; ++e) target[e * kWarp] += sum[e];
      }
    }
  }

 private:
  __device__ float* own(float* tile) const { return tile + lane_ * kPitch; }
  __device__ int present(int set) const { return rows_present(args_.rows - start_, set * kLaneRows); }

  __device__ int64_t flat(int set, int step) const {
    return (step * args_.experts + expert_) * args_.rows + start_ + set * kLaneRows + lane_;
  }

  __device__ static void clear(float (&value)[kSets][kFewAtoms]) {
#pragma unroll
    for (int set = 0; set < kSets; ++set) {
#pragma unroll
      for (int i = 0; i < kFewAtoms; ++i) value[set][i] = 0.0f;
    }
  }

  __device__ void write_rows(const float (&value)[kSets][kFewAtoms]) {
#pragma unroll
    for (int set = 0; set < kSets; ++set) write_row(value[set], own(grads_ + set * kRowTile));
  }

  __device__ void load_gradients(float (&grad)[kSets][kFewAtoms]) {
#pragma unroll
    for (int set = 0; set < kSets; ++set) {
      const float* source =
          args_.grad_codes + (expert_ * args_.rows + start_ + set * kLaneRows) * args_.atoms;
      load_tile(source, args_.atoms, 0, present(set), args_.atoms % kQuad == 0, lane_,
                grads_ + set * kRowTile);
    }
    __syncwarp();
#pragma unroll
    for (int set = 0; set < kSets; ++set) read_row(own(grads_ + set * kRowTile), grad[set]);
  }

  // d S += grad_u^T z of the step before; the gradients are in the tiles.
  __device__ void add_recurrent(int step, float (&sum)[kOuter]) {
#pragma unroll 1
    for (int set = 0; set < kSets; ++set) {
      expand(set, step - 1);
      __syncwarp();
      add_outer(grads_ + set * kRowTile, other_, lane_, sum);
      __syncwarp();
    }
  }

  // The code of a step into the tile, each lane its row.
  __device__ void expand(int set, int step) {
    float zero[kFewAtoms] = {};
    float* row = own(other_);
    write_row(zero, row);
    if (lane_ >= present(set)) return;
    const int64_t slot = flat(set, step) * args_.width;
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
  __device__ void add_at_slots(int set, int step, float (&grad)[kFewAtoms]) {
    __syncwarp();
    float* row = own(grads_ + set * kRowTile);
    write_row(grad, row);
    const int64_t slot = flat(set, step) * args_.width;
    for (int s = 0; lane_ < present(set) && s < args_.width; ++s) {
      row[args_.indices[slot + s]] += args_.grad_values[slot + s];
    }
    read_row(row, grad);
  }

  // Which entries have passed the threshold, and which of them are negative.
  __device__ void signs(int set, int step, uint32_t& passed, uint32_t& negative) const {
    passed = negative = 0;
    if (lane_ >= present(set)) return;
    if (!args_.support) {  // of the kept entries
      const int64_t slot = flat(set, step) * args_.width;
      for (int s = 0; s < args_.width; ++s) {
        const int8_t sign = threshold_sign(args_.values[slot + s], 0.0f);
        const uint32_t bit = 1u << args_.indices[slot + s];
        passed |= sign ? bit : 0, negative |= sign < 0 ? bit : 0;
      }
      return;
    }
    const int8_t* row = args_.support + flat(set, step) * args_.atoms;
    if (args_.atoms == kFewAtoms) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const uint4 quad = reinterpret_cast<const uint4*>(row)[half];
        const uint32_t word[4] = {quad.x, quad.y, quad.z, quad.w};
#pragma unroll
        for (int w = 0; w < 4; ++w) {  // bytes -1, 0 or 1: their low and sign bits, gathered by products
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

  // Lane l: the sum of number l over the lanes.
  __device__ float sum_of_columns(float (&column)[kFewAtoms]) const {
    int base = 0, count = kFewAtoms;
    reduce_scatter<kFewAtoms, kWarp>(column, lane_, base, count);
    return column[0];
  }

  const BackwardArguments& args_;
  const int64_t expert_, start_;
  const int lane_;
  float *grads_, *other_;
};

__global__ void __launch_bounds__(kMostBackwardWarps* kWarp, 1)
    backward_by_thread_kernel(const __grid_constant__ BackwardArguments args) {
  extern __shared__ float4 aligned_memory[];
  float* shared = reinterpret_cast<float*>(aligned_memory);
  const SumsLayout sums{args.dim, args.threshold_per_step ? args.num_steps + 1 : 1};
  const BackwardLayout layout{sums};
  const int64_t expert = blockIdx.y;
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp, threads = blockDim.x;
  const int warps = threads / kWarp, pitch = layout.pitch();
  const float* recurrent = args.recurrent + expert * args.atoms * args.atoms;
  for (int at = threadIdx.x; at < kFewAtoms * kFewAtoms; at += threads) {
    const int to = at / kFewAtoms, from = at % kFewAtoms;
    shared[at] = to < args.atoms && from < args.atoms ? recurrent[to * args.atoms + from] : 0.0f;
  }
  const float* encoder = args.encoder + expert * args.atoms * args.dim;
  for (int at = threadIdx.x; at < kFewAtoms * pitch; at += threads) {
    const int atom = at / pitch, d = at % pitch;
    shared[layout.encoder() + at] = atom < args.atoms && d < args.dim ? encoder[atom * args.dim + d] : 0.0f;
  }
  float* own = shared + layout.warps() + warp * layout.per_warp();
  float* theta_sum = own + sums.theta() - sums.encoder();
  for (int at = lane; at < layout.tiles(); at += kWarp) own[at] = 0.0f;
  __syncthreads();
  float recurrent_sum[kOuter] = {};
  float* tiles = own + layout.tiles();
  for (int64_t start = (blockIdx.x + int64_t(gridDim.x) * warp) * kWarpRows; start < args.rows;
       start += int64_t(gridDim.x) * warps * kWarpRows) {
    RowsBackward rows(args, expert, start, tiles);
    rows.run(shared, recurrent_sum, theta_sum);
    if (args.grad_x || args.need_encoder) rows.finish(shared + layout.encoder(), pitch, own);
  }
#pragma unroll
  for (int e = 0; e < kOuter; ++e) tiles[e * kWarp + lane] = recurrent_sum[e];
  __syncthreads();
  float* target = args.partial + (expert * gridDim.x + blockIdx.x) * sums.size();
  for (int at = threadIdx.x; at < sums.size(); at += threads) {
    const int place = at < sums.encoder() ? layout.tiles() + at : at - sums.encoder();
    float sum = 0.0f;
    for (int other = 0; other < warps; ++other) {
      sum += shared[layout.warps() + other * layout.per_warp() + place];
    }
    target[at] = sum;
  }
}

struct SumTargets {
  float *encoder, *recurrent, *theta;  // gradients [E, m, d], [E, m, m], [steps, E, m], or null
};

// Adds the blocks' sums: eight strips of blocks a number, then the strips.
__global__ void __launch_bounds__(kThreads)
    add_partial_kernel(const float* partial, SumTargets target, SumsLayout sums, int32_t blocks,
                       int32_t atoms, int64_t experts) {
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

// Warps a block and blocks an expert of this backward; no blocks where the sizes do not fit it.
struct BackwardGrid {
  int warps;
  int64_t blocks;
};

inline BackwardGrid backward_grid(const Sizes& sizes) {
  constexpr int64_t kMostBytes = 227 << 10, kMostInputs = 128, kMostThresholds = 64, kMostExperts = 65535;
  const bool fits = sizes.dtype == DType::kFloat32 && sizes.form == Form::kClassic &&
                    !sizes.encoder_per_step && !sizes.recurrent_per_step && sizes.atoms <= kFewAtoms &&
                    sizes.dim <= kMostInputs && sizes.num_steps < kMostThresholds &&
                    sizes.experts <= kMostExperts;
  if (!fits) return {0, 0};
  const SumsLayout sums = sums_layout(sizes);
  int warps = kMostBackwardWarps;
  while (warps > 1 && BackwardLayout{sums}.bytes(warps) > kMostBytes) warps /= 2;
  const int64_t tiles = (sizes.rows + kWarpRows - 1) / kWarpRows;
  return {warps, std::min<int64_t>(tiles, std::max<int64_t>(1, processors() / sizes.experts))};
}

inline bool aligned_input(const Parameters& in) { return reinterpret_cast<uintptr_t>(in.x) % 16 == 0; }

// Bytes: the gradients of a shared input by expert, then the sums of the blocks; 0 where it does not fit.
inline int64_t thread_backward_scratch(const Sizes& sizes) {
  const int64_t blocks = backward_grid(sizes).blocks;
  if (blocks == 0) return 0;
  const int64_t by_expert = sizes.shared_input && sizes.experts > 1 ? sizes.rows * sizes.dim : 0;
  return sizes.experts * (by_expert + blocks * sums_layout(sizes).size()) * int64_t(sizeof(float));
}

}  // namespace stratcore::topk_lista

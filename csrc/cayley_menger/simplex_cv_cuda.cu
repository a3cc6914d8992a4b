#include "../common/launch.cuh"
#include "cayley_menger.h"
#include "order.h"
#include "simplex_cv.h"
#include "simplex_cv_math.h"
#include "simplex_warp.cuh"

// Forward: a warp draws and measures a few simplices, the last block to finish makes the statistics.
// Backward: every row of x belongs to one warp, which adds its parts in the order of the simplices. One
// launch each. Legend as in simplex_cv.h.
namespace stratcore::simplex_cv {
namespace {

using cayley_menger::at_or_zero;
using cayley_menger::packed;

constexpr int kForwardWarps = 4, kBackwardWarps = 16;

// Sum over a block, in a fixed order; valid in every thread.
template <int kBlock>
__device__ double block_sum(double value, double* shared) {
  for (int offset = kWarp / 2; offset; offset /= 2) value += __shfl_xor_sync(kFullWarp, value, offset);
  __syncthreads();
  if (threadIdx.x % kWarp == 0) shared[threadIdx.x / kWarp] = value;
  __syncthreads();
  double sum = 0.0;
  for (int w = 0; w < kBlock / kWarp; ++w) sum += shared[w];
  return sum;
}

template <class T>
__device__ void write_statistics(const Problem& problem, const SampleOf<T>& out, double* shared) {
  constexpr int kBlock = kForwardWarps * kWarp;
  const double least = sqrt(problem.valid_above);
  const auto valid = [&](double v) { return v > least; };  // NaN is not
  const volatile T* volumes = out.volumes;
  double sum = 0.0, counted = 0.0;
  for (int64_t i = threadIdx.x; i < problem.simplices; i += kBlock) {
    const double v = volumes[i];
    if (valid(v)) {
      sum += v;
      counted += 1.0;
    }
  }
  const double n = block_sum<kBlock>(counted, shared), mean = block_sum<kBlock>(sum, shared) / n;
  double squares = 0.0;
  for (int64_t i = threadIdx.x; i < problem.simplices; i += kBlock) {
    const double v = volumes[i];
    if (valid(v)) squares += (v - mean) * (v - mean);
  }
  squares = block_sum<kBlock>(squares, shared);
  if (threadIdx.x) return;
  const bool enough = n >= double(problem.min_valid);
  const double std = sqrt(squares / (n - 1)), cv = std / (mean + problem.eps);
  double* saved = out.state.statistics();
  saved[0] = enough ? cv : NAN;
  saved[1] = enough ? mean : NAN;
  saved[2] = enough ? std : NAN;
  saved[3] = n;
  *out.count = int64_t(n);
  *out.cv = T(saved[0]);
  *out.mean = T(saved[1]);
  *out.std = T(saved[2]);
  *out.loss = enough ? T((cv - problem.target) * (cv - problem.target)) : T(0);
}

template <int K, class S>
__global__ void __launch_bounds__(kForwardWarps* kWarp)
    forward_kernel(Problem problem, const int64_t* seed, SampleOf<Computed<S>> out, uint32_t* counter,
                   int tile, bool aligned) {
  constexpr int kPairs = K * (K + 1) / 2;
  __shared__ double all[kForwardWarps][kPairs * cayley_menger::kStride];
  __shared__ int64_t drawn[kForwardWarps][kWarp][K + 1];
  __shared__ double sums[kForwardWarps];
  __shared__ bool last;
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  const int64_t first = (int64_t(blockIdx.x) * kForwardWarps + warp) * tile;
  const bool mine = lane < tile && first + lane < problem.simplices;
  if (mine) {
    int64_t rows[K + 1];
    draw_vertices<K>(seed[0], seed[1], first + lane, problem.pool, rows);
#pragma unroll
    for (int j = 0; j <= K; ++j) {
      drawn[warp][lane][j] = rows[j];
      out.indices[(first + lane) * (K + 1) + j] = rows[j];
    }
  }
  __syncwarp();
  for (int column = 0; column < tile && first + column < problem.simplices; ++column) {
    cayley_menger::Vertices<K, S> vertices;
#pragma unroll
    for (int j = 0; j <= K; ++j) {
      vertices.row[j] = static_cast<const S*>(problem.x) + drawn[warp][column][j] * problem.dim;
    }
    double gram[kPairs] = {};
    for (int64_t at = int64_t(lane) * kQuad; at - lane * kQuad < problem.dim; at += kWarp * kQuad) {
      cayley_menger::Loaded<K, S> loaded;
      loaded.load(vertices, at, problem.dim, aligned);
      loaded.add_gram(gram);
    }
    cayley_menger::collect_gram<K, kWarp>(gram, lane, column, all[warp]);
  }
  __syncwarp();
  if (mine) {
    double gram[kPairs], weights[kPairs] = {};
    cayley_menger::read_column<K>(all[warp], lane, gram);
    cayley_menger::Pivots<K, double> pivots;
    const bool full = cayley_menger::factor<K>(gram, pivots);
    const double volume = full ? cayley_menger::volume<K>(pivots) : 0.0;
    if (full) cayley_menger::scaled_inverse<K>(gram, pivots, volume, weights);
    out.volumes[first + lane] = Computed<S>(volume);
    out.state.volumes()[first + lane] = Computed<S>(volume);
#pragma unroll
    for (int p = 0; p < kPairs; ++p) out.state.weights()[(first + lane) * kPairs + p] = weights[p];
  }
  __threadfence();
  __syncthreads();
  if (threadIdx.x == 0) last = atomicInc(counter, gridDim.x - 1) == gridDim.x - 1;
  __syncthreads();
  if (!last) return;
  __threadfence();
  write_statistics(problem, out, sums);
}

template <int K, class S>
struct Backward {
  Problem problem;
  const int64_t* indices;
  SavedState state;
  CotangentsOf<Computed<S>> in;

  __device__ double cotangent(int64_t simplex) const {
    const double volume = state.volumes()[simplex];
    double total = at_or_zero(in.volumes, simplex);
    const Statistics statistics(state);
    if (statistics.count >= double(problem.min_valid) && volume > sqrt(problem.valid_above)) {
      const ScalarCotangents g{at_or_zero(in.loss), at_or_zero(in.cv), at_or_zero(in.mean),
                               at_or_zero(in.std)};
      total += volume_cotangent(statistics, g, problem.target, problem.eps, volume);
    }
    return total;
  }
};

constexpr int kBackwardThreads = kBackwardWarps * kWarp;
constexpr int kScanned = 8;                          // positions a thread looks at in one round
constexpr int kRound = kBackwardThreads * kScanned;  // positions of a round
constexpr int kListed = 2 * kRound;                  // parts a block lists before they are worked off
constexpr int kBatch = kBackwardThreads;             // parts that are described at once

// What simplices give to the rows of one block: sum_j factor[j] (x_j - x_0) each, in the order of their
// positions.
template <int K>
struct Parts {
  int32_t position[kListed];  // simplex (K + 1) + vertex
  int32_t own_row[kListed];   // rows of the block, counted by themselves
  int32_t vertex[kBatch][K + 1];
  double factor[kBatch][K];
  bool silent[kBatch];
  int32_t warp_counts[kBackwardWarps];
};

template <int K, class S>
__device__ void describe_part(const Backward<K, S>& backward, int64_t position, int slot, Parts<K>& parts) {
  constexpr int kPairs = K * (K + 1) / 2;
  const int64_t simplex = position / (K + 1);
  const int corner = static_cast<int>(position - simplex * (K + 1));
  const double scale = backward.cotangent(simplex);
  parts.silent[slot] = scale == 0.0;  // then nothing is added, not even NaN times 0
#pragma unroll
  for (int j = 0; j <= K; ++j) {
    parts.vertex[slot][j] = static_cast<int32_t>(backward.indices[simplex * (K + 1) + j]);
  }
  double weight[kPairs];
#pragma unroll
  for (int p = 0; p < kPairs; ++p) weight[p] = backward.state.weights()[simplex * kPairs + p];
#pragma unroll
  for (int j = 0; j < K; ++j) {
    double column = 0.0;
#pragma unroll
    for (int i = 0; i < K; ++i) {
      const double entry = weight[packed(i, j)];
      column += corner == 0 ? -entry : corner == i + 1 ? entry : 0.0;
    }
    parts.factor[slot][j] = scale * column;
  }
}

// Appends the block's parts among positions [begin, begin + kRound), in order; returns the new length of the
// list.
template <int K, class S>
__device__ int list_parts(const Backward<K, S>& backward, int64_t begin, int64_t positions, int listed,
                          int owner_shift, Parts<K>& parts) {
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  const int64_t from = begin + int64_t(warp) * kWarp * kScanned;
  int32_t row[kScanned];
  unsigned found[kScanned];
  int count = 0;
#pragma unroll
  for (int i = 0; i < kScanned; ++i) {
    const int64_t position = from + i * kWarp + lane;
    row[i] = position < positions ? static_cast<int32_t>(backward.indices[position]) : -1;
  }
#pragma unroll
  for (int i = 0; i < kScanned; ++i) {
    found[i] = __ballot_sync(kFullWarp, row[i] >= 0 && (unsigned(row[i]) & (gridDim.x - 1)) == blockIdx.x);
    count += __popc(found[i]);
  }
  if (lane == 0) parts.warp_counts[warp] = count;
  __syncthreads();
  int before = listed, total = listed;
  for (int w = 0; w < kBackwardWarps; ++w) {
    before += w < warp ? parts.warp_counts[w] : 0;
    total += parts.warp_counts[w];
  }
#pragma unroll
  for (int i = 0; i < kScanned; ++i) {
    if (found[i] >> lane & 1) {
      const int slot = before + __popc(found[i] & ((1u << lane) - 1));
      parts.position[slot] = static_cast<int32_t>(from + i * kWarp + lane);
      parts.own_row[slot] = row[i] >> owner_shift;
    }
    before += __popc(found[i]);
  }
  __syncthreads();
  return total;
}

// sum += the parts of the given slots; a slot of -1 adds nothing.
template <int K, class S, int N>
__device__ __forceinline__ void add_parts(const Problem& problem, const Parts<K>& parts, const int (&slot)[N],
                                          int64_t at, bool aligned, double (&sum)[kQuad]) {
  cayley_menger::Loaded<K, S> loaded[N];
#pragma unroll
  for (int n = 0; n < N; ++n) {
    cayley_menger::Vertices<K, S> vertices;
#pragma unroll
    for (int j = 0; j <= K; ++j) {
      vertices.row[j] =
          static_cast<const S*>(problem.x) + int64_t(parts.vertex[max(slot[n], 0)][j]) * problem.dim;
    }
    loaded[n].load(vertices, at, problem.dim, aligned);
  }
#pragma unroll
  for (int n = 0; n < N; ++n) {
    if (slot[n] < 0 || parts.silent[slot[n]]) continue;
    double edge[K][kQuad];
    loaded[n].edges(edge);
#pragma unroll
    for (int j = 0; j < K; ++j) {
#pragma unroll
      for (int c = 0; c < kQuad; ++c) sum[c] += parts.factor[slot[n]][j] * edge[j][c];
    }
  }
}

// Adds described parts (those of the list from `first` on) to the rows of the block, or writes the rows.
template <int K, class S>
__device__ void add_batch(const Problem& problem, const Parts<K>& parts, int first, int count,
                          int64_t own_rows, int owner_shift, bool write, bool aligned, S* grad) {
  constexpr int kAtOnce = K <= 4 ? 4 : 2;
  const int lane = threadIdx.x % kWarp;
  const int64_t chunks = (problem.dim + kWarp * kQuad - 1) / (kWarp * kQuad);
  for (int64_t item = threadIdx.x / kWarp; item < own_rows * chunks; item += kBackwardWarps) {
    const int64_t own = item / chunks, at = item % chunks * kWarp * kQuad + lane * kQuad;
    double sum[kQuad] = {};
    bool any = write;
    for (int begin = 0; begin < count; begin += kWarp) {
      unsigned found =
          __ballot_sync(kFullWarp, begin + lane < count && parts.own_row[first + begin + lane] == own);
      any = any || found;
      while (found) {
        int slot[kAtOnce];
#pragma unroll
        for (int n = 0; n < kAtOnce; ++n) {
          slot[n] = found ? begin + __ffs(found) - 1 : -1;
          found &= found - 1;
        }
        add_parts<K, S>(problem, parts, slot, at, aligned, sum);
      }
    }
    if (!any) continue;
    S* target = grad + ((own << owner_shift) + blockIdx.x) * problem.dim;
    if (!write) {
      const Quad<S> before = load_quad<S>(target, at, problem.dim, aligned);
#pragma unroll
      for (int c = 0; c < kQuad; ++c) sum[c] += double(number(before.element[c]));
    }
    Computed<S> value[kQuad];
#pragma unroll
    for (int c = 0; c < kQuad; ++c) value[c] = Computed<S>(sum[c]);
    store_quad(target, at, problem.dim, aligned, value);
  }
}

// Rows blockIdx.x, + gridDim.x, ..; gridDim.x is 1 << owner_shift.
template <int K, class S>
__global__ void __launch_bounds__(kBackwardThreads, 1)
    backward_kernel(Backward<K, S> backward, S* grad, int owner_shift, bool aligned) {
  extern __shared__ __align__(16) unsigned char memory[];
  Parts<K>& parts = *reinterpret_cast<Parts<K>*>(memory);
  const int64_t positions = backward.problem.simplices * (K + 1);
  const int64_t own_rows = (backward.problem.rows - blockIdx.x + gridDim.x - 1) >> owner_shift;
  int listed = 0;
  bool write = true;
  for (int64_t begin = 0; begin < positions; begin += kRound) {
    listed = list_parts<K, S>(backward, begin, positions, listed, owner_shift, parts);
    if (listed + kRound <= kListed && begin + kRound < positions) continue;
    for (int first = 0; first < listed || write; first += kBatch) {
      const int count = min(listed - first, kBatch);
      if (threadIdx.x < count) {
        describe_part<K, S>(backward, parts.position[first + threadIdx.x], threadIdx.x, parts);
      }
      __syncthreads();
      add_batch<K, S>(backward.problem, parts, first, count, own_rows, owner_shift, write, aligned, grad);
      __syncthreads();
      write = false;
    }
    listed = 0;
  }
}

template <int K, class S>
Status forward_of(const Problem& problem, const int64_t* seed, const Sample& out, uint32_t* counter,
                  const Executor& executor) {
  const int64_t resident = int64_t(processors()) * 16;
  const int tile =
      static_cast<int>(std::min<int64_t>(kWarp, std::max<int64_t>(1, problem.simplices / resident)));
  const int64_t warps = (problem.simplices + tile - 1) / tile;
  const unsigned blocks = static_cast<unsigned>((warps + kForwardWarps - 1) / kForwardWarps);
  forward_kernel<K, S><<<blocks, kForwardWarps * kWarp, 0, stream_of(executor)>>>(
      problem, seed, typed<Computed<S>>(out), counter, tile, quads_aligned<S>(problem.x, problem.dim));
  return launch_status();
}

template <int K, class S>
Status backward_of(const Backward<K, S>& backward, void* grad, const Executor& executor) {
  const Problem& problem = backward.problem;
  int owner_shift = 0;
  while ((2 << owner_shift) <= std::min<int64_t>(problem.rows, processors())) ++owner_shift;
  const bool aligned = quads_aligned<S>(problem.x, problem.dim) && quads_aligned<S>(grad, problem.dim);
  cudaFuncSetAttribute(backward_kernel<K, S>, cudaFuncAttributeMaxDynamicSharedMemorySize, sizeof(Parts<K>));
  backward_kernel<K, S><<<1u << owner_shift, kBackwardThreads, sizeof(Parts<K>), stream_of(executor)>>>(
      backward, static_cast<S*>(grad), owner_shift, aligned);
  return launch_status();
}

}  // namespace

Status forward_cuda(const Problem& problem, const int64_t* seed, const Sample& out, uint32_t* counter,
                    const Executor& executor) {
  return with_element<__nv_bfloat16, __half>(problem.element, [&](auto element) {
    return cayley_menger::with_order(problem.order, [&](auto k) {
      return forward_of<k(), decltype(element)>(problem, seed, out, counter, executor);
    });
  });
}

Status backward_cuda(const Problem& problem, const int64_t* indices, const SavedState& state,
                     const Cotangents& cotangents, void* grad, const Executor& executor) {
  if (problem.rows == 0) return kOk;
  return with_element<__nv_bfloat16, __half>(problem.element, [&](auto element) {
    using S = decltype(element);
    return cayley_menger::with_order(problem.order, [&](auto k) {
      const Backward<k(), S> backward{problem, indices, state, typed<Computed<S>>(cotangents)};
      return backward_of(backward, grad, executor);
    });
  });
}

}  // namespace stratcore::simplex_cv

#include "../common/launch.cuh"
#include "cayley_menger.h"
#include "order.h"
#include "simplex_tiles.cuh"

// A warp takes a tile of up to 32 simplices: Gram matrices by groups of L lanes, then one simplex a lane for
// what follows from its Gram matrix, then (backward) groups again. Legend as in cayley_menger.h.
namespace stratcore::cayley_menger {
namespace {

template <int K, class T>
__device__ void write_measures(const MeasuresOf<T>& out, int64_t simplex, double (&gram)[K * (K + 1) / 2]) {
  if (out.squared_distances) {
    T* distances = out.squared_distances + simplex * (K * (K + 1) / 2);
#pragma unroll
    for (int i = 0; i < K; ++i) {
#pragma unroll
      for (int j = i + 1; j <= K; ++j)
        distances[pair_index(K, i, j)] = T(squared_distance<K, double>(gram, i, j));
    }
  }
  if (!(out.volume || out.log_volume || out.squared_volume || out.determinant)) return;
  Pivots<K, double> pivots;
  const bool full = factor<K>(gram, pivots);
  if (out.volume) out.volume[simplex] = full ? T(volume<K>(pivots)) : T(0);
  if (out.log_volume) out.log_volume[simplex] = full ? T(log_volume<K>(gram)) : T(-INFINITY);
  const double squared = full ? squared_volume<K>(gram) : 0.0;
  if (out.squared_volume) out.squared_volume[simplex] = T(squared);
  if (out.determinant) out.determinant[simplex] = T(determinant_coefficient(K) * squared);
}

template <int K, int L, class S>
__global__ void __launch_bounds__(kWarps* kWarp, K <= 4 ? 5 : 1)
    forward_kernel(Source<K, S> source, MeasuresOf<Computed<S>> out, Tiling tiling) {
  for_each_tile<K, L>(source, tiling, [&](int64_t first, int lane, double* grams) {
    if (lane < tiling.tile && first + lane < source.simplices) {
      double gram[K * (K + 1) / 2];
      read_column<K>(grams, lane, gram);
      write_measures<K>(out, first + lane, gram);
    }
  });
}

// dL/dE = M E of one simplex: M from its Gram matrix and the cotangents.
template <int K, class T>
__device__ void incoming_matrix(const MeasuresOf<const T>& in, int64_t simplex,
                                double (&gram)[K * (K + 1) / 2], double (&matrix)[K * (K + 1) / 2]) {
  const Cotangent<double> cotangent{at_or_zero(in.volume, simplex), at_or_zero(in.log_volume, simplex),
                                    at_or_zero(in.squared_volume, simplex),
                                    at_or_zero(in.determinant, simplex)};
  if (in.volume || in.log_volume || in.squared_volume || in.determinant) {
    gradient_matrix<K>(gram, cotangent, matrix);
  } else {
#pragma unroll
    for (int p = 0; p < K * (K + 1) / 2; ++p) matrix[p] = 0.0;
  }
  if (!in.squared_distances) return;
  const T* values = in.squared_distances + simplex * (K * (K + 1) / 2);
#pragma unroll
  for (int i = 0; i < K; ++i) {
#pragma unroll
    for (int j = i + 1; j <= K; ++j)
      add_distance<K, double>(i, j, double(values[pair_index(K, i, j)]), matrix);
  }
}

// Where gradients go: every vertex of its own, [B, k + 1, D], or added to the rows of a table, [N, D].
template <class G>
struct Sink {
  G* data;
  const int64_t* indices;  // null: of its own
  bool aligned;
};

template <int K, int L, class S, class G>
__device__ __forceinline__ void gradient_of_simplex(const Source<K, S>& source,
                                                    const Vertices<K, S>& vertices, const Sink<G>& sink,
                                                    int64_t simplex, bool aligned, int lane,
                                                    const double (&matrix)[K * (K + 1) / 2]) {
  G* target[K + 1];
#pragma unroll
  for (int j = 0; j <= K; ++j) {
    const int64_t row = simplex * (K + 1) + j;
    target[j] = sink.indices ? sink.data + (vertices.row[j] - source.data) : sink.data + row * source.dim;
  }
  for (int64_t at = int64_t(lane % L) * kQuad; at < source.dim; at += L * kQuad) {
    double edge[K][kQuad], origin[kQuad] = {};
    Loaded<K, S> loaded;
    loaded.load(vertices, at, source.dim, aligned);
    loaded.edges(edge);
#pragma unroll
    for (int i = 0; i < K; ++i) {
      Computed<G> value[kQuad];
#pragma unroll
      for (int c = 0; c < kQuad; ++c) {
        double sum = 0.0;
#pragma unroll
        for (int j = 0; j < K; ++j) sum += matrix[packed(i, j)] * edge[j][c];
        origin[c] -= sum;
        value[c] = Computed<G>(sum);
      }
      if constexpr (std::is_same_v<G, float> || std::is_same_v<G, double>) {
        if (sink.indices) {
          add_quad(target[i + 1], at, source.dim, sink.aligned, value);
          continue;
        }
      }
      store_quad(target[i + 1], at, source.dim, sink.aligned, value);
    }
    Computed<G> value[kQuad];
#pragma unroll
    for (int c = 0; c < kQuad; ++c) value[c] = Computed<G>(origin[c]);
    if constexpr (std::is_same_v<G, float> || std::is_same_v<G, double>) {
      if (sink.indices) {
        add_quad(target[0], at, source.dim, sink.aligned, value);
        continue;
      }
    }
    store_quad(target[0], at, source.dim, sink.aligned, value);
  }
}

template <int K, int L, class S, class G>
__global__ void __launch_bounds__(kWarps* kWarp)
    backward_kernel(Source<K, S> source, MeasuresOf<const Computed<S>> in, Sink<G> sink, Tiling tiling) {
  for_each_tile<K, L>(source, tiling, [&](int64_t first, int lane, double* grams) {
    if (lane < tiling.tile && first + lane < source.simplices) {
      double gram[K * (K + 1) / 2], matrix[K * (K + 1) / 2];
      read_column<K>(grams, lane, gram);
      incoming_matrix<K>(in, first + lane, gram, matrix);
      write_column<K>(matrix, lane, grams);
    }
    __syncwarp();
    for (int column = lane / L; column < tiling.tile; column += kWarp / L) {
      Vertices<K, S> vertices;
      if (first + column >= source.simplices) break;
      double matrix[K * (K + 1) / 2];
      read_column<K>(grams, column, matrix);
      if (!source.vertices(first + column, vertices)) {  // then its other vertices get no gradient either
#pragma unroll
        for (int p = 0; p < K * (K + 1) / 2; ++p) matrix[p] = 0.0;
      }
      gradient_of_simplex<K, L>(source, vertices, sink, first + column, tiling.aligned, lane, matrix);
    }
  });
}

// First position of [low, high) whose index is not below `row`, by a warp: 32 positions at a time, as each of
// them waits for two loads.
__device__ inline int64_t lower_bound(const int64_t* indices, const int64_t* order, int64_t low, int64_t high,
                                      int64_t row, int lane) {
  while (low < high) {
    const int64_t stride = (high - low + kWarp - 1) / kWarp, probe = low + lane * stride;
    const bool below = probe < high && indices[order[probe]] < row;
    const int count = __popc(__ballot_sync(kFullWarp, below));
    if (count == 0) return low;
    high = min(high, low + count * stride);
    low += (count - 1) * stride + 1;
  }
  return low;
}

// Rows of the table as sums of their parts [B (k + 1), D], in the order of `order`.
template <class T>
__global__ void __launch_bounds__(kWarps* kWarp)
    sum_rows_kernel(const T* parts, const int64_t* indices, const int64_t* order, int64_t count, int64_t rows,
                    int64_t dim, T* grad, bool aligned) {
  constexpr int kAtOnce = 8;
  const int lane = threadIdx.x % kWarp;
  const int64_t warps = int64_t(gridDim.x) * kWarps;
  for (int64_t row = int64_t(blockIdx.x) * kWarps + threadIdx.x / kWarp; row < rows; row += warps) {
    const int64_t begin = lower_bound(indices, order, 0, count, row, lane);
    const int64_t end = lower_bound(indices, order, begin, count, row + 1, lane);
    if (begin == end) continue;
    for (int64_t at = int64_t(lane) * kQuad; at < dim; at += kWarp * kQuad) {
      T sum[kQuad] = {};
      for (int64_t p = begin; p < end; p += kAtOnce) {
        Quad<T> part[kAtOnce];
#pragma unroll
        for (int i = 0; i < kAtOnce; ++i) {
          if (p + i < end) part[i] = load_quad(parts + order[p + i] * dim, at, dim, aligned);
        }
#pragma unroll
        for (int i = 0; i < kAtOnce; ++i) {
#pragma unroll
          for (int c = 0; c < kQuad; ++c) sum[c] += p + i < end ? part[i].element[c] : T(0);
        }
      }
      const Quad<T> before = load_quad(grad + row * dim, at, dim, aligned);
#pragma unroll
      for (int c = 0; c < kQuad; ++c) sum[c] += before.element[c];
      store_quad(grad + row * dim, at, dim, aligned, sum);
    }
  }
}

// A tile that is read twice should stay in the first-level cache.
constexpr int64_t kTileBytes = 10240;

// How many lanes share a simplex: few, so that little is summed over lanes, while a warp still reads rows in
// pieces of 128 bytes. The larger orders, which are rarer and take longer to compile, have two choices.
template <int K, class Run>
Status with_lanes(const Points& points, const Run& run) {
  if constexpr (K <= 4) {
    if (points.dim <= 8) return run(std::integral_constant<int, 2>());
    if (points.dim > 16 && points.dim <= 32) return run(std::integral_constant<int, 8>());
  }
  if (points.dim <= 16) return run(std::integral_constant<int, 4>());
  return run(std::integral_constant<int, 16>());
}

template <int K, int L, class S>
Status launch_forward(const Points& points, const Measures& out, const Executor& executor) {
  using T = Computed<S>;
  const Launch launch = plan<K, L, S>(reinterpret_cast<const void*>(&forward_kernel<K, L, S>), points, kWarp);
  forward_kernel<K, L, S><<<launch.blocks, kWarps * kWarp, sizeof(Shared<K, S>), stream_of(executor)>>>(
      Source<K, S>(points), typed<T>(out), launch.tiling);
  return launch_status();
}

template <int K, int L, class S, class G>
Status launch_backward(const Points& points, const Cotangents& cotangents, G* grad, bool scatter,
                       const Executor& executor) {
  using T = Computed<S>;
  const int64_t bytes = (K + 1) * points.dim * int64_t(sizeof(S));
  const Launch launch =
      plan<K, L, S>(reinterpret_cast<const void*>(&backward_kernel<K, L, S, G>), points, kTileBytes / bytes);
  const Sink<G> sink{grad, scatter ? points.indices : nullptr, quads_aligned<G>(grad, points.dim)};
  backward_kernel<K, L, S, G><<<launch.blocks, kWarps * kWarp, sizeof(Shared<K, S>), stream_of(executor)>>>(
      Source<K, S>(points), typed<const T>(cotangents), sink, launch.tiling);
  return launch_status();
}

template <int K, class S>
Status backward_of(const Points& points, const Cotangents& cotangents, void* grad, const int64_t* order,
                   void* workspace, const Executor& executor) {
  using T = Computed<S>;
  if (!points.indices) {
    return with_lanes<K>(points, [&](auto lanes) {
      return launch_backward<K, lanes(), S, S>(points, cotangents, static_cast<S*>(grad), false, executor);
    });
  }
  T* target = static_cast<T*>(order ? workspace : grad);
  const Status status = with_lanes<K>(points, [&](auto lanes) {
    return launch_backward<K, lanes(), S, T>(points, cotangents, target, !order, executor);
  });
  if (status != kOk || !order) return status;
  sum_rows_kernel<T><<<grid_for(points.rows, kWarps), kWarps * kWarp, 0, stream_of(executor)>>>(
      target, points.indices, order, points.simplices * (K + 1), points.rows, points.dim,
      static_cast<T*>(grad), quads_aligned<T>(target, points.dim) && quads_aligned<T>(grad, points.dim));
  return launch_status();
}

// ---- given distances: one simplex a thread

template <int K, class T>
__global__ void __launch_bounds__(kThreads)
    distances_kernel(const T* given, int64_t simplices, MeasuresOf<T> out, uint8_t* euclidean) {
  constexpr int kPairs = K * (K + 1) / 2;
  constexpr double kRoundoff = sizeof(T) == 8 ? 0x1p-53 : 0x1p-24;
  const int64_t stride = int64_t(gridDim.x) * blockDim.x;
  for (int64_t b = int64_t(blockIdx.x) * blockDim.x + threadIdx.x; b < simplices; b += stride) {
    double distances[kPairs];
    for (int p = 0; p < kPairs; ++p) distances[p] = given[b * kPairs + p];
    const GivenMeasures measures = measure_distances<K>(distances, kRoundoff);
    if (out.volume) out.volume[b] = T(measures.volume);
    if (out.log_volume) out.log_volume[b] = T(measures.log_volume);
    if (out.squared_volume) out.squared_volume[b] = T(measures.squared_volume);
    if (out.determinant) out.determinant[b] = T(determinant_coefficient(K) * measures.squared_volume);
    if (euclidean) euclidean[b] = measures.euclidean;
  }
}

template <int K, class T>
__global__ void __launch_bounds__(kThreads)
    distances_backward_kernel(const T* given, int64_t simplices, MeasuresOf<const T> in, T* grad) {
  constexpr int kPairs = K * (K + 1) / 2;
  const int64_t stride = int64_t(gridDim.x) * blockDim.x;
  for (int64_t b = int64_t(blockIdx.x) * blockDim.x + threadIdx.x; b < simplices; b += stride) {
    double distances[kPairs], gradient[kPairs];
    for (int p = 0; p < kPairs; ++p) distances[p] = given[b * kPairs + p];
    const Cotangent<double> cotangent{at_or_zero(in.volume, b), at_or_zero(in.log_volume, b),
                                      at_or_zero(in.squared_volume, b), at_or_zero(in.determinant, b)};
    distances_gradient<K>(distances, cotangent, gradient);
    for (int p = 0; p < kPairs; ++p) grad[b * kPairs + p] = T(gradient[p]);
  }
}

template <class Run>
Status with_distances(const Distances& distances, const Run& run) {
  if (distances.simplices == 0) return kOk;
  return with_order(distances.order, [&](auto k) {
    return distances.dtype == DType::kFloat64 ? run(k, double()) : run(k, float());
  });
}

}  // namespace

Status forward_cuda(const Points& points, const Measures& out, const Executor& executor) {
  if (points.simplices == 0) return kOk;
  return with_element<__nv_bfloat16, __half>(points.element, [&](auto element) {
    using S = decltype(element);
    return with_order(points.order, [&](auto k) {
      return with_lanes<k()>(points, [&](auto lanes) {
        return launch_forward<k(), lanes(), S>(points, out, executor);
      });
    });
  });
}

Status backward_cuda(const Points& points, const Cotangents& cotangents, void* grad, const int64_t* order,
                     void* workspace, const Executor& executor) {
  if (points.simplices == 0) return kOk;
  return with_element<__nv_bfloat16, __half>(points.element, [&](auto element) {
    using S = decltype(element);
    return with_order(points.order, [&](auto k) {
      return backward_of<k(), S>(points, cotangents, grad, order, workspace, executor);
    });
  });
}

Status from_distances_cuda(const Distances& distances, const Measures& out, uint8_t* euclidean,
                           const Executor& executor) {
  return with_distances(distances, [&](auto k, auto like) {
    using T = decltype(like);
    distances_kernel<k(), T><<<grid_for(distances.simplices), kThreads, 0, stream_of(executor)>>>(
        static_cast<const T*>(distances.data), distances.simplices, typed<T>(out), euclidean);
    return launch_status();
  });
}

Status from_distances_backward_cuda(const Distances& distances, const Cotangents& cotangents, void* grad,
                                    const Executor& executor) {
  return with_distances(distances, [&](auto k, auto like) {
    using T = decltype(like);
    distances_backward_kernel<k(), T><<<grid_for(distances.simplices), kThreads, 0, stream_of(executor)>>>(
        static_cast<const T*>(distances.data), distances.simplices, typed<const T>(cotangents),
        static_cast<T*>(grad));
    return launch_status();
  });
}

}  // namespace stratcore::cayley_menger

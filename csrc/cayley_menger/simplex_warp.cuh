#pragma once

#include "../common/element.cuh"
#include "../common/warp.cuh"
#include "cayley_menger_math.h"

// Gram matrices of simplices by a warp: L lanes share one simplex, each with every L-th group of four
// coordinates. Legend as in cayley_menger.h.
namespace stratcore::cayley_menger {

// Where the vertices of a simplex begin.
template <int K, class S>
struct Vertices {
  const S* row[K + 1];
};

// Coordinates [at, at + 4) of all vertices as they are stored.
template <int K, class S>
struct Loaded {
  Quad<S> vertex[K + 1];

  __device__ __forceinline__ void load(const Vertices<K, S>& vertices, int64_t at, int64_t dim,
                                       bool aligned) {
#pragma unroll
    for (int j = 0; j <= K; ++j) vertex[j] = load_quad(vertices.row[j], at, dim, aligned);
  }

  // The edges from vertex 0, in float64: differences of float32 numbers are exact there.
  __device__ __forceinline__ void edges(double (&edge)[K][kQuad]) const {
#pragma unroll
    for (int c = 0; c < kQuad; ++c) {
      const double origin = number(vertex[0].element[c]);
#pragma unroll
      for (int j = 0; j < K; ++j) edge[j][c] = double(number(vertex[j + 1].element[c])) - origin;
    }
  }

  __device__ __forceinline__ void add_gram(double (&gram)[K * (K + 1) / 2]) const {
    double edge[K][kQuad];
    edges(edge);
#pragma unroll
    for (int i = 0; i < K; ++i) {
#pragma unroll
      for (int j = 0; j <= i; ++j) {
#pragma unroll
        for (int c = 0; c < kQuad; ++c) gram[packed(i, j)] += edge[i][c] * edge[j][c];
      }
    }
  }
};

// Sums the lanes' parts and leaves the Gram matrix in column `column` of shared memory [P][kWarp].
template <int K, int L>
__device__ __forceinline__ void collect_gram(double (&gram)[K * (K + 1) / 2], int lane, int column,
                                             double* shared) {
  constexpr int kPairs = K * (K + 1) / 2;
  int base = 0, count = kPairs;
  reduce_scatter<kPairs, L>(gram, lane % L, base, count);
#pragma unroll
  for (int i = 0; i < scattered<kPairs, L>(); ++i) {
    if (i < count) shared[(base + i) * kWarp + column] = gram[i];
  }
}

template <int K>
__device__ __forceinline__ void read_column(const double* shared, int column,
                                            double (&matrix)[K * (K + 1) / 2]) {
#pragma unroll
  for (int p = 0; p < K * (K + 1) / 2; ++p) matrix[p] = shared[p * kWarp + column];
}

template <int K>
__device__ __forceinline__ void write_column(const double (&matrix)[K * (K + 1) / 2], int column,
                                             double* shared) {
#pragma unroll
  for (int p = 0; p < K * (K + 1) / 2; ++p) shared[p * kWarp + column] = matrix[p];
}

}  // namespace stratcore::cayley_menger

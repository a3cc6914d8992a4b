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

// Coordinates on their way from memory to a lane: kStages quads of all vertices, in shared memory that no
// other lane touches, so that nothing is waited for but the copies themselves. No registers hold what is
// underway, so more warps are resident.
template <int K, class S>
class Ring {
 public:
  static constexpr int kStages = (K + 1) * sizeof(Quad<S>) <= 192 ? 2 : 1;
  static constexpr int kQuads = kStages * (K + 1) * kWarp;  // of a warp

  __device__ Ring(Quad<S>* quads, int lane) : own_(quads + lane) {}

  // Begins to fetch coordinates [at, at + 4); those of a simplex that is not `known` are NaN.
  __device__ __forceinline__ void fetch(const Vertices<K, S>& vertices, bool known, int64_t at, int64_t dim,
                                        bool aligned) {
    Quad<S>* slot = own_ + in_ * (K + 1) * kWarp;
#pragma unroll
    for (int j = 0; j <= K; ++j) {
      if (aligned && known) {
        copy_async(slot + j * kWarp, vertices.row[j] + at, at < dim);
      } else {
        Quad<S> quad = load_quad(vertices.row[j], at, dim, aligned);
        if (!known) quad.element[0] = stored<S>(Computed<S>(NAN));
        slot[j * kWarp] = quad;
      }
    }
    in_ = in_ + 1 == kStages ? 0 : in_ + 1;
  }

  // Ends what was fetched since the last call; also to be called where nothing was.
  __device__ __forceinline__ void commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }

  // The oldest coordinates, once kStages - 1 commits have followed theirs.
  __device__ __forceinline__ void take(Loaded<K, S>& out) {
    asm volatile("cp.async.wait_group %0;" ::"n"(kStages - 1) : "memory");
    const Quad<S>* slot = own_ + out_ * (K + 1) * kWarp;
#pragma unroll
    for (int j = 0; j <= K; ++j) out.vertex[j] = slot[j * kWarp];
    out_ = out_ + 1 == kStages ? 0 : out_ + 1;
  }

 private:
  static __device__ __forceinline__ void copy_async(Quad<S>* to, const S* from, bool inside) {
    constexpr int kBytes = sizeof(Quad<S>) > 16 ? 16 : sizeof(Quad<S>);
#pragma unroll
    for (int part = 0; part < int(sizeof(Quad<S>)) / kBytes; ++part) {
      const auto target = static_cast<unsigned>(__cvta_generic_to_shared(to)) + part * kBytes;
      asm volatile("cp.async.ca.shared.global [%0], [%1], %2, %3;" ::"r"(target),
                   "l"(reinterpret_cast<const char*>(inside ? from : nullptr) + part * kBytes), "n"(kBytes),
                   "r"(inside ? kBytes : 0)
                   : "memory");
    }
  }

  Quad<S>* own_;
  int in_ = 0, out_ = 0;
};

// From entry to entry of the Gram matrices that a warp keeps in shared memory, one a column; odd, so that the
// entries of a column lie in different banks.
constexpr int kStride = kWarp + 1;

// Sums the lanes' parts and leaves the Gram matrix in column `column` of shared memory [P][kStride].
template <int K, int L>
__device__ __forceinline__ void collect_gram(double (&gram)[K * (K + 1) / 2], int lane, int column,
                                             double* shared) {
  constexpr int kPairs = K * (K + 1) / 2;
  int base = 0, count = kPairs;
  reduce_scatter<kPairs, L>(gram, lane % L, base, count);
#pragma unroll
  for (int i = 0; i < scattered<kPairs, L>(); ++i) {
    if (i < count) shared[(base + i) * kStride + column] = gram[i];
  }
}

template <int K>
__device__ __forceinline__ void read_column(const double* shared, int column,
                                            double (&matrix)[K * (K + 1) / 2]) {
#pragma unroll
  for (int p = 0; p < K * (K + 1) / 2; ++p) matrix[p] = shared[p * kStride + column];
}

template <int K>
__device__ __forceinline__ void write_column(const double (&matrix)[K * (K + 1) / 2], int column,
                                             double* shared) {
#pragma unroll
  for (int p = 0; p < K * (K + 1) / 2; ++p) shared[p * kStride + column] = matrix[p];
}

}  // namespace stratcore::cayley_menger

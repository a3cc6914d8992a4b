#pragma once

#include "../common/launch.cuh"
#include "cayley_menger.h"
#include "simplex_warp.cuh"

// A warp takes a tile of up to 32 simplices: Gram matrices by groups of L lanes, then one simplex a lane for
// what follows from its Gram matrix. Legend as in cayley_menger.h.
namespace stratcore::cayley_menger {

constexpr int kWarps = 4;  // a block

// A launch: `tile` simplices a warp, a multiple of 32 / L.
struct Tiling {
  int64_t tiles;
  int32_t tile;
  bool aligned;
};

template <int K, class S>
struct Source {
  const S* data;
  const int64_t* indices;
  int64_t simplices, dim, rows;

  explicit Source(const Points& points)
      : data(static_cast<const S*>(points.data)), indices(points.indices), simplices(points.simplices),
        dim(points.dim), rows(points.rows) {}

  // False where a row does not exist; then the vertices are those of row 0.
  __device__ bool vertices(int64_t simplex, Vertices<K, S>& out) const {
    bool known = true;
#pragma unroll
    for (int j = 0; j <= K; ++j) {
      int64_t row = simplex * (K + 1) + j;
      if (indices) {
        row = indices[row];
        if (row < 0 || row >= rows) {
          row = 0;
          known = false;
        }
      }
      out.row[j] = data + row * dim;
    }
    return known;
  }
};

template <int K, class S>
struct Shared {
  double grams[kWarps][K * (K + 1) / 2 * kStride];
  Quad<S> quads[kWarps][Ring<K, S>::kQuads];
};

// Gram matrices of a tile, into the columns of shared memory. Coordinates are fetched kStages - 1 quads
// ahead.
template <int K, int L, class S>
__device__ __forceinline__ void make_grams(const Source<K, S>& source, int64_t first, const Tiling& tiling,
                                           int lane, double* grams, Quad<S>* quads) {
  constexpr int kWidth = L * kQuad;
  Ring<K, S> ring(quads, lane);
  Vertices<K, S> vertices;
  bool known = true;
  int fetched = 0;  // steps whose coordinates are all on their way
  int64_t ahead = int64_t(lane % L) * kQuad;
  const auto fetch = [&] {
    if (fetched < tiling.tile) {
      if (ahead < kWidth) {
        known = source.vertices(min(first + fetched + lane / L, source.simplices - 1), vertices);
      }
      ring.fetch(vertices, known, ahead, source.dim, tiling.aligned);
      ahead += kWidth;
      if (ahead - lane % L * kQuad >= source.dim) {
        ahead = int64_t(lane % L) * kQuad;
        fetched += kWarp / L;
      }
    }
    ring.commit();
  };
#pragma unroll
  for (int stage = 1; stage < Ring<K, S>::kStages; ++stage) fetch();
#pragma unroll 1
  for (int step = 0; step < tiling.tile; step += kWarp / L) {
    double gram[K * (K + 1) / 2] = {};
#pragma unroll 1
    for (int64_t at = 0; at < source.dim; at += kWidth) {
      Loaded<K, S> loaded;
      fetch();
      ring.take(loaded);
      loaded.add_gram(gram);
    }
    collect_gram<K, L>(gram, lane, step + lane / L, grams);
  }
  __syncwarp();
}

// Calls body(first simplex, lane, Gram matrices) for every tile of this warp; the matrices lie in the columns
// of shared memory, which the body may use.
template <int K, int L, class S, class Body>
__device__ __forceinline__ void for_each_tile(const Source<K, S>& source, const Tiling& tiling,
                                              const Body& body) {
  extern __shared__ __align__(16) unsigned char memory[];
  Shared<K, S>& shared = *reinterpret_cast<Shared<K, S>*>(memory);
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  const int64_t warps = int64_t(gridDim.x) * kWarps;
  for (int64_t tile = int64_t(blockIdx.x) * kWarps + warp; tile < tiling.tiles; tile += warps) {
    const int64_t first = tile * tiling.tile;
    make_grams<K, L, S>(source, first, tiling, lane, shared.grams[warp], shared.quads[warp]);
    body(first, lane, shared.grams[warp]);
    __syncwarp();
  }
}

struct Launch {
  Tiling tiling;
  unsigned blocks;
};

// Tiles as large as lets all warps that are resident together finish together, of at most `most` simplices.
template <int K, int L, class S>
Launch plan(const void* kernel, const Points& points, int64_t most) {
  constexpr int kGroups = kWarp / L;
  constexpr int kBytes = sizeof(Shared<K, S>);
  int resident = 1;
  if (kBytes > 48 << 10) cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kBytes);
  cudaOccupancyMaxActiveBlocksPerMultiprocessor(&resident, kernel, kWarps * kWarp, kBytes);
  const int64_t warps = int64_t(processors()) * std::max(resident, 1) * kWarps;
  const int64_t steps_at_most = std::max<int64_t>(1, std::min<int64_t>(kWarp, most) / kGroups);
  const int64_t steps = (points.simplices + kGroups - 1) / kGroups;
  const int64_t waves = (steps + warps * steps_at_most - 1) / (warps * steps_at_most);
  const int64_t each = (steps + warps * waves - 1) / (warps * waves);
  Launch launch{{0, static_cast<int32_t>(each * kGroups), quads_aligned<S>(points.data, points.dim)}, 0};
  launch.tiling.tiles = (steps + each - 1) / each;
  launch.blocks = grid_for(launch.tiling.tiles, kWarps);
  return launch;
}

}  // namespace stratcore::cayley_menger

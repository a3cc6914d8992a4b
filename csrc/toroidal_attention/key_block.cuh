#pragma once

#include "backward_wgmma.cuh"

// What a block that holds keys has in shared memory, in the backward on sm_90a.
namespace stratcore::toroidal_attention {

// Where blocks add to the gradient of the queries.
template <class S, int Rows, int Cols>
struct ScoreTiles {
  S scores[2][Rows][Cols];  // gradients of the scores, of two tiles in turns
  S coordinates[Cols]
               [kSlice];  // of columns: 1 and where they lie on each axis, in the first of each row's chunks
};
template <int Rows, int Cols>
struct ScoreTiles<float, Rows, Cols> {};

template <class S, int Width>
struct alignas(1024) KeyWgmma : ScoreTiles<S, 128, 64> {
  static constexpr int kCols = 64, kGroups = 2, kRows = 64 * kGroups, kThreads = kGroup * (1 + kGroups);

  RowTile<S, Width, kRows> row[2];           // keys, values
  RowTile<S, Width, kCols> col[kStages][2];  // queries, gradients of outputs
  alignas(16) float lse[kStages][kCols], delta[kStages][kCols];
  // What exponents have of a tile's queries and keys: column_number - lse, row_number.
  alignas(16) float numbers[kStages][kCols], row_numbers[kStages][kRows];
  Pattern<kRows, kCols> pattern;
  float slopes[kMaxAxes][kGroup * kGroups];  // of every thread: its share of their gradient
  NoteQueue notes;
  uint64_t rows_full, full[kStages], numbered[kStages], empty[kStages], scores_full[2], scores_empty[2];

  __device__ void init() {
    barrier_init(&rows_full, 1);
    for (int stage = 0; stage < kStages; ++stage) {
      barrier_init(&full[stage], 1);
      barrier_init(&numbered[stage], 32);
      barrier_init(&empty[stage], kGroup * kGroups + 32);
    }
    for (int buffer = 0; buffer < 2; ++buffer) {
      barrier_init(&scores_full[buffer], 4 * kGroups);
      barrier_init(&scores_empty[buffer], 4 * kGroups);
    }
    notes.init(kGroup * kGroups + 1 + 32);
    fence_barrier_init();
  }

  // After the pattern, by the groups that compute.
  __device__ void write_coordinates(int axes) {
    constexpr int kChunk = 8;
    for (int at = static_cast<int>(threadIdx.x); at < kCols * kChunk; at += kGroup * kGroups) {
      const int col = at / kChunk, axis = at % kChunk - 1;
      const float number = axis < 0 ? 1.0f : axis < axes ? pattern.col[axis][col] : 0.0f;
      this->coordinates[col][col % 8 * kChunk + at % kChunk] = S(number);
    }
  }

  // Derived anew each time: a reference that is kept would be read as one to any memory.
  __device__ __forceinline__ static KeyWgmma& here() {
    extern __shared__ __align__(1024) char bytes[];
    return *reinterpret_cast<KeyWgmma*>(bytes);
  }
};

}  // namespace stratcore::toroidal_attention

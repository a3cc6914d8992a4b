#pragma once

#include <cub/device/device_radix_sort.cuh>

#include "../common/launch.cuh"
#include "eights.cuh"
#include "topk_lista.h"
#include "topk_lista_math.h"

// Products with sparse codes: rows of a table gathered by the entries of a code, and sums over the entries
// that name one atom, in the order of their row. Legend as in topk_lista.h.
namespace stratcore::topk_lista {

constexpr int kColumnsPerWarp = 32 * kEight, kWarpsPerBlock = kThreads / 32;

// Adds factor * row of a table over the lanes of a warp, eight columns a lane. A factor of 0 reads no row of
// its own, so that nothing comes of what stands there.
template <bool kAligned, class S>
__device__ inline void add_rows(const S* table, int64_t columns, int64_t at, float factor, int64_t row,
                                float (&sum)[kEight]) {
  const uint32_t used = __ballot_sync(~0u, factor != 0.0f);
  if (used == 0) return;
  const int64_t any = __shfl_sync(~0u, row, __ffs(used) - 1);
  if (factor == 0.0f) row = any;
  const int count = 32 - __clz(used);
#pragma unroll 8
  for (int i = 0; i < count; ++i) {
    const float weight = __shfl_sync(~0u, factor, i);
    const int64_t from = __shfl_sync(~0u, row, i);
    float value[kEight];
    load_eight<kAligned>(table + from * columns, at, columns, value);
#pragma unroll
    for (int c = 0; c < kEight; ++c) sum[c] += weight * value[c];
  }
}

// out[e, b] = base[e, b] + sign * sum over t, s of values[t, e, b, s] * table[t, e, indices[t, e, b, s]]
template <class S>
struct RowSums {
  const float* values;     // [steps, E, B, K]
  const int32_t* indices;  // [steps, E, B, K]
  const S* table;          // [steps or 1, E, m, n]
  const S* base;           // [E, B, n] with a stride between experts, or null
  S* out;                  // likewise
  int64_t base_stride, out_stride;
  int64_t experts, rows, width, atoms, columns;
  float sign;
  bool aligned;
  int64_t steps = 1;
  bool table_per_step = false;
};

// A warp a row and 256 columns; all rows of a strip of columns before the next strip, which then stays in L2.
template <bool kAligned, class S>
__global__ void __launch_bounds__(kThreads) row_sums_kernel(RowSums<S> args) {
  const int lane = threadIdx.x % 32;
  const int64_t per_strip = args.experts * args.rows;
  const int64_t strips = (args.columns + kColumnsPerWarp - 1) / kColumnsPerWarp;
  const int64_t stride = int64_t(gridDim.x) * kWarpsPerBlock;
  for (int64_t job = int64_t(blockIdx.x) * kWarpsPerBlock + threadIdx.x / 32; job < per_strip * strips;
       job += stride) {
    const int64_t flat = job % per_strip, expert = flat / args.rows, row = flat % args.rows;
    const int64_t at = job / per_strip * kColumnsPerWarp + lane * kEight;
    float sum[kEight] = {};
    const int64_t blocks = (args.width + 31) / 32;
    for (int64_t block = 0; block < blocks * args.steps; ++block) {
      const int64_t step = block / blocks, s = block % blocks * 32 + lane;
      const int64_t slot = (step * per_strip + flat) * args.width + s;
      const bool inside = s < args.width;
      const float factor = inside ? args.sign * args.values[slot] : 0.0f;
      const int64_t group = args.table_per_step ? step * args.experts + expert : expert;
      const int64_t from = group * args.atoms + (inside ? args.indices[slot] : 0);
      add_rows<kAligned>(args.table, args.columns, at, factor, from, sum);
    }
    if (args.base) {
      float base[kEight];
      load_eight<kAligned>(args.base + expert * args.base_stride + row * args.columns, at, args.columns,
                           base);
#pragma unroll
      for (int c = 0; c < kEight; ++c) sum[c] += base[c];
    }
    store_eight<kAligned>(args.out + expert * args.out_stride + row * args.columns, at, args.columns, sum);
  }
}

template <class S>
Status row_sums(const Executor& executor, const RowSums<S>& args) {
  const int64_t strips = (args.columns + kColumnsPerWarp - 1) / kColumnsPerWarp;
  const int64_t jobs = args.experts * args.rows * strips;
  if (jobs == 0) return kOk;
  const auto kernel = args.aligned ? row_sums_kernel<true, S> : row_sums_kernel<false, S>;
  kernel<<<grid_for(jobs, kWarpsPerBlock), kThreads, 0, stream_of(executor)>>>(args);
  return launch_status();
}

constexpr int kSquare = 64, kSquareRows = 8;

// [batch, rows, cols] -> [batch, cols, rows]
template <class S>
__global__ void __launch_bounds__(kSquare* kSquareRows)
    transpose_kernel(const S* source, S* target, int64_t rows, int64_t cols) {
  __shared__ S tile[kSquare][kSquare + 4 / sizeof(S) + (sizeof(S) > 4)];
  const int64_t batch = int64_t(blockIdx.z) * rows * cols;
  const int64_t row = int64_t(blockIdx.y) * kSquare, col = int64_t(blockIdx.x) * kSquare;
  const int x = threadIdx.x % kSquare, y = threadIdx.x / kSquare;
#pragma unroll
  for (int i = y; i < kSquare; i += kSquareRows) {
    if (row + i < rows && col + x < cols) tile[i][x] = source[batch + (row + i) * cols + col + x];
  }
  __syncthreads();
#pragma unroll
  for (int i = y; i < kSquare; i += kSquareRows) {
    if (col + i < cols && row + x < rows) target[batch + (col + i) * rows + row + x] = tile[x][i];
  }
}

template <class S>
Status transpose(const Executor& executor, const S* source, S* target, int64_t batch, int64_t rows,
                 int64_t cols) {
  constexpr int64_t kMostBatch = 65535;
  for (int64_t begin = 0; begin < batch; begin += kMostBatch) {
    const int64_t count = std::min(kMostBatch, batch - begin);
    const dim3 grid(static_cast<unsigned>((cols + kSquare - 1) / kSquare),
                    static_cast<unsigned>((rows + kSquare - 1) / kSquare), static_cast<unsigned>(count));
    const int64_t offset = begin * rows * cols;
    transpose_kernel<S><<<grid, kSquare * kSquareRows, 0, stream_of(executor)>>>(source + offset,
                                                                                 target + offset, rows, cols);
    const Status status = launch_status();
    if (status != kOk) return status;
  }
  return kOk;
}

// The slots of the codes of all steps [T + 1, E, B, K], sorted by the atom that they name; equal atoms in the
// order of their slot. With `per_step`, sorted by step first.
struct Entries {
  const int32_t* order;   // [slots]
  const int32_t* starts;  // [segments + 1]; segment ((step or 0) * E + expert) * m + atom
  int64_t segments;
};

// Memory that one sort works in, in bytes from the start of a block.
struct EntrySort {
  int64_t slots, segments;
  bool per_step;
  int64_t keys, ids, sorted_keys, order, starts, temporary, temporary_bytes, bytes;
  int bits;

  EntrySort(const Sizes& sizes, bool per_step_) : per_step(per_step_) {
    slots = (sizes.num_steps + 1) * sizes.experts * sizes.rows * sizes.width;
    segments = (per_step ? sizes.num_steps + 1 : 1) * sizes.experts * sizes.atoms;
    for (bits = 1; (int64_t(1) << bits) < segments; ++bits) {
    }
    const auto aligned = [](int64_t count) { return (count + 255) / 256 * 256; };
    const int64_t part = aligned(slots * 4);
    keys = 0, ids = part, sorted_keys = 2 * part, order = 3 * part, starts = 4 * part;
    temporary = starts + aligned((segments + 1) * 4);
    size_t wanted = 0;
    const int32_t* in = nullptr;
    int32_t* out = nullptr;
    cub::DeviceRadixSort::SortPairs(nullptr, wanted, in, out, in, out, static_cast<int>(slots), 0, bits);
    temporary_bytes = static_cast<int64_t>(wanted);
    bytes = temporary + aligned(temporary_bytes);
  }

  Status run(const Executor& executor, const Sizes& sizes, const int32_t* indices, char* memory,
             Entries* result) const {
    auto* key = reinterpret_cast<int32_t*>(memory + keys);
    auto* id = reinterpret_cast<int32_t*>(memory + ids);
    auto* sorted = reinterpret_cast<int32_t*>(memory + sorted_keys);
    auto* ordered = reinterpret_cast<int32_t*>(memory + order);
    auto* start = reinterpret_cast<int32_t*>(memory + starts);
    const int64_t experts = sizes.experts, atoms = sizes.atoms, per_expert = sizes.rows * sizes.width;
    const bool by_step = per_step;
    Status status = launch_each(executor, slots, [=] __device__(int64_t slot) {
      const int64_t group = slot / per_expert;  // step * E + expert
      key[slot] = static_cast<int32_t>((by_step ? group : group % experts) * atoms + indices[slot]);
      id[slot] = static_cast<int32_t>(slot);
    });
    if (status != kOk) return status;
    size_t size = static_cast<size_t>(temporary_bytes);
    if (cub::DeviceRadixSort::SortPairs(memory + temporary, size, key, sorted, id, ordered,
                                        static_cast<int>(slots), 0, bits,
                                        stream_of(executor)) != cudaSuccess) {
      return launch_status();
    }
    const int64_t count = slots;
    status = launch_each(executor, segments + 1, [=] __device__(int64_t segment) {
      int64_t low = 0, high = count;  // the first slot whose key is the segment or more
      while (low < high) {
        const int64_t middle = (low + high) / 2;
        if (sorted[middle] < segment) {
          low = middle + 1;
        } else {
          high = middle;
        }
      }
      start[segment] = static_cast<int32_t>(low);
    });
    *result = {ordered, start, segments};
    return status;
  }
};

// out[segment] = sign * sum over its entries (t, e, b, s) of weights[t, e, b, s] * table[e, t + shift, b],
// the steps from `first` to `last`.
template <class S>
struct AtomSums {
  Entries entries;
  const float* weights;  // [T + 1, E, B, K]
  const S* table;        // [1 or E, N, B, n]
  S* out;                // [segments, n], from segment `begin` on
  int64_t experts, rows, width, columns;
  int64_t expert_stride, step_stride;  // of the table, in rows; 0 where all share
  int64_t shift, first, last, begin, end;
  float sign;
  bool aligned;
};

template <bool kAligned, class S>
__global__ void __launch_bounds__(kThreads) atom_sums_kernel(AtomSums<S> args) {
  const int lane = threadIdx.x % 32;
  const int64_t per_strip = args.end - args.begin;
  const int64_t strips = (args.columns + kColumnsPerWarp - 1) / kColumnsPerWarp;
  const int64_t stride = int64_t(gridDim.x) * kWarpsPerBlock, per_expert = args.rows * args.width;
  for (int64_t job = int64_t(blockIdx.x) * kWarpsPerBlock + threadIdx.x / 32; job < per_strip * strips;
       job += stride) {
    const int64_t segment = args.begin + job % per_strip;
    const int64_t at = job / per_strip * kColumnsPerWarp + lane * kEight;
    const int32_t stop = args.entries.starts[segment + 1];
    float sum[kEight] = {};
    for (int32_t start = args.entries.starts[segment]; start < stop; start += 32) {
      float factor = 0.0f;
      int64_t from = 0;
      if (start + lane < stop) {
        const int64_t slot = args.entries.order[start + lane], group = slot / per_expert;
        const int64_t step = group / args.experts, expert = group % args.experts;
        if (step >= args.first && step <= args.last) {
          factor = args.sign * args.weights[slot];
          from = expert * args.expert_stride + (step + args.shift) * args.step_stride +
                 slot % per_expert / args.width;
        }
      }
      add_rows<kAligned>(args.table, args.columns, at, factor, from, sum);
    }
    store_eight<kAligned>(args.out + (segment - args.begin) * args.columns, at, args.columns, sum);
  }
}

template <class S>
Status atom_sums(const Executor& executor, const AtomSums<S>& args) {
  const int64_t strips = (args.columns + kColumnsPerWarp - 1) / kColumnsPerWarp;
  const int64_t jobs = (args.end - args.begin) * strips;
  if (jobs == 0) return kOk;
  const auto kernel = args.aligned ? atom_sums_kernel<true, S> : atom_sums_kernel<false, S>;
  kernel<<<grid_for(jobs, kWarpsPerBlock), kThreads, 0, stream_of(executor)>>>(args);
  return launch_status();
}

}  // namespace stratcore::topk_lista

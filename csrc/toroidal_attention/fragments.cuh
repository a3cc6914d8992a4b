#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>

// Tiles in shared memory and products of them by mma.sync, for every type but float64. A warp holds 16 rows
// of sums: lane l the rows l / 4 and l / 4 + 8, of each 8 columns the two from 2 (l % 4) on: sums[tile][2 row
// + column].
namespace stratcore::toroidal_attention {

constexpr int kWarpRows = 16;
constexpr int kWarps = 4;
constexpr int kBlock = kWarps * 32;
constexpr int kRows = kWarps * kWarpRows;  // of a block

// Rows of `E` elements in shared memory. Chunks of 16 bytes change places so that eight rows at one column,
// and eight columns in one row, lie in different banks.
template <class S, int E>
struct Tile {
  static constexpr int kPerChunk = 16 / sizeof(S);
  static constexpr int kChunks = E / kPerChunk;
  static constexpr int kRowBytes = E * sizeof(S);
  static_assert(kChunks >= 8, "rows of at least 128 bytes");

  uint32_t base;  // shared address

  __device__ __forceinline__ uint32_t chunk(int row, int index) const {
    return base + row * kRowBytes + ((index ^ (row & 7)) << 4);
  }
  __device__ __forceinline__ uint32_t element(int row, int col) const {
    return chunk(row, col / kPerChunk) + col % kPerChunk * sizeof(S);
  }
};

// Rows in global memory, the last axis contiguous.
template <class S>
struct Source {
  const S* data;
  int64_t stride;  // elements
  int rows, dim;
  bool chunked;  // every row begins at 16 bytes and is whole chunks long
};

__device__ __forceinline__ void copy_async(uint32_t to, const void* from, bool wanted) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(wanted ? 16 : 0)
               : "memory");
}
__device__ __forceinline__ void copies_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int Left>
__device__ __forceinline__ void copies_wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(Left) : "memory");
}

// Rows [first, first + Rows) into a tile by the threads of a block; zeros beyond the rows and the columns.
template <int Rows, class S, int E>
__device__ __forceinline__ void load_tile(Tile<S, E> tile, const Source<S>& source, int first) {
  using T = Tile<S, E>;
  for (int at = threadIdx.x; at < Rows * T::kChunks; at += kBlock) {
    const int row = at / T::kChunks, index = at % T::kChunks, col = index * T::kPerChunk;
    const bool inside = first + row < source.rows && col < source.dim;
    const S* from = source.data + (inside ? (first + row) * source.stride + col : 0);
    if (source.chunked) {
      copy_async(tile.chunk(row, index), from, inside);
      continue;
    }
    S values[T::kPerChunk];
#pragma unroll
    for (int i = 0; i < T::kPerChunk; ++i) values[i] = inside && col + i < source.dim ? from[i] : S(0.0f);
    const uint4 bits = *reinterpret_cast<const uint4*>(values);
    asm volatile("st.shared.v4.u32 [%0], {%1, %2, %3, %4};" ::"r"(tile.chunk(row, index)), "r"(bits.x),
                 "r"(bits.y), "r"(bits.z), "r"(bits.w)
                 : "memory");
  }
}

__device__ __forceinline__ void load_matrices(uint32_t (&out)[4], uint32_t address) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(out[0]), "=r"(out[1]), "=r"(out[2]), "=r"(out[3])
               : "r"(address));
}
__device__ __forceinline__ void load_transposed(uint32_t (&out)[4], uint32_t address) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(out[0]), "=r"(out[1]), "=r"(out[2]), "=r"(out[3])
               : "r"(address));
}

// Four of 8 by 8 elements of 16 bits, as load_matrices has them. On sm_90 and later.
__device__ __forceinline__ void store_matrices(uint32_t address, const uint32_t (&values)[4]) {
  asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(address),
               "r"(values[0]), "r"(values[1]), "r"(values[2]), "r"(values[3])
               : "memory");
}

template <class S>
struct Packing;
template <>
struct Packing<__nv_bfloat16> {
  static __device__ __forceinline__ uint32_t pack(float low, float high) {
    const __nv_bfloat162 both = __floats2bfloat162_rn(low, high);
    return *reinterpret_cast<const uint32_t*>(&both);
  }
  static __device__ __forceinline__ void mma(float (&sum)[4], const uint32_t (&a)[4], uint32_t b0,
                                             uint32_t b1) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};"
        : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
  }
};
template <>
struct Packing<__half> {
  static __device__ __forceinline__ uint32_t pack(float low, float high) {
    const __half2 both = __floats2half2_rn(low, high);
    return *reinterpret_cast<const uint32_t*>(&both);
  }
  static __device__ __forceinline__ void mma(float (&sum)[4], const uint32_t (&a)[4], uint32_t b0,
                                             uint32_t b1) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};"
        : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
  }
};

// Products of 16-bit elements, 16 of the contraction a step.
template <class S>
struct Product {
  static constexpr int kStep = 16;
  struct Factor {
    uint32_t value[4];
  };

  // Columns [16 step, 16 step + 16) of rows [row, row + 16) of a tile.
  template <int E>
  static __device__ __forceinline__ Factor rows_of(Tile<S, E> tile, int row, int step, int lane) {
    Factor factor;
    load_matrices(factor.value, tile.chunk(row + lane % 16, 2 * step + lane / 16));
    return factor;
  }

  // Columns of sums that the warp holds.
  template <int N>
  static __device__ __forceinline__ Factor sums_of(const float (&sums)[N][4], int step) {
    const float (&low)[4] = sums[2 * step];
    const float (&high)[4] = sums[2 * step + 1];
    using P = Packing<S>;
    return {{P::pack(low[0], low[1]), P::pack(low[2], low[3]), P::pack(high[0], high[1]),
             P::pack(high[2], high[3])}};
  }

  // sums[n] += factor times columns of the step of rows [8 n, 8 n + 8) of the tile, transposed.
  template <int N, int E>
  static __device__ __forceinline__ void add_rows(float (&sums)[N][4], const Factor& factor, Tile<S, E> tile,
                                                  int step, int lane) {
#pragma unroll
    for (int n = 0; n < N; n += 2) {
      uint32_t b[4];
      load_matrices(b, tile.chunk(8 * n + lane % 8 + lane / 16 * 8, 2 * step + lane / 8 % 2));
      Packing<S>::mma(sums[n], factor.value, b[0], b[1]);
      Packing<S>::mma(sums[n + 1], factor.value, b[2], b[3]);
    }
  }

  // sums[n] += factor times rows of the step, columns from first + 8 n on.
  template <int N, int E>
  static __device__ __forceinline__ void add_columns(float (&sums)[N][4], const Factor& factor,
                                                     Tile<S, E> tile, int step, int first, int lane) {
#pragma unroll
    for (int n = 0; n < N; n += 2) {
      uint32_t b[4];
      load_transposed(b, tile.chunk(16 * step + lane % 8 + lane / 8 % 2 * 8, first / 8 + n + lane / 16));
      Packing<S>::mma(sums[n], factor.value, b[0], b[1]);
      Packing<S>::mma(sums[n + 1], factor.value, b[2], b[3]);
    }
  }
};

__device__ __forceinline__ float read_shared(uint32_t address) {
  float value;
  asm volatile("ld.shared.f32 %0, [%1];" : "=f"(value) : "r"(address));
  return value;
}

// A float as the sum of two of 11 bits: what TF32 products lose is the product of the two small parts, 2^-22.
struct Split {
  uint32_t high, low;
};
__device__ __forceinline__ Split split(float value) {
  Split parts;
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(parts.high) : "f"(value));
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(parts.low) : "f"(value - __uint_as_float(parts.high)));
  return parts;
}

// Products of float32 elements, 8 of the contraction a step, by three products of TF32 each.
template <>
struct Product<float> {
  static constexpr int kStep = 8;
  struct Factor {
    uint32_t high[4], low[4];
  };

  static __device__ __forceinline__ Factor factor_of(const float (&value)[4]) {
    Factor factor;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const Split parts = split(value[i]);
      factor.high[i] = parts.high;
      factor.low[i] = parts.low;
    }
    return factor;
  }

  template <int E>
  static __device__ __forceinline__ Factor rows_of(Tile<float, E> tile, int row, int step, int lane) {
    const int r = row + lane / 4, c = 8 * step + lane % 4;
    return factor_of({read_shared(tile.element(r, c)), read_shared(tile.element(r + 8, c)),
                      read_shared(tile.element(r, c + 4)), read_shared(tile.element(r + 8, c + 4))});
  }

  // The contraction may take its elements in any order: even columns of the sums come first.
  template <int N>
  static __device__ __forceinline__ Factor sums_of(const float (&sums)[N][4], int step) {
    return factor_of({sums[step][0], sums[step][2], sums[step][1], sums[step][3]});
  }

  static __device__ __forceinline__ void multiply(float (&sum)[4], const uint32_t (&a)[4], uint32_t b0,
                                                  uint32_t b1) {
    asm("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};"
        : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
  }
  static __device__ __forceinline__ void add(float (&sum)[4], const Factor& a, float b0, float b1) {
    const Split first = split(b0), second = split(b1);
    float part[4] = {};  // tensor cores cut off where they add: the long sum is rounded here
    multiply(part, a.low, first.high, second.high);
    multiply(part, a.high, first.low, second.low);
    multiply(part, a.high, first.high, second.high);
#pragma unroll
    for (int i = 0; i < 4; ++i) sum[i] += part[i];
  }

  template <int N, int E>
  static __device__ __forceinline__ void add_rows(float (&sums)[N][4], const Factor& factor,
                                                  Tile<float, E> tile, int step, int lane) {
#pragma unroll
    for (int n = 0; n < N; ++n) {
      const int r = 8 * n + lane / 4, c = 8 * step + lane % 4;
      add(sums[n], factor, read_shared(tile.element(r, c)), read_shared(tile.element(r, c + 4)));
    }
  }

  template <int N, int E>
  static __device__ __forceinline__ void add_columns(float (&sums)[N][4], const Factor& factor,
                                                     Tile<float, E> tile, int step, int first, int lane) {
    const int r = 8 * step + lane % 4 * 2;
#pragma unroll
    for (int n = 0; n < N; ++n) {
      const int c = first + 8 * n + lane / 4;
      add(sums[n], factor, read_shared(tile.element(r, c)), read_shared(tile.element(r + 1, c)));
    }
  }
};

}  // namespace stratcore::toroidal_attention

#pragma once

#include <cuda.h>
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>
#include <type_traits>

// Instructions of sm_90a by name: barriers in shared memory that count bytes, bulk copies that arrive at
// them, and products of a warpgroup (four warps) with one factor in registers.
namespace stratcore::tangent_projection {

__device__ __forceinline__ uint32_t shared_address(const void* pointer) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(pointer));
}

__device__ __forceinline__ void barrier_init(uint64_t* barrier, uint32_t arrivals = 1) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(barrier)), "r"(arrivals)
               : "memory");
}

// What this thread has initialized becomes visible to bulk copies.
__device__ __forceinline__ void fence_barrier_init() {
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}

// Waits for the end of phase 0, 1, 2, .. given by its parity.
__device__ __forceinline__ void barrier_wait(uint64_t* barrier, uint32_t parity) {
  asm volatile(
      "{\n"
      ".reg .pred done;\n"
      "again: mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n"
      "@!done bra again;\n"
      "}\n" ::"r"(shared_address(barrier)),
      "r"(parity)
      : "memory");
}

// The current phase of `barrier` ends when `bytes` have arrived by bulk copies.
__device__ __forceinline__ void barrier_expect(uint64_t* barrier, uint32_t bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(barrier)),
               "r"(bytes)
               : "memory");
}

__device__ __forceinline__ void bulk_copy(void* to, const void* from, uint32_t bytes, uint64_t* barrier) {
  asm volatile(
      "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(
          shared_address(to)),
      "l"(from), "r"(bytes), "r"(shared_address(barrier))
      : "memory");
}

// The same into the same place of every block of the cluster in `blocks`, each at its own barrier.
__device__ __forceinline__ void bulk_copy_to_all(void* to, const void* from, uint32_t bytes,
                                                 uint64_t* barrier, uint16_t blocks) {
  asm volatile(
      "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster [%0], [%1], %2, "
      "[%3], %4;" ::"r"(shared_address(to)),
      "l"(from), "r"(bytes), "r"(shared_address(barrier)), "h"(blocks)
      : "memory");
}

// The box of a matrix that begins at (column, row).
__device__ __forceinline__ void bulk_copy_box(void* to, const CUtensorMap& map, int column, int row,
                                              uint64_t* barrier) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], [%1, {%2, "
      "%3}], [%4];" ::"r"(shared_address(to)),
      "l"(&map), "r"(column), "r"(row), "r"(shared_address(barrier))
      : "memory");
}

__device__ __forceinline__ uint32_t block_of_cluster() {
  uint32_t rank;
  asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
  return rank;
}

// Every thread of the cluster.
__device__ __forceinline__ void cluster_barrier() {
  asm volatile("barrier.cluster.arrive.release.aligned;\nbarrier.cluster.wait.acquire.aligned;" ::: "memory");
}

__device__ __forceinline__ void barrier_arrive(uint64_t* barrier) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(shared_address(barrier)) : "memory");
}

// What this thread has written to shared memory becomes visible to wgmma and bulk copies.
__device__ __forceinline__ void fence_shared_writes() {
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}

// The address of what stands at `address` of this block in block `rank` of the cluster.
__device__ __forceinline__ uint32_t address_in(uint32_t address, uint32_t rank) {
  uint32_t there;
  asm volatile("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(there) : "r"(address), "r"(rank));
  return there;
}

// Four numbers to `address` in a block of the cluster, of which that block's barrier counts the 16 bytes.
__device__ __forceinline__ void send_numbers(uint32_t address, const float4& value, uint32_t barrier) {
  asm volatile(
      "st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.v4.f32 [%0], {%1, %2, %3, %4}, [%5];" ::"r"(
          address),
      "f"(value.x), "f"(value.y), "f"(value.z), "f"(value.w), "r"(barrier)
      : "memory");
}

// Arrives at the barrier in the same place of block `rank` of the cluster. Tells it of reads by products that
// are done, and of nothing written: a barrier_arrive would wait for all that the thread has written.
__device__ __forceinline__ void barrier_release(uint64_t* barrier, uint32_t rank) {
  asm volatile("mbarrier.arrive.relaxed.cluster.shared::cluster.b64 _, [%0];" ::"r"(
                   address_in(shared_address(barrier), rank))
               : "memory");
}

// From shared memory into the same place of block `rank` of the cluster, with an arrival at its barrier.
__device__ __forceinline__ void send_to_block(const void* from, uint32_t bytes, uint64_t* barrier,
                                              uint32_t rank) {
  const uint32_t to = address_in(shared_address(from), rank),
                 there = address_in(shared_address(barrier), rank);
  asm volatile("mbarrier.arrive.expect_tx.relaxed.cluster.shared::cluster.b64 _, [%0], %1;" ::"r"(there),
               "r"(bytes)
               : "memory");
  asm volatile(
      "cp.async.bulk.shared::cluster.shared::cta.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(
          to),
      "r"(shared_address(from)), "r"(bytes), "r"(there)
      : "memory");
}

__device__ __forceinline__ void prefetch_to_l2(const void* from, uint32_t bytes) {
  asm volatile("cp.async.bulk.prefetch.L2.global [%0], %1;" ::"l"(from), "r"(bytes) : "memory");
}

// A factor [K][N] in shared memory as blocks of 8 rows of N by 16 bytes of K, 128 bytes each; `next_k` and
// `next_n` are the distances in bytes to the next block along either.
__device__ __forceinline__ uint64_t matrix_descriptor(uint32_t address, uint32_t next_k, uint32_t next_n) {
  return uint64_t(address >> 4 & 0x3fff) | uint64_t(next_k >> 4) << 16 | uint64_t(next_n >> 4) << 32;
}

// Registers of each thread of a warpgroup from here on: more where another leaves some.
template <int Count>
__device__ __forceinline__ void take_registers() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(Count));
}
template <int Count>
__device__ __forceinline__ void leave_registers() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(Count));
}

__device__ __forceinline__ void wgmma_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
__device__ __forceinline__ void wgmma_commit() {
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}
template <int Left>
__device__ __forceinline__ void wgmma_wait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(Left) : "memory");
}

// Keeps the compiler from moving reads and writes of the sums across.
template <int N>
__device__ __forceinline__ void hold(float (&sum)[N]) {
#pragma unroll
  for (int i = 0; i < N; ++i) asm volatile("" : "+f"(sum[i])::"memory");
}

// A factor [M or N][K] in shared memory in rows of 128 bytes; of row r the 16 bytes number i stand at i ^ r
// % 8. Groups of eight rows are `next` bytes apart.
__device__ __forceinline__ uint64_t swizzled_descriptor(uint32_t address, uint32_t next = 1024) {
  return uint64_t(address >> 4 & 0x3fff) | uint64_t(1) << 16 | uint64_t(next >> 4) << 32 | uint64_t(1) << 62;
}

#define STRATCORE_SUMS64                                                             \
  "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "           \
  "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, " \
  "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, " \
  "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
#define STRATCORE_SUMS128                                                                        \
  STRATCORE_SUMS64                                                                               \
  ", "                                                                                           \
  "%64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79, "             \
  "%80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95, "             \
  "%96, %97, %98, %99, %100, %101, %102, %103, %104, %105, %106, %107, %108, %109, %110, %111, " \
  "%112, %113, %114, %115, %116, %117, %118, %119, %120, %121, %122, %123, %124, %125, %126, %127"
#define STRATCORE_SUM8(i)                                                                                 \
  "+f"(sum[i]), "+f"(sum[i + 1]), "+f"(sum[i + 2]), "+f"(sum[i + 3]), "+f"(sum[i + 4]), "+f"(sum[i + 5]), \
      "+f"(sum[i + 6]), "+f"(sum[i + 7])
#define STRATCORE_SUM32(i) \
  STRATCORE_SUM8(i), STRATCORE_SUM8(i + 8), STRATCORE_SUM8(i + 16), STRATCORE_SUM8(i + 24)
#define STRATCORE_WGMMA_WIDE(type, majors)                                                         \
  asm volatile("{\n.reg .pred add;\nsetp.ne.b32 add, %130, 0;\nwgmma.mma_async.sync.aligned." type \
               " {" STRATCORE_SUMS128 "}, %128, %129, add, 1, 1" majors ";\n}\n"                   \
               : STRATCORE_SUM32(0), STRATCORE_SUM32(32), STRATCORE_SUM32(64), STRATCORE_SUM32(96) \
               : "l"(a), "l"(b), "r"(int(add)))

// sum [64][256] = a b^T, plus the old sum where `add`, of 32 bytes of columns of a [64] and b [256], of
// float32 all but the last 13 bits; lanes hold sums as below.
template <class S>
__device__ __forceinline__ void wgmma_wide(float (&sum)[128], uint64_t a, uint64_t b, bool add) {
  if constexpr (std::is_same_v<S, float>)
    STRATCORE_WGMMA_WIDE("m64n256k8.f32.tf32.tf32", "");
  else if constexpr (std::is_same_v<S, __half>)
    STRATCORE_WGMMA_WIDE("m64n256k16.f32.f16.f16", ", 0, 0");
  else
    STRATCORE_WGMMA_WIDE("m64n256k16.f32.bf16.bf16", ", 0, 0");
}

// sum [64][128] = a b^T, plus the old sum where `add`, of 16 columns of a [64] and b [128] in float16.
__device__ __forceinline__ void wgmma_half(float (&sum)[64], uint64_t a, uint64_t b, bool add) {
  asm volatile(
      "{\n.reg .pred add;\nsetp.ne.b32 add, %66, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n128k16.f32.f16.f16 {" STRATCORE_SUMS64
      "}, %64, %65, add, 1, 1, 0, 0;\n}\n"
      : STRATCORE_SUM32(0), STRATCORE_SUM32(32)
      : "l"(a), "l"(b), "r"(int(add)));
}

#undef STRATCORE_WGMMA_WIDE
#undef STRATCORE_SUM32
#undef STRATCORE_SUM8
#undef STRATCORE_SUMS128
#undef STRATCORE_SUMS64

// sum [64][64] = a [64][16] b [16][64], plus the old sum where `add`. Lane l of warp w holds rows
// 16 w + l / 4 + 8 r: of the sum the columns 8 t + 2 (l % 4) + e as sum[4 t + 2 r + e], of a the pairs of
// columns from 8 t + 2 (l % 4) on as a[2 t + r].
__device__ __forceinline__ void wgmma(float (&sum)[32], const uint32_t (&a)[4], uint64_t b, bool add) {
  asm volatile(
      "{\n"
      ".reg .pred add;\n"
      "setp.ne.b32 add, %37, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n64k16.f32.f16.f16 {%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, "
      "%12, %13, %14, %15, %16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31}, "
      "{%32, %33, %34, %35}, %36, add, 1, 1, 0;\n"
      "}\n"
      : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3]), "+f"(sum[4]), "+f"(sum[5]), "+f"(sum[6]),
        "+f"(sum[7]), "+f"(sum[8]), "+f"(sum[9]), "+f"(sum[10]), "+f"(sum[11]), "+f"(sum[12]), "+f"(sum[13]),
        "+f"(sum[14]), "+f"(sum[15]), "+f"(sum[16]), "+f"(sum[17]), "+f"(sum[18]), "+f"(sum[19]),
        "+f"(sum[20]), "+f"(sum[21]), "+f"(sum[22]), "+f"(sum[23]), "+f"(sum[24]), "+f"(sum[25]),
        "+f"(sum[26]), "+f"(sum[27]), "+f"(sum[28]), "+f"(sum[29]), "+f"(sum[30]), "+f"(sum[31])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(int(add)));
}

}  // namespace stratcore::tangent_projection

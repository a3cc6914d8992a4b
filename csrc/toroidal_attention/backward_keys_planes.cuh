#pragma once

#include "backward_keys_wgmma.cuh"

// Gradients of keys and values of float32 in planes, on sm_90a: the other half of the backward without sums
// in memory, beside query_wgmma_kernel.
namespace stratcore::toroidal_attention {

template <int E>
class PlaneKeyGradient : public KeyGradient<float, E, false> {
 public:
  using Base = KeyGradient<float, E, false>;
  using Shared = typename Base::Shared;
  static constexpr int kCols = Base::kCols, kTiles = Base::kTiles;
  using Base::Base;

  // A product's sums over a tile take the place of what was packed before; the other group multiplies where
  // this one does not.
  __device__ void compute(int warpgroup, const Gradients& gradients, const RowSums& sums) const {
    Shared& shared = Shared::here();
    const Prepared& problem = this->problem_;
    const int lane = static_cast<int>(threadIdx.x) % 32, warp = uniform(static_cast<int>(threadIdx.x) / 32);
    const RowInfo rows = RowInfo::of<true>(problem, this->first_, warp, lane);
    float grad_k[E / 8][4] = {}, grad_v[E / 8][4] = {}, scores[kTiles][4], products[kTiles][4];
    NoteReader notes;
    int given = 0;
    barrier_wait(&shared.rows_full, 0);
    while (const TileNote* note = notes.next(shared.notes)) {
      const int at = given % kStages;
      barrier_wait(&shared.full[at], given / kStages % 2);
      if (note->empty) this->drop_columns(shared.lse[at], shared.col[at][1]);
      wgmma_fence();
      multiply_rows(scores, shared.row[0], warpgroup, shared.col[at][0]);
      wgmma_commit();
      multiply_rows(products, shared.row[1], warpgroup, shared.col[at][1]);
      wgmma_commit();
      barrier_wait(&shared.numbered[at], given / kStages % 2);
      wgmma_wait<1>();
      hold(scores);
      weigh<true, float>(
          problem, [&] { return head_of(problem, this->pair_of(note->repeat)); }, shared.pattern, *note, rows,
          lane, [&](int axis) { return note->weight[axis]; }, [](int) { return 0.0f; },
          [&](int col) { return shared.numbers[at][col]; }, scores);
      wgmma_wait<0>();
      hold(products);
#pragma unroll
      for (int n = 0; n < kTiles; ++n)
#pragma unroll
        for (int e = 0; e < 4; ++e)
          products[n][e] = scores[n][e] * (products[n][e] - shared.delta[at][8 * n + lane % 4 * 2 + e % 2]);
      Factors<float, kCols / 16> weights, packed;
      pack<float>(scores, weights);
      wgmma_fence();
      multiply_factors(scores, weights, shared.col[at][1]);
      wgmma_commit();
      pack<float>(products, packed);
      wgmma_wait<0>();
      hold(scores);
      add_sums(grad_v, scores);
      wgmma_fence();
      multiply_factors(products, packed, shared.col[at][0]);
      wgmma_commit();
      wgmma_wait<0>();
      hold(products);
      barrier_arrive(&shared.empty[at]);
      add_sums(grad_k, products);
      ++given;
    }
    const float scale[2] = {float(problem.scale), float(problem.scale)}, one[2] = {1.0f, 1.0f};
    const int64_t keys = this->group_ * problem.keys * problem.dim;
    store_rows<float, E>(static_cast<float*>(gradients.grad_k) + keys, problem.dim, rows, problem.keys,
                         problem.dim, lane, grad_k, scale);
    store_rows<float, E>(static_cast<float*>(gradients.grad_v) + keys, problem.dim, rows, problem.keys,
                         problem.dim, lane, grad_v, one);
  }
};

template <int E>
__global__ void __launch_bounds__(KeyWgmma<float, E>::kThreads, 1)
    key_planes_kernel(const __grid_constant__ Prepared problem, const __grid_constant__ Gradients gradients,
                      const __grid_constant__ RowSums sums, const __grid_constant__ BackwardMaps maps) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
  key_block<float, E, PlaneKeyGradient<E>>(problem, gradients, sums, maps);
#endif
}

}  // namespace stratcore::toroidal_attention

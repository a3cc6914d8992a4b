#pragma once

#include <algorithm>

#include "../common/element.cuh"
#include "../common/launch.cuh"
#include "topk_lista.h"

// Parameters of experts for groups of rows, and the sums of their gradients. Legend as in topk_lista.h.
namespace stratcore::topk_lista {

constexpr int64_t kMostBlockRows = 65535;

// A grid row for each of the `count` matrices; the kernels loop over what is left.
inline dim3 grid_of_matrices(int64_t per_matrix, int64_t count) {
  return dim3(static_cast<unsigned>(std::min<int64_t>((per_matrix + kThreads - 1) / kThreads, 1024)),
              static_cast<unsigned>(std::min(count, kMostBlockRows)));
}

template <class Word>
__global__ void __launch_bounds__(kThreads)
    gather_groups_kernel(Grouping grouping, int64_t words, const Word* parameter, Word* gathered) {
  for (int64_t at = blockIdx.y; at < grouping.outer * grouping.groups; at += gridDim.y) {
    const int64_t outer = at / grouping.groups, expert = grouping.expert[at % grouping.groups];
    const Word* source = parameter + (outer * grouping.experts + expert) * words;
    Word* target = gathered + at * words;
    for (int64_t i = int64_t(blockIdx.x) * kThreads + threadIdx.x; i < words;
         i += int64_t(gridDim.x) * kThreads) {
      target[i] = source[i];
    }
  }
}

template <class Word>
Status gather_words(const Grouping& grouping, int64_t words, const void* parameter, void* gathered,
                    const Executor& executor) {
  const dim3 grid = grid_of_matrices(words, grouping.outer * grouping.groups);
  gather_groups_kernel<<<grid, kThreads, 0, stream_of(executor)>>>(grouping, words,
                                                                   static_cast<const Word*>(parameter),
                                                                   static_cast<Word*>(gathered));
  return launch_status();
}

template <class S>
__global__ void __launch_bounds__(kThreads)
    add_groups_kernel(Grouping grouping, bool aligned, const S* gathered, S* parameter) {
  const int64_t quads = (grouping.inner + kQuad - 1) / kQuad;
  for (int64_t at = blockIdx.y; at < grouping.outer * grouping.experts; at += gridDim.y) {
    const int64_t outer = at / grouping.experts, expert = at % grouping.experts;
    const S* source = gathered + outer * grouping.groups * grouping.inner;
    for (int64_t i = int64_t(blockIdx.x) * kThreads + threadIdx.x; i < quads;
         i += int64_t(gridDim.x) * kThreads) {
      Computed<S> sum[kQuad] = {};
      for (int64_t group = 0; group < grouping.groups; ++group) {
        if (grouping.expert[group] != expert) continue;
        const Quad<S> part = load_quad(source + group * grouping.inner, i * kQuad, grouping.inner, aligned);
#pragma unroll
        for (int j = 0; j < kQuad; ++j) sum[j] += number(part.element[j]);
      }
      store_quad(parameter + at * grouping.inner, i * kQuad, grouping.inner, aligned, sum);
    }
  }
}

template <class S>
Status add_groups(const Grouping& grouping, const void* gathered, void* parameter, const Executor& executor) {
  const bool aligned =
      quads_aligned<S>(gathered, grouping.inner) && quads_aligned<S>(parameter, grouping.inner);
  const dim3 grid = grid_of_matrices((grouping.inner + kQuad - 1) / kQuad, grouping.outer * grouping.experts);
  add_groups_kernel<S><<<grid, kThreads, 0, stream_of(executor)>>>(grouping, aligned,
                                                                   static_cast<const S*>(gathered),
                                                                   static_cast<S*>(parameter));
  return launch_status();
}

}  // namespace stratcore::topk_lista

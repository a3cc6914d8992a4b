#pragma once

#include "nearest_exact.cuh"
#include "nearest_tile.cuh"

// Many rows against many anchors: tensor cores find the anchors that may be nearest, which are then scored
// exactly. Legend as in tangent_projection.h.
namespace stratcore::tangent_projection {

// The anchors of length 1 in few bits, the inverse of their lengths [A] and what the rounding took away of
// them, as a length. `Place` says in which bits, and where an element stands.
struct Prepared {
  void* unit;
  float* inverse;
  float* lost;
  int64_t padded_dim, padded_count;
};

// [A padded to kChunk][D padded to kSlab].
struct RowMajor {
  using Element = __half;
  static constexpr int64_t kAnchors = kChunk, kColumns = kSlab;
  __device__ int64_t operator()(int64_t anchor, int64_t column, int64_t padded_dim) const {
    return anchor * padded_dim + column;
  }
};

inline int64_t round_up(int64_t value, int64_t multiple) {
  return (value + multiple - 1) / multiple * multiple;
}

template <class Place>
inline Prepared prepared(const Problem& problem, void* scratch) {
  Prepared out{};
  out.padded_dim = round_up(problem.dim, Place::kColumns);
  out.padded_count = round_up(problem.anchor_count, Place::kAnchors);
  out.unit = scratch;
  out.lost = reinterpret_cast<float*>(static_cast<typename Place::Element*>(scratch) +
                                      out.padded_dim * out.padded_count);
  out.inverse = out.lost + out.padded_count;
  return out;
}

// Float32 as tensor cores read it: without its last 13 bits.
__device__ inline float cut(float value) { return __uint_as_float(__float_as_uint(value) & ~0x1fffu); }

template <class Element>
__device__ inline Element rounded(float value) {
  if constexpr (std::is_same_v<Element, float>)
    return cut(__uint_as_float(__float_as_uint(value) + 0x1000u));
  else
    return stored<Element>(value);
}

template <class S, class Place>
__global__ void __launch_bounds__(kWarps* kWarp) prepare_kernel(Problem problem, Prepared out, Place place) {
  using Element = typename Place::Element;
  const int lane = threadIdx.x % kWarp;
  const int64_t warps = int64_t(gridDim.x) * kWarps;
  for (int64_t n = int64_t(blockIdx.x) * kWarps + threadIdx.x / kWarp; n < out.padded_count; n += warps) {
    const S* anchor = static_cast<const S*>(problem.anchors) + n * problem.dim;
    const bool real = n < problem.anchor_count;
    float squares = 0;
#pragma unroll 8
    for (int64_t d = lane; real && d < problem.dim; d += kWarp) {
      squares += float(number(anchor[d])) * float(number(anchor[d]));
    }
    const float inverse = inverse_length<float>(sum_over<kWarp>(squares));
    float lost = 0;
#pragma unroll 8
    for (int64_t d = lane; d < out.padded_dim; d += kWarp) {
      const bool inside = real && d < problem.dim;
      const float value = inside ? float(number(anchor[d])) * inverse : 0.0f;
      const Element kept = rounded<Element>(value);
      static_cast<Element*>(out.unit)[place(n, d, out.padded_dim)] = kept;
      const float away = value - float(number(kept));
      lost += away * away;
    }
    lost = sqrtf(sum_over<kWarp>(lost));
    if (lane == 0) {
      out.lost[n] = lost < INFINITY ? lost : INFINITY;  // NaN, too: then every row is scored exactly
      if (real) out.inverse[n] = inverse;
    }
  }
}

constexpr int kCandidates = 8;

// Which anchors the second pass scores, for each row of a warp.
struct Candidates {
  int32_t anchor[kTileRows][kCandidates];
  int32_t count[kTileRows];  // negative: all
  float norm[kTileRows];
};

struct Shared {
  __half chunk[2][kChunk][kSlab + kPad];
  Candidates candidates[kWarps];
};

__device__ inline void copy_chunk(const Prepared& anchors, int64_t chunk, int64_t slab,
                                  __half (&target)[kChunk][kSlab + kPad]) {
  constexpr int kPieces = kSlab / 8;  // of 16 bytes
  for (int i = threadIdx.x; i < kChunk * kPieces; i += kWarps * kWarp) {
    const int row = i / kPieces, piece = i % kPieces;
    const __half* from = static_cast<const __half*>(anchors.unit) +
                         (chunk * kChunk + row) * anchors.padded_dim + slab * kSlab + piece * 8;
    const auto to = static_cast<uint32_t>(__cvta_generic_to_shared(&target[row][piece * 8]));
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(to), "l"(from));
  }
  asm volatile("cp.async.commit_group;");
}

// A score is at most this far from its exact value, as a share of |x|: by Cauchy and Schwarz |x - x'| |n'| +
// |x| |n - n'| for the rounded x' and n', and the rounding of the sums.
__device__ inline float score_error(float lost_share, float anchor_lost, int64_t dim) {
  return 1.01f * (lost_share + anchor_lost) + float(dim) * 1.2e-7f;
}

// Row `which` of a lane's pair; four lanes share it.
__device__ inline void keep_candidates(const Best& best, const RowPair& rows, int which, float anchor_lost,
                                       int lane, int64_t dim, Candidates& out) {
  const int row = lane / 4 + 8 * which;
  const float squares = sum_over<4>(rows.squares[which]), lost = sum_over<4>(rows.lost[which]);
  float largest = fmaxf(best.first, __shfl_xor_sync(kFullWarp, best.first, 1));
  largest = fmaxf(largest, __shfl_xor_sync(kFullWarp, largest, 2));
  const float norm = sqrtf(squares), length = norm * rows.scale[which];
  const float lost_share = length > 0 ? sqrtf(lost) / length : 0.0f;
  const float least = largest - 2 * score_error(lost_share, anchor_lost, dim) * length;
  const bool one = best.first >= least, two = best.second >= least;
  const bool more = best.rest >= least;
  const unsigned ones = __ballot_sync(kFullWarp, one) >> (lane & ~3) & 15;
  const unsigned twos = __ballot_sync(kFullWarp, two) >> (lane & ~3) & 15;
  const unsigned mores = __ballot_sync(kFullWarp, more) >> (lane & ~3) & 15;
  const unsigned before = (1u << (lane & 3)) - 1;
  const int place = __popc(ones & before) + __popc(twos & before);
  if (one) out.anchor[row][place] = best.first_anchor;
  if (two) out.anchor[row][place + 1] = best.second_anchor;
  if ((lane & 3) == 0) {
    const int count = __popc(ones) + __popc(twos);
    // Infinities and NaN, of the row or of its float16 form, leave no bound.
    out.count[row] = mores || count == 0 || !(least > -INFINITY && least < INFINITY) ? -1 : count;
    out.norm[row] = norm;
  }
}

constexpr int kAtOnce = 4;  // rows of a warp in the second pass

// Exact cosines (but for the row's length) of N pairs of a row and an anchor, in every lane.
template <class S, int N>
__device__ __forceinline__ void exact_scores(const S* const (&row)[N], const S* anchors,
                                             const int32_t (&index)[N], const float* inverse, int64_t dim,
                                             bool aligned, int lane, float (&score)[N]) {
#pragma unroll
  for (int n = 0; n < N; ++n) score[n] = 0;
  for (int64_t at = lane * kQuad; at < dim; at += kWarp * kQuad) {
    Quad<S> a[N], b[N];
#pragma unroll
    for (int n = 0; n < N; ++n) {
      a[n] = load_quad(row[n], at, dim, aligned);
      b[n] = load_quad(anchors + index[n] * dim, at, dim, aligned);
    }
#pragma unroll
    for (int n = 0; n < N; ++n) {
#pragma unroll
      for (int c = 0; c < kQuad; ++c)
        score[n] += float(number(a[n].element[c])) * float(number(b[n].element[c]));
    }
  }
#pragma unroll
  for (int n = 0; n < N; ++n) score[n] = sum_over<kWarp>(score[n]) * inverse[index[n]];
}

// y of kAtOnce rows.
template <class S>
__device__ __forceinline__ void write_rows(const S* const (&x)[kAtOnce], const int64_t (&row)[kAtOnce],
                                           const float (&scale)[kAtOnce], int64_t dim, bool aligned, int lane,
                                           S* y) {
  for (int64_t at = lane * kQuad; at < dim; at += kWarp * kQuad) {
    Quad<S> quad[kAtOnce];
#pragma unroll
    for (int n = 0; n < kAtOnce; ++n) quad[n] = load_quad(x[n], at, dim, aligned);
#pragma unroll
    for (int n = 0; n < kAtOnce; ++n) {
      float value[kQuad];
#pragma unroll
      for (int c = 0; c < kQuad; ++c) value[c] = float(number(quad[n].element[c])) * scale[n];
      store_quad(y + row[n] * dim, at, dim, aligned, value);
    }
  }
}

// Second pass: y, and exact cosines with the candidates, for kAtOnce rows from `r` on; rows beyond the last
// repeat it.
template <class S>
__device__ inline void finish_rows(const Problem& problem, const Prepared& anchors, const Targets<S>& out,
                                   int64_t first, int r, const Candidates& candidates, bool aligned,
                                   int lane) {
  const int64_t dim = problem.dim;
  const S* x[kAtOnce];
  int64_t row[kAtOnce];
  int own[kAtOnce], rounds = 0;
  float scale[kAtOnce];
#pragma unroll
  for (int n = 0; n < kAtOnce; ++n) {
    own[n] = static_cast<int>(min(int64_t(r + n), problem.rows - 1 - first));
    row[n] = first + own[n];
    x[n] = static_cast<const S*>(problem.x) + row[n] * dim;
    scale[n] = inverse_radius(candidates.norm[own[n]], problem.eps);
    rounds = max(rounds, candidates.count[own[n]]);
  }
  write_rows<S>(x, row, scale, dim, aligned, lane, out.y);
  Nearest<float> nearest[kAtOnce];
  for (int i = 0; i < rounds; ++i) {
    int32_t index[kAtOnce];
    float score[kAtOnce];
#pragma unroll
    for (int n = 0; n < kAtOnce; ++n) {
      const int count = candidates.count[own[n]];
      index[n] = count > 0 ? candidates.anchor[own[n]][min(i, count - 1)] : 0;
    }
    exact_scores<S>(x, static_cast<const S*>(problem.anchors), index, anchors.inverse, dim, aligned, lane,
                    score);
#pragma unroll
    for (int n = 0; n < kAtOnce; ++n) nearest[n].see(score[n], index[n]);
  }
#pragma unroll
  for (int n = 0; n < kAtOnce; ++n) {
    if (candidates.count[own[n]] < 0) {  // all anchors, kAtOnce together
      nearest[n] = Nearest<float>();
      const S* same[kAtOnce] = {x[n], x[n], x[n], x[n]};
      for (int64_t i = 0; i < problem.anchor_count; i += kAtOnce) {
        int32_t index[kAtOnce];
        float score[kAtOnce];
#pragma unroll
        for (int m = 0; m < kAtOnce; ++m)
          index[m] = static_cast<int32_t>(min(i + m, problem.anchor_count - 1));
        exact_scores<S>(same, static_cast<const S*>(problem.anchors), index, anchors.inverse, dim, aligned,
                        lane, score);
#pragma unroll
        for (int m = 0; m < kAtOnce; ++m) nearest[n].see(score[m], index[m]);
      }
    }
    if (lane == 0) {
      const float norm = candidates.norm[own[n]];
      out.norm[row[n]] = norm;
      write_nearest<S>(out, row[n], nearest[n], norm, problem.eps);
    }
  }
}

template <class S>
__device__ inline void score_tile(const Problem& problem, const Prepared& anchors, int64_t first,
                                  bool aligned, int lane, Shared& shared, Candidates& candidates) {
  const int64_t dim = problem.dim, last = problem.rows - 1;
  const S* x = static_cast<const S*>(problem.x);
  const S* low = x + min(first + lane / 4, last) * dim;
  const S* high = x + min(first + lane / 4 + 8, last) * dim;
  const int64_t slabs = anchors.padded_dim / kSlab, steps = anchors.padded_count / kChunk * slabs;
  RowPair rows;
  float sums[kChunk / 8][4], anchor_lost = 0;
  Best best[2];
  copy_chunk(anchors, 0, 0, shared.chunk[0]);
  scale_rows(low, high, dim, aligned, lane, rows);
  for (int64_t step = 0; step < steps; ++step) {
    const int64_t slab = step % slabs, chunk = step / slabs;
    if (step + 1 < steps) {
      copy_chunk(anchors, (step + 1) / slabs, (step + 1) % slabs, shared.chunk[(step + 1) % 2]);
    }
    if (slabs > 1 || step == 0) {
      load_fragments(low, high, slab * kSlab, dim, aligned, lane, step < slabs, rows);
    }
    if (slab == 0) {
#pragma unroll
      for (int tile = 0; tile < kChunk / 8; ++tile) {
#pragma unroll
        for (int i = 0; i < 4; ++i) sums[tile][i] = 0.0f;
      }
    }
    if (step + 1 < steps)
      asm volatile("cp.async.wait_group 1;");
    else
      asm volatile("cp.async.wait_group 0;");
    __syncthreads();
    const int64_t left = dim - slab * kSlab;
    const int groups = static_cast<int>(min(int64_t(kSlabGroups), (left + kGroup - 1) / kGroup));
    multiply_chunk(rows, &shared.chunk[step % 2][0][0], groups, lane, sums);
    if (slab == slabs - 1) {
#pragma unroll
      for (int tile = 0; tile < kChunk / 8; ++tile) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const int32_t anchor = static_cast<int32_t>(chunk * kChunk + tile * 8 + lane % 4 * 2 + i % 2);
          if (anchor < problem.anchor_count) best[i / 2].see(sums[tile][i], anchor);
        }
      }
    }
    __syncthreads();
  }
  for (int64_t n = lane; n < anchors.padded_count; n += kWarp)
    anchor_lost = fmaxf(anchor_lost, anchors.lost[n]);
  for (int offset = kWarp / 2; offset; offset /= 2) {
    anchor_lost = fmaxf(anchor_lost, __shfl_xor_sync(kFullWarp, anchor_lost, offset));
  }
  keep_candidates(best[0], rows, 0, anchor_lost, lane, dim, candidates);
  keep_candidates(best[1], rows, 1, anchor_lost, lane, dim, candidates);
}

template <class S>
__global__ void __launch_bounds__(kWarps* kWarp, 2)
    tensor_kernel(Problem problem, Prepared anchors, Targets<S> out, bool aligned) {
  extern __shared__ __align__(16) unsigned char memory[];
  Shared& shared = *reinterpret_cast<Shared*>(memory);
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  Candidates& candidates = shared.candidates[warp];
  constexpr int kBlockRows = kWarps * kTileRows;
  const int64_t tiles = (problem.rows + kBlockRows - 1) / kBlockRows;
  for (int64_t tile = blockIdx.x; tile < tiles; tile += gridDim.x) {
    const int64_t first = tile * kBlockRows + warp * kTileRows;
    score_tile<S>(problem, anchors, first, aligned, lane, shared, candidates);
    __syncwarp();
    for (int r = 0; r < kTileRows && first + r < problem.rows; r += kAtOnce) {
      finish_rows<S>(problem, anchors, out, first, r, candidates, aligned, lane);
    }
    __syncwarp();
  }
}

}  // namespace stratcore::tangent_projection

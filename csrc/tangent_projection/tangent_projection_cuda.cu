#include "../common/launch.cuh"
#include "nearest_tile.cuh"
#include "tangent_projection.h"
#include "tangent_projection_math.h"

// Without anchors: L lanes a row, the row in registers. With few anchors or rows: a block scores four rows
// exactly. With many: tensor cores find the anchors that may be nearest, which are then scored exactly.
// Legend as in tangent_projection.h.
namespace stratcore::tangent_projection {
namespace {

constexpr int kWarps = 8;  // a block

template <class S>
struct Targets {
  S* y;
  Computed<S>* norm;
  int32_t* nearest;
  Computed<S>* cosine;
};

template <class T>
__device__ inline T inverse_radius(T norm, double eps) {
  return T(1) / radius_of(norm, T(eps));
}

// ---- rows alone

// Q quads of one row a lane; elements beyond the row are 0.
template <int L, int Q, class S>
__device__ inline void load_row(const S* row, int lane, int64_t dim, bool aligned,
                                Computed<S> (&values)[Q][kQuad]) {
#pragma unroll
  for (int q = 0; q < Q; ++q) {
    const Quad<S> quad = load_quad(row, int64_t(q * L + lane) * kQuad, dim, aligned);
#pragma unroll
    for (int c = 0; c < kQuad; ++c) values[q][c] = number(quad.element[c]);
  }
}

template <int L, int Q, class S>
__global__ void __launch_bounds__(kWarps* kWarp)
    normalize_kernel(Problem problem, Targets<S> out, bool aligned) {
  using T = Computed<S>;
  const int lane = threadIdx.x % L;
  const int64_t groups = int64_t(gridDim.x) * (kWarps * kWarp / L);
  const int64_t rounds = (problem.rows + groups - 1) / groups;
  int64_t row = (int64_t(blockIdx.x) * blockDim.x + threadIdx.x) / L;
  for (int64_t round = 0; round < rounds; ++round, row += groups) {
    const bool inside = row < problem.rows;
    const int64_t offset = (inside ? row : problem.rows - 1) * problem.dim;
    T x[Q][kQuad];
    load_row<L, Q, S>(static_cast<const S*>(problem.x) + offset, lane, problem.dim, aligned, x);
    T squares = 0;
#pragma unroll
    for (int q = 0; q < Q; ++q) {
#pragma unroll
      for (int c = 0; c < kQuad; ++c) squares += x[q][c] * x[q][c];
    }
    const T norm = sqrt(sum_over<L>(squares)), scale = inverse_radius(norm, problem.eps);
    if (!inside) continue;
#pragma unroll
    for (int q = 0; q < Q; ++q) {
#pragma unroll
      for (int c = 0; c < kQuad; ++c) x[q][c] *= scale;
      store_quad(out.y + offset, int64_t(q * L + lane) * kQuad, problem.dim, aligned, x[q]);
    }
    if (lane == 0) out.norm[row] = norm;
  }
}

// A row of any length by a warp, read twice; returns its norm.
template <class S>
__device__ inline Computed<S> normalize_row(const S* x, S* y, Computed<S>* norm_out, int64_t dim, double eps,
                                            int lane) {
  using T = Computed<S>;
  T squares = 0;
  for (int64_t d = lane; d < dim; d += kWarp) squares += T(number(x[d])) * T(number(x[d]));
  const T norm = sqrt(sum_over<kWarp>(squares)), scale = inverse_radius(norm, eps);
  for (int64_t d = lane; d < dim; d += kWarp) y[d] = stored<S>(T(number(x[d])) * scale);
  if (lane == 0) *norm_out = norm;
  return norm;
}

template <class S>
__global__ void __launch_bounds__(kWarps* kWarp) normalize_long_kernel(Problem problem, Targets<S> out) {
  const int lane = threadIdx.x % kWarp;
  const int64_t warps = int64_t(gridDim.x) * kWarps, dim = problem.dim;
  for (int64_t row = int64_t(blockIdx.x) * kWarps + threadIdx.x / kWarp; row < problem.rows; row += warps) {
    normalize_row(static_cast<const S*>(problem.x) + row * dim, out.y + row * dim, out.norm + row, dim,
                  problem.eps, lane);
  }
}

// ---- rows against anchors, exactly

constexpr int kExactRows = 4;  // of a block

// Best anchor so far; NaN is larger than everything, of equals the lower anchor wins.
template <class T>
struct Nearest {
  T cosine = -INFINITY;
  int32_t anchor = 0x7fffffff;

  __device__ void see(T other, int32_t index) {
    const bool is_nan = other != other, held = cosine != cosine;
    const bool equal = is_nan ? held : other == cosine;
    if ((is_nan && !held) || other > cosine || (equal && index < anchor)) {
      cosine = other;
      anchor = index;
    }
  }
};

// Rows that are not finite have no nearest anchor: 0, with cosine NaN.
template <class S>
__device__ inline void write_nearest(const Targets<S>& out, int64_t row, const Nearest<Computed<S>>& nearest,
                                     Computed<S> norm, double eps) {
  const bool finite = norm < Computed<S>(INFINITY);
  out.nearest[row] = finite ? nearest.anchor : 0;
  out.cosine[row] = finite ? nearest.cosine * inverse_radius(norm, eps) : Computed<S>(NAN);
}

template <class S>
__device__ inline Computed<S> inverse_length(Computed<S> squares) {
  return squares > Computed<S>(0) ? Computed<S>(1) / sqrt(squares) : Computed<S>(0);
}

constexpr int kExactAnchors = 4;  // of a warp at once

// Cosines, but for the rows' lengths, of the block's rows with anchors [from, from + kExactAnchors), in every
// lane.
template <class S>
__device__ inline void score_exactly(const Problem& problem, const S* const (&x)[kExactRows], int64_t from,
                                     bool aligned, int lane, Nearest<Computed<S>> (&best)[kExactRows]) {
  using T = Computed<S>;
  const S* anchor[kExactAnchors];
#pragma unroll
  for (int n = 0; n < kExactAnchors; ++n) {
    anchor[n] =
        static_cast<const S*>(problem.anchors) + min(from + n, problem.anchor_count - 1) * problem.dim;
  }
  T dot[kExactAnchors][kExactRows] = {}, squares[kExactAnchors] = {};
  for (int64_t at = lane * kQuad; at < problem.dim; at += kWarp * kQuad) {
    Quad<S> row[kExactRows], other[kExactAnchors];
#pragma unroll
    for (int r = 0; r < kExactRows; ++r) row[r] = load_quad(x[r], at, problem.dim, aligned);
#pragma unroll
    for (int n = 0; n < kExactAnchors; ++n) other[n] = load_quad(anchor[n], at, problem.dim, aligned);
#pragma unroll
    for (int n = 0; n < kExactAnchors; ++n) {
#pragma unroll
      for (int c = 0; c < kQuad; ++c) {
        const T value = number(other[n].element[c]);
        squares[n] += value * value;
#pragma unroll
        for (int r = 0; r < kExactRows; ++r) dot[n][r] += value * T(number(row[r].element[c]));
      }
    }
  }
#pragma unroll
  for (int n = 0; n < kExactAnchors; ++n) {
    const T scale = inverse_length<S>(sum_over<kWarp>(squares[n]));
    const auto index = static_cast<int32_t>(min(from + n, problem.anchor_count - 1));
#pragma unroll
    for (int r = 0; r < kExactRows; ++r) best[r].see(sum_over<kWarp>(dot[n][r]) * scale, index);
  }
}

template <class S>
__global__ void __launch_bounds__(kWarps* kWarp) exact_kernel(Problem problem, Targets<S> out, bool aligned) {
  using T = Computed<S>;
  __shared__ Nearest<T> found[kWarps][kExactRows];
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  const int64_t dim = problem.dim, tiles = (problem.rows + kExactRows - 1) / kExactRows;
  for (int64_t tile = blockIdx.x; tile < tiles; tile += gridDim.x) {
    const S* x[kExactRows];
#pragma unroll
    for (int r = 0; r < kExactRows; ++r) {
      x[r] = static_cast<const S*>(problem.x) + min(tile * kExactRows + r, problem.rows - 1) * dim;
    }
    Nearest<T> best[kExactRows];
    for (int64_t from = warp * kExactAnchors; from < problem.anchor_count; from += kWarps * kExactAnchors) {
      score_exactly<S>(problem, x, from, aligned, lane, best);
    }
    if (lane == 0) {
#pragma unroll
      for (int r = 0; r < kExactRows; ++r) found[warp][r] = best[r];
    }
    __syncthreads();
    const int64_t row = tile * kExactRows + warp;
    if (warp < kExactRows && row < problem.rows) {
      const S* own = static_cast<const S*>(problem.x) + row * dim;
      const T norm = normalize_row(own, out.y + row * dim, out.norm + row, dim, problem.eps, lane);
      if (lane == 0) {
        Nearest<T> nearest;
        for (int w = 0; w < kWarps; ++w) nearest.see(found[w][warp].cosine, found[w][warp].anchor);
        write_nearest<S>(out, row, nearest, norm, problem.eps);
      }
    }
    __syncthreads();
  }
}

// ---- rows against anchors, by tensor cores

// The anchors of length 1 in float16, [A padded to kChunk][D padded to kSlab], the inverse of their lengths
// [A] and what the rounding took away of them at most, as a length.
struct Prepared {
  __half* unit;
  float* inverse;
  float* lost;
  int64_t padded_dim, padded_count;
};

Prepared prepared(const Problem& problem, void* scratch) {
  Prepared out{};
  out.padded_dim = (problem.dim + kSlab - 1) / kSlab * kSlab;
  out.padded_count = (problem.anchor_count + kChunk - 1) / kChunk * kChunk;
  out.unit = static_cast<__half*>(scratch);
  out.lost = reinterpret_cast<float*>(out.unit + out.padded_dim * out.padded_count);
  out.inverse = out.lost + out.padded_count;
  return out;
}

template <class S>
__global__ void __launch_bounds__(kWarps* kWarp) prepare_kernel(Problem problem, Prepared out) {
  const int lane = threadIdx.x % kWarp;
  const int64_t warps = int64_t(gridDim.x) * kWarps;
  for (int64_t n = int64_t(blockIdx.x) * kWarps + threadIdx.x / kWarp; n < out.padded_count; n += warps) {
    const S* anchor = static_cast<const S*>(problem.anchors) + n * problem.dim;
    const bool real = n < problem.anchor_count;
    float squares = 0;
    for (int64_t d = lane; real && d < problem.dim; d += kWarp) {
      squares += float(number(anchor[d])) * float(number(anchor[d]));
    }
    const float inverse = inverse_length<float>(sum_over<kWarp>(squares));
    float lost = 0;
    for (int64_t d = lane; d < out.padded_dim; d += kWarp) {
      const bool inside = real && d < problem.dim;
      const float value = inside ? float(number(anchor[d])) * inverse : 0.0f;
      const __half rounded = __float2half(value);
      out.unit[n * out.padded_dim + d] = rounded;
      lost += (value - __half2float(rounded)) * (value - __half2float(rounded));
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
    const __half* from =
        anchors.unit + (chunk * kChunk + row) * anchors.padded_dim + slab * kSlab + piece * 8;
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
  for (int64_t at = lane * kQuad; at < dim; at += kWarp * kQuad) {
    Quad<S> quad[kAtOnce];
#pragma unroll
    for (int n = 0; n < kAtOnce; ++n) quad[n] = load_quad(x[n], at, dim, aligned);
#pragma unroll
    for (int n = 0; n < kAtOnce; ++n) {
      float value[kQuad];
#pragma unroll
      for (int c = 0; c < kQuad; ++c) value[c] = float(number(quad[n].element[c])) * scale[n];
      store_quad(out.y + row[n] * dim, at, dim, aligned, value);
    }
  }
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

// ---- backward

template <int L, int Q, class S>
__global__ void __launch_bounds__(kWarps* kWarp)
    backward_kernel(Problem problem, const Computed<S>* norms, const int32_t* nearest, const S* grad_y,
                    S* grad_x, bool aligned) {
  using T = Computed<S>;
  const int lane = threadIdx.x % L;
  const int64_t groups = int64_t(gridDim.x) * (kWarps * kWarp / L), dim = problem.dim;
  const int64_t rounds = (problem.rows + groups - 1) / groups;
  int64_t row = (int64_t(blockIdx.x) * blockDim.x + threadIdx.x) / L;
  for (int64_t round = 0; round < rounds; ++round, row += groups) {
    const bool inside = row < problem.rows;
    const int64_t from = inside ? row : problem.rows - 1, offset = from * dim;
    T g[Q][kQuad], x[Q][kQuad], n[Q][kQuad] = {};
    load_row<L, Q, S>(grad_y + offset, lane, dim, aligned, g);
    load_row<L, Q, S>(static_cast<const S*>(problem.x) + offset, lane, dim, aligned, x);
    if (nearest) {
      load_row<L, Q, S>(static_cast<const S*>(problem.anchors) + nearest[from] * dim, lane, dim, aligned, n);
    }
    T gx = 0, gn = 0, xn = 0, nn = 0;
#pragma unroll
    for (int q = 0; q < Q; ++q) {
#pragma unroll
      for (int c = 0; c < kQuad; ++c) {
        gx += g[q][c] * x[q][c];
        gn += g[q][c] * n[q][c];
        xn += x[q][c] * n[q][c];
        nn += n[q][c] * n[q][c];
      }
    }
    gx = sum_over<L>(gx);
    if (nearest) {
      gn = sum_over<L>(gn);
      xn = sum_over<L>(xn);
      nn = sum_over<L>(nn);
    }
    const T norm = norms[from], scale = inverse_radius(norm, problem.eps), unit = inverse_length<S>(nn);
    Combination<T> sum =
        combine<T>(problem, nearest != nullptr, norm, xn * scale * unit, gx * scale, gn * unit);
    sum.of_row *= scale;
    sum.of_anchor *= unit;
    if (!inside) continue;
#pragma unroll
    for (int q = 0; q < Q; ++q) {
#pragma unroll
      for (int c = 0; c < kQuad; ++c) {
        g[q][c] = sum.of_gradient * g[q][c] + sum.of_row * x[q][c] + sum.of_anchor * n[q][c];
      }
      store_quad(grad_x + offset, int64_t(q * L + lane) * kQuad, dim, aligned, g[q]);
    }
  }
}

template <class S>
__global__ void __launch_bounds__(kWarps* kWarp)
    backward_long_kernel(Problem problem, const Computed<S>* norms, const int32_t* nearest, const S* grad_y,
                         S* grad_x) {
  using T = Computed<S>;
  const int lane = threadIdx.x % kWarp;
  const int64_t warps = int64_t(gridDim.x) * kWarps, dim = problem.dim;
  for (int64_t row = int64_t(blockIdx.x) * kWarps + threadIdx.x / kWarp; row < problem.rows; row += warps) {
    const S *g = grad_y + row * dim, *x = static_cast<const S*>(problem.x) + row * dim;
    const S* n = nearest ? static_cast<const S*>(problem.anchors) + nearest[row] * dim : nullptr;
    T gx = 0, gn = 0, xn = 0, nn = 0;
    for (int64_t d = lane; d < dim; d += kWarp) {
      const T gd = number(g[d]), xd = number(x[d]), nd = n ? number(n[d]) : T(0);
      gx += gd * xd;
      gn += gd * nd;
      xn += xd * nd;
      nn += nd * nd;
    }
    gx = sum_over<kWarp>(gx);
    gn = sum_over<kWarp>(gn);
    xn = sum_over<kWarp>(xn);
    nn = sum_over<kWarp>(nn);
    const T norm = norms[row], scale = inverse_radius(norm, problem.eps), unit = inverse_length<S>(nn);
    const Combination<T> sum =
        combine<T>(problem, n != nullptr, norm, xn * scale * unit, gx * scale, gn * unit);
    for (int64_t d = lane; d < dim; d += kWarp) {
      const T along = n ? sum.of_anchor * unit * number(n[d]) : T(0);
      grad_x[row * dim + d] =
          stored<S>(sum.of_gradient * number(g[d]) + sum.of_row * scale * number(x[d]) + along);
    }
  }
}

// ---- launches

int processors() {
  int device = 0, count = 0;
  cudaGetDevice(&device);
  cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, device);
  return count;
}

// Blocks that are resident together go through the rows in rounds.
unsigned blocks_for(int64_t rows, int rows_a_block, int blocks_a_processor) {
  const int64_t wanted = (rows + rows_a_block - 1) / rows_a_block;
  return static_cast<unsigned>(std::min<int64_t>(wanted, int64_t(processors()) * blocks_a_processor));
}

template <class Run>
Status with_element(Element element, const Run& run) {
  switch (element) {
    case Element::kFloat64:
      return run(double());
    case Element::kFloat32:
      return run(float());
    case Element::kBFloat16:
      return run(__nv_bfloat16());
    default:
      return run(__half());
  }
}

template <int L, int Q>
struct Shape {
  static constexpr int kLanes = L, kQuads = Q;
};

// Lanes a row and quads a lane for a dimension; false where the row does not fit.
template <class Run>
bool with_shape(int64_t dim, const Run& run) {
  if (dim <= 64)
    run(Shape<8, 2>());
  else if (dim <= 128)
    run(Shape<32, 1>());
  else if (dim <= 256)
    run(Shape<32, 2>());
  else if (dim <= 512)
    run(Shape<32, 4>());
  else if (dim <= 1024)
    run(Shape<32, 8>());
  else
    return false;
  return true;
}

constexpr int64_t kExactWork = int64_t(1) << 26;  // products up to which every score is made exactly

bool use_tensor_cores(const Problem& problem) {
  return problem.element != Element::kFloat64 && problem.anchor_count > 8 &&
         problem.rows * problem.anchor_count * problem.dim > kExactWork;
}

template <class S>
Status launch_normalize(const Problem& problem, const Targets<S>& out, const Executor& executor) {
  const bool aligned = quads_aligned<S>(problem.x, problem.dim) && quads_aligned<S>(out.y, problem.dim);
  const bool short_rows = with_shape(problem.dim, [&](auto shape) {
    constexpr int kLanes = decltype(shape)::kLanes, kQuads = decltype(shape)::kQuads;
    normalize_kernel<kLanes, kQuads, S><<<blocks_for(problem.rows, kWarps * kWarp / kLanes, 1 << 12),
                                          kWarps * kWarp, 0, stream_of(executor)>>>(problem, out, aligned);
  });
  if (!short_rows) {
    normalize_long_kernel<S>
        <<<blocks_for(problem.rows, kWarps, 8), kWarps * kWarp, 0, stream_of(executor)>>>(problem, out);
  }
  return launch_status();
}

template <class S>
Status launch_tensor(const Problem& problem, const Targets<S>& out, void* scratch, const Executor& executor) {
  if constexpr (std::is_same_v<S, double>) {
    return kOk;
  } else {
    const Prepared anchors = prepared(problem, scratch);
    prepare_kernel<S>
        <<<blocks_for(anchors.padded_count, kWarps, 4), kWarps * kWarp, 0, stream_of(executor)>>>(problem,
                                                                                                  anchors);
    const Status status = launch_status();
    if (status != kOk) return status;
    const bool aligned = quads_aligned<S>(problem.x, problem.dim) && quads_aligned<S>(out.y, problem.dim) &&
                         quads_aligned<S>(problem.anchors, problem.dim);
    cudaFuncSetAttribute(tensor_kernel<S>, cudaFuncAttributeMaxDynamicSharedMemorySize, sizeof(Shared));
    tensor_kernel<S><<<blocks_for(problem.rows, kWarps * kTileRows, 2), kWarps * kWarp, sizeof(Shared),
                       stream_of(executor)>>>(problem, anchors, out, aligned);
    return launch_status();
  }
}

template <class S>
Status forward_of(const Problem& problem, const Output& output, void* scratch, const Executor& executor) {
  using T = Computed<S>;
  const Targets<S> out{static_cast<S*>(output.y), static_cast<T*>(output.norm), output.nearest,
                       static_cast<T*>(output.cosine)};
  if (!problem.anchors || problem.anchor_count == 0) return launch_normalize<S>(problem, out, executor);
  if (use_tensor_cores(problem)) return launch_tensor<S>(problem, out, scratch, executor);
  const bool aligned =
      quads_aligned<S>(problem.x, problem.dim) && quads_aligned<S>(problem.anchors, problem.dim);
  exact_kernel<S>
      <<<blocks_for(problem.rows, kExactRows, 16), kWarps * kWarp, 0, stream_of(executor)>>>(problem, out,
                                                                                             aligned);
  return launch_status();
}

template <class S>
Status backward_of(const Problem& problem, const Output& output, const S* grad_y, S* grad_x,
                   const Executor& executor) {
  const bool pushed = problem.anchors && problem.anchor_count > 0 && problem.separation != 0;
  const int32_t* nearest = pushed ? output.nearest : nullptr;
  const auto* norms = static_cast<const Computed<S>*>(output.norm);
  const bool aligned = quads_aligned<S>(problem.x, problem.dim) && quads_aligned<S>(grad_y, problem.dim) &&
                       quads_aligned<S>(grad_x, problem.dim) &&
                       (!pushed || quads_aligned<S>(problem.anchors, problem.dim));
  const bool short_rows = with_shape(problem.dim, [&](auto shape) {
    constexpr int kLanes = decltype(shape)::kLanes, kQuads = decltype(shape)::kQuads;
    backward_kernel<kLanes, kQuads, S>
        <<<blocks_for(problem.rows, kWarps * kWarp / kLanes, 8), kWarps * kWarp, 0, stream_of(executor)>>>(
            problem, norms, nearest, grad_y, grad_x, aligned);
  });
  if (!short_rows) {
    backward_long_kernel<S><<<blocks_for(problem.rows, kWarps, 8), kWarps * kWarp, 0, stream_of(executor)>>>(
        problem, norms, nearest, grad_y, grad_x);
  }
  return launch_status();
}

}  // namespace

int64_t forward_scratch_cuda(const Problem& problem) {
  if (!problem.anchors || !use_tensor_cores(problem)) return 0;
  const Prepared anchors = prepared(problem, nullptr);
  return anchors.padded_dim * anchors.padded_count * int64_t(sizeof(__half)) +
         2 * anchors.padded_count * int64_t(sizeof(float));
}

Status forward_cuda(const Problem& problem, const Output& out, void* scratch, const Executor& executor) {
  if (problem.rows == 0) return kOk;
  return with_element(problem.element, [&](auto element) {
    return forward_of<decltype(element)>(problem, out, scratch, executor);
  });
}

Status backward_cuda(const Problem& problem, const Output& out, const void* grad_y, void* grad_x,
                     const Executor& executor) {
  if (problem.rows == 0) return kOk;
  return with_element(problem.element, [&](auto element) {
    using S = decltype(element);
    return backward_of<S>(problem, out, static_cast<const S*>(grad_y), static_cast<S*>(grad_x), executor);
  });
}

}  // namespace stratcore::tangent_projection

#pragma once

#include <cstdint>

#include "../common/element.cuh"
#include "../common/warp.cuh"
#include "scores.cuh"

// Which tiles of scores a block looks at. With eps > 0 those are left out whose probability is so small that
// all of them together are below eps in every row: README.md, "Tiles left out".
namespace stratcore::toroidal_attention {

// A bound of rounding in the norms, which are summed in float32.
constexpr float kNormMargin = 1.0001f;

__device__ inline float larger(float a, float b) { return b <= a ? a : a <= b ? b : NAN; }

// Whether the problem and the slopes of a head let tiles be left out at all.
__device__ inline bool may_skip(const Problem& problem, const Head& head) {
  bool falls = problem.eps > 0;
  falls &= problem.mask.element == MaskElement::kNone || problem.mask.element == MaskElement::kBool;
#pragma unroll
  for (int axis = 0; axis < kMaxAxes; ++axis) falls &= head.slopes[axis] >= 0.0f;
  return falls;
}

// The least that the bias takes from any pair of two boxes, in units of log 2, rounded down.
__device__ inline float least_bias(const Problem& problem, const Head& head, const Box& a, const Box& b) {
  float steps[kMaxAxes], parts[kMaxAxes];
#pragma unroll
  for (int axis = 0; axis < kMaxAxes; ++axis)
    steps[axis] = float(least_steps(a, b, axis, problem.lattice.period[axis]));
  const int count = separable(problem.metric) ? kMaxAxes : 1;
  distance_parts(problem.metric, problem.lattice, steps, count, parts);
  float bias = 0.0f;
#pragma unroll
  for (int axis = 0; axis < kMaxAxes; ++axis)
    if (axis < count) bias += head.slopes[axis] * parts[axis];
  return bias * (1.0f - 1e-5f);
}

// Whether the blocks of a head are likely to look at few tiles, on a ring: by the steps after which distance
// has usually taken all that scores can bring.
__device__ inline bool looks_at_few(const Problem& problem, const Head& head) {
  constexpr float kFewKeys = 2048.0f;
  if (!may_skip(problem, head)) return false;
  const float keys = float(problem.keys), enough = 2.0f * log2f(keys / float(problem.eps));
  return keys <= kFewKeys ||
         2.0f * keys * enough <= kFewKeys * head.slopes[0] * float(problem.lattice.period[0]);
}

// Tiles of `Cols` keys in order, each warp for itself: 32 are judged at once.
template <int Cols>
class KeyTiles {
 public:
  // Of the keys that a block of queries sees: [0, limit).
  __device__ KeyTiles(const Prepared& problem, const Head& head, int first_query, int rows, int limit)
      : problem_(problem), head_(head), first_position_(problem.query_offset + first_query),
        tiles_((limit + Cols - 1) / Cols), skipping_(may_skip(problem, head)),
        allowed_(log2f(float(problem.eps)) - log2f(float(tiles_)) - log2f(float(Cols))) {
    if (skipping_) box_ = box_at(problem.lattice, problem.query_base + first_query, rows);
  }

  __device__ int count() const { return tiles_; }
  __device__ bool skipping() const { return skipping_; }

  // A tile of least distance: that of the key at the position of the first query, where it is seen; else the
  // lowest.
  __device__ int nearest(int lane) const {
    const int64_t key = first_position_ - problem_.key_offset;
    if (key >= 0 && key < int64_t(tiles_) * Cols) return static_cast<int>(key) / Cols;
    float least = INFINITY;
    int tile = 0;
    for (int at = lane; at < tiles_; at += 32) {
      const float bias = bias_of(at);
      if (bias < least) {
        least = bias;
        tile = at;
      }
    }
#pragma unroll
    for (int offset = 16; offset; offset /= 2) {
      const float other = __shfl_xor_sync(0xffffffffu, least, offset);
      const int other_tile = __shfl_xor_sync(0xffffffffu, tile, offset);
      if (other < least || (other == least && other_tile < tile)) {
        least = other;
        tile = other_tile;
      }
    }
    return tile;
  }

  // The tile that is looked at as number `index`: where tiles may be left out, from the one of least distance
  // on outwards, to both sides in turns, around.
  __device__ int at(int nearest, int index) const {
    if (!skipping_ || index >= tiles_) return min(index, tiles_);
    const int tile = nearest + (index % 2 ? (index + 1) / 2 : -index / 2);
    return tile < 0 ? tile + tiles_ : tile < tiles_ ? tile : tile - tiles_;
  }

  // Leaves out what a row of log-sum lse, with |scale| |q| |k| up to it + excess, can do without. Until it is
  // known, only what no row can need less: after a tile lse is at most |scale| |q| |k| + log of its keys.
  __device__ void judge_by(float excess) { excess_ = excess; }

  // Does not give `done` again.
  __device__ void leave_out(int done) { done_ = done; }

  // Whether the block has to look at a tile.
  __device__ bool wants(int tile) const {
    return tile < tiles_ && tile != done_ && (!skipping_ || needed(tile));
  }

  // The next tile, -1 after the last one.
  __device__ int next(int lane) {
    while (!bits_) {
      if (base_ >= tiles_) return -1;
      bits_ = __ballot_sync(0xffffffffu, wants(base_ + lane));
      given_ += __popc(bits_);
      base_ += 32;
    }
    const int tile = base_ - 32 + __ffs(bits_) - 1;
    bits_ &= bits_ - 1;
    return tile;
  }

  __device__ int given() const { return given_; }  // by next, after its end

 private:
  __device__ float bias_of(int tile) const {
    const int first = tile * Cols, length = min(Cols, static_cast<int>(problem_.keys) - first);
    return least_bias(problem_, head_, box_, box_at(problem_.lattice, problem_.key_base + first, length));
  }
  __device__ bool needed(int tile) const { return !(excess_ - bias_of(tile) <= allowed_); }

  const Prepared& problem_;
  const Head& head_;
  int64_t first_position_;
  int tiles_;
  bool skipping_;
  Box box_;
  float allowed_, excess_ = -log2f(float(Cols));
  int done_ = -1, base_ = 0, given_ = 0;
  unsigned bits_ = 0;
};

// Tiles of `Cols` queries that see a block of keys, each warp for itself.
template <int Cols>
class QueryTiles {
 public:
  // `excess`: [B, H, blocks of 64 queries], what tiles are judged by.
  __device__ QueryTiles(const Prepared& problem, const Head& head, int first_key, int keys,
                        const float* excess)
      : problem_(problem), head_(head), first_key_(first_key), keys_(keys),
        tiles_(static_cast<int>((problem.queries + Cols - 1) / Cols)), skipping_(may_skip(problem, head)),
        excess_(excess) {
    if (skipping_) box_ = box_at(problem.lattice, problem.key_base + first_key, keys);
  }

  __device__ int count() const { return tiles_; }

  // The tile that is looked at as number `index`: from the block's own position on, and around, so that the
  // first ones are those that are most likely wanted, and blocks do not all look at the same queries.
  __device__ int at(int index) const {
    const int64_t query = problem_.key_offset + first_key_ - problem_.query_offset;
    const int ahead = problem_.causal ? 0 : kAhead, own = static_cast<int>(query < 0 ? 0 : query / Cols);
    const int start = own - ahead < 0 ? 0 : own - ahead < tiles_ ? own - ahead : 0;
    const int tile = start + index;
    return index >= tiles_ ? tiles_ : tile < tiles_ ? tile : tile - tiles_;
  }

  // Whether the block has to look at a tile.
  __device__ bool wants(int tile) const { return tile < tiles_ && needed(tile); }

  // The next tile, -1 after the last one.
  __device__ int next(int lane) {
    while (!bits_) {
      if (base_ >= tiles_) return -1;
      const int tile = base_ + lane;
      bits_ = __ballot_sync(0xffffffffu, wants(tile));
      base_ += 32;
    }
    const int tile = base_ - 32 + __ffs(bits_) - 1;
    bits_ &= bits_ - 1;
    return tile;
  }

 private:
  static constexpr int kAhead = 8;

  __device__ bool needed(int tile) const {
    const int first = tile * Cols, last = static_cast<int>(min(int64_t(first + Cols), problem_.queries)) - 1;
    if (key_limit(problem_, last) <= first_key_) return false;
    if (!skipping_) return true;
    static_assert(kRows % Cols == 0, "the tile lies in one block");
    const int block = first / kRows, blocks = static_cast<int>((problem_.queries + kRows - 1) / kRows);
    const int block_end = static_cast<int>(min(int64_t(block + 1) * kRows, problem_.queries));
    const int candidates = (key_limit(problem_, block_end - 1) + kRows - 1) / kRows;
    const Box box = box_at(problem_.lattice, problem_.query_base + first, last - first + 1);
    const float excess = excess_[(head_.batch * problem_.heads + head_.head) * blocks + block];
    const float bound = excess - least_bias(problem_, head_, box, box_) + log2f(float(keys_));
    return !(bound <= log2f(float(problem_.eps)) - log2f(float(candidates)));
  }

  const Prepared& problem_;
  const Head& head_;
  int first_key_, keys_, tiles_;
  bool skipping_;
  const float* excess_;
  Box box_;
  int base_ = 0;
  unsigned bits_ = 0;
};

// |scale| |row| of rows of a tile in shared memory into `norms`, in units of log 2.
template <class S, int E>
__device__ inline void row_norms(const Problem& problem, Tile<S, E> tile, float (&norms)[kRows]) {
  constexpr int kLanes = kBlock / kRows;  // threads of a row
  const int row = threadIdx.x / kLanes;
  float sum = 0.0f;
  for (int index = threadIdx.x % kLanes; index < Tile<S, E>::kChunks; index += kLanes) {
    S values[Tile<S, E>::kPerChunk];
    uint4& bits = *reinterpret_cast<uint4*>(values);
    asm volatile("ld.shared.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(bits.x), "=r"(bits.y), "=r"(bits.z), "=r"(bits.w)
                 : "r"(tile.chunk(row, index)));
#pragma unroll
    for (int i = 0; i < Tile<S, E>::kPerChunk; ++i) sum += float(values[i]) * float(values[i]);
  }
  static_assert(kLanes == 2, "one exchange");
  sum += __shfl_xor_sync(0xffffffffu, sum, 1);
  norms[row] = sqrtf(sum) * fabsf(float(problem.scale)) * kLog2e * kNormMargin;
}

// The largest over the rows of a block of a_i K - L_i, for a lane's two rows (in units of log 2). Rows beyond
// the queries do not count. Synchronizes the block.
__device__ inline float block_excess(const Problem& problem, const RowInfo& rows, const float (&norms)[kRows],
                                     float key_norm, const float (&lse)[2], float (&shared)[kWarps]) {
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  float excess = -INFINITY;
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    if (rows.index[r] >= problem.queries) continue;
    const float value = norms[warp * kWarpRows + lane / 4 + 8 * r] * key_norm - lse[r];
    excess = value <= excess ? excess : value;  // NaN stays
  }
#pragma unroll
  for (int offset = 16; offset; offset /= 2) {
    const float other = __shfl_xor_sync(0xffffffffu, excess, offset);
    excess = other <= excess ? excess : (excess <= other ? other : NAN);
  }
  if (lane == 0) shared[warp] = excess;
  __syncthreads();
  excess = shared[0];
#pragma unroll
  for (int w = 1; w < kWarps; ++w)
    excess = shared[w] <= excess ? excess : (excess <= shared[w] ? shared[w] : NAN);
  return excess;
}

// Sixteen bytes of a row.
template <class S>
struct alignas(16) Chunk {
  static constexpr int kCount = 16 / sizeof(S);
  S element[kCount];

  __device__ __forceinline__ static Chunk of(const Source<S>& source, int row, int col) {
    const S* from = source.data + row * source.stride + col;
    if (source.chunked) return *reinterpret_cast<const Chunk*>(from);
    Chunk chunk;
#pragma unroll
    for (int i = 0; i < kCount; ++i) chunk.element[i] = col + i < source.dim ? from[i] : S(0.0f);
    return chunk;
  }

  __device__ __forceinline__ float dot(const Chunk& other) const {
    float sum = 0.0f;
#pragma unroll
    for (int i = 0; i < kCount; ++i)
      sum += static_cast<float>(number(element[i])) * static_cast<float>(number(other.element[i]));
    return sum;
  }
};

constexpr int kRowLanes = 16;                    // lanes that read a row
constexpr int kRowsAtOnce = kBlock / kRowLanes;  // rows that a block reads at once
constexpr int kNormTimes = 8;                    // times that it does, for norms
constexpr int kNormKeys = kRowsAtOnce * kNormTimes;

// The largest norm of the keys of every batch and key head, as bits of a float that is never negative; NaN is
// the largest of all. Zeros on entry. A block takes kNormKeys keys of one head.
template <class S>
__global__ void __launch_bounds__(kBlock)
    key_norm_kernel(const __grid_constant__ Problem problem, unsigned* norms) {
  const int keys = static_cast<int>(problem.keys), blocks = (keys + kNormKeys - 1) / kNormKeys;
  const int group = static_cast<int>(blockIdx.x) / blocks, heads = static_cast<int>(problem.kv_heads);
  const Source<S> k =
      source_of<S>(problem.k, problem.k_strides, group / heads, group % heads, keys, problem.dim);
  const int first =
      (static_cast<int>(blockIdx.x) - group * blocks) * kNormKeys + static_cast<int>(threadIdx.x) / kRowLanes;
  float squares[kNormTimes] = {};
  for (int col = static_cast<int>(threadIdx.x) % kRowLanes * Chunk<S>::kCount; col < k.dim;
       col += kRowLanes * Chunk<S>::kCount) {
#pragma unroll
    for (int i = 0; i < kNormTimes; ++i) {
      if (first + i * kRowsAtOnce >= keys) continue;
      const Chunk<S> chunk = Chunk<S>::of(k, first + i * kRowsAtOnce, col);
      squares[i] += chunk.dot(chunk);
    }
  }
  int base = 0, held = kNormTimes;
  reduce_scatter<kNormTimes, kRowLanes>(squares, static_cast<int>(threadIdx.x) % kRowLanes, base, held);
  static_assert(scattered<kNormTimes, kRowLanes>() == 1, "a lane ends with one row at most");
  const unsigned bits = __reduce_max_sync(kFullWarp, __float_as_uint(held > 0 ? squares[0] : 0.0f));
  if (threadIdx.x % 32 == 0)
    atomicMax(norms + group, __float_as_uint(sqrtf(__uint_as_float(bits)) * kNormMargin));
}

}  // namespace stratcore::toroidal_attention

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <memory>
#include <type_traits>
#include <vector>

#include "../common/half.h"
#include "../common/instruction_set.h"
#include "toroidal_attention.h"
#include "toroidal_attention_math.h"

// Legend as in toroidal_attention.h.
namespace stratcore::toroidal_attention {
namespace {

constexpr int64_t kTile = 64;         // queries, and keys, of a tile of scores
constexpr int64_t kLineBytes = 64;    // rows of a head are padded to whole cache lines
constexpr int64_t kMostParts = 8;     // of the keys, each with its own sum of the gradients of the queries
constexpr int64_t kFewUses = 4;       // of a tile of keys, for which packing them beforehand does not pay
constexpr int64_t kWantedTasks = 32;  // of the backward, whatever the number of threads

int64_t tiles_of(int64_t count) { return (count + kTile - 1) / kTile; }
int64_t whole_fours(int64_t count) { return (count + 3) / 4 * 4; }

// Memory that is not written first.
template <class T>
class Buffer {
 public:
  void resize(int64_t count) { data_.reset(new T[static_cast<size_t>(count)]); }
  T* data() const { return data_.get(); }
  T& operator[](int64_t index) const { return data_[index]; }

 private:
  std::unique_ptr<T[]> data_;
};

template <class E>
const E* row_of(const void* data, const Strides& strides, int64_t batch, int64_t head, int64_t row) {
  return static_cast<const E*>(data) + batch * strides.batch + head * strides.head + row * strides.row;
}

template <class E>
E* mutable_row_of(void* data, const Strides& strides, int64_t batch, int64_t head, int64_t row) {
  return const_cast<E*>(row_of<E>(data, strides, batch, head, row));
}

inline double squared(double value) { return value * value; }
inline double squared(float value) { return double(value) * value; }
inline double squared(BFloat16 value) { return squared(widen(value)); }
inline double squared(Float16 value) { return squared(widen(value)); }

// In float64: no square leaves the range.
template <class E>
double norm_of(const E* row, int64_t dim) {
  double sum = 0;
  for (int64_t d = 0; d < dim; ++d) sum += squared(row[d]);
  return std::sqrt(sum);
}

template <class T>
struct Rows {
  const T* data;
  int64_t stride;
};

struct Range {
  int64_t begin, end;
};

// Where queries or keys stand, each axis `stride` long.
template <class T>
struct Coordinates {
  const T* data;
  int64_t stride;

  const T* of(int axis) const { return data + axis * stride; }
  Coordinates from(int64_t first) const { return {data + first, stride}; }
};

// What all blocks of a call read, and in the backward the sums that they write.
template <class T>
struct Packed {
  bool backward;
  bool whole_call;  // keys and values are packed for all blocks at once; else by each block that reads them
  int64_t padded, query_tiles, key_tiles, parts = 1;
  Buffer<T> sites;                               // [axes][queries, then keys, in whole tiles]
  Buffer<T> transposed_keys, transposed_values;  // [B G, tiles, E, kTile]
  Buffer<T> rows;                                // [B G, tiles, kTile, padded]: values; backward: keys
  Buffer<T> key_norms;                           // [B G, tiles]: the largest; with eps alone
  Buffer<T> grad_keys, grad_values;              // [B G, tiles, kTile, padded]
  Buffer<T> grad_queries;                        // [parts, B H, N, padded]
  Buffer<double> grad_slopes;                    // [B H, parts, kMaxAxes]
  std::vector<T> largest_norm;                   // [B G]
  std::vector<Box> boxes;                        // of the tiles of keys

  Coordinates<T> query_sites() const { return {sites.data(), (query_tiles + key_tiles) * kTile}; }
  Coordinates<T> key_sites() const { return query_sites().from(query_tiles * kTile); }

  Packed(const Problem& problem, bool backward_)
      : backward(backward_), query_tiles(tiles_of(problem.queries)), key_tiles(tiles_of(problem.keys)) {
    const int64_t line = kLineBytes / static_cast<int64_t>(sizeof(T));
    padded = (problem.dim + line - 1) / line * line;
    const int64_t pairs = problem.batch * problem.kv_heads, heads = problem.batch * problem.heads;
    const int64_t tiles = pairs * key_tiles;
    whole_call = backward || query_tiles * (problem.heads / problem.kv_heads) > kFewUses;
    key_norms.resize(tiles);
    if (whole_call) transposed_keys.resize(tiles * problem.dim * kTile);
    if (whole_call) rows.resize(tiles * kTile * padded);
    if (backward) {
      parts = std::max<int64_t>(1, std::min({kWantedTasks / pairs, kMostParts, key_tiles}));
      transposed_values.resize(tiles * problem.dim * kTile);
      grad_keys.resize(tiles * kTile * padded);
      grad_values.resize(tiles * kTile * padded);
      grad_queries.resize(parts * heads * problem.queries * padded);
      grad_slopes.resize(heads * parts * kMaxAxes);
    }
    place(problem);
  }

 private:
  void place(const Problem& problem) {
    const int64_t stride = (query_tiles + key_tiles) * kTile;
    sites.resize(problem.lattice.axes * stride);
    for (int64_t at = 0; at < stride; ++at) {
      const int64_t key = at - query_tiles * kTile;
      const int64_t position = key < 0 ? problem.query_offset + at : problem.key_offset + key;
      const Site site = site_of(problem.lattice, position);
      for (int axis = 0; axis < problem.lattice.axes; ++axis) sites[axis * stride + at] = T(site.at[axis]);
    }
    for (int64_t first = 0; first < problem.keys && problem.eps > 0; first += kTile) {
      const int64_t count = std::min(kTile, problem.keys - first);
      boxes.push_back(box_of(problem.lattice, problem.key_offset + first, count));
    }
  }
};

// Queries [first, first + rows) of a head, and which tiles of keys they look at.
template <class T>
struct Block {
  int64_t batch, head, group, pair, first, rows, candidates;  // group: key head; pair: with the batch
  const T* slopes;
  bool judging;
  Box box;
  T excess = std::numeric_limits<T>::infinity();

  // `index` counts [B, H, tiles of queries].
  Block(const Problem& problem, const Packed<T>& packed, int64_t index) {
    const int64_t all = index / packed.query_tiles;
    batch = all / problem.heads;
    head = all % problem.heads;
    group = head / (problem.heads / problem.kv_heads);
    pair = batch * problem.kv_heads + group;
    first = index % packed.query_tiles * kTile;
    rows = std::min(kTile, problem.queries - first);
    candidates = tiles_of(visible_keys(problem, first + rows - 1));
    slopes = static_cast<const T*>(problem.slopes) + head * problem.slope_count;
    judging = may_leave_out_tiles(problem, slopes);
    if (judging) box = box_of(problem.lattice, problem.query_offset + first, rows);
  }

  // The tile of least distance, the lowest of equals.
  int64_t nearest_tile(const Problem& problem, const Packed<T>& packed) const {
    T least = std::numeric_limits<T>::infinity();
    int64_t nearest = 0;
    for (int64_t tile = 0; tile < candidates; ++tile) {
      const T penalty = least_penalty(problem, slopes, box, packed.boxes[tile]);
      if (penalty < least) {
        least = penalty;
        nearest = tile;
      }
    }
    return nearest;
  }

  // From now on, tiles are left out that rows of these log-sums can do without. q: [rows, padded].
  void judge_by(const Problem& problem, const Packed<T>& packed, const T* q, const T* lse) {
    excess = -std::numeric_limits<T>::infinity();
    for (int64_t row = 0; row < rows; ++row) {
      const T reach = reach_of(problem, static_cast<T>(norm_of(q + row * packed.padded, problem.dim)));
      const T value = reach * packed.largest_norm[pair] - lse[row];
      if (!std::isfinite(value)) {
        excess = std::numeric_limits<T>::infinity();
        return;
      }
      excess = std::max(excess, value);
    }
  }

  bool is_negligible(const Problem& problem, const Packed<T>& packed, int64_t tile) const {
    if (!judging || !std::isfinite(excess)) return false;
    const T penalty = least_penalty(problem, slopes, box, packed.boxes[tile]);
    const int64_t keys = std::min(kTile, problem.keys - tile * kTile);
    return toroidal_attention::is_negligible(problem, excess, penalty, keys, candidates);
  }
};

// Of one thread: a block of queries and a tile of its scores.
template <class T>
struct ForwardMemory {
  std::vector<T> q, out, keys, values, scores, parts, largest, sum;

  explicit ForwardMemory(int64_t padded)
      : q(kTile * padded), out(kTile * padded), keys(kTile * padded), values(kTile * padded),
        scores(kTile * kTile), parts(kMaxAxes * kTile * kTile), largest(kTile), sum(kTile) {}

  void start() {
    std::fill(out.begin(), out.end(), T(0));
    std::fill(largest.begin(), largest.end(), -std::numeric_limits<T>::infinity());
    std::fill(sum.begin(), sum.end(), T(0));
  }
};

template <class T>
struct BackwardMemory {
  std::vector<T> q, grad_out, grad_q, scores, grad_scores, parts, lse, delta;

  explicit BackwardMemory(int64_t padded)
      : q(kTile * padded), grad_out(kTile * padded), grad_q(kTile * padded), scores(kTile * kTile),
        grad_scores(kTile * kTile), parts(kMaxAxes * kTile * kTile), lse(kTile), delta(kTile) {}
};

// Whose ranges the loops of an instruction set work on; `packed`: Packed<T>.
struct Job {
  const Problem& problem;
  const Output& out;
  const Gradients* gradients;
  void* packed;
};

#define STRATCORE_LANES_FILE "../toroidal_attention/toroidal_attention_lanes.h"
#include "../common/for_each_instruction_set.h"

using Loop = void (*)(const Job& job, int64_t begin, int64_t end);

void run(const Executor& executor, Loop loop, const Job& job, int64_t count, int64_t grain) {
  parallel_for(executor, count, grain, [&](int64_t begin, int64_t end) noexcept { loop(job, begin, end); });
}

template <class E>
void pack(const Job& job, const Executor& executor) {
  using T = Computed<E>;
  auto& packed = *static_cast<Packed<T>*>(job.packed);
  const int64_t pairs = job.problem.batch * job.problem.kv_heads;
  if (!packed.whole_call && job.problem.eps == 0) return;
  run(executor, STRATCORE_BEST(pack_tiles<E>), job, pairs * packed.key_tiles, 4);
  packed.largest_norm.assign(pairs, T(0));
  for (int64_t at = 0; at < pairs * packed.key_tiles; ++at) {
    T& most = packed.largest_norm[at / packed.key_tiles];
    most = packed.key_norms[at] <= most || most != most ? most : packed.key_norms[at];
  }
}

template <class E>
void forward(const Problem& problem, const Output& out, const Executor& executor) {
  Packed<Computed<E>> packed(problem, false);
  const Job job{problem, out, nullptr, &packed};
  pack<E>(job, executor);
  const int64_t blocks = problem.batch * problem.heads * packed.query_tiles;
  run(executor, STRATCORE_BEST(forward_blocks<E>), job, blocks, 1);
}

template <class E>
void backward(const Problem& problem, const Output& out, const Gradients& gradients,
              const Executor& executor) {
  using T = Computed<E>;
  Packed<T> packed(problem, true);
  const Job job{problem, out, &gradients, &packed};
  pack<E>(job, executor);
  const int64_t pairs = problem.batch * problem.kv_heads,
                rows = problem.batch * problem.heads * problem.queries;
  run(executor, STRATCORE_BEST(backward_parts<E>), job, pairs * packed.parts, 1);
  run(executor, STRATCORE_BEST(join_queries<E>), job, rows, 256);
  for (int64_t head = 0; head < problem.heads; ++head) {
    for (int part = 0; part < problem.slope_count; ++part) {
      double sum = 0;
      for (int64_t batch = 0; batch < problem.batch; ++batch) {
        const int64_t first = (batch * problem.heads + head) * packed.parts;
        for (int64_t share = 0; share < packed.parts; ++share)
          sum += packed.grad_slopes[(first + share) * kMaxAxes + part];
      }
      static_cast<T*>(gradients.grad_slopes)[head * problem.slope_count + part] = static_cast<T>(sum);
    }
  }
}

}  // namespace

Status forward_cpu(const Problem& problem, const Output& out, const Executor& executor) {
  with_element<BFloat16, Float16>(problem.element,
                                  [&](auto stored) { forward<decltype(stored)>(problem, out, executor); });
  return kOk;
}

Status backward_cpu(const Problem& problem, const Output& out, const Gradients& gradients,
                    const Executor& executor) {
  with_element<BFloat16, Float16>(problem.element, [&](auto stored) {
    backward<decltype(stored)>(problem, out, gradients, executor);
  });
  return kOk;
}

}  // namespace stratcore::toroidal_attention

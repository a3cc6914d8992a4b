// Blocks of queries, forward and backward, for the instruction set in whose namespace
// toroidal_attention_cpu.cpp includes this: no include guard. Legend as in toroidal_attention.h; E (of a
// template) is the type that is stored, T the one computed in.
#include "tile_lanes.h"

// ---- what all blocks read

// Whether rows of values are what products read, as they stand.
template <class E>
inline bool reads_in_place(const Problem& problem, const Packed<Computed<E>>& packed) {
  return std::is_same<E, Computed<E>>::value && problem.dim == packed.padded;
}

// Keys and values of one tile; backward wants the keys both ways and the values transposed.
template <class E>
void pack_tile(const Job& job, int64_t index) {
  using T = Computed<E>;
  const Problem& problem = job.problem;
  auto& packed = *static_cast<Packed<T>*>(job.packed);
  const int64_t pair = index / packed.key_tiles, tile = index % packed.key_tiles, first = tile * kTile;
  const int64_t batch = pair / problem.kv_heads, head = pair % problem.kv_heads;
  const int64_t count = std::min(kTile, problem.keys - first), dim = problem.dim, padded = packed.padded;
  const E* k = row_of<E>(problem.k, problem.k_strides, batch, head, first);
  const E* v = row_of<E>(problem.v, problem.v_strides, batch, head, first);
  if (packed.whole_call)
    load_columns(k, problem.k_strides.row, count, dim, packed.transposed_keys.data() + index * dim * kTile);
  if (packed.backward) {
    load_rows(k, problem.k_strides.row, count, dim, padded, packed.rows.data() + index * kTile * padded);
    load_columns(v, problem.v_strides.row, count, dim, packed.transposed_values.data() + index * dim * kTile);
  } else if (packed.whole_call && !reads_in_place<E>(problem, packed)) {
    load_rows(v, problem.v_strides.row, count, dim, padded, packed.rows.data() + index * kTile * padded);
  }
  double most = 0;
  for (int64_t key = 0; key < count && problem.eps > 0; ++key) {
    const double norm = norm_of(k + key * problem.k_strides.row, dim);
    most = norm <= most ? most : norm;  // NaN stays
    if (norm != norm) break;
  }
  packed.key_norms[index] = static_cast<T>(most);
}

template <class E>
void pack_tiles(const Job& job, int64_t begin, int64_t end) {
  for (int64_t index = begin; index < end; ++index) pack_tile<E>(job, index);
}

// ---- tiles of scores

// Products of the block's queries with the keys of a tile, made into scores; -infinity where a key takes no
// part.
template <class E>
inline void score_tile(const Job& job, const Block<Computed<E>>& block, int64_t tile, const Computed<E>* q,
                       const Computed<E>* keys, Computed<E>* parts, Computed<E>* scores) {
  using T = Computed<E>;
  const Problem& problem = job.problem;
  const auto& packed = *static_cast<const Packed<T>*>(job.packed);
  const int64_t first = tile * kTile, rows = whole_fours(block.rows);
  multiply<false, T>({q, packed.padded, 1, keys, kTile, scores, kTile, rows, problem.dim, kTile});
  fill_parts(problem, packed.query_sites().from(block.first), packed.key_sites().from(first), block.rows,
             parts);
  const int64_t count = std::min(kTile, problem.keys - first);
  for (int64_t row = 0; row < block.rows; ++row) {
    T* line = scores + row * kTile;
    bias_row(problem, block.slopes, parts, row, line);
    const int64_t query = block.first + row, seen = visible_keys(problem, query) - first;
    const int64_t visible = std::max<int64_t>(0, std::min(seen, count));
    if (problem.mask.element != MaskElement::kNone) {
      const Mask& mask = problem.mask;
      const int64_t at =
          block.batch * mask.batch + block.head * mask.head + query * mask.row + first * mask.col;
      mask_row<E>(mask, at, visible, line);
    }
    std::fill(line + visible, line + kTile, -std::numeric_limits<T>::infinity());
  }
}

// ---- forward

// Keys of a tile, transposed: packed for the whole call, or into `memory`.
template <class E>
inline const Computed<E>* keys_of(const Job& job, const Block<Computed<E>>& block, int64_t tile,
                                  Computed<E>* memory) {
  const Problem& problem = job.problem;
  const auto& packed = *static_cast<const Packed<Computed<E>>*>(job.packed);
  if (packed.whole_call) {
    return packed.transposed_keys.data() + (block.pair * packed.key_tiles + tile) * problem.dim * kTile;
  }
  const int64_t first = tile * kTile, count = std::min(kTile, problem.keys - first);
  const E* k = row_of<E>(problem.k, problem.k_strides, block.batch, block.group, first);
  load_columns(k, problem.k_strides.row, count, problem.dim, memory);
  return memory;
}

// Values of a tile: as they stand where products can read them, else packed.
template <class E>
inline Rows<Computed<E>> values_of(const Job& job, const Block<Computed<E>>& block, int64_t tile,
                                   Computed<E>* memory) {
  const Problem& problem = job.problem;
  const auto& packed = *static_cast<const Packed<Computed<E>>*>(job.packed);
  const int64_t first = tile * kTile, padded = packed.padded;
  const E* v = row_of<E>(problem.v, problem.v_strides, block.batch, block.group, first);
  if constexpr (std::is_same<E, Computed<E>>::value) {
    if (reads_in_place<E>(problem, packed)) return {v, problem.v_strides.row};
  }
  if (packed.whole_call) {
    return {packed.rows.data() + (block.pair * packed.key_tiles + tile) * kTile * padded, padded};
  }
  load_rows(v, problem.v_strides.row, std::min(kTile, problem.keys - first), problem.dim, padded, memory);
  return {memory, padded};
}

// One more tile for the softmax of a row: scores become probabilities relative to the largest so far.
template <class T>
inline void join_row(T* scores, int64_t padded, T& largest, T& sum, T* out) {
  using Vector = VectorOf<T>;
  Vector most = load<Vector>(scores);
  for (int64_t col = kWidth<T>; col < kTile; col += kWidth<T>)
    most = larger(load<Vector>(scores + col), most);
  T now = largest;
  for (int lane = 0; lane < kWidth<T>; ++lane) now = most[lane] > now ? most[lane] : now;
  if (now > largest) {
    const T shrink = std::exp(largest - now);
    sum *= shrink;
    for (int64_t d = 0; d < padded; ++d) out[d] *= shrink;
    largest = now;
  }
  const T center = now == -std::numeric_limits<T>::infinity() ? T(0) : now;
  Vector total{};
  for (int64_t col = 0; col < kTile; col += kWidth<T>) {
    const Vector weight = exponential<T>(load<Vector>(scores + col) - center);
    store(scores + col, weight);
    total += weight;
  }
  for (int lane = 0; lane < kWidth<T>; ++lane) sum += total[lane];
}

template <class E>
inline void take_tile(const Job& job, const Block<Computed<E>>& block, int64_t tile,
                      ForwardMemory<Computed<E>>& memory) {
  using T = Computed<E>;
  const auto& packed = *static_cast<const Packed<T>*>(job.packed);
  const int64_t padded = packed.padded;
  const T* keys = keys_of<E>(job, block, tile, memory.keys.data());
  score_tile<E>(job, block, tile, memory.q.data(), keys, memory.parts.data(), memory.scores.data());
  for (int64_t row = 0; row < block.rows; ++row) {
    join_row(memory.scores.data() + row * kTile, padded, memory.largest[row], memory.sum[row],
             memory.out.data() + row * padded);
  }
  const Rows<T> values = values_of<E>(job, block, tile, memory.values.data());
  const int64_t count = std::min(kTile, job.problem.keys - tile * kTile);
  multiply<true, T>({memory.scores.data(), kTile, 1, values.data, values.stride, memory.out.data(), padded,
                     whole_fours(block.rows), count, padded});
}

template <class E>
inline void store_block(const Job& job, const Block<Computed<E>>& block,
                        const ForwardMemory<Computed<E>>& memory) {
  using T = Computed<E>;
  const Problem& problem = job.problem;
  const int64_t padded = static_cast<const Packed<T>*>(job.packed)->padded;
  T* lse = static_cast<T*>(job.out.lse) + (block.batch * problem.heads + block.head) * problem.queries +
           block.first;
  for (int64_t row = 0; row < block.rows; ++row) {
    const bool empty = memory.sum[row] == T(0);
    lse[row] = empty ? -std::numeric_limits<T>::infinity() : memory.largest[row] + std::log(memory.sum[row]);
    E* out = mutable_row_of<E>(job.out.out, job.out.out_strides, block.batch, block.head, block.first + row);
    store_row(memory.out.data() + row * padded, empty ? T(0) : T(1) / memory.sum[row], problem.dim, out);
  }
}

template <class E>
inline void forward_block(const Job& job, int64_t index, ForwardMemory<Computed<E>>& memory) {
  using T = Computed<E>;
  const Problem& problem = job.problem;
  const auto& packed = *static_cast<const Packed<T>*>(job.packed);
  Block<T> block(problem, packed, index);
  const E* q = row_of<E>(problem.q, problem.q_strides, block.batch, block.head, block.first);
  load_rows(q, problem.q_strides.row, block.rows, problem.dim, packed.padded, memory.q.data());
  memory.start();
  int64_t nearest = -1, left_out = 0;
  if (block.judging && block.candidates > 1) {
    nearest = block.nearest_tile(problem, packed);
    take_tile<E>(job, block, nearest, memory);
    T lse[kTile];
    for (int64_t row = 0; row < block.rows; ++row) lse[row] = memory.largest[row] + std::log(memory.sum[row]);
    block.judge_by(problem, packed, memory.q.data(), lse);
  }
  for (int64_t tile = 0; tile < block.candidates; ++tile) {
    if (tile == nearest) continue;
    if (block.is_negligible(problem, packed, tile)) {
      ++left_out;
    } else {
      take_tile<E>(job, block, tile, memory);
    }
  }
  store_block<E>(job, block, memory);
  int32_t* tiles = job.out.tiles + 2 * (block.batch * problem.heads + block.head);
  __atomic_fetch_add(tiles, static_cast<int32_t>(left_out), __ATOMIC_RELAXED);
  __atomic_fetch_add(tiles + 1, static_cast<int32_t>(block.candidates), __ATOMIC_RELAXED);
}

template <class E>
void forward_blocks(const Job& job, int64_t begin, int64_t end) {
  ForwardMemory<Computed<E>> memory(static_cast<const Packed<Computed<E>>*>(job.packed)->padded);
  for (int64_t index = begin; index < end; ++index) forward_block<E>(job, index, memory);
}

// ---- backward

// Scores become probabilities, their gradients those of the scores; adds what the slopes get, [slope_count].
template <class T>
inline void differentiate_tile(const Problem& problem, const Block<T>& block, BackwardMemory<T>& memory,
                               double* grad_slopes) {
  using Vector = VectorOf<T>;
  Vector sums[kMaxAxes] = {};
  for (int64_t row = 0; row < block.rows; ++row) {
    for (int64_t col = 0; col < kTile; col += kWidth<T>) {
      T* score = memory.scores.data() + row * kTile + col;
      T* gradient = memory.grad_scores.data() + row * kTile + col;
      const Vector weight = exponential<T>(load<Vector>(score) - memory.lse[row]);
      const Vector grad = weight * (load<Vector>(gradient) - memory.delta[row]);
      store(score, weight);
      store(gradient, grad);
      for (int part = 0; part < problem.slope_count; ++part) {
        sums[part] += grad * load<Vector>(memory.parts.data() + (part * kTile + row) * kTile + col);
      }
    }
  }
  for (int part = 0; part < problem.slope_count; ++part) {
    double sum = 0;
    for (int lane = 0; lane < kWidth<T>; ++lane) sum += sums[part][lane];
    grad_slopes[part] -= sum;
  }
}

// Queries, their gradients of out, and what a row's probabilities come from. A row without keys takes no
// part.
template <class E>
inline void open_rows(const Job& job, const Block<Computed<E>>& block, BackwardMemory<Computed<E>>& memory) {
  using T = Computed<E>;
  const Problem& problem = job.problem;
  const Gradients& gradients = *job.gradients;
  const int64_t dim = problem.dim, padded = static_cast<const Packed<T>*>(job.packed)->padded;
  const E* q = row_of<E>(problem.q, problem.q_strides, block.batch, block.head, block.first);
  const E* grad =
      row_of<E>(gradients.grad_out, gradients.grad_out_strides, block.batch, block.head, block.first);
  load_rows(q, problem.q_strides.row, block.rows, dim, padded, memory.q.data());
  load_rows(grad, gradients.grad_out_strides.row, block.rows, dim, padded, memory.grad_out.data());
  const int64_t first = (block.batch * problem.heads + block.head) * problem.queries + block.first;
  for (int64_t row = 0; row < block.rows; ++row) {
    const T lse = static_cast<const T*>(job.out.lse)[first + row];
    T* line = memory.grad_out.data() + row * padded;
    if (lse == -std::numeric_limits<T>::infinity()) {
      std::fill(line, line + padded, T(0));
      memory.lse[row] = memory.delta[row] = 0;
      continue;
    }
    const E* out = row_of<E>(job.out.out, job.out.out_strides, block.batch, block.head, block.first + row);
    T delta = gradients.grad_lse ? -static_cast<const T*>(gradients.grad_lse)[first + row] : T(0);
    for (int64_t d = 0; d < dim; ++d) delta += line[d] * static_cast<T>(widened(out[d]));
    memory.lse[row] = lse;
    memory.delta[row] = delta;
  }
}

// The tiles of one part of the keys with one block of queries: adds to the gradients of these keys and values
// and of the slopes, and leaves the part's share of the gradient of the queries in `memory`.
template <class E>
inline void backward_block(const Job& job, Block<Computed<E>>& block, const Range& tiles,
                           BackwardMemory<Computed<E>>& memory, double* grad_slopes) {
  using T = Computed<E>;
  const Problem& problem = job.problem;
  const auto& packed = *static_cast<const Packed<T>*>(job.packed);
  const int64_t padded = packed.padded, fours = whole_fours(block.rows);
  std::fill(memory.grad_q.begin(), memory.grad_q.end(), T(0));
  if (block.candidates <= tiles.begin) return;
  open_rows<E>(job, block, memory);
  if (block.judging) block.judge_by(problem, packed, memory.q.data(), memory.lse.data());
  const T* grad_out = memory.grad_out.data();
  for (int64_t tile = tiles.begin; tile < std::min(tiles.end, block.candidates); ++tile) {
    if (block.is_negligible(problem, packed, tile)) continue;
    const int64_t at = block.pair * packed.key_tiles + tile,
                  count = std::min(kTile, problem.keys - tile * kTile);
    T *scores = memory.scores.data(), *grad_scores = memory.grad_scores.data();
    const T* keys = packed.transposed_keys.data() + at * problem.dim * kTile;
    score_tile<E>(job, block, tile, memory.q.data(), keys, memory.parts.data(), scores);
    const T* values = packed.transposed_values.data() + at * problem.dim * kTile;
    multiply<false, T>({grad_out, padded, 1, values, kTile, grad_scores, kTile, fours, problem.dim, kTile});
    differentiate_tile(problem, block, memory, grad_slopes);
    T* grad_k = packed.grad_keys.data() + at * kTile * padded;
    T* grad_v = packed.grad_values.data() + at * kTile * padded;
    const int64_t seen = whole_fours(count);
    multiply<true, T>({scores, 1, kTile, grad_out, padded, grad_v, padded, seen, block.rows, padded});
    multiply<true, T>({grad_scores, 1, kTile, memory.q.data(), padded, grad_k, padded, seen, block.rows,
                       padded});
    const T* rows = packed.rows.data() + at * kTile * padded;
    multiply<true, T>({grad_scores, kTile, 1, rows, padded, memory.grad_q.data(), padded, fours, count,
                       padded});
  }
}

// One part of the keys of one batch and key head, with all queries that look at them, in order.
template <class E>
inline void backward_part(const Job& job, int64_t index, BackwardMemory<Computed<E>>& memory) {
  using T = Computed<E>;
  const Problem& problem = job.problem;
  const auto& packed = *static_cast<const Packed<T>*>(job.packed);
  const int64_t padded = packed.padded, pair = index / packed.parts, part = index % packed.parts;
  const int64_t shared = problem.heads / problem.kv_heads, batch = pair / problem.kv_heads;
  const Range tiles{part * packed.key_tiles / packed.parts, (part + 1) * packed.key_tiles / packed.parts};
  const int64_t from = (pair * packed.key_tiles + tiles.begin) * kTile * padded;
  const int64_t size = (tiles.end - tiles.begin) * kTile * padded;
  for (T* sums : {packed.grad_keys.data(), packed.grad_values.data()})
    std::fill(sums + from, sums + from + size, T(0));
  for (int64_t member = 0; member < shared; ++member) {
    const int64_t head = batch * problem.heads + pair % problem.kv_heads * shared + member;
    double* grad_slopes = packed.grad_slopes.data() + (head * packed.parts + part) * kMaxAxes;
    std::fill(grad_slopes, grad_slopes + kMaxAxes, 0.0);
    for (int64_t tile = 0; tile < packed.query_tiles; ++tile) {
      Block<T> block(problem, packed, head * packed.query_tiles + tile);
      backward_block<E>(job, block, tiles, memory, grad_slopes);
      T* grad_q = packed.grad_queries.data() +
                  ((part * problem.batch * problem.heads + head) * problem.queries + block.first) * padded;
      std::copy(memory.grad_q.begin(), memory.grad_q.begin() + block.rows * padded, grad_q);
    }
  }
  for (int64_t key = tiles.begin * kTile; key < std::min(tiles.end * kTile, problem.keys); ++key) {
    const int64_t row = pair * packed.key_tiles * kTile + key, to = (pair * problem.keys + key) * problem.dim;
    const Gradients& gradients = *job.gradients;
    store_row(packed.grad_keys.data() + row * padded, T(problem.scale), problem.dim,
              static_cast<E*>(gradients.grad_k) + to);
    store_row(packed.grad_values.data() + row * padded, T(1), problem.dim,
              static_cast<E*>(gradients.grad_v) + to);
  }
}

template <class E>
void backward_parts(const Job& job, int64_t begin, int64_t end) {
  BackwardMemory<Computed<E>> memory(static_cast<const Packed<Computed<E>>*>(job.packed)->padded);
  for (int64_t index = begin; index < end; ++index) backward_part<E>(job, index, memory);
}

// The gradient of rows [begin, end) of all queries, from that of every part of the keys.
template <class E>
void join_queries(const Job& job, int64_t begin, int64_t end) {
  using T = Computed<E>;
  const Problem& problem = job.problem;
  const auto& packed = *static_cast<const Packed<T>*>(job.packed);
  const int64_t rows = problem.batch * problem.heads * problem.queries, padded = packed.padded;
  for (int64_t row = begin; row < end; ++row) {
    T* sum = packed.grad_queries.data() + row * padded;
    for (int64_t part = 1; part < packed.parts; ++part) {
      for (int64_t d = 0; d < padded; ++d) sum[d] += sum[part * rows * padded + d];
    }
    store_row(sum, T(problem.scale), problem.dim, static_cast<E*>(job.gradients->grad_q) + row * problem.dim);
  }
}

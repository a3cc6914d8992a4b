#pragma once

#include "skip.cuh"

// What a block knows of a tile of scores before its products, for the kernels of sm_90a: where its columns
// lie, seen from the rows, in a few numbers. The columns of all tiles form one pattern, which is in shared
// memory once.
//
// Along an axis let u and w be a row's and a column's coordinate from the starts of their boxes, and x =
// shift + u - w the signed way between them. Where all x of the tile lie between 0 and half a turn, or on
// another such piece, the distance is base + slope (shift + u - w): a number of the row plus a number of the
// column, and costs one addition a pair for all such axes together. Where the tile lies across its rows, or
// across their opposite, it is base + slope |start + u - w|: two more. Other metrics, and tiles that are long
// against the ring, take the general way.
namespace stratcore::toroidal_attention {

constexpr int kMostWhole = 256;  // whole numbers up to here have a bfloat16 of their own

enum class AxisForm : int32_t { kLinear, kAcross };

struct TileNote {
  int tile;
  int repeat;              // of the query heads that share a key head, where tiles of all of them pass
  bool simple;             // every axis has one of the forms
  bool ring;               // there is one axis, and its form is linear
  bool linear;             // all forms are, and coordinates of columns are whole numbers in 16 bits
  bool limited;            // some query does not see all keys; for the backward
  bool empty;              // some query has no weights; for the backward
  float weight[kMaxAxes];  // slopes of the head; for the backward
  AxisForm form[kMaxAxes];
  float shift[kMaxAxes];  // general
  float2 turn[kMaxAxes];  // general, of chords: sine and cosine of half the shift's angle
  float base[kMaxAxes], start[kMaxAxes], slope[kMaxAxes];
};

// Along an axis whose ring has `period` sites, for boxes that start `shift` apart.
__device__ inline bool describe_axis(float shift, int row_length, int col_length, int period, int axis,
                                     TileNote& note) {
  if (row_length >= period || col_length >= period) return false;
  const float low = shift - float(col_length - 1), high = shift + float(row_length - 1);
  const float turn = float(period), half = 0.5f * turn;
  const auto set = [&](AxisForm form, float base, float slope, float start) {
    note.form[axis] = form;
    note.base[axis] = base;
    note.slope[axis] = slope;
    note.start[axis] = start;
    return true;
  };
  if (low >= 0.0f && high <= half) return set(AxisForm::kLinear, 0.0f, 1.0f, shift);
  if (high <= 0.0f && low >= -half) return set(AxisForm::kLinear, 0.0f, -1.0f, shift);
  if (low >= half && high <= turn) return set(AxisForm::kLinear, turn, -1.0f, shift);
  if (high <= -half && low >= -turn) return set(AxisForm::kLinear, turn, 1.0f, shift);
  if (high <= half && low >= -half) return set(AxisForm::kAcross, 0.0f, 1.0f, shift);
  if (low >= 0.0f && high <= turn) return set(AxisForm::kAcross, half, -1.0f, shift - half);
  if (high <= 0.0f && low >= -turn) return set(AxisForm::kAcross, half, -1.0f, shift + half);
  return false;
}

__device__ inline void describe_tile(const Problem& problem, const Box& rows, const Box& cols, int tile,
                                     TileNote& note) {
  note.tile = tile;
  bool simple = problem.metric == Metric::kL1 || (problem.lattice.axes == 1 && !of_chords(problem.metric));
#pragma unroll
  for (int axis = 0; axis < kMaxAxes; ++axis) {
    if (axis >= problem.lattice.axes) continue;
    const int period = problem.lattice.period[axis];
    int apart = rows.start[axis] - cols.start[axis];
    apart += 2 * apart >= period ? -period : 2 * apart < -period ? period : 0;
    note.shift[axis] = float(apart);
    if (of_chords(problem.metric))
      sincospif(float(apart) / float(period), &note.turn[axis].x, &note.turn[axis].y);
    simple &= describe_axis(float(apart), rows.length[axis], cols.length[axis], period, axis, note);
  }
  note.simple = simple;
  note.linear = simple;
#pragma unroll
  for (int axis = 0; axis < kMaxAxes; ++axis)
    if (axis < problem.lattice.axes)
      note.linear &= note.form[axis] == AxisForm::kLinear && cols.length[axis] <= kMostWhole;
  note.ring = note.linear && problem.lattice.axes == 1;
}

// Coordinates from the start of a box: of the rows of a block, of the columns of every tile.
template <int Rows, int Cols>
struct alignas(16) Pattern {
  float row[kMaxAxes][Rows], col[kMaxAxes][Cols];
  float2 row_place[kMaxAxes][Rows],
      col_place[kMaxAxes][Cols];  // as place_of has it; x the coordinate, but of chords
};

__device__ inline float2 pattern_place(const Problem& problem, int from_start, int period) {
  float2 place = make_float2(float(from_start), 0.0f);
  if (of_chords(problem.metric)) sincospif(float(from_start) / float(period), &place.x, &place.y);
  return place;
}

// Of the position `base` + index, from the start of a box; on a ring of one axis, indices count on beyond its
// end.
__device__ inline int coordinate(const Lattice& lattice, uint32_t base, int index, const Box& box, int axis) {
  if (lattice.axes == 1) return index;
  const int at = site_at(lattice, base + index).at[axis] - box.start[axis];
  return at < 0 ? at + lattice.period[axis] : at;
}

// By `threads` threads. The first `Cols` columns stand for those of every tile.
template <int Rows, int Cols>
__device__ inline void write_pattern(Pattern<Rows, Cols>& pattern, const Prepared& problem, uint32_t row_base,
                                     const Box& rows, uint32_t col_base, int thread, int threads) {
  const Box cols = box_at(problem.lattice, col_base, Cols);
#pragma unroll
  for (int axis = 0; axis < kMaxAxes; ++axis) {
    if (axis >= problem.lattice.axes) continue;
    const int period = problem.lattice.period[axis];
    for (int row = thread; row < Rows; row += threads) {
      const int u = coordinate(problem.lattice, row_base, row, rows, axis);
      pattern.row[axis][row] = float(u);
      pattern.row_place[axis][row] = pattern_place(problem, u, period);
    }
    for (int col = thread; col < Cols; col += threads) {
      const int w = coordinate(problem.lattice, col_base, col, cols, axis);
      pattern.col[axis][col] = float(w);
      pattern.col_place[axis][col] = pattern_place(problem, w, period);
    }
  }
}

// Places of a lane's pairs in a tile, from the pattern and the tile's shift.
template <int Rows, int Cols>
struct MovedPairs {
  const Pattern<Rows, Cols>& pattern;
  const TileNote& note;
  int within;  // first row
  bool chords;

  __device__ __forceinline__ float2 row(int axis, int r) const {
    const float2 place = pattern.row_place[axis][within + 8 * r];
    if (!chords) return make_float2(place.x + note.shift[axis], 0.0f);
    const float2 turn = note.turn[axis];
    return make_float2(place.x * turn.y + place.y * turn.x, place.y * turn.y - place.x * turn.x);
  }
  __device__ __forceinline__ const float2* cols(int axis) const { return pattern.col_place[axis]; }
};

// Calls use(axis of the slope, n, e, part) for what each slope of the head multiplies, of the pairs that a
// lane holds: rows from `within` of the block on; after(axis) behind the last of an axis.
template <int N, int Rows, int Cols, class Use, class After>
__device__ __forceinline__ void each_part_of(const Problem& problem, const Pattern<Rows, Cols>& pattern,
                                             const TileNote& note, int within, int lane, const Use& use,
                                             const After& after) {
  if (!note.simple) {
    const MovedPairs<Rows, Cols> pairs{pattern, note, within, of_chords(problem.metric)};
    each_part<N>(problem, pairs, lane, use, after);
    return;
  }
#pragma unroll 1
  for (int axis = 0; axis < problem.lattice.axes; ++axis) {
    const float slope = note.slope[axis], base = note.base[axis], start = note.start[axis];
    const float place[2] = {start + pattern.row[axis][within], start + pattern.row[axis][within + 8]};
    const float2* cols = reinterpret_cast<const float2*>(pattern.col[axis]) + lane % 4;
    if (note.form[axis] == AxisForm::kLinear) {
      const float row[2] = {fmaf(slope, place[0], base), fmaf(slope, place[1], base)};
#pragma unroll
      for (int n = 0; n < N; ++n) {
        const float2 pair = cols[4 * n];
#pragma unroll
        for (int e = 0; e < 4; ++e) use(axis, n, e, fmaf(-slope, e % 2 ? pair.y : pair.x, row[e / 2]));
      }
    } else {
#pragma unroll
      for (int n = 0; n < N; ++n) {
        const float2 pair = cols[4 * n];
#pragma unroll
        for (int e = 0; e < 4; ++e)
          use(axis, n, e, fmaf(slope, fabsf(place[e / 2] - (e % 2 ? pair.y : pair.x)), base));
      }
    }
    after(axis);
  }
}

// Whether tiles of `cols` columns from `offset` on form one pattern, all `count` columns of them.
inline bool one_pattern(const Lattice& lattice, int64_t offset, int64_t count, int cols) {
  if (lattice.axes == 1) return true;
  if (reduced(lattice, offset) % cols != 0 || (count > cols && lattice.sites() % cols != 0)) return false;
  int64_t rest = cols;  // the digits of a position, the last one first
  for (const bool within : {true, false}) {
    for (int axis = kMaxAxes - 1; axis >= 0; --axis) {
      const int64_t digit = within ? lattice.block[axis] : lattice.period[axis] / lattice.block[axis];
      if (rest <= 1) return true;
      if (rest % digit != 0 && digit % rest != 0) return false;
      rest = rest % digit == 0 ? rest / digit : 1;
    }
  }
  return rest <= 1;
}

}  // namespace stratcore::toroidal_attention

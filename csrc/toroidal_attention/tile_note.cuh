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

enum class AxisForm : int32_t { kLinear, kAcross };

struct TileNote {
  int tile;
  bool simple;  // every axis has one of the forms
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
}

// Coordinates from the start of a box: of the rows of a block, of the columns of every tile.
template <int Rows, int Cols>
struct alignas(16) Pattern {
  float row[kMaxAxes][Rows];
  float col[2][kMaxAxes][Cols];                                 // times slope and times -slope of the axis
  float2 row_place[kMaxAxes][Rows], col_place[kMaxAxes][Cols];  // general: as place_of has it
};

__device__ inline float2 pattern_place(const Problem& problem, int from_start, int period) {
  float2 place = make_float2(float(from_start), 0.0f);
  if (of_chords(problem.metric)) sincospif(float(from_start) / float(period), &place.x, &place.y);
  return place;
}

__device__ inline int from_start(int at, int start, int period) {
  return at < start ? at - start + period : at - start;
}

// By `threads` threads. The first columns of a tile of `Cols` stand for those of all.
template <int Rows, int Cols>
__device__ inline void write_pattern(Pattern<Rows, Cols>& pattern, const Prepared& problem, const Head& head,
                                     const Box& rows, int first, int thread, int threads) {
  const Box cols = box_at(problem.lattice, problem.key_base, Cols);
  for (int row = thread; row < Rows; row += threads) {
    const Site site = site_at(problem.lattice, problem.query_base + first + row);
#pragma unroll
    for (int axis = 0; axis < kMaxAxes; ++axis) {
      if (axis >= problem.lattice.axes) continue;
      const int period = problem.lattice.period[axis], one_axis = problem.lattice.axes == 1;
      const int u = one_axis ? row : from_start(site.at[axis], rows.start[axis], period);
      pattern.row[axis][row] = float(u);
      pattern.row_place[axis][row] = pattern_place(problem, u, period);
    }
  }
  for (int col = thread; col < Cols; col += threads) {
    const Site site = site_at(problem.lattice, problem.key_base + col);
#pragma unroll
    for (int axis = 0; axis < kMaxAxes; ++axis) {
      if (axis >= problem.lattice.axes) continue;
      const int period = problem.lattice.period[axis], one_axis = problem.lattice.axes == 1;
      const int w = one_axis ? col : from_start(site.at[axis], cols.start[axis], period);
      pattern.col[0][axis][col] = head.slopes[axis] * float(w);
      pattern.col[1][axis][col] = -head.slopes[axis] * float(w);
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

// Whether the columns of all tiles of `cols` keys form one pattern.
inline bool one_pattern(const Problem& problem, int cols) {
  const Lattice& lattice = problem.lattice;
  if (lattice.axes == 1) return true;
  const int64_t base = reduced(lattice, problem.key_offset);
  if (base % cols != 0 || (problem.keys > cols && lattice.sites() % cols != 0)) return false;
  int64_t rest = cols;  // the digits of a position, the last one first
  for (const int32_t* digits : {lattice.block, lattice.period}) {
    for (int axis = kMaxAxes - 1; axis >= 0; --axis) {
      const int64_t digit =
          digits == lattice.block ? lattice.block[axis] : lattice.period[axis] / lattice.block[axis];
      if (rest <= 1) return true;
      if (rest % digit != 0 && digit % rest != 0) return false;
      rest = rest % digit == 0 ? rest / digit : 1;
    }
  }
  return rest <= 1;
}

}  // namespace stratcore::toroidal_attention

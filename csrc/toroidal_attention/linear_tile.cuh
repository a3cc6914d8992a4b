#pragma once

#include "skip.cuh"

// The bias of a tile on a ring, or summed over the rings of several axes, without a minimum: seen along an
// axis, most tiles lie on one side of their rows and on one side of the point opposite them. There the
// distance is a number of the row plus a number of the column, and costs one addition a pair for all axes
// together. A tile that lies across its rows, or across their opposite, takes an absolute difference more: |r
// - c|, or half a turn - |r - c|.
namespace stratcore::toroidal_attention {

// Along an axis, for the u-th and w-th coordinate of two boxes: distance = base + slope u - slope w, or,
// across, base + slope |start + u - w|.
struct AxisForm {
  float base, slope, start;
  bool across, exists;
};

__device__ inline AxisForm axis_form(int32_t row_start, int32_t row_length, int32_t col_start,
                                     int32_t col_length, int32_t period) {
  int32_t apart = row_start - col_start;
  apart += 2 * apart >= period ? -period : 2 * apart < -period ? period : 0;
  const int32_t low = apart - (col_length - 1), high = apart + (row_length - 1);
  const float half = 0.5f * float(period);
  if (low >= 0 && 2 * high <= period) return {float(apart), 1.0f, 0.0f, false, true};
  if (high <= 0 && -2 * low <= period) return {float(-apart), -1.0f, 0.0f, false, true};
  if (2 * low >= period && high <= period) return {float(period - apart), -1.0f, 0.0f, false, true};
  if (-2 * high >= period && -low <= period) return {float(period + apart), 1.0f, 0.0f, false, true};
  if (2 * high <= period && -2 * low <= period) return {0.0f, 1.0f, float(apart), true, true};
  if (low >= 0 && high <= period) return {half, -1.0f, float(apart) - half, true, true};
  if (high <= 0 && -low <= period) return {half, -1.0f, float(apart) + half, true, true};
  return {0.0f, 0.0f, 0.0f, false, false};
}

// The bias of pairs of two boxes: row + column - sum over the axes across of sign |row place - column place|.
class LinearBias {
 public:
  __device__ LinearBias(const Problem& problem, const Head& head, const Box& rows, const Box& cols)
      : lattice_(problem.lattice), head_(head), rows_(rows), cols_(cols) {
    exists_ = problem.metric == Metric::kL1 || (lattice_.axes == 1 && !of_chords(problem.metric));
#pragma unroll
    for (int axis = 0; axis < kMaxAxes; ++axis) {
      if (axis >= lattice_.axes) continue;
      forms_[axis] = axis_form(rows.start[axis], rows.length[axis], cols.start[axis], cols.length[axis],
                               lattice_.period[axis]);
      exists_ &= forms_[axis].exists;
    }
  }

  __device__ bool exists() const { return exists_; }

  // How many axes are across, and the sign of each of them.
  __device__ int across(float (&signs)[kMaxAxes]) const {
    int count = 0;
#pragma unroll
    for (int axis = 0; axis < kMaxAxes; ++axis)
      if (axis < lattice_.axes && forms_[axis].across)
        signs[count++] = head_.slopes[axis] < 0.0f ? -forms_[axis].slope : forms_[axis].slope;
    return count;
  }

  // Of the row at `site`; its places on the axes that are across go to places[i][index].
  template <int Rows>
  __device__ float of_row(const Site& site, float2 (&places)[kMaxAxes][Rows], int index) const {
    float bias = 0.0f;
    int count = 0;
#pragma unroll
    for (int axis = 0; axis < kMaxAxes; ++axis) {
      if (axis >= lattice_.axes) continue;
      const float within = float(ahead(site.at[axis], rows_.start[axis], axis));
      const AxisForm& form = forms_[axis];
      bias -= head_.slopes[axis] * (form.across ? form.base : form.base + form.slope * within);
      if (form.across) places[count++][index].x = head_.slopes[axis] * (form.start + within);
    }
    return bias;
  }

  template <int Cols>
  __device__ float of_column(const Site& site, float2 (&places)[kMaxAxes][Cols], int index) const {
    float bias = 0.0f;
    int count = 0;
#pragma unroll
    for (int axis = 0; axis < kMaxAxes; ++axis) {
      if (axis >= lattice_.axes) continue;
      const float within = float(ahead(site.at[axis], cols_.start[axis], axis));
      const AxisForm& form = forms_[axis];
      if (form.across)
        places[count++][index].x = head_.slopes[axis] * within;
      else
        bias += head_.slopes[axis] * form.slope * within;
    }
    return bias;
  }

 private:
  __device__ int32_t ahead(int32_t at, int32_t start, int axis) const {
    return at < start ? at - start + lattice_.period[axis] : at - start;
  }

  const Lattice& lattice_;
  const Head& head_;
  const Box &rows_, &cols_;
  AxisForm forms_[kMaxAxes];
  bool exists_;
};

}  // namespace stratcore::toroidal_attention

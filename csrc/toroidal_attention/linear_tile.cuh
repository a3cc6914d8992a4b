#pragma once

#include "skip.cuh"

// Most tiles lie, along every axis, on one side of their rows and on one side of the point opposite them.
// There the distance is a number of the row plus a number of the column, and the bias costs one addition a
// pair.
namespace stratcore::toroidal_attention {

// Along an axis, for the u-th and w-th coordinate of two boxes: steps = base + sign (u - w).
struct LinearAxis {
  int32_t base, sign;  // sign 0: no such form
};

__device__ inline LinearAxis linear_axis(int32_t row_start, int32_t row_length, int32_t col_start,
                                         int32_t col_length, int32_t period) {
  int32_t apart = row_start - col_start;
  apart += 2 * apart >= period ? -period : 2 * apart < -period ? period : 0;
  const int32_t low = apart - (col_length - 1), high = apart + (row_length - 1);
  if (low >= 0 && 2 * high <= period) return {apart, 1};
  if (high <= 0 && -2 * low <= period) return {-apart, -1};
  if (2 * low >= period && high <= period) return {period - apart, -1};
  if (-2 * high >= period && -low <= period) return {period + apart, 1};
  return {0, 0};
}

// The bias of pairs of two boxes as a number of the row plus a number of the column, where it has that form.
class LinearBias {
 public:
  __device__ LinearBias(const Problem& problem, const Head& head, const Box& rows, const Box& cols)
      : lattice_(problem.lattice), head_(head), rows_(rows), cols_(cols) {
    exists_ = problem.metric == Metric::kL1 || (problem.lattice.axes == 1 && !of_chords(problem.metric));
#pragma unroll
    for (int axis = 0; axis < kMaxAxes; ++axis) {
      if (axis >= lattice_.axes) continue;
      axes_[axis] = linear_axis(rows.start[axis], rows.length[axis], cols.start[axis], cols.length[axis],
                                lattice_.period[axis]);
      exists_ &= axes_[axis].sign != 0;
    }
  }

  __device__ bool exists() const { return exists_; }

  __device__ float of_row(const Site& site) const {
    float bias = 0.0f;
#pragma unroll
    for (int axis = 0; axis < kMaxAxes; ++axis) {
      if (axis >= lattice_.axes) continue;
      const int32_t within = ahead(site.at[axis], rows_.start[axis], axis);
      bias -= head_.slopes[axis] * float(axes_[axis].base + axes_[axis].sign * within);
    }
    return bias;
  }

  __device__ float of_column(const Site& site) const {
    float bias = 0.0f;
#pragma unroll
    for (int axis = 0; axis < kMaxAxes; ++axis) {
      if (axis >= lattice_.axes) continue;
      const int32_t within = ahead(site.at[axis], cols_.start[axis], axis);
      bias += head_.slopes[axis] * float(axes_[axis].sign * within);
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
  LinearAxis axes_[kMaxAxes];
  bool exists_;
};

}  // namespace stratcore::toroidal_attention

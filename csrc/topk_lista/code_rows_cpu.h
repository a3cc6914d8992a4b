#pragma once

#include <algorithm>
#include <cstdint>

#include "loops_cpu.h"
#include "topk_lista.h"

// Products with sparse codes on the CPU, as sums of rows of a table [E, m, n] that lies in strips of columns:
// those of one strip stay in the cache while all rows of codes pass by. Every sum has the order of the rows
// and of their entries, whatever the number of threads. Legend as in topk_lista.h.
namespace stratcore::topk_lista {
namespace {

constexpr int64_t kRowBlock = 512;

inline int64_t strips_of(int64_t columns) { return (columns + kStrip - 1) / kStrip; }

// Numbers of a table with so many columns.
inline int64_t table_size(const Sizes& sizes, int64_t columns) {
  return sizes.experts * strips_of(columns) * sizes.atoms * kStrip;
}

// Calls body(expert, strip, where its columns are) for every strip of the tables of all experts.
template <class Body>
void for_strips(const Sizes& sizes, int64_t columns, const Executor& executor, const Body& body) {
  const int64_t strips = strips_of(columns);
  parallel_for(executor, sizes.experts * strips, 1, [&](int64_t begin, int64_t end) noexcept {
    for (int64_t at = begin; at < end; ++at) {
      const int64_t first = at % strips * kStrip;
      body(at / strips, at, first, Columns{std::min(kStrip, columns - first), columns});
    }
  });
}

// The transpose of `matrix` [E, n, m] as a table.
template <class T>
void to_table(const Sizes& sizes, int64_t columns, const T* matrix, T* table, const Executor& executor) {
  constexpr int64_t kAtoms = 64;
  for_strips(sizes, columns, executor, [&](int64_t expert, int64_t at, int64_t first, const Columns& own) {
    const T* from = matrix + (expert * columns + first) * sizes.atoms;
    T* strip = table + at * sizes.atoms * kStrip;
    for (int64_t base = 0; base < sizes.atoms; base += kAtoms) {
      const int64_t last = std::min(base + kAtoms, sizes.atoms);
      if (own.count < kStrip) std::fill(strip + base * kStrip, strip + last * kStrip, T(0));
      for (int64_t column = 0; column < own.count; ++column) {
        for (int64_t atom = base; atom < last; ++atom) {
          strip[atom * kStrip + column] = from[column * sizes.atoms + atom];
        }
      }
    }
  });
}

// And back.
template <class T>
void from_table(const Sizes& sizes, int64_t columns, const T* table, T* matrix, const Executor& executor) {
  constexpr int64_t kAtoms = 64;
  for_strips(sizes, columns, executor, [&](int64_t expert, int64_t at, int64_t first, const Columns& own) {
    const T* strip = table + at * sizes.atoms * kStrip;
    T* to = matrix + (expert * columns + first) * sizes.atoms;
    for (int64_t base = 0; base < sizes.atoms; base += kAtoms) {
      const int64_t last = std::min(base + kAtoms, sizes.atoms);
      for (int64_t column = 0; column < own.count; ++column) {
        for (int64_t atom = base; atom < last; ++atom) {
          to[column * sizes.atoms + atom] = strip[atom * kStrip + column];
        }
      }
    }
  });
}

// One step's codes of all experts: values and indices [E, B, K].
template <class T>
CodeRows<T> codes_of(const Sizes& sizes, const void* values, const int32_t* indices, int64_t expert) {
  const int64_t at = expert * sizes.rows * sizes.width;
  return {static_cast<const T*>(values) + at, indices + at, sizes.width};
}

// out [E, B, n] = start [1 or E, B, n] + sign * codes times the table.
template <class T>
void add_gathered(const Sizes& sizes, int64_t columns, const void* values, const int32_t* indices,
                  const T* table, const T* start, bool shared_start, T sign, T* out,
                  const Executor& executor) {
  const auto gather = STRATCORE_BEST(gather_strip<T>);
  const int64_t strips = strips_of(columns), blocks = (sizes.rows + kRowBlock - 1) / kRowBlock;
  parallel_for(executor, sizes.experts * strips * blocks, 1, [&](int64_t begin, int64_t end) noexcept {
    for (int64_t task = begin; task < end; ++task) {
      const int64_t at = task / blocks, expert = at / strips, first = at % strips * kStrip;
      const int64_t row = task % blocks * kRowBlock, all = expert * sizes.rows * columns + first;
      gather(codes_of<T>(sizes, values, indices, expert), table + at * sizes.atoms * kStrip,
             start + (shared_start ? first : all), out + all,
             Columns{std::min(kStrip, columns - first), columns}, sign, row,
             std::min(row + kRowBlock, sizes.rows));
    }
  });
}

// The transpose: adds codes^T times `grad` [E, B, n] to the table.
template <class T>
void add_scattered(const Sizes& sizes, int64_t columns, const void* values, const int32_t* indices,
                   const T* grad, T* table, const Executor& executor) {
  const auto scatter = STRATCORE_BEST(scatter_strip<T>);
  for_strips(sizes, columns, executor, [&](int64_t expert, int64_t at, int64_t first, const Columns& own) {
    scatter(codes_of<T>(sizes, values, indices, expert), table + at * sizes.atoms * kStrip,
            grad + expert * sizes.rows * columns + first, own, sizes.rows);
  });
}

}  // namespace
}  // namespace stratcore::topk_lista

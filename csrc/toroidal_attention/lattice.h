#pragma once

#include <cmath>
#include <cstdint>

#include "../common/macros.h"

// Where a token stands on a torus, how far two tokens are from each other, and how near two runs of tokens
// can be. For host and device, without torch.
namespace stratcore::toroidal_attention {

enum class Metric : int32_t { kL1, kL2, kLinf, kChordal, kChordalSquared };

constexpr int kMaxAxes = 3;
constexpr int32_t kMostPeriod = 1 << 24;  // distances are whole numbers in float32
constexpr int64_t kMostSites = int64_t(1) << 31;

// Sites of a torus, numbered block after block, row-major, and row-major within each block. A block as large
// as the torus is row-major order.
struct Lattice {
  int32_t axes;
  int32_t period[kMaxAxes];  // 1 beyond `axes`
  int32_t block[kMaxAxes];   // divides the period; 1 beyond `axes`

  STRATCORE_HOST_DEVICE int64_t sites() const { return int64_t(period[0]) * period[1] * period[2]; }
};

struct Site {
  int32_t at[kMaxAxes];
};

// A position modulo the number of sites. Sums with indices below 2^31 stay within 32 bits, where division is
// cheap.
STRATCORE_HOST_DEVICE inline uint32_t reduced(const Lattice& lattice, int64_t position) {
  const int64_t sites = lattice.sites(), rest = position % sites;
  return static_cast<uint32_t>(rest < 0 ? rest + sites : rest);
}

// Of a position that is not negative, modulo the number of sites.
STRATCORE_HOST_DEVICE inline Site site_at(const Lattice& lattice, uint32_t position) {
  Site site{};
  position %= static_cast<uint32_t>(lattice.sites());
  if (lattice.axes == 1) {  // whatever the block
    site.at[0] = static_cast<int32_t>(position);
    return site;
  }
  const uint32_t volume = static_cast<uint32_t>(lattice.block[0]) * lattice.block[1] * lattice.block[2];
  uint32_t block = position / volume, within = position - block * volume;
  STRATCORE_UNROLL
  for (int axis = kMaxAxes - 1; axis >= 0; --axis) {
    if (axis >= lattice.axes) continue;
    const uint32_t length = lattice.block[axis], blocks = lattice.period[axis] / length;
    const uint32_t outer = block / blocks, inner = within / length;
    site.at[axis] = static_cast<int32_t>((block - outer * blocks) * length + within - inner * length);
    block = outer;
    within = inner;
  }
  return site;
}

STRATCORE_HOST_DEVICE inline Site site_of(const Lattice& lattice, int64_t position) {
  return site_at(lattice, reduced(lattice, position));
}

// Steps between two coordinates of a ring: min(|a - b|, period - |a - b|).
STRATCORE_HOST_DEVICE inline int32_t ring_steps(int32_t a, int32_t b, int32_t period) {
  const int32_t apart = a < b ? b - a : a - b;
  return apart < period - apart ? apart : period - apart;
}

// Length of the chord under `steps` of a ring whose arc from one site to the next is 1.
template <class T>
STRATCORE_HOST_DEVICE inline T chord(T steps, T period) {
  const T radians = T(3.14159265358979323846) * steps / period;
  return std::sin(radians) * period / T(3.14159265358979323846);
}

// What the slopes multiply, from the steps along each axis: parts[0 .. count) for `count` slopes a head.
template <class T>
STRATCORE_HOST_DEVICE inline void distance_parts(Metric metric, const Lattice& lattice,
                                                 const T (&steps)[kMaxAxes], int count,
                                                 T (&parts)[kMaxAxes]) {
  T values[kMaxAxes] = {}, sum = 0, largest = 0;
  STRATCORE_UNROLL
  for (int axis = 0; axis < kMaxAxes; ++axis) {
    if (axis >= lattice.axes) continue;
    T value = steps[axis];
    if (metric == Metric::kChordal || metric == Metric::kChordalSquared)
      value = chord(value, static_cast<T>(lattice.period[axis]));
    if (metric != Metric::kL1 && metric != Metric::kLinf) value *= value;
    values[axis] = value;
    sum += value;
    largest = value > largest ? value : largest;
  }
  if (count > 1) {
    STRATCORE_UNROLL
    for (int axis = 0; axis < kMaxAxes; ++axis) parts[axis] = values[axis];
    return;
  }
  parts[0] = metric == Metric::kLinf                               ? largest
             : metric == Metric::kL2 || metric == Metric::kChordal ? std::sqrt(sum)
                                                                   : sum;
}

// A box that holds the sites of a run of positions: along each axis `length` sites from `start` on, around
// the ring.
struct Box {
  int32_t start[kMaxAxes], length[kMaxAxes];
};

// Of positions [first, first + count), count >= 1, first not negative.
STRATCORE_HOST_DEVICE inline Box box_at(const Lattice& lattice, uint32_t first, uint32_t count) {
  const uint32_t sites = static_cast<uint32_t>(lattice.sites());
  const Site low = site_at(lattice, first);
  Box box;
  if (lattice.axes == 1) {
    STRATCORE_UNROLL
    for (int axis = 0; axis < kMaxAxes; ++axis) {
      box.start[axis] = low.at[axis];
      box.length[axis] = 1;
    }
    box.length[0] = static_cast<int32_t>(count < sites ? count : sites);
    return box;
  }
  STRATCORE_UNROLL
  for (int axis = 0; axis < kMaxAxes; ++axis) {
    box.start[axis] = 0;
    box.length[axis] = lattice.period[axis];
  }
  first %= sites;
  if (count > sites - first) return box;
  // The digits of a position are the coordinates of its block, then those within the block. Digits before the
  // first that differs between the ends of the run are fixed, those behind it take every value.
  const Site high = site_at(lattice, first + count - 1);
  bool fixed = true;
  STRATCORE_UNROLL
  for (int axis = 0; axis < kMaxAxes; ++axis) {
    if (!fixed) continue;
    const int32_t block = lattice.block[axis];
    box.start[axis] = low.at[axis] / block * block;
    box.length[axis] = high.at[axis] / block * block + block - box.start[axis];
    fixed = box.length[axis] == block;
  }
  STRATCORE_UNROLL
  for (int axis = 0; axis < kMaxAxes; ++axis) {
    if (!fixed) continue;
    box.start[axis] = low.at[axis];
    box.length[axis] = high.at[axis] - low.at[axis] + 1;
    fixed = box.length[axis] == 1;
  }
  return box;
}

STRATCORE_HOST_DEVICE inline Box box_of(const Lattice& lattice, int64_t first, int64_t count) {
  return box_at(lattice, reduced(lattice, first), static_cast<uint32_t>(count));
}

// Least steps along an axis from a site of one box to a site of the other.
STRATCORE_HOST_DEVICE inline int32_t least_steps(const Box& a, const Box& b, int axis, int32_t period) {
  const int32_t apart = b.start[axis] - a.start[axis];
  const int32_t ahead = apart < 0 ? apart + period : apart, behind = ahead == 0 ? 0 : period - ahead;
  if (ahead < a.length[axis] || behind < b.length[axis]) return 0;
  const int32_t after = ahead - (a.length[axis] - 1), before = behind - (b.length[axis] - 1);
  return after < before ? after : before;
}

}  // namespace stratcore::toroidal_attention

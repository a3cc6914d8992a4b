#pragma once

#include <cstdint>

#include "../common/macros.h"
#include "simplex_cv.h"

// Random draws and the statistics' derivative, for host and device. Legend as in simplex_cv.h.
namespace stratcore::simplex_cv {

// Philox 4x32 with 10 rounds (Salmon et al., SC 2011): a block of 128 random bits, a pure function of key and
// counter.
struct PhiloxBlock {
  uint32_t word[4];
};

STRATCORE_HOST_DEVICE inline PhiloxBlock philox(uint64_t key, uint64_t counter_low, uint64_t counter_high) {
  uint32_t k0 = uint32_t(key), k1 = uint32_t(key >> 32);
  uint32_t c0 = uint32_t(counter_low), c1 = uint32_t(counter_low >> 32);
  uint32_t c2 = uint32_t(counter_high), c3 = uint32_t(counter_high >> 32);
  for (int round = 0; round < 10; ++round) {
    const uint64_t p0 = uint64_t(0xD2511F53u) * c0, p1 = uint64_t(0xCD9E8D57u) * c2;
    c0 = uint32_t(p1 >> 32) ^ c1 ^ k0;
    c2 = uint32_t(p0 >> 32) ^ c3 ^ k1;
    c1 = uint32_t(p1);
    c3 = uint32_t(p0);
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
  return {{c0, c1, c2, c3}};
}

// Upper half of the 128-bit product: maps 64 random bits to [0, range), with a bias below range / 2^64.
STRATCORE_HOST_DEVICE inline uint64_t scaled_draw(uint64_t bits, uint64_t range) {
#if defined(__CUDA_ARCH__)
  return __umul64hi(bits, range);
#else
  return uint64_t((static_cast<unsigned __int128>(bits) * range) >> 64);
#endif
}

// K + 1 distinct rows of [0, pool) from as many random numbers, every set of rows equally likely (Floyd's
// algorithm).
template <int K>
STRATCORE_HOST_DEVICE inline void choose_vertices(const uint64_t (&bits)[K + 1], int64_t pool,
                                                  int64_t (&rows)[K + 1]) {
  STRATCORE_UNROLL
  for (int j = 0; j <= K; ++j) {
    const int64_t last = pool - K - 1 + j;
    const int64_t row = int64_t(scaled_draw(bits[j], uint64_t(last) + 1));
    bool taken = false;
    STRATCORE_UNROLL
    for (int p = 0; p < j; ++p) taken = taken || rows[p] == row;
    rows[j] = taken ? last : row;
  }
}

// Blocks of random bits that one simplex takes; block b of simplex `which` has this counter.
template <int K>
constexpr int kBlocks = (K + 2) / 2;

template <int K>
STRATCORE_HOST_DEVICE inline PhiloxBlock random_block(int64_t seed, int64_t offset, int64_t which, int b) {
  return philox(uint64_t(seed), uint64_t(which) * kBlocks<K> + b, uint64_t(offset));
}

// The vertices of simplex `which`.
template <int K>
STRATCORE_HOST_DEVICE inline void draw_vertices(int64_t seed, int64_t offset, int64_t which, int64_t pool,
                                                int64_t (&rows)[K + 1]) {
  uint64_t bits[K + 1];
  PhiloxBlock block{};
  STRATCORE_UNROLL
  for (int j = 0; j <= K; ++j) {
    if (j % 2 == 0) block = random_block<K>(seed, offset, which, j / 2);
    bits[j] = uint64_t(block.word[j % 2 * 2 + 1]) << 32 | block.word[j % 2 * 2];
  }
  choose_vertices<K>(bits, pool, rows);
}

// Derivative of the scalars with respect to the volume of one valid simplex, given their cotangents.
struct Statistics {
  double cv, mean, std, count;

  STRATCORE_HOST_DEVICE explicit Statistics(const SavedState& state)
      : cv(state.data[0]), mean(state.data[1]), std(state.data[2]), count(state.data[3]) {}
};

struct ScalarCotangents {
  double loss, cv, mean, std;
};

STRATCORE_HOST_DEVICE inline double volume_cotangent(const Statistics& s, const ScalarCotangents& g,
                                                     double target, double eps, double volume) {
  const double n = s.count, scale = s.mean + eps;
  const double from_std = s.std > 0 ? (volume - s.mean) / ((n - 1) * s.std) : 0.0;
  const double from_cv = from_std / scale - s.std / (n * scale * scale);
  return (2 * g.loss * (s.cv - target) + g.cv) * from_cv + g.mean / n + g.std * from_std;
}

}  // namespace stratcore::simplex_cv

#pragma once

#include <algorithm>
#include <cstdint>
#include <functional>
#include <type_traits>
#include <utility>
#include <vector>

#include "../common/instruction_set.h"
#include "topk_lista_math.h"

// What the vector loops of the CPU take, and the loops for every instruction set. Legend as in topk_lista.h.
namespace stratcore::topk_lista {
namespace {

template <class T>
using Key = typename RankKey<T>::type;

// Orders like the key, and of equal keys the lower index is the larger rank. No entry that is not 0 has rank
// 0.
template <class T>
struct RankOf {
  using type = uint64_t;
};
template <>
struct RankOf<double> {
  using type = unsigned __int128;
};
template <class T>
using Rank = typename RankOf<T>::type;

template <class T>
Rank<T> rank_of(T value, int64_t index) {
  return Rank<T>(magnitude_key(value)) << 32 | (UINT32_MAX - static_cast<uint32_t>(index));
}

template <class T>
int32_t index_of(Rank<T> rank) {
  return static_cast<int32_t>(UINT32_MAX - static_cast<uint32_t>(rank));
}

template <class T>
struct ThresholdedRow {
  const T* first;   // [m]
  const T* second;  // [m] or null
  const T* theta;   // [m] or null
  int64_t atoms;
};

template <class T>
struct RowRanks {
  std::vector<T> row;          // [m] h
  std::vector<Key<T>> maxima;  // of sets of entries
  std::vector<Rank<T>> ranks,
      order;  // of `count` entries, by their index: all of the k largest that are not 0
  int64_t count = 0;
  Rank<T> least = 0;

  explicit RowRanks(int64_t atoms) : row(atoms), ranks(atoms), order(atoms) {}
};

// A table [m, n] lies in strips of so many columns, the last one filled up with zeros: [strips, m, kStrip].
constexpr int64_t kStrip = 64;

template <class T>
struct CodeRows {
  const T* values;         // [B, K]
  const int32_t* indices;  // [B, K]
  int64_t width;
};

struct Columns {
  int64_t count;   // of the strip, at most kStrip
  int64_t stride;  // from row to row of what is no strip
};

#define STRATCORE_LANES_FILE "../topk_lista/topk_lista_lanes.h"
#include "../common/for_each_instruction_set.h"

}  // namespace
}  // namespace stratcore::topk_lista

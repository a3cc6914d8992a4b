#pragma once

#include "plane_tiles.cuh"
#include "softmax.cuh"

// How tiles of keys and values come to a block of the forward on sm_90a: what it has in shared memory, the
// warp that describes tiles and the thread that fetches them.
namespace stratcore::toroidal_attention {

// q, k and v [B, H, N, E] for bulk copies.
struct ForwardMaps {
  CUtensorMap q, k, v;
};

template <class S, int Width, bool kSmall>
struct alignas(1024) ForwardWgmma {
  static constexpr int kCols = kSmall || kInPlanes<S> || Width == 256 ? 64 : 128;  // keys of a tile
  // Warpgroups that compute. Narrow heads have little to multiply beside the powers of two, and need few
  // registers.
  static constexpr int kGroups = kSmall ? 1 : Width == 64 && !kInPlanes<S> ? 3 : 2;
  static constexpr int kBlocks = !kSmall ? 1 : Width == 64 ? 3 : 2;  // of a processor
  // Registers of a thread that computes, and of the others.
  static constexpr int kComputing = kSmall         ? (Width == 64 ? 120 : 216)
                                    : kGroups == 2 ? (kInPlanes<S> ? 224 : 232)
                                                   : 160;
  static constexpr int kServing = kSmall ? 40 : kGroups == 2 ? (kInPlanes<S> ? 56 : 40) : 32;
  static constexpr int kRows = 64 * kGroups;
  static constexpr int kThreads = kGroup * (1 + kGroups);
  // Tiles that are looked at before the others are judged: so many that every row has had its nearest keys,
  // where tiles are narrower than blocks.
  static constexpr int kFirst = kInPlanes<S> ? kRows / kCols : 1;
  using KeyTile = RowTile<S, Width, kCols>;

  RowTile<S, Width, kRows> q;
  KeyTile k[kStages], v[kStages];
  Pattern<kRows, kCols> pattern;
  float col[2][kMaxAxes][kCols];  // coordinates of the pattern times slope and times -slope of the axis
  NoteQueue notes;
  float excess[4 * kGroups];
  uint64_t q_full, judged, k_full[kStages], k_empty[kStages], v_full[kStages], v_empty[kStages];

  __device__ void init() {
    barrier_init(&q_full, 1);
    barrier_init(&judged, 4 * kGroups);
    for (int stage = 0; stage < kStages; ++stage) {
      barrier_init(&k_full[stage], 1);
      barrier_init(&v_full[stage], 1);
      barrier_init(&k_empty[stage], kGroup * kGroups);
      barrier_init(&v_empty[stage], kGroup * kGroups);
    }
    notes.init(kGroup * kGroups + 1);
    fence_barrier_init();
  }

  // Derived anew each time: a reference that is kept would be read as one to any memory.
  __device__ __forceinline__ static ForwardWgmma& here() {
    extern __shared__ __align__(1024) char bytes[];
    return *reinterpret_cast<ForwardWgmma*>(bytes);
  }
};

// The queries of a block.
struct QueryBlock {
  const Prepared& problem;
  Head head;
  int first, last;

  __device__ Box box() const { return box_at(problem.lattice, problem.query_base + first, last - first + 1); }
};

// Keys and values of a tile, into free places.
template <class Shared>
__device__ __forceinline__ void fetch_tile(const QueryBlock& block, const ForwardMaps& maps, int tile,
                                           int at) {
  auto& shared = Shared::here();
  const int key = tile * Shared::kCols;
  barrier_arrive_expecting(&shared.k_full[at], sizeof(shared.k[at]));
  shared.k[at].fetch(maps.k, &shared.k_full[at], key, block.head.kv_head, block.head.batch);
  barrier_arrive_expecting(&shared.v_full[at], sizeof(shared.v[at]));
  shared.v[at].fetch(maps.v, &shared.v_full[at], key, block.head.kv_head, block.head.batch);
}

// The warp that describes, and fetches the first tile. Where tiles may be left out, the first are looked at
// before the others are judged, but for those that are wanted whatever they say.
template <class Shared>
__device__ void describe_keys(const QueryBlock& block, const ForwardMaps& maps, int32_t* tile_counts) {
  constexpr int kCols = Shared::kCols;
  const Prepared& problem = block.problem;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  auto& shared = Shared::here();
  KeyTiles<kCols> tiles(problem, block.head, block.first, block.last - block.first + 1,
                        key_limit(problem, block.last));
  const int nearest = tiles.skipping() ? tiles.nearest(lane) : 0;
  if (tiles.count() > 0 && lane == 0) fetch_tile<Shared>(block, maps, nearest, 0);
  const Box rows = block.box();
  NoteWriter notes(shared.notes, lane);
  const auto give = [&](int tile, bool wanted) {
    notes.give(wanted, [&](TileNote& note) {
      const int key = tile * kCols, count = min(kCols, static_cast<int>(problem.keys) - key);
      describe_tile(problem, rows, box_at(problem.lattice, problem.key_base + key, count), tile, note);
    });
  };
  bool judged = !tiles.skipping(), sure = false;
  for (int base = 0; base < tiles.count();) {
    const int tile = tiles.at(nearest, base + lane);
    const bool wanted = tiles.wants(tile) || (!judged && lane < Shared::kFirst && tile < tiles.count());
    give(tile, wanted && !sure);
    sure = !judged && wanted;
    if (judged) {
      base += 32;
      continue;
    }
    barrier_wait(&shared.judged, 0);
    float excess = shared.excess[0];
    for (int warp = 1; warp < 4 * Shared::kGroups; ++warp) excess = larger(excess, shared.excess[warp]);
    tiles.judge_by(excess);
    judged = true;
  }
  notes.finish();
  if (lane != 0) return;
  atomicAdd(tile_counts, tiles.count() - notes.given());
  atomicAdd(tile_counts + 1, tiles.count());
}

// The thread that fetches.
template <class Shared>
__device__ void fetch_keys(const QueryBlock& block, const ForwardMaps& maps) {
  auto& shared = Shared::here();
  const int batch = block.head.batch, kv_head = block.head.kv_head;
  barrier_arrive_expecting(&shared.q_full, sizeof(shared.q));
  shared.q.fetch(maps.q, &shared.q_full, block.first, block.head.head, batch);
  NoteReader notes;
  unsigned given = 0;
  while (const TileNote* note = notes.next(shared.notes)) {
    const unsigned at = given % kStages;
    const int key = note->tile * Shared::kCols;
    const uint32_t parity = given / kStages % 2 ^ 1;
    if (given++ == 0) continue;  // fetched already
    barrier_wait(&shared.k_empty[at], parity);
    barrier_arrive_expecting(&shared.k_full[at], sizeof(shared.k[at]));
    shared.k[at].fetch(maps.k, &shared.k_full[at], key, kv_head, batch);
    barrier_wait(&shared.v_empty[at], parity);
    barrier_arrive_expecting(&shared.v_full[at], sizeof(shared.v[at]));
    shared.v[at].fetch(maps.v, &shared.v_full[at], key, kv_head, batch);
  }
}

}  // namespace stratcore::toroidal_attention

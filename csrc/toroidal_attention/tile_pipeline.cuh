#pragma once

#include "../common/hopper.cuh"
#include "../common/wgmma.cuh"
#include "tile_note.cuh"

// How tiles go through a block on sm_90a: one warp describes them, 32 at once, one thread fetches what they
// are made of by bulk tensor copies, warpgroups compute. Barriers in shared memory stand between.
namespace stratcore::toroidal_attention {

constexpr int kGroup = 128;  // threads of a warpgroup
constexpr int kStages = 2;   // tiles in shared memory
constexpr int kBatches = 2;  // batches of descriptions
constexpr int kSlice = 64;   // columns of a tile in shared memory: rows of 128 bytes

// Tiles described together; none: the end.
struct NoteBatch {
  TileNote notes[32];
  int count;
};

// Descriptions on their way from the warp that writes them to all who read: the computing groups and the
// thread that fetches.
struct NoteQueue {
  NoteBatch batches[kBatches];
  uint64_t noted[kBatches], read[kBatches];

  __device__ void init(int readers) {
    for (int batch = 0; batch < kBatches; ++batch) {
      barrier_init(&noted[batch], 32);
      barrier_init(&read[batch], readers);
    }
  }
};

// The warp that writes.
class NoteWriter {
 public:
  __device__ NoteWriter(NoteQueue& queue, int lane) : queue_(queue), lane_(lane) {}

  // A note of every lane that wants one: write(note).
  template <class Write>
  __device__ void give(bool wanted, const Write& write) {
    const unsigned all = __ballot_sync(0xffffffffu, wanted);
    if (!all) return;
    NoteBatch& batch = free_batch();
    if (wanted) write(batch.notes[__popc(all & ((1u << lane_) - 1))]);
    given_ += __popc(all);
    publish(batch, __popc(all));
  }
  __device__ void finish() { publish(free_batch(), 0); }

  __device__ int given() const { return given_; }

 private:
  __device__ NoteBatch& free_batch() const {
    barrier_wait(&queue_.read[batches_ % kBatches], batches_ / kBatches % 2 ^ 1);
    return queue_.batches[batches_ % kBatches];
  }
  __device__ void publish(NoteBatch& batch, int count) {
    if (lane_ == 0) batch.count = count;
    barrier_arrive(&queue_.noted[batches_ % kBatches]);
    ++batches_;
  }

  NoteQueue& queue_;
  int lane_, given_ = 0;
  unsigned batches_ = 0;
};

// A thread that reads.
class NoteReader {
 public:
  // The next note; null at the end. Done with the one before.
  __device__ __forceinline__ const TileNote* next(NoteQueue& queue) {
    if (at_ == count_) {
      if (batches_ > 0) barrier_arrive(&queue.read[(batches_ - 1) % kBatches]);
      barrier_wait(&queue.noted[batches_ % kBatches], batches_ / kBatches % 2);
      count_ = queue.batches[batches_ % kBatches].count;
      at_ = 0;
      ++batches_;
      if (count_ == 0) return nullptr;
    }
    return &queue.batches[(batches_ - 1) % kBatches].notes[at_++];
  }

 private:
  unsigned batches_ = 0;  // unsigned: remainders are one instruction
  int at_ = 0, count_ = 0;
};

// Rows of E elements as slices of 64.
template <class S, int E, int Rows>
struct Sliced {
  S slice[E / kSlice][Rows][kSlice];

  // From row `first` on of a head; `full` waits for its bytes.
  __device__ __forceinline__ void fetch(const CUtensorMap& map, uint64_t* full, int first, int head,
                                        int batch) {
#pragma unroll
    for (int i = 0; i < E / kSlice; ++i) tensor_copy(slice[i], map, full, i * kSlice, first, head, batch);
  }
};

// sums = rows [64 group, 64 group + 64) of a times all rows of b, transposed.
template <class S, int E, int Rows, int Cols>
__device__ __forceinline__ void multiply_rows(float (&sums)[Cols / 8][4], const Sliced<S, E, Rows>& a,
                                              int group, const Sliced<S, E, Cols>& b) {
  const MatrixDescriptor left(shared_address(a.slice[0][64 * group]), 1);
  const MatrixDescriptor right(shared_address(b.slice[0]), 1);
  clear(sums);
#pragma unroll
  for (int step = 0; step < E / 16; ++step) {
    const uint32_t column = step % 4 * 32, slice = step / 4 * kSlice * sizeof(S);
    Wgmma<S>::template multiply<false, false>(sums, left.at(slice * Rows + column),
                                              right.at(slice * Cols + column), step > 0);
  }
}

// sums += factor [64, Rows] in registers times b.
template <class S, int E, int Rows>
__device__ __forceinline__ void add_product(float (&sums)[E / 8][4], const uint32_t (&factor)[Rows / 16][4],
                                            const Sliced<S, E, Rows>& b) {
  const MatrixDescriptor right(shared_address(b.slice[0]), Rows * kSlice * sizeof(S));
#pragma unroll
  for (int step = 0; step < Rows / 16; ++step)
    Wgmma<S>::template multiply<true>(sums, factor[step], right.at(16 * step * kSlice * sizeof(S)), true);
}

template <class S, int N>
__device__ __forceinline__ void pack(const float (&sums)[N][4], uint32_t (&factor)[N / 2][4]) {
#pragma unroll
  for (int step = 0; step < N / 2; ++step) {
    const auto packed = Product<S>::sums_of(sums, step);
#pragma unroll
    for (int i = 0; i < 4; ++i) factor[step][i] = packed.value[i];
  }
}

// Adds a mask, whose loads wait for each other; query and key of a pair from its row and column.
template <class S, bool kTransposed, int N>
__device__ __forceinline__ void add_mask(const Problem& problem, const Head& head, const RowInfo& rows,
                                         int first, int lane, float (&scores)[N][4]) {
  if (problem.mask.element == MaskElement::kNone) return;
#pragma unroll
  for (int n = 0; n < N; ++n) {
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      const int row = rows.index[e / 2], col = first + 8 * n + lane % 4 * 2 + e % 2;
      scores[n][e] += mask_bias<S>(problem, head, kTransposed ? col : row, kTransposed ? row : col);
    }
  }
}

// A warp's 16 rows of `count`, each times its factor: by way of `stage`, rows of a tile that nobody else
// reads any more, so that lanes write 16 bytes beside each other.
template <class S, int E, int Rows>
__device__ __forceinline__ void store_rows_by(Sliced<S, E, Rows>& stage, S* data, int64_t stride,
                                              const RowInfo& rows, int64_t count, int64_t dim, int lane,
                                              float (&values)[E / 8][4], const float (&factor)[2]) {
  constexpr int kChunk = 8, kChunks = E / kChunk;
  if (dim % kChunk != 0 || stride % kChunk != 0 || reinterpret_cast<uintptr_t>(data) % 16 != 0) {
    store_rows<S, E>(data, stride, rows, count, dim, lane, values, factor);
    return;
  }
#pragma unroll
  for (int n = 0; n < E / 8; ++n)
#pragma unroll
    for (int e = 0; e < 4; ++e) values[n][e] *= factor[e / 2];
  uint32_t packed[E / 16][4];
  pack<S>(values, packed);
  const int within = rows.within - lane / 4, first = rows.index[0] - lane / 4;
#pragma unroll
  for (int step = 0; step < E / 16; ++step) {
    const uint32_t row = shared_address(stage.slice[step / 4][within + lane % 16]);
    store_matrices(row + ((step % 4 * 2 + lane / 16 ^ lane % 8) << 4), packed[step]);
  }
  __syncwarp();
#pragma unroll
  for (int at = lane; at < 16 * kChunks; at += 32) {
    const int row = at / kChunks, chunk = at % kChunks;
    const uint4 bits = *reinterpret_cast<const uint4*>(
        &stage.slice[chunk / 8][within + row][(chunk % 8 ^ row % 8) * kChunk]);
    if (first + row < count && chunk * kChunk < dim)
      *reinterpret_cast<uint4*>(data + (first + row) * stride + chunk * kChunk) = bits;
  }
}

}  // namespace stratcore::toroidal_attention

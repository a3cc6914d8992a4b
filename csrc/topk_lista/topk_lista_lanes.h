// The vector loops of the CPU for the instruction set in whose namespace loops_cpu.h includes this: no
// include guard. T is float or double. Legend as in topk_lista.h.

typedef int8_t SignsOfSingles __attribute__((vector_size(2 * STRATCORE_LANES)));
typedef int8_t SignsOfDoubles __attribute__((vector_size(STRATCORE_LANES)));

template <class T>
struct VectorOf {
  using type = Doubles;
  using Signs = SignsOfDoubles;
};
template <>
struct VectorOf<float> {
  using type = Singles;
  using Signs = SignsOfSingles;
};
template <class T>
using Vector = typename VectorOf<T>::type;
template <class T>
using Mask = decltype(Vector<T>{} < Vector<T>{});  // signed integers as wide as T, -1 or 0
template <class T>
using Lane = std::remove_reference_t<decltype(std::declval<Mask<T>&>()[0])>;

// A bit a lane.
inline uint32_t bits_of(Mask<float> mask) {
#if defined(__x86_64__) && STRATCORE_LANES == 8
  return _mm512_movepi32_mask((__m512i)mask);
#elif defined(__x86_64__) && STRATCORE_LANES == 4
  return _mm256_movemask_ps((__m256)mask);
#elif defined(__x86_64__)
  return _mm_movemask_ps((__m128)mask);
#else
  uint32_t bits = 0;
  for (int lane = 0; lane < kLanesOf<Singles>; ++lane) bits |= uint32_t(mask[lane] & 1) << lane;
  return bits;
#endif
}

inline uint32_t bits_of(Mask<double> mask) {
  uint32_t bits = 0;
  for (int lane = 0; lane < kLanes; ++lane) bits |= uint32_t(mask[lane] & 1) << lane;
  return bits;
}

template <class T>
inline Mask<T> magnitude_keys(Vector<T> value) {
  return (Mask<T>)value & (Mask<T>{} + Lane<T>(~Key<T>(0) >> 1));
}

template <class T>
inline void store_signs(int8_t* to, Mask<T> signs) {
  const auto narrow = __builtin_convertvector(signs, typename VectorOf<T>::Signs);
  __builtin_memcpy(to, &narrow, sizeof(narrow));
}

template <class T>
inline Mask<T> load_signs(const int8_t* from) {
  return __builtin_convertvector(load_bits<typename VectorOf<T>::Signs>(from), Mask<T>);
}

// row = h_theta(first + second) and its support; `maxima` are the largest keys of `sets` sets of entries,
// those of one place modulo their number.
template <class T>
void threshold_row(const ThresholdedRow<T>& in, T* row, int8_t* support, Key<T>* maxima, int64_t sets) {
  constexpr int kWidth = kLanesOf<Vector<T>>;
  int64_t atom = 0, set = 0;
  for (; atom + kWidth <= in.atoms; atom += kWidth) {
    Vector<T> u = load<Vector<T>>(in.first + atom);
    if (in.second) u += load<Vector<T>>(in.second + atom);
    const Vector<T> theta = in.theta ? load<Vector<T>>(in.theta + atom) : Vector<T>{};
    const Mask<T> negative = u < 0, stopped = (Vector<T>)magnitude_keys<T>(u) <= theta;
    const Vector<T> moved = negative ? u + theta : u - theta;
    const Mask<T> h = (Mask<T>)moved & ~stopped;
    store(row + atom, (Vector<T>)h);
    if (support) store_signs<T>(support + atom, ((negative & -2) + 1) & ~stopped);
    if (sets == 0) continue;
    const Mask<T> key = magnitude_keys<T>((Vector<T>)h), most = load_bits<Mask<T>>(maxima + set);
    const Mask<T> larger = key > most ? key : most;
    __builtin_memcpy(maxima + set, &larger, sizeof(larger));
    set = set + kWidth < sets ? set + kWidth : 0;
  }
  for (; atom < in.atoms; ++atom) {
    const T u = in.second ? in.first[atom] + in.second[atom] : in.first[atom];
    const T theta = in.theta ? in.theta[atom] : T(0);
    row[atom] = soft_threshold(u, theta);
    if (support) support[atom] = threshold_sign(u, theta);
  }
}

// Ranks of the entries of `row` whose key is at least `bound`, by their index; returns how many there are.
template <class T>
int64_t collect(const T* row, int64_t atoms, Key<T> bound, Rank<T>* ranks) {
  constexpr int kWidth = kLanesOf<Vector<T>>;
  int64_t atom = 0, count = 0;
  for (; atom + kWidth <= atoms; atom += kWidth) {
    uint32_t bits = bits_of(magnitude_keys<T>(load<Vector<T>>(row + atom)) >= Lane<T>(bound));
    for (; bits != 0; bits &= bits - 1) {
      const int64_t found = atom + __builtin_ctz(bits);
      ranks[count++] = rank_of(row[found], found);
    }
  }
  for (; atom < atoms; ++atom) {
    if (magnitude_key(row[atom]) >= bound) ranks[count++] = rank_of(row[atom], atom);
  }
  return count;
}

// The row of the last pass, its ranks and the least rank that is kept (0 where fewer than k entries are not
// 0).
template <class T>
void rank_row(const ThresholdedRow<T>& in, int64_t k, int8_t* support, RowRanks<T>& out) {
  constexpr int kWidth = kLanesOf<Vector<T>>;
  // Two sets an entry: the k-th largest of their maxima leaves about 1.4 k entries.
  int64_t sets = (2 * k + kWidth - 1) / kWidth * kWidth;
  if (2 * sets > in.atoms) sets = 0;
  out.maxima.assign(sets, 0);
  threshold_row(in, out.row.data(), support, out.maxima.data(), sets);
  Key<T> bound = 1;
  if (sets > 0) {
    const auto kth = out.maxima.begin() + (k - 1);
    std::nth_element(out.maxima.begin(), kth, out.maxima.end(), std::greater<Key<T>>());
    bound = std::max(bound, *kth);
  }
  out.count = collect(out.row.data(), in.atoms, bound, out.ranks.data());
  out.least = 0;
  if (out.count <= k) return;
  std::copy_n(out.ranks.begin(), out.count, out.order.begin());
  std::nth_element(out.order.begin(), out.order.begin() + (k - 1), out.order.begin() + out.count,
                   std::greater<Rank<T>>());
  out.least = out.order[k - 1];
}

// One strip of columns: out = start + sign * sum of rows of the table at the entries of a code, row by row.
template <class T>
void gather_strip(const CodeRows<T>& codes, const T* strip, const T* start, T* out, const Columns& columns,
                  T sign, int64_t begin, int64_t end) {
  constexpr int kWidth = kLanesOf<Vector<T>>, kVectors = kStrip / kWidth;
  T piece[kStrip] = {};
  for (int64_t row = begin; row < end; ++row) {
    const bool whole = columns.count == kStrip;
    const T* from = start + row * columns.stride;
    if (!whole) std::copy_n(from, columns.count, piece);
    Vector<T> sum[kVectors];
    for (int i = 0; i < kVectors; ++i) sum[i] = load<Vector<T>>((whole ? from : piece) + i * kWidth);
    for (int64_t slot = row * codes.width; slot < (row + 1) * codes.width; ++slot) {
      const Vector<T> value = Vector<T>{} + sign * codes.values[slot];
      const T* entry = strip + int64_t(codes.indices[slot]) * kStrip;
      for (int i = 0; i < kVectors; ++i) sum[i] += value * load<Vector<T>>(entry + i * kWidth);
    }
    T* to = out + row * columns.stride;
    for (int i = 0; i < kVectors; ++i) store((whole ? to : piece) + i * kWidth, sum[i]);
    if (!whole) std::copy_n(piece, columns.count, to);
  }
}

// The transpose: adds value * row of `grad` to the rows of the strip at the entries of a code.
template <class T>
void scatter_strip(const CodeRows<T>& codes, T* strip, const T* grad, const Columns& columns, int64_t rows) {
  constexpr int kWidth = kLanesOf<Vector<T>>, kVectors = kStrip / kWidth;
  T piece[kStrip] = {};
  for (int64_t row = 0; row < rows; ++row) {
    const T* from = grad + row * columns.stride;
    if (columns.count < kStrip) from = std::copy_n(from, columns.count, piece) - columns.count;
    Vector<T> part[kVectors];
    for (int i = 0; i < kVectors; ++i) part[i] = load<Vector<T>>(from + i * kWidth);
    for (int64_t slot = row * codes.width; slot < (row + 1) * codes.width; ++slot) {
      const Vector<T> value = Vector<T>{} + codes.values[slot];
      T* entry = strip + int64_t(codes.indices[slot]) * kStrip;
      for (int i = 0; i < kVectors; ++i) {
        store(entry + i * kWidth, load<Vector<T>>(entry + i * kWidth) + value * part[i]);
      }
    }
  }
}

// out = grad where the support is not 0, and so added to `sum` if there is one; with `total` out is the sum.
template <class T>
void pass_range(const T* grad, const int8_t* support, T* sum, bool total, T* out, int64_t begin,
                int64_t end) {
  constexpr int kWidth = kLanesOf<Vector<T>>;
  int64_t i = begin;
  for (; i + kWidth <= end; i += kWidth) {
    Vector<T> passed = (Vector<T>)((Mask<T>)load<Vector<T>>(grad + i) & (load_signs<T>(support + i) != 0));
    Vector<T> added = passed;
    if (sum) {
      added += load<Vector<T>>(sum + i);
      store(sum + i, added);
    }
    store(out + i, total ? added : passed);
  }
  for (; i < end; ++i) {
    const T passed = support[i] ? grad[i] : T(0);
    if (sum) sum[i] += passed;
    out[i] = total && sum ? sum[i] : passed;
  }
}

// target -= sum over rows of sign * grad where the sign is not 0, rows in order.
template <class T>
void subtract_signed_rows(const T* grad, const int8_t* support, T* target, int64_t atoms, int64_t rows) {
  constexpr int kWidth = kLanesOf<Vector<T>>;
  for (int64_t row = 0; row < rows; ++row, grad += atoms, support += atoms) {
    int64_t atom = 0;
    for (; atom + kWidth <= atoms; atom += kWidth) {
      const Mask<T> signs = load_signs<T>(support + atom);
      const Vector<T> passed = (Vector<T>)((Mask<T>)load<Vector<T>>(grad + atom) & (signs != 0));
      const Vector<T> factor = __builtin_convertvector(signs, Vector<T>);
      store(target + atom, load<Vector<T>>(target + atom) - factor * passed);
    }
    for (; atom < atoms; ++atom) {
      if (support[atom]) target[atom] -= T(support[atom]) * grad[atom];
    }
  }
}

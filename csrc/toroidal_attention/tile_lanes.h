// Arithmetic on tiles of kTile queries by kTile keys, for the instruction set in whose namespace
// toroidal_attention_lanes.h includes this: no include guard. T is the type computed in. Rows of a tile are
// contiguous vectors; E dimension of a head, padded to whole vectors.

template <class T>
using VectorOf = typename std::conditional<sizeof(T) == 8, Doubles, Singles>::type;
template <class T>
constexpr int kWidth = kLanesOf<VectorOf<T>>;

// target [rows, cols] = or += left [rows, inner] right [inner, cols]. Rows of the target in fours; columns in
// whole vectors; `left` at any strides, so that it may be transposed.
template <class T>
struct Product {
  const T* left;
  int64_t left_row, left_inner;
  const T* right;
  int64_t right_row;
  T* target;
  int64_t target_row;
  int64_t rows, inner, cols;
};

constexpr int kProductRows = 4;

template <int kVectors, bool kAdd, class T>
inline void multiply_columns(const Product<T>& product, int64_t col) {
  using Vector = VectorOf<T>;
  for (int64_t row = 0; row < product.rows; row += kProductRows) {
    T* target = product.target + row * product.target_row + col;
    const T* left = product.left + row * product.left_row;
    const T* right = product.right + col;
    Vector sum[kProductRows][kVectors];
    STRATCORE_UNROLL
    for (int r = 0; r < kProductRows; ++r) {
      STRATCORE_UNROLL
      for (int v = 0; v < kVectors; ++v) {
        sum[r][v] = kAdd ? load<Vector>(target + r * product.target_row + v * kWidth<T>) : Vector{};
      }
    }
    for (int64_t inner = 0; inner < product.inner; ++inner) {
      Vector column[kVectors];
      STRATCORE_UNROLL
      for (int v = 0; v < kVectors; ++v) column[v] = load<Vector>(right + v * kWidth<T>);
      STRATCORE_UNROLL
      for (int r = 0; r < kProductRows; ++r) {
        const T factor = left[r * product.left_row];
        STRATCORE_UNROLL
        for (int v = 0; v < kVectors; ++v) sum[r][v] += factor * column[v];
      }
      left += product.left_inner;
      right += product.right_row;
    }
    STRATCORE_UNROLL
    for (int r = 0; r < kProductRows; ++r) {
      STRATCORE_UNROLL
      for (int v = 0; v < kVectors; ++v) store(target + r * product.target_row + v * kWidth<T>, sum[r][v]);
    }
  }
}

template <bool kAdd, class T>
[[gnu::noinline]] void multiply(const Product<T>& product) {
  constexpr int kVectors = kLanes == 8 ? 4 : 2;  // whose sums, four rows of them, stay in registers
  int64_t col = 0;
  for (; col + kVectors * kWidth<T> <= product.cols; col += kVectors * kWidth<T>) {
    multiply_columns<kVectors, kAdd>(product, col);
  }
  for (; col < product.cols; col += kWidth<T>) multiply_columns<1, kAdd>(product, col);
}

// e^x for x <= 0 (or somewhat above); 0 where it would leave the normal numbers. NaN stays.
template <class T>
inline VectorOf<T> exponential(VectorOf<T> x) {
  using Vector = VectorOf<T>;
  using Integer = typename std::conditional<sizeof(T) == 8, int64_t, int32_t>::type;
  typedef Integer Integers __attribute__((vector_size(8 * STRATCORE_LANES)));
  constexpr bool kDouble = sizeof(T) == 8;
  constexpr int kMantissa = kDouble ? 52 : 23, kDegree = kDouble ? 13 : 7;
  const Vector least = Vector{} + T(kDouble ? -708 : -87);
  const Vector shift = Vector{} + T(Integer(3) << (kMantissa - 1));  // rounds to whole numbers
  // log 2 in two parts: the first times a whole number is exact
  constexpr T kHigh = kDouble ? T(6.93147180369123816490e-01) : T(0.693359375);
  constexpr T kLow = kDouble ? T(1.90821492927058770002e-10) : T(-2.12194440e-4);
  constexpr double kInverse[] = {1.0,
                                 1.0,
                                 1.0 / 2,
                                 1.0 / 6,
                                 1.0 / 24,
                                 1.0 / 120,
                                 1.0 / 720,
                                 1.0 / 5040,
                                 1.0 / 40320,
                                 1.0 / 362880,
                                 1.0 / 3628800,
                                 1.0 / 39916800,
                                 1.0 / 479001600,
                                 1.0 / 6227020800.0};
  const Vector inside = x < least ? least : x;
  const Vector shifted = inside * T(1.44269504088896340736) + shift;
  const Vector whole = shifted - shift;
  const Vector rest = (inside - whole * kHigh) - whole * kLow;
  Vector power = Vector{} + T(kInverse[kDegree]);
  STRATCORE_UNROLL
  for (int degree = kDegree - 1; degree >= 0; --degree) power = power * rest + T(kInverse[degree]);
  const Vector result = (Vector)((Integers)power + ((Integers)shifted << kMantissa));
  const Vector kept = power != power ? power : result;
  return x < least ? Vector{} : kept;
}

// Of arcs of at most half a period: steps sin(t) / t with t = pi steps / period, by its series.
template <class T>
inline VectorOf<T> chords(VectorOf<T> steps, T period) {
  constexpr int kTerms = sizeof(T) == 8 ? 11 : 7;
  const VectorOf<T> angle = steps * (T(3.14159265358979323846) / period), square = angle * angle;
  VectorOf<T> series = VectorOf<T>{} + T(1);
  STRATCORE_UNROLL
  for (int term = kTerms - 1; term > 0; --term) {
    series = T(1) - series * square * T(1.0 / ((2 * term) * (2 * term + 1)));
  }
  return steps * series;
}

inline Doubles roots(Doubles value) { return square_root(value); }

inline Singles roots(Singles value) {
#if defined(__x86_64__) && STRATCORE_LANES == 8
  return (Singles)_mm512_maskz_sqrt_ps(0xffff, (__m512)value);
#elif defined(__x86_64__) && STRATCORE_LANES == 4
  return (Singles)_mm256_sqrt_ps((__m256)value);
#elif defined(__x86_64__)
  return (Singles)_mm_sqrt_ps((__m128)value);
#else
  for (int lane = 0; lane < kLanesOf<Singles>; ++lane) value[lane] = std::sqrt(value[lane]);
  return value;
#endif
}

template <class Vector>
inline Vector larger(Vector a, Vector b) {
  return a > b ? a : b;
}

// What the slopes multiply: parts [slope_count][kTile][kTile], from where queries and keys stand.
template <Metric kMetric, class T>
inline void fill_parts(const Problem& problem, const Coordinates<T>& queries, const Coordinates<T>& keys,
                       int64_t rows, T* parts) {
  using Vector = VectorOf<T>;
  constexpr bool kChords = kMetric == Metric::kChordal || kMetric == Metric::kChordalSquared;
  constexpr bool kSquares = kMetric != Metric::kL1 && kMetric != Metric::kLinf;
  constexpr bool kRoot = kMetric == Metric::kL2 || kMetric == Metric::kChordal;
  const int axes = problem.lattice.axes;
  const bool apart = problem.slope_count > 1;
  for (int64_t row = 0; row < rows; ++row) {
    for (int64_t col = 0; col < kTile; col += kWidth<T>) {
      Vector sum{};
      for (int axis = 0; axis < axes; ++axis) {
        const T period = static_cast<T>(problem.lattice.period[axis]);
        const Vector difference = load<Vector>(keys.of(axis) + col) - queries.of(axis)[row];
        const Vector direct = larger(difference, -difference), around = period - direct;
        Vector value = direct < around ? direct : around;
        if (kChords) value = chords<T>(value, period);
        if (kSquares) value *= value;
        if (apart) store(parts + (axis * kTile + row) * kTile + col, value);
        sum = kMetric == Metric::kLinf ? larger(sum, value) : sum + value;
      }
      if (!apart) store(parts + row * kTile + col, kRoot ? roots(sum) : sum);
    }
  }
}

template <class T>
inline void fill_parts(const Problem& problem, const Coordinates<T>& queries, const Coordinates<T>& keys,
                       int64_t rows, T* parts) {
  switch (problem.metric) {
    case Metric::kL1:
      return fill_parts<Metric::kL1>(problem, queries, keys, rows, parts);
    case Metric::kL2:
      return fill_parts<Metric::kL2>(problem, queries, keys, rows, parts);
    case Metric::kLinf:
      return fill_parts<Metric::kLinf>(problem, queries, keys, rows, parts);
    case Metric::kChordal:
      return fill_parts<Metric::kChordal>(problem, queries, keys, rows, parts);
    default:
      return fill_parts<Metric::kChordalSquared>(problem, queries, keys, rows, parts);
  }
}

// Row of scores from products: scaled, less the slopes times the parts.
template <class T>
inline void bias_row(const Problem& problem, const T* slopes, const T* parts, int64_t row, T* scores) {
  using Vector = VectorOf<T>;
  const T scale = static_cast<T>(problem.scale);
  for (int64_t col = 0; col < kTile; col += kWidth<T>) {
    Vector score = load<Vector>(scores + col) * scale;
    for (int part = 0; part < problem.slope_count; ++part) {
      score -= slopes[part] * load<Vector>(parts + (part * kTile + row) * kTile + col);
    }
    store(scores + col, score);
  }
}

inline float widened(float value) { return value; }
inline double widened(double value) { return value; }
inline float widened(BFloat16 value) { return ::stratcore::widen(value); }
inline float widened(Float16 value) { return ::stratcore::widen(value); }

template <class M, class T>
inline void add_mask(const M* mask, int64_t stride, int64_t count, T* scores) {
  for (int64_t col = 0; col < count; ++col) scores[col] += static_cast<T>(widened(mask[col * stride]));
}

// The mask of a row, from `mask` elements on; E is the element of q.
template <class E, class T>
inline void mask_row(const Mask& mask, int64_t at, int64_t count, T* scores) {
  if (mask.element == MaskElement::kBool) {
    const auto* takes_part = static_cast<const uint8_t*>(mask.data) + at;
    for (int64_t col = 0; col < count; ++col) {
      if (!takes_part[col * mask.col]) scores[col] = -std::numeric_limits<T>::infinity();
    }
  } else if (mask.element == MaskElement::kFloat32) {
    add_mask(static_cast<const float*>(mask.data) + at, mask.col, count, scores);
  } else if (mask.element == MaskElement::kSame) {
    add_mask(static_cast<const E*>(mask.data) + at, mask.col, count, scores);
  }
}

// `count` rows of a tensor as T, [kTile][padded] with zeros beyond.
template <class E, class T>
inline void load_rows(const E* from, int64_t stride, int64_t count, int64_t dim, int64_t padded, T* to) {
  for (int64_t row = 0; row < count; ++row) {
    for (int64_t d = 0; d < dim; ++d) to[row * padded + d] = static_cast<T>(widened(from[row * stride + d]));
    for (int64_t d = dim; d < padded; ++d) to[row * padded + d] = T(0);
  }
  std::fill(to + count * padded, to + kTile * padded, T(0));
}

// Lanes of a and b in turn: the lower halves of both, or the upper ones.
template <class Vector>
inline Vector interleave(Vector a, Vector b, bool upper) {
  constexpr int kCount = kLanesOf<Vector>;
  const int first = upper ? kCount / 2 : 0;
#if defined(__clang__)
  Vector result;
  for (int lane = 0; lane < kCount; ++lane) result[lane] = (lane % 2 ? b : a)[first + lane / 2];
  return result;
#else
  using Integer = typename std::conditional<sizeof(a[0]) == 8, int64_t, int32_t>::type;
  typedef Integer Integers __attribute__((vector_size(8 * STRATCORE_LANES)));
  Integers from;
  for (int lane = 0; lane < kCount; ++lane) from[lane] = (lane % 2 ? kCount : 0) + first + lane / 2;
  return __builtin_shuffle(a, b, from);
#endif
}

// A square of as many vectors as they have lanes.
template <class Vector>
inline void transpose(Vector (&square)[kLanesOf<Vector>]) {
  constexpr int kCount = kLanesOf<Vector>;
  STRATCORE_UNROLL
  for (int round = 1; round < kCount; round *= 2) {
    Vector mixed[kCount];
    STRATCORE_UNROLL
    for (int i = 0; i < kCount; ++i) {
      mixed[i] = interleave(square[i / 2], square[i / 2 + kCount / 2], i % 2);
    }
    STRATCORE_UNROLL
    for (int i = 0; i < kCount; ++i) square[i] = mixed[i];
  }
}

// `count` entries as T, 0 in the lanes beyond.
template <class T, class E>
inline VectorOf<T> load_line(const E* from, int64_t count) {
  T line[kWidth<T>] = {};
  if (count >= kWidth<T>) {
    for (int lane = 0; lane < kWidth<T>; ++lane) line[lane] = static_cast<T>(widened(from[lane]));
  } else {
    for (int lane = 0; lane < count; ++lane) line[lane] = static_cast<T>(widened(from[lane]));
  }
  return load<VectorOf<T>>(line);
}

// The rows transposed, [dim][kTile].
template <class E, class T>
inline void load_columns(const E* from, int64_t stride, int64_t count, int64_t dim, T* to) {
  constexpr int kCount = kWidth<T>;
  for (int64_t row = 0; row < kTile; row += kCount) {
    for (int64_t d = 0; d < dim; d += kCount) {
      VectorOf<T> square[kCount] = {};
      for (int i = 0; i < kCount; ++i) {
        if (row + i < count) square[i] = load_line<T>(from + (row + i) * stride + d, dim - d);
      }
      transpose(square);
      for (int i = 0; i < kCount && d + i < dim; ++i) store(to + (d + i) * kTile + row, square[i]);
    }
  }
}

template <class E, class T>
inline void store_row(const T* from, T factor, int64_t dim, E* to) {
  for (int64_t d = 0; d < dim; ++d) {
    if constexpr (std::is_same<E, T>::value) {
      to[d] = from[d] * factor;
    } else {
      narrow(from[d] * factor, to[d]);
    }
  }
}

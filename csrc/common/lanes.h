// Vectors of STRATCORE_LANES doubles: loads that convert, stores, sums. Included by
// for_each_instruction_set.h inside the namespace of each instruction set; no include guard.

constexpr int kLanes = STRATCORE_LANES;

typedef double Doubles __attribute__((vector_size(8 * STRATCORE_LANES)));
typedef int64_t DoublesMask __attribute__((vector_size(8 * STRATCORE_LANES)));
typedef float Floats __attribute__((vector_size(4 * STRATCORE_LANES)));
// As wide as Doubles: for what is computed in float32.
typedef float Singles __attribute__((vector_size(8 * STRATCORE_LANES)));

template <class Vector>
constexpr int kLanesOf = sizeof(Vector) / sizeof(Vector{}[0]);

// One instruction each, where __builtin_convertvector of GCC makes several.
inline Doubles widen(Floats value) {
#if defined(__x86_64__) && STRATCORE_LANES == 8
  return (Doubles)_mm512_maskz_cvtps_pd(0xff, (__m256)value);
#elif defined(__x86_64__) && STRATCORE_LANES == 4
  return (Doubles)_mm256_cvtps_pd((__m128)value);
#else
  return __builtin_convertvector(value, Doubles);
#endif
}

inline Floats narrow(Doubles value) {
#if defined(__x86_64__) && STRATCORE_LANES == 8
  return (Floats)_mm512_maskz_cvtpd_ps(0xff, (__m512d)value);
#elif defined(__x86_64__) && STRATCORE_LANES == 4
  return (Floats)_mm256_cvtpd_ps((__m256d)value);
#else
  return __builtin_convertvector(value, Floats);
#endif
}

inline Doubles broadcast(double value) { return Doubles{} + value; }

template <class Vector>
inline Vector load_bits(const void* from) {
  Vector value;
  __builtin_memcpy(&value, from, sizeof(value));
  return value;
}

inline void load(const double* from, Doubles& value) { value = load_bits<Doubles>(from); }
inline void load(const float* from, Doubles& value) { value = widen(load_bits<Floats>(from)); }
inline void load(const float* from, Singles& value) { value = load_bits<Singles>(from); }

template <class Vector = Doubles, class T>
inline Vector load(const T* from) {
  Vector value;
  load(from, value);
  return value;
}

inline void store(double* to, Doubles value) { __builtin_memcpy(to, &value, sizeof(value)); }
inline void store(float* to, Singles value) { __builtin_memcpy(to, &value, sizeof(value)); }

inline void store(float* to, Doubles value) {
  const Floats rounded = narrow(value);
  __builtin_memcpy(to, &rounded, sizeof(rounded));
}

// The first `count` lanes; the others are 0.
template <class T>
inline Doubles load_first(const T* from, int64_t count) {
  if (count >= kLanes) return load(from);
  Doubles value{};
  for (int lane = 0; lane < count; ++lane) value[lane] = from[lane];
  return value;
}

template <class T>
inline void store_first(T* to, Doubles value, int64_t count) {
  if (count >= kLanes) return store(to, value);
  for (int lane = 0; lane < count; ++lane) to[lane] = static_cast<T>(value[lane]);
}

inline Doubles square_root(Doubles value) {
#if defined(__x86_64__) && STRATCORE_LANES == 8
  return (Doubles)_mm512_maskz_sqrt_pd(0xff, (__m512d)value);
#elif defined(__x86_64__) && STRATCORE_LANES == 4
  return (Doubles)_mm256_sqrt_pd((__m256d)value);
#else
  for (int lane = 0; lane < kLanes; ++lane) value[lane] = __builtin_sqrt(value[lane]);
  return value;
#endif
}

inline bool any(DoublesMask mask) {
  int64_t found = 0;
  for (int lane = 0; lane < kLanes; ++lane) found |= mask[lane];
  return found != 0;
}

#if defined(__clang__)
#define STRATCORE_SHUFFLE(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define STRATCORE_SHUFFLE(a, b, ...) __builtin_shuffle(a, b, DoublesMask{__VA_ARGS__})
#endif

// Lane i of the result is the sum of all lanes of vectors[i]: a transposition that adds on its way.
inline Doubles lane_sums(const Doubles* vectors) {
#if STRATCORE_LANES == 8
  Doubles pairs[4], fours[2];
  STRATCORE_UNROLL
  for (int i = 0; i < 4; ++i) {
    const Doubles a = vectors[2 * i], b = vectors[2 * i + 1];
    pairs[i] = STRATCORE_SHUFFLE(a, b, 0, 8, 2, 10, 4, 12, 6, 14) +
               STRATCORE_SHUFFLE(a, b, 1, 9, 3, 11, 5, 13, 7, 15);
  }
  STRATCORE_UNROLL
  for (int i = 0; i < 2; ++i) {
    const Doubles a = pairs[2 * i], b = pairs[2 * i + 1];
    fours[i] = STRATCORE_SHUFFLE(a, b, 0, 1, 8, 9, 4, 5, 12, 13) +
               STRATCORE_SHUFFLE(a, b, 2, 3, 10, 11, 6, 7, 14, 15);
  }
  return STRATCORE_SHUFFLE(fours[0], fours[1], 0, 1, 2, 3, 8, 9, 10, 11) +
         STRATCORE_SHUFFLE(fours[0], fours[1], 4, 5, 6, 7, 12, 13, 14, 15);
#elif STRATCORE_LANES == 4
  Doubles pairs[2];
  STRATCORE_UNROLL
  for (int i = 0; i < 2; ++i) {
    const Doubles a = vectors[2 * i], b = vectors[2 * i + 1];
    pairs[i] = STRATCORE_SHUFFLE(a, b, 0, 4, 2, 6) + STRATCORE_SHUFFLE(a, b, 1, 5, 3, 7);
  }
  return STRATCORE_SHUFFLE(pairs[0], pairs[1], 0, 1, 4, 5) +
         STRATCORE_SHUFFLE(pairs[0], pairs[1], 2, 3, 6, 7);
#else
  return STRATCORE_SHUFFLE(vectors[0], vectors[1], 0, 2) + STRATCORE_SHUFFLE(vectors[0], vectors[1], 1, 3);
#endif
}

#undef STRATCORE_SHUFFLE

// A vector of channels and its loads and stores, for kernels compiled once per instruction set
// (UK_ISA names the set).  GCC's and Clang's vector extension: `a * b + c` becomes an FMA.
#pragma once

#include <cstdint>
#include <cstring>
#include <new>

#include "storage.h"

#if defined(__AVX512F__) || defined(__F16C__)
#include <immintrin.h>
#endif

#if defined(__AVX512F__)
#define UK_VECTOR_BYTES 64
#define UK_VECTOR_REGISTERS 32
#elif defined(__AVX2__)
#define UK_VECTOR_BYTES 32
#define UK_VECTOR_REGISTERS 16
#else
#define UK_VECTOR_BYTES 16
#define UK_VECTOR_REGISTERS 16
#endif

#define UK_INLINE static inline __attribute__((always_inline))

namespace uk::UK_ISA {

template <class A>
struct vector {
  typedef A type __attribute__((vector_size(UK_VECTOR_BYTES)));
};
template <class A>
using vec = typename vector<A>::type;

template <class A>
constexpr int64_t lanes_of = UK_VECTOR_BYTES / sizeof(A);

template <class V, class T>
UK_INLINE V load_bits(const T* p) {
  V v;
  __builtin_memcpy(&v, p, sizeof(V));
  return v;
}

UK_INLINE vec<float> load(const float* p) { return load_bits<vec<float>>(p); }
UK_INLINE vec<double> load(const double* p) { return load_bits<vec<double>>(p); }
UK_INLINE void store(float* p, vec<float> v) { __builtin_memcpy(p, &v, sizeof(v)); }
UK_INLINE void store(double* p, vec<double> v) { __builtin_memcpy(p, &v, sizeof(v)); }

typedef uint16_t half_words __attribute__((vector_size(UK_VECTOR_BYTES / 2)));
typedef uint32_t words __attribute__((vector_size(UK_VECTOR_BYTES)));

// Converted by name where GCC would convert halves of the vector and join them.
UK_INLINE words lengthened(half_words v) {
#if defined(__AVX512F__)
  return (words)_mm512_cvtepu16_epi32((__m256i)v);
#else
  return __builtin_convertvector(v, words);
#endif
}
UK_INLINE half_words shortened(words v) {
#if defined(__AVX512F__)
  return (half_words)_mm512_cvtepi32_epi16((__m512i)v);
#else
  return __builtin_convertvector(v, half_words);
#endif
}

UK_INLINE vec<float> load(const bf16* p) {
  return (vec<float>)(lengthened(load_bits<half_words>(p)) << 16);
}

#if defined(__AVX512BF16__)
UK_INLINE void store(bf16* p, vec<float> v) {
  const __m256bh out = _mm512_cvtneps_pbh((__m512)v);
  __builtin_memcpy(p, &out, sizeof(out));
}
#else
// Round to nearest even; a NaN keeps its upper bits and a set quiet bit, so it stays one.
UK_INLINE void store(bf16* p, vec<float> v) {
  words bits = (words)v, upper = bits >> 16;
  words rounded = (bits + 0x7fff + (upper & 1)) >> 16;
  half_words out = shortened(v == v ? rounded : upper | 0x40);
  __builtin_memcpy(p, &out, sizeof(out));
}
#endif

#if defined(__AVX512F__)
UK_INLINE vec<float> load(const f16* p) {
  return (vec<float>)_mm512_cvtph_ps(_mm256_loadu_si256((const __m256i*)p));
}
UK_INLINE void store(f16* p, vec<float> v) {
  _mm256_storeu_si256((__m256i*)p, _mm512_cvtps_ph((__m512)v, _MM_FROUND_TO_NEAREST_INT));
}
#elif defined(__F16C__)
UK_INLINE vec<float> load(const f16* p) {
  return (vec<float>)_mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)p));
}
UK_INLINE void store(f16* p, vec<float> v) {
  _mm_storeu_si128((__m128i*)p, _mm256_cvtps_ph((__m256)v, _MM_FROUND_TO_NEAREST_INT));
}
#else
// Scalar conversion through the exponent: exact both ways, rounding to nearest even.
UK_INLINE float widen(uint16_t h) {
  uint32_t sign = (uint32_t)(h & 0x8000) << 16, magnitude = h & 0x7fff;
  float value;
  if (magnitude >= 0x7c00) {  // infinity and NaN
    uint32_t bits = 0x7f800000u | (magnitude & 0x3ff) << 13;
    __builtin_memcpy(&value, &bits, 4);
  } else {
    uint32_t bits = magnitude << 13;
    __builtin_memcpy(&value, &bits, 4);
    value *= 0x1p112f;
  }
  uint32_t out;
  __builtin_memcpy(&out, &value, 4);
  out |= sign;
  __builtin_memcpy(&value, &out, 4);
  return value;
}
UK_INLINE uint16_t narrow(float value) {
  uint32_t bits;
  __builtin_memcpy(&bits, &value, 4);
  uint16_t sign = (uint16_t)(bits >> 16 & 0x8000);
  bits &= 0x7fffffff;
  if (bits > 0x7f800000) return sign | 0x7e00;   // NaN
  if (bits >= 0x477ff000) return sign | 0x7c00;  // rounds to infinity
  if (bits < 0x38800000) {                       // subnormal: the addition rounds
    float magnitude;
    __builtin_memcpy(&magnitude, &bits, 4);
    magnitude += 0.5f;
    __builtin_memcpy(&bits, &magnitude, 4);
    return sign | (uint16_t)(bits - 0x3f000000);
  }
  bits += 0xfff + (bits >> 13 & 1);
  return sign | (uint16_t)((bits - 0x38000000) >> 13);
}
UK_INLINE vec<float> load(const f16* p) {
  vec<float> v;
  for (int i = 0; i < lanes_of<float>; ++i) v[i] = widen(p[i].bits);
  return v;
}
UK_INLINE void store(f16* p, vec<float> v) {
  for (int i = 0; i < lanes_of<float>; ++i) p[i].bits = narrow(v[i]);
}
#endif

// Loads into a register and keeps it there: GCC would fold the load into every FMA that uses the
// value, and load it as many times.
template <class A>
UK_INLINE vec<A> load_once(const A* p) {
  vec<A> v = load(p);
#if defined(__AVX512F__)
  asm("" : "+v"(v));
#elif defined(__x86_64__)
  asm("" : "+x"(v));
#endif
  return v;
}

// One number in every lane, in a register for the same reason.
UK_INLINE vec<float> broadcast_once(const float* p) {
  vec<float> v = *p - vec<float>{};
#if defined(__AVX512F__)
  asm("" : "+v"(v));
#elif defined(__x86_64__)
  asm("" : "+x"(v));
#endif
  return v;
}

// Makes the compiler forget where p came from, so that it addresses p[constant] instead of
// hoisting one address per element out of the enclosing loops, and spilling them.
template <class A>
UK_INLINE const A* plain(const A* p) {
  asm("" : "+r"(p));
  return p;
}

#if defined(__AVX512F__)
// The first `count` numbers, at most a vector of them; the others are zero, or stay as they are.
UK_INLINE uint32_t first_lanes(int64_t count) { return (1u << count) - 1; }

UK_INLINE vec<float> load_first(const float* p, int64_t count) {
  return (vec<float>)_mm512_maskz_loadu_ps(first_lanes(count), p);
}
UK_INLINE vec<double> load_first(const double* p, int64_t count) {
  return (vec<double>)_mm512_maskz_loadu_pd(first_lanes(count), p);
}
UK_INLINE vec<float> load_first(const bf16* p, int64_t count) {
  const __m256i bits = _mm256_maskz_loadu_epi16(first_lanes(count), p);
  return (vec<float>)_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16);
}
UK_INLINE vec<float> load_first(const f16* p, int64_t count) {
  return (vec<float>)_mm512_cvtph_ps(_mm256_maskz_loadu_epi16(first_lanes(count), p));
}

UK_INLINE void store_first(float* p, vec<float> v, int64_t count) {
  _mm512_mask_storeu_ps(p, first_lanes(count), (__m512)v);
}
UK_INLINE void store_first(double* p, vec<double> v, int64_t count) {
  _mm512_mask_storeu_pd(p, first_lanes(count), (__m512d)v);
}
template <class S>
UK_INLINE void store_first(S* p, vec<float> v, int64_t count) {
  S block[lanes_of<float>];
  store(block, v);
  _mm256_mask_storeu_epi16(p, first_lanes(count), load_bits<__m256i>(block));
}
#endif

// The first `count` channels, `stride` elements apart; the others are zero.
template <class A, class S>
UK_INLINE vec<A> load_some(const S* p, int64_t count, int64_t stride) {
#if defined(__AVX512F__)
  if (stride == 1) return load_first(p, count);
#endif
  S block[lanes_of<A>] = {};
  for (int64_t i = 0; i < count; ++i) block[i] = p[i * stride];
  return load(block);
}

template <class A, class S>
UK_INLINE void store_some(S* p, vec<A> v, int64_t count) {
#if defined(__AVX512F__)
  store_first(p, v, count);
#else
  S block[lanes_of<A>];
  store(block, v);
  for (int64_t i = 0; i < count; ++i) p[i] = block[i];
#endif
}

UK_INLINE float sum_of(vec<float> v) {
#if defined(__AVX512F__)
  return _mm512_reduce_add_ps((__m512)v);
#else
  float sum = 0.f;
  for (int64_t lane = 0; lane < lanes_of<float>; ++lane) sum += v[lane];
  return sum;
#endif
}

UK_INLINE int64_t min(int64_t a, int64_t b) { return a < b ? a : b; }
UK_INLINE int64_t max(int64_t a, int64_t b) { return a > b ? a : b; }

// Working memory of one thread, kept between calls: fresh pages would cost more than the tile.
template <class A>
static A* scratch(int64_t count) {
  struct Buffer {
    void* data = nullptr;
    int64_t bytes = 0;
    ~Buffer() { __builtin_free(data); }
  };
  static thread_local Buffer buffer;
  int64_t bytes = count * (int64_t)sizeof(A) + 64;
  if (buffer.bytes < bytes) {
    __builtin_free(buffer.data);
    buffer.data = __builtin_malloc(bytes);
    buffer.bytes = buffer.data ? bytes : 0;
    if (!buffer.data) throw std::bad_alloc();
  }
  return (A*)(((uintptr_t)buffer.data + 63) & ~(uintptr_t)63);
}

}  // namespace uk::UK_ISA

// Activations and their gradients, for sources compiled once per instruction set.
#pragma once

#include "exponential.h"

namespace uk::UK_ISA {
namespace {

// What an activation is at a place, and its slope there.
struct Curve {
  vec<float> value, slope;
};

// x times the normal distribution function, as precise as float32 (Abramowitz and Stegun 7.1.26).
struct Gelu {
  [[gnu::always_inline]] static Curve both(vec<float> x) {
    const vec<float> magnitude = x < 0.f ? -x : x;
    const vec<float> bell = exp2<float>(x * x * -0.72134752f);
    const vec<float> t = 1.f / (0.23164190f * magnitude + 1.f);
    const vec<float> tail =
        ((((0.530702715f * t - 0.726576014f) * t + 0.710706871f) * t - 0.142248368f) * t +
         0.127414796f) * t * bell;
    const vec<float> below = x < 0.f ? tail : 1.f - tail;
    // Further out the bell is nothing, but x might be more.
    const vec<float> near = x < -16.f ? vec<float>{} - 16.f : x > 16.f ? vec<float>{} + 16.f : x;
    return {x * below, below + near * bell * 0.39894228f};
  }
  vec<float> value(vec<float> x) const { return both(x).value; }
};

// x times the logistic function of 1.702 x.
struct QuickGelu {
  [[gnu::always_inline]] static Curve both(vec<float> x) {
    const vec<float> most = vec<float>{} + 125.f, power = x * -2.45546696f;
    const vec<float> below = 1.f / (1.f + exp2<float>(power < most ? power : most));
    return {x * below, below + 1.702f * x * below * (1.f - below)};
  }
  vec<float> value(vec<float> x) const { return both(x).value; }
};

#if defined(__AVX512F__)
// Functions of x that are odd but for a half, to 20 bits, of which bfloat16 shows 8: by cubic
// polynomials around every quarter, looked up in registers.
class Table {
 public:
  // `function` of x >= 0 is 1 from 7.75 on.
  template <class F>
  explicit Table(F function) {
    for (int i = 0; i < 32; ++i) {
      // Through the Chebyshev nodes of [-1/2, 1/2].
      double y[4], u[4];
      for (int k = 0; k < 4; ++k) {
        u[k] = 0.5 * __builtin_cos((2 * k + 1) * 0.39269908169872415);
        y[k] = function((i + u[k]) / 4) - 0.5;
      }
      for (int order = 1; order < 4; ++order)
        for (int k = 3; k >= order; --k) y[k] = (y[k] - y[k - 1]) / (u[k] - u[k - order]);
      double c[4] = {y[3], 0, 0, 0};
      for (int k = 2; k >= 0; --k) {
        for (int order = 3 - k; order > 0; --order) c[order] = c[order - 1] - u[k] * c[order];
        c[0] = y[k] - u[k] * c[0];
      }
      for (int order = 0; order < 4; ++order) coefficient_[order][i] = static_cast<float>(c[order]);
    }
    for (int order = 0; order < 4; ++order) coefficient_[order][31] = order ? 0.f : 0.5f;
    coefficient_[0][0] = 0.f;  // not merely small
  }

  vec<float> at(vec<float> x) const {
    const __m512 sign = _mm512_set1_ps(-0.f), magic = _mm512_set1_ps(12582912.f);
    const __m512 magnitude =
        _mm512_min_ps(_mm512_set1_ps(7.75f), _mm512_andnot_ps(sign, (__m512)x));  // a NaN stays
    const __m512 shifted = _mm512_fmadd_ps(magnitude, _mm512_set1_ps(4.f), magic);
    const vec<float> u =
        (vec<float>)_mm512_fmsub_ps(magnitude, _mm512_set1_ps(4.f), _mm512_sub_ps(shifted, magic));
    vec<float> c[4];
#pragma GCC unroll 4
    for (int order = 0; order < 4; ++order)
      c[order] = (vec<float>)_mm512_permutex2var_ps(
          _mm512_load_ps(coefficient_[order]), _mm512_castps_si512(shifted),
          _mm512_load_ps(coefficient_[order] + 16));
    const vec<float> p = ((c[3] * u + c[2]) * u + c[1]) * u + c[0];
    return (vec<float>)_mm512_xor_ps((__m512)p, _mm512_and_ps(sign, (__m512)x)) + 0.5f;
  }

 private:
  alignas(64) float coefficient_[4][32];
};

struct TableGelu {
  Curve both(vec<float> x) const { return {value(x), slopes_.at(x)}; }
  vec<float> value(vec<float> x) const { return x * values_.at(x); }

 private:
  static double below(double x) { return 0.5 * __builtin_erfc(x * -0.70710678118654752); }
  static double slope(double x) {
    return below(x) + x * 0.3989422804014327 * __builtin_exp(-0.5 * x * x);
  }

  Table values_{below}, slopes_{slope};
};
#endif

// Calls run(activation) with the one of storage type S.
template <class S, class Run>
UK_INLINE void with_activation(bool quick, Run run) {
  if (quick) return run(QuickGelu());
#if defined(__AVX512F__)
  if constexpr (sizeof(S) == 2) {
    static const TableGelu gelu;
    return run(gelu);
  }
#endif
  run(Gelu());
}

}  // namespace
}  // namespace uk::UK_ISA

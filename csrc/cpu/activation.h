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
// A function of x that is 0 from -6 down and 1 from 6 up: polynomials on intervals of 0.4, looked up
// in registers.  Of the normal distribution four coefficients give 17 bits, of which bfloat16 shows
// 8, and six give 26.
template <int COUNT>
class Table {
 public:
  template <class F>
  explicit Table(F function) {
    for (int i = -15; i <= 15; ++i) {
      double c[COUNT] = {i == 15 ? 1. : 0.};
      if (i > -15 && i < 15) interpolate(function, i, c);
      for (int order = 0; order < COUNT; ++order)
        coefficient_[order][i & 31] = static_cast<float>(c[order]);
    }
  }

  vec<float> at(vec<float> x) const {
    constexpr int kNearerZero = 2;  // with the sign of the first; of a NaN, the other
    const __m512 inner = _mm512_range_ps((__m512)x, _mm512_set1_ps(6.f), kNearerZero);
    const __m512 magic = _mm512_set1_ps(12582912.f);
    const __m512 shifted = _mm512_fmadd_ps(inner, _mm512_set1_ps(kScale), magic);
    vec<float> u = (vec<float>)inner;
    if constexpr (kCentred)
      u = (vec<float>)_mm512_fmsub_ps(inner, _mm512_set1_ps(kScale),
                                      _mm512_sub_ps(shifted, magic));
    vec<float> c[COUNT];
#pragma GCC unroll 6
    for (int order = 0; order < COUNT; ++order)
      c[order] = (vec<float>)_mm512_permutex2var_ps(
          _mm512_load_ps(coefficient_[order]), _mm512_castps_si512(shifted),
          _mm512_load_ps(coefficient_[order] + 16));
    vec<float> p = c[COUNT - 1];
#pragma GCC unroll 6
    for (int order = COUNT - 2; order >= 0; --order) p = p * u + c[order];
    return p;
  }

 private:
  static constexpr float kScale = 2.5f;
  static constexpr bool kCentred = COUNT > 4;  // with fewer, the digits lost are not missed

  // Through the Chebyshev nodes of the interval around i.
  template <class F>
  static void interpolate(F function, int i, double (&c)[COUNT]) {
    double y[COUNT], u[COUNT];
    for (int k = 0; k < COUNT; ++k) {
      const double x = (i + 0.5 * __builtin_cos((2 * k + 1) * 1.5707963267948966 / COUNT)) / kScale;
      u[k] = kCentred ? x * kScale - i : x;
      y[k] = function(x);
    }
    for (int order = 1; order < COUNT; ++order)
      for (int k = COUNT - 1; k >= order; --k) y[k] = (y[k] - y[k - 1]) / (u[k] - u[k - order]);
    c[0] = y[COUNT - 1];
    for (int k = COUNT - 2; k >= 0; --k) {
      for (int order = COUNT - 1 - k; order > 0; --order) c[order] = c[order - 1] - u[k] * c[order];
      c[0] = y[k] - u[k] * c[0];
    }
  }

  alignas(64) float coefficient_[COUNT][32] = {};
};

template <int COUNT>
struct TableGelu {
  Curve both(vec<float> x) const {
    const __mmask16 nan = _mm512_cmp_ps_mask((__m512)x, (__m512)x, _CMP_UNORD_Q);
    const __m512 slope = (__m512)slopes_.at(x);
    return {value(x), (vec<float>)_mm512_mask_mov_ps(slope, nan, (__m512)x)};
  }
  vec<float> value(vec<float> x) const { return x * values_.at(x); }

 private:
  static double below(double x) { return 0.5 * __builtin_erfc(x * -0.70710678118654752); }
  static double slope(double x) {
    return below(x) + x * 0.3989422804014327 * __builtin_exp(-0.5 * x * x);
  }

  Table<COUNT> values_{below}, slopes_{slope};
};
#endif

// Calls run(activation) with the one of storage type S.
template <class S, class Run>
UK_INLINE void with_activation(bool quick, Run run) {
  if (quick) return run(QuickGelu());
#if defined(__AVX512F__)
  static const TableGelu<sizeof(S) == 2 ? 4 : 6> gelu;
  return run(gelu);
#else
  run(Gelu());
#endif
}

}  // namespace
}  // namespace uk::UK_ISA

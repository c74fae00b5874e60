// Powers of two, for sources compiled once per instruction set.
#pragma once

#include "vector.h"

namespace uk::UK_ISA {

UK_INLINE vec<float> maximum(vec<float> a, vec<float> b) { return a < b ? b : a; }

constexpr float kMagic = 12582912.f;  // x + kMagic ends in the bits of x's nearest whole number

// 2^(whole + rest), as precise as numbers N are; the whole part comes as `whole + kMagic`.
template <class N>
UK_INLINE vec<float> power_of_two(vec<float> shifted, vec<float> rest) {
  vec<float> p;
  if constexpr (sizeof(N) == 4) {
    p = ((1.52527338e-5f * rest + 1.54035304e-4f) * rest + 1.33335581e-3f) * rest + 9.61812911e-3f;
    p = (p * rest + 5.55041087e-2f) * rest + 2.40226507e-1f;
    p = p * rest + 6.93147181e-1f;
  } else {
    p = (5.50089432e-2f * rest + 2.42210962e-1f) * rest + 6.93282925e-1f;
  }
  p = p * rest + 1.f;
  return (vec<float>)((words)p + ((words)shifted << 23));
}

// 2^x for x < 126, and 2^-100 at least.  A NaN stays.
template <class N>
UK_INLINE vec<float> exp2(vec<float> x) {
  static const float lowest = -100.f;  // weights this small still make no subnormal numbers
  x = maximum(x, broadcast_once(&lowest));
  const vec<float> shifted = x + kMagic;
  return power_of_two<N>(shifted, x - (shifted - kMagic));
}

// 2^(scale x) between 2^-126 and 2^126.
template <class N>
UK_INLINE vec<float> exp2_scaled(vec<float> x, float scale) {
  const vec<float> shifted = x * scale + kMagic;
  return power_of_two<N>(shifted, x * scale - (shifted - kMagic));
}

#if defined(__AVX512BF16__)
// 2^x between 2^-126 and 2^127, to be cut off to bfloat16: half of its last place is added, so that
// this rounds.
UK_INLINE words cut_power(vec<float> x) {
  const vec<float> f = (vec<float>)_mm512_reduce_ps((__m512)x, 9);  // x - floor(x)
  vec<float> p = (7.80245e-2f * f + 2.26067160e-1f) * f + 6.95833536e-1f;
  p = p * f + (9.99925219e-1f + 0x1p-8f);
  return (words)_mm512_scalef_ps((__m512)p, (__m512)x);
}
#endif

}  // namespace uk::UK_ISA

// A ceiling to hold kernels against: float32 multiply-adds out of registers.
#pragma once

#include "../cpu/cpu_features.h"

namespace uk {

// At least `count` of them, in independent chains: more than two units of a latency of four need.
// The result must be used, or there is nothing to compute.
template <class Vector>
inline __attribute__((always_inline)) float chains(long count) {
  constexpr int kChains = 12, kLanes = sizeof(Vector) / sizeof(float);
  Vector sums[kChains] = {}, x = {}, y = {};
  x += 0.5f;
  y += 0.25f;
  for (int c = 0; c < kChains; ++c) sums[c] += float(c);  // or all would be one
  for (long i = 0; i < count; i += kChains * kLanes)
#pragma GCC unroll 12
    for (int c = 0; c < kChains; ++c) sums[c] = sums[c] * x + y;
  float result = 0;
  for (int c = 0; c < kChains; ++c)
    for (int lane = 0; lane < kLanes; ++lane) result += sums[c][lane];
  return result;
}

typedef float Lanes4 __attribute__((vector_size(16)));
inline float multiply_adds_portable(long count) { return chains<Lanes4>(count); }

#ifdef UK_X86
typedef float Lanes8 __attribute__((vector_size(32)));
typedef float Lanes16 __attribute__((vector_size(64)));
__attribute__((target("avx2,fma"))) inline float multiply_adds_avx2(long count) {
  return chains<Lanes8>(count);
}
__attribute__((target("avx512f"))) inline float multiply_adds_avx512(long count) {
  return chains<Lanes16>(count);
}
#endif

// With the widest registers this processor has.
inline float multiply_adds(long count) {
#ifdef UK_X86
  if (adds(InstructionSet::avx512)) return multiply_adds_avx512(count);
  if (adds(InstructionSet::avx2)) return multiply_adds_avx2(count);
#endif
  return multiply_adds_portable(count);
}

}  // namespace uk

// Rows less their means, in float32, for sources compiled once per instruction set.
#pragma once

#include "channels.h"

namespace uk::UK_ISA {
namespace {

// Numbers from one row to the next in float32: whole vectors.
UK_INLINE int64_t whole(int64_t C) {
  constexpr int64_t L = lanes_of<float>;
  return (C + L - 1) / L * L;
}

// N rows in float32, and their means.
template <int64_t N, class S>
UK_INLINE void read(const S* x, int64_t C, int64_t width, float* wide, float* mean) {
  vec<float> sum[N] = {};
  channels<float>(C, [&](int64_t c, int64_t count) {
    for (int64_t r = 0; r < N; ++r) {
      const vec<float> value = load_part<float>(x + r * C + c, count);
      sum[r] += value;
      store(wide + r * width + c, value);
    }
  });
  for (int64_t r = 0; r < N; ++r) mean[r] = sum_of(sum[r]) / C;
}

// Takes the means off the rows, and gives 1 / deviation.
template <int64_t N>
UK_INLINE void centre(int64_t C, int64_t width, float eps, float* wide, const float* mean,
                      float* rstd) {
  vec<float> squares[N] = {};
  float means[N];
  for (int64_t r = 0; r < N; ++r) means[r] = mean[r];
  channels<float>(C, [&](int64_t c, int64_t count) {
    for (int64_t r = 0; r < N; ++r) {
      float* at = wide + r * width + c;
      store(at, load(at) - means[r]);
      const vec<float> difference = load_part<float>(at, count);  // behind the row zeros
      squares[r] += difference * difference;
    }
  });
  for (int64_t r = 0; r < N; ++r) rstd[r] = 1 / __builtin_sqrtf(sum_of(squares[r]) / C + eps);
}

}  // namespace
}  // namespace uk::UK_ISA

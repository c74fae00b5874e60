// Attention of a few rows to normalised tokens.  Tokens lie in float32 less their means; what they
// are divided by goes to the scores and weights instead, which are fewer.

#include "exponential.h"
#include "normalise.h"
#include "pooling.h"

namespace uk::UK_ISA {
namespace {

constexpr int64_t kTogether = UK_VECTOR_REGISTERS / 8;  // tokens, or rows, in registers
constexpr float kLog2e = 1.44269504f;

// A number that is a constant to whom it is passed.
template <int64_t N>
struct Fixed {
  constexpr operator int64_t() const { return N; }
};

// Calls run(first, how many) for `count` in turn: kTogether at a time, then one by one.
template <class Run>
UK_INLINE void grouped(int64_t count, Run run) {
  int64_t i = 0;
  for (; i + kTogether <= count; i += kTogether) run(i, Fixed<kTogether>{});
  for (; i < count; ++i) run(i, Fixed<1>{});
}

// The tokens less their means, y [count, whole(C)].
template <class S>
UK_INLINE void less(const S* tokens, int64_t count, int64_t C, const float* mean, float* y) {
  for (int64_t t = 0; t < count; ++t)
    channels<float>(C, [&](int64_t c, int64_t part) {
      store(y + t * whole(C) + c, load_part<float>(tokens + t * C + c, part) - mean[t]);
    });
}

// out [R, kPooled] = rows [R, C] y [count, whole(C)]', every token's times `scale`.
UK_INLINE void products(const float* rows, int64_t R, const float* y, int64_t count, int64_t C,
                        const float* scale, float* out) {
  const int64_t width = whole(C);
  grouped(R, [&](int64_t r, auto rows_together) {
    grouped(count, [&](int64_t t, auto tokens_together) {
      constexpr int64_t M = rows_together, N = tokens_together;
      vec<float> sum[M][N] = {};
      channels<float>(C, [&](int64_t c, int64_t part) {
        vec<float> token[N];
        for (int64_t j = 0; j < N; ++j) token[j] = load_part<float>(y + (t + j) * width + c, part);
        for (int64_t i = 0; i < M; ++i) {
          const vec<float> row = load_part<float>(rows + (r + i) * C + c, part);
          for (int64_t j = 0; j < N; ++j) sum[i][j] += row * token[j];
        }
      });
      for (int64_t i = 0; i < M; ++i)
        for (int64_t j = 0; j < N; ++j)
          out[(r + i) * kPooled + t + j] = scale[t + j] * sum_of(sum[i][j]);
    });
  });
}

// A matrix of weights, of which element (i, j) lies at data[i * row + j * column].
struct Weights {
  const float* data;
  int64_t row, column;
};

// out [M, out_width] (+)= weights [M, K] x [K, x_width], of C channels.
template <bool add>
UK_INLINE void weighted(const Weights& w, int64_t M, int64_t K, const float* x, int64_t x_width,
                        int64_t C, float* out, int64_t out_width) {
  grouped(M, [&](int64_t m, auto rows_together) {
    constexpr int64_t N = rows_together;
    channels<float>(C, [&](int64_t c, int64_t part) {
      vec<float> sum[N] = {};
      for (int64_t k = 0; k < K; ++k) {
        const vec<float> value = load_part<float>(x + k * x_width + c, part);
        for (int64_t i = 0; i < N; ++i)
          sum[i] += value * w.data[(m + i) * w.row + k * w.column];
      }
      for (int64_t i = 0; i < N; ++i) {
        float* at = out + (m + i) * out_width + c;
        store_part<float>(at, add ? load_part<float>(at, part) + sum[i] : sum[i], part);
      }
    });
  });
}

template <class S>
void forward(const Pooling& n, const S* tokens, int64_t count, float* mean, float* rstd,
             float* highest, float* sums, float* pooled) {
  const int64_t width = whole(n.C);
  float* y = scratch<float>(kPooled * (width + n.R));
  float* weights = y + kPooled * width;  // [R, kPooled]
  grouped(count, [&](int64_t t, auto together) {
    constexpr int64_t N = together;
    read<N>(tokens + t * n.C, n.C, width, y + t * width, mean + t);
    centre<N>(n.C, width, n.eps, y + t * width, mean + t, rstd + t);
  });
  products(n.rows, n.R, y, count, n.C, rstd, weights);
  for (int64_t r = 0; r < n.R; ++r) {
    float* of = weights + r * kPooled;
    float most = of[0] * kLog2e, sum = 0;
    for (int64_t t = 1; t < count; ++t) most = of[t] * kLog2e > most ? of[t] * kLog2e : most;
    channels<float>(count, [&](int64_t t, int64_t part) {
      const vec<float> p = exp2<float>(load_part<float>(of + t, part) * kLog2e - most);
      store_part<float>(of + t, p, part);
    });
    for (int64_t t = 0; t < count; ++t) sum += of[t], of[t] *= rstd[t];
    highest[r] = most, sums[r] = sum;
  }
  weighted<false>({weights, kPooled, 1}, n.R, count, y, width, n.C, pooled, n.C);
}

// A normalised token's gradient is weights' dpooled + slopes' rows, of which LayerNorm's backward
// takes off the mean and the part along the token.
template <class S>
void backward(const Pooling& n, const PoolingGradient& g, const S* tokens, const float* mean,
              const float* rstd, int64_t count, float* drows, S* dtokens) {
  const int64_t C = n.C, width = whole(C), table = n.R * kPooled;
  float* y = scratch<float>(kPooled * (2 * width + 1) + 2 * table);
  float* gradients = y + kPooled * width;
  float *weights = gradients + kPooled * width, *slopes = weights + table;  // [R, kPooled]
  float* along = slopes + table;  // of every token, C times the gradient's part along it
  less(tokens, count, C, mean, y);
  products(n.rows, n.R, y, count, C, rstd, weights);
  products(g.dpooled, n.R, y, count, C, rstd, slopes);
  for (int64_t t = 0; t < count; ++t) along[t] = 0;
  for (int64_t r = 0; r < n.R; ++r)
    channels<float>(count, [&](int64_t t, int64_t part) {
      float *weight = weights + r * kPooled + t, *slope = slopes + r * kPooled + t;
      const vec<float> score = load_part<float>(weight, part), dp = load_part<float>(slope, part);
      const vec<float> p = exp2<float>(score * kLog2e - g.lse[r]);
      const vec<float> ds = p * (dp - g.along[r]);
      const vec<float> inverse = load_part<float>(rstd + t, part);
      store_part<float>(along + t, load_part<float>(along + t, part) + p * dp + ds * score, part);
      store_part<float>(weight, p * inverse, part);
      store_part<float>(slope, ds * inverse, part);
    });
  weighted<false>({slopes, kPooled, 1}, n.R, count, y, width, C, drows, C);
  if (!dtokens) return;
  weighted<false>({weights, 1, kPooled}, count, n.R, g.dpooled, C, C, gradients, width);
  weighted<true>({slopes, 1, kPooled}, count, n.R, n.rows, C, C, gradients, width);
  for (int64_t t = 0; t < count; ++t) {
    const float *gradient = gradients + t * width, *token = y + t * width;
    vec<float> sum = {};
    channels<float>(C, [&](int64_t c, int64_t part) { sum += load_part<float>(gradient + c, part); });
    const float level = sum_of(sum) / C, tilt = along[t] / C * rstd[t] * rstd[t];
    channels<float>(C, [&](int64_t c, int64_t part) {
      const vec<float> away = load_part<float>(token + c, part) * tilt + level;
      store_part<float>(dtokens + t * C + c, load_part<float>(gradient + c, part) - away, part);
    });
  }
}

}  // namespace

template <class S>
const PoolingKernels<S>& pooling_kernels() {
  static const PoolingKernels<S> kernels = {forward<S>, backward<S>};
  return kernels;
}

template const PoolingKernels<float>& pooling_kernels<float>();
template const PoolingKernels<bf16>& pooling_kernels<bf16>();
template const PoolingKernels<f16>& pooling_kernels<f16>();

}  // namespace uk::UK_ISA

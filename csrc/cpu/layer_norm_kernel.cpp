// LayerNorm and its gradients, some rows at a time: while one's sum is still to come the others'
// are taken.  Between its passes a row lies in float32 in L1.

#include "layer_norm.h"
#include "normalise.h"

namespace uk::UK_ISA {
namespace {

constexpr int64_t kRows = UK_VECTOR_REGISTERS / 8;  // at a time

template <int64_t N, class S>
UK_INLINE void write(const RowNorm& n, int64_t width, const float* wide, const float* rstd, S* y) {
  const int64_t C = n.C;
  const float *weights = n.weight, *biases = n.bias;
  float inverse[N];
  for (int64_t r = 0; r < N; ++r) inverse[r] = rstd[r];
  channels<float>(C, [&](int64_t c, int64_t count) {
    const vec<float> weight = load_part<float>(weights + c, count);
    const vec<float> bias = load_part<float>(biases + c, count);
    for (int64_t r = 0; r < N; ++r) {
      const vec<float> normal = load(wide + r * width + c) * inverse[r];
      store_part<float>(y + r * C + c, normal * weight + bias, count);
    }
  });
}

// The next rows are read before some are written, and those written before the next are centred:
// so nothing waits for a mean or a deviation.
template <class S>
void forward(const RowNorm& n, const S* x, int64_t rows, S* y, float* mean, float* rstd) {
  const int64_t C = n.C, width = whole(C), together = rows / kRows * kRows;
  float* wide = scratch<float>(2 * kRows * width);
  float* next = wide + kRows * width;
  if (together) read<kRows>(x, C, width, wide, mean);
  for (int64_t i = 0; i < together; i += kRows) {
    centre<kRows>(C, width, n.eps, wide, mean + i, rstd + i);
    if (i + kRows < together)
      read<kRows>(x + (i + kRows) * C, C, width, next, mean + i + kRows);
    write<kRows>(n, width, wide, rstd + i, y + i * C);
    float* written = wide;
    wide = next, next = written;
  }
  for (int64_t i = together; i < rows; ++i) {
    read<1>(x + i * C, C, width, wide, mean + i);
    centre<1>(C, width, n.eps, wide, mean + i, rstd + i);
    write<1>(n, width, wide, rstd + i, y + i * C);
  }
}

// From N rows of dy and x: their dx, y again, and what they add to the sums.
template <int64_t N, class S>
void backward_rows(const RowNorm& n, int64_t width, float* normals, float* slopes,
                             const S* dy, const S* x, const float* mean, const float* rstd, S* dx,
                             float* sums, S* y) {
  const int64_t C = n.C;
  const float *weights = n.weight, *biases = n.bias;
  float means[N], inverse[N];
  for (int64_t r = 0; r < N; ++r) means[r] = mean[r], inverse[r] = rstd[r];
  vec<float> sum[N] = {}, along[N] = {};
  channels<float>(C, [&](int64_t c, int64_t count) {
    const vec<float> weight = load_part<float>(weights + c, count);
    vec<float> normal[N], slope[N];
    for (int64_t r = 0; r < N; ++r) {
      normal[r] = (load_part<float>(x + r * C + c, count) - means[r]) * inverse[r];
      slope[r] = load_part<float>(dy + r * C + c, count);
    }
    if (y) {
      const vec<float> bias = load_part<float>(biases + c, count);
      for (int64_t r = 0; r < N; ++r)
        store_part<float>(y + r * C + c, normal[r] * weight + bias, count);
    }
    if (sums) {
      vec<float> dweight = load_part<float>(sums + c, count);
      vec<float> dbias = load_part<float>(sums + C + c, count);
      for (int64_t r = 0; r < N; ++r) dweight += slope[r] * normal[r], dbias += slope[r];
      store_part<float>(sums + c, dweight, count);
      store_part<float>(sums + C + c, dbias, count);
    }
    if (dx)
      for (int64_t r = 0; r < N; ++r) {
        slope[r] *= weight;
        sum[r] += slope[r], along[r] += slope[r] * normal[r];
        store(normals + r * width + c, normal[r]);
        store(slopes + r * width + c, slope[r]);
      }
  });
  if (!dx) return;
  // dx = rstd (slope - its mean - normal (the mean of slope normal))
  float level[N], tilt[N];
  for (int64_t r = 0; r < N; ++r) level[r] = sum_of(sum[r]) / C, tilt[r] = sum_of(along[r]) / C;
  channels<float>(C, [&](int64_t c, int64_t count) {
    for (int64_t r = 0; r < N; ++r) {
      const vec<float> away = load(normals + r * width + c) * tilt[r] + level[r];
      const vec<float> rest = load(slopes + r * width + c) - away;
      store_part<float>(dx + r * C + c, rest * inverse[r], count);
    }
  });
}

template <class S>
void backward(const RowNorm& n, const S* dy, const S* x, const float* mean, const float* rstd,
              int64_t rows, S* dx, float* sums, S* y) {
  const int64_t C = n.C, width = whole(C), together = rows / kRows * kRows;
  float* normals = scratch<float>(2 * kRows * width);
  float* slopes = normals + kRows * width;
  if (sums) __builtin_memset(sums, 0, 2 * C * sizeof(float));
  for (int64_t i = 0; i < rows; i += i < together ? kRows : 1) {
    const int64_t at = i * C;
    auto* run = i < together ? backward_rows<kRows, S> : backward_rows<1, S>;
    run(n, width, normals, slopes, dy + at, x + at, mean + i, rstd + i, dx ? dx + at : nullptr,
        sums, y ? y + at : nullptr);
  }
}

template <class S>
void widen(const S* in, int64_t count, float* out) {
  channels<float>(count, [&](int64_t i, int64_t part) {
    store_part<float>(out + i, load_part<float>(in + i, part), part);
  });
}

}  // namespace

template <class S>
const LayerNormKernels<S>& layer_norm_kernels() {
  static const LayerNormKernels<S> kernels = {forward<S>, backward<S>, widen<S>};
  return kernels;
}

template const LayerNormKernels<float>& layer_norm_kernels<float>();
template const LayerNormKernels<bf16>& layer_norm_kernels<bf16>();
template const LayerNormKernels<f16>& layer_norm_kernels<f16>();

}  // namespace uk::UK_ISA

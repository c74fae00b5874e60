// LayerNorm over the channels: what the host and the kernels agree on.
// Plain data only, as in depthwise_conv.h.
#pragma once

#include <cstdint>

#include "storage.h"

namespace uk {

// y = weight (x - mean) / sqrt(variance + eps) + bias for rows of C channels side by side.
struct RowNorm {
  int64_t C;
  float eps;
  const float *weight, *bias;  // [C]
};

// One instruction set's kernels for storage type S.
template <class S>
struct LayerNormKernels {
  // And of every row its mean and 1 / deviation.
  void (*forward)(const RowNorm&, const S* x, int64_t rows, S* y, float* mean, float* rstd);
  // Gradients of x and, [2, C], of weight and bias, and y again; null: not wanted.
  void (*backward)(const RowNorm&, const S* dy, const S* x, const float* mean, const float* rstd,
                   int64_t rows, S* dx, float* sums, S* y);
  // In float32.
  void (*widen)(const S* in, int64_t count, float* out);
};

namespace amx {
template <class S>
const LayerNormKernels<S>& layer_norm_kernels();
}
namespace avx512_bf16 {
template <class S>
const LayerNormKernels<S>& layer_norm_kernels();
}
namespace avx512 {
template <class S>
const LayerNormKernels<S>& layer_norm_kernels();
}
namespace avx2 {
template <class S>
const LayerNormKernels<S>& layer_norm_kernels();
}
namespace portable {
template <class S>
const LayerNormKernels<S>& layer_norm_kernels();
}

}  // namespace uk

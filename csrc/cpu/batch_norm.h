// Batch normalisation as a scale and a shift of every channel, and the activation behind it: what the
// host and the kernels agree on.
// Plain data only, as in depthwise_conv.h.
#pragma once

#include <cstdint>

#include "storage.h"

namespace uk {

// y = activation(z), z = scale (x - center) + shift, for rows of C channels; GELU or no activation.
struct Normalisation {
  int64_t C;
  const float *center, *scale, *shift;
  bool gelu;
};

// One instruction set's kernels for storage type S.
template <class S>
struct BatchNormKernels {
  void (*run)(const Normalisation&, const S* x, int64_t rows, S* y);
  // Sums of z's gradient and of it times x - center, [2, C].
  void (*sums)(const Normalisation&, const S* dy, const S* x, int64_t rows, float* out);
  // dx = scale dz + offset + slope (x - center).
  void (*backward)(const Normalisation&, const S* dy, const S* x, const float* offset,
                   const float* slope, int64_t rows, S* dx);
};

namespace avx512 {
template <class S>
const BatchNormKernels<S>& batch_norm_kernels();
}
namespace avx2 {
template <class S>
const BatchNormKernels<S>& batch_norm_kernels();
}
namespace portable {
template <class S>
const BatchNormKernels<S>& batch_norm_kernels();
}

}  // namespace uk

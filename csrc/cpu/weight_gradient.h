// The weight gradient of a linear layer: what the host and the kernels agree on.
// Plain data only, as in depthwise_conv.h.
#pragma once

#include <cstdint>

#include "storage.h"

namespace uk {

// dw [outputs, inputs] = dy' x, with dy [rows, outputs] and x [rows, inputs], rows apart by strides.
struct WeightGradientShape {
  int64_t rows, outputs, inputs;
  int64_t dy_stride, x_stride;
  int64_t block;  // outputs in one task
  int64_t part;   // rows in one task
};

// One instruction set's kernels for storage type S.  A task is one (part, block of outputs, `columns`
// inputs), the last fastest.
template <class S>
struct WeightGradientKernels {
  int64_t columns;  // inputs in one task
  int64_t tile;     // outputs worked on at a time
  // The task's sums over its part's rows: its piece of dw [outputs, inputs], and with the first
  // columns that of db [outputs].
  void (*run)(const WeightGradientShape&, const S* dy, const S* x, float* dw, float* db,
              int64_t task);
};

namespace amx {
template <class S>
const WeightGradientKernels<S>& weight_gradient_kernels();
}
namespace avx512_bf16 {
template <class S>
const WeightGradientKernels<S>& weight_gradient_kernels();
}
namespace avx512 {
template <class S>
const WeightGradientKernels<S>& weight_gradient_kernels();
}
namespace avx2 {
template <class S>
const WeightGradientKernels<S>& weight_gradient_kernels();
}
namespace portable {
template <class S>
const WeightGradientKernels<S>& weight_gradient_kernels();
}

}  // namespace uk

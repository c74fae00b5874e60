// Linear layers by products of bfloat16, with their neighbours: what the host and the kernels agree
// on.
// Plain data only, as in depthwise_conv.h.
#pragma once

#include <cstdint>

#include "storage.h"

namespace uk {

enum class Activation { none, gelu, quick_gelu };

// A weight as the kernels multiply by it: outputs in panels, zero-filled, and its bias in float32.
struct PackedLayer {
  int64_t inputs, outputs;
  const void* weight;
  const float* bias;  // [outputs], zero-filled to a whole panel
};

// A task's y [rows, outputs] = [residual +] layer(x), rows of x and residual apart by strides.
struct LinearShape {
  int64_t rows, x_stride, residual_stride;
  Activation activation;
};

// One instruction set's kernels for x and weights of storage type X, residual and y of Y.
template <class X, class Y>
struct LinearKernels {
  int64_t panel;  // outputs in a panel
  int64_t depth;  // inputs of a packed weight are zero-filled to a multiple of this
  int64_t bytes;  // of a packed number
  int64_t hidden;  // activations between two layers that exist at once of a row
  // One panel of weight [outputs, inputs], whose outputs or inputs lie side by side.
  void (*pack)(const X* weight, int64_t output_stride, int64_t input_stride, int64_t inputs,
               int64_t outputs, int64_t index, void* panel);
  // activation(layer(x)), or second(activation(first(x))), plus the residual.
  void (*linear)(const LinearShape&, const PackedLayer&, const X* x, const Y* residual, Y* y);
  void (*feed_forward)(const LinearShape&, const PackedLayer& first, const PackedLayer& second,
                       const X* x, const Y* residual, Y* y);
  // z becomes activation(z), and dhidden, the gradient of that, the gradient of z.
  void (*activation_backward)(bool quick, Y* z, Y* dhidden, int64_t count);
};

namespace amx {
template <class X, class Y>
const LinearKernels<X, Y>& linear_kernels();
}
namespace avx512_bf16 {
template <class X, class Y>
const LinearKernels<X, Y>& linear_kernels();
}
namespace avx512 {
template <class X, class Y>
const LinearKernels<X, Y>& linear_kernels();
}
namespace avx2 {
template <class X, class Y>
const LinearKernels<X, Y>& linear_kernels();
}
namespace portable {
template <class X, class Y>
const LinearKernels<X, Y>& linear_kernels();
}

}  // namespace uk

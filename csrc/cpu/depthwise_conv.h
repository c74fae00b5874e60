// Depthwise 3-D convolution on channels-last maps: what the host and the kernels agree on.
//
// The kernel source is compiled once per instruction set and must share no inline function with
// the rest of the library: the linker would keep one copy of it, perhaps the AVX-512 one, for
// every caller.  This header therefore holds plain data only.
#pragma once

#include <cstdint>

#include "storage.h"

namespace uk {

// The type sums are kept in, and the one weights are packed in.
template <class S>
struct accumulator {
  using type = float;
};
template <>
struct accumulator<double> {
  using type = double;
};

// Sizes of one call.  Kernel sizes are odd; padding is half of them, so all maps are alike.
struct DepthwiseShape {
  int64_t B, T, H, W, C;
  int64_t kt, kh, kw;
  int64_t chunk;  // rows of H in one task
  int64_t group;  // and blocks of channels
};

// A map [B, T, H, W, C] with any strides, in elements.
template <class S>
struct DepthwiseMap {
  const S* data;
  int64_t stride[5];
};

// One instruction set's kernels for storage type S.  A task is one (sample, chunk of rows, group
// of channel blocks), groups fastest; a channel block is `lanes` channels, zero-filled at the end.
// Packed weights are [blocks, kt, kh, kw, lanes], packed bias [blocks, lanes].
template <class S>
struct DepthwiseKernels {
  using A = typename accumulator<S>::type;
  int64_t lanes;
  // y = bias + conv(x) [+ x], y contiguous.
  void (*forward)(const DepthwiseShape&, const DepthwiseMap<S>& x, const A* weight, const A* bias,
                  bool residual, S* y, int64_t task);
  // From dy: the input gradient (weights flipped; `dx` null: not wanted) and this task's parts of
  // the weight and bias gradients, [sample, chunk, block] of [kt, kh, kw, lanes] then [lanes]
  // (`partial` null: not wanted).
  void (*backward)(const DepthwiseShape&, const DepthwiseMap<S>& dy, const DepthwiseMap<S>& x,
                   const A* flipped, bool residual, S* dx, A* partial, int64_t task);
};

// The instruction sets, each a compilation of depthwise_conv_kernel.cpp.
namespace avx512 {
template <class S>
const DepthwiseKernels<S>& depthwise_kernels();
}
namespace avx2 {
template <class S>
const DepthwiseKernels<S>& depthwise_kernels();
}
namespace portable {
template <class S>
const DepthwiseKernels<S>& depthwise_kernels();
}

}  // namespace uk

// Sums over the rows of a matrix, for batch normalisation: what the host and the kernels agree on.
// Plain data only, as in depthwise_conv.h.
#pragma once

#include <cstdint>

#include "depthwise_conv.h"

namespace uk {

// One instruction set's kernels for storage type S, on rows [rows, C] side by side.
template <class S>
struct MomentsKernels {
  using A = typename accumulator<S>::type;
  // sums [2, C] = the sums of x - shift and of its square; `shift` null: zeros.
  void (*run)(const S* x, const A* shift, int64_t rows, int64_t C, A* sums);
  // dx = dy + dmoments[0] + 2 (x - shift) dmoments[1]; `dy` null: zeros.
  void (*backward)(const S* dy, const S* x, const A* shift, const A* dmoments, int64_t rows,
                   int64_t C, S* dx);
};

namespace avx512 {
template <class S>
const MomentsKernels<S>& moments_kernels();
}
namespace avx2 {
template <class S>
const MomentsKernels<S>& moments_kernels();
}
namespace portable {
template <class S>
const MomentsKernels<S>& moments_kernels();
}

}  // namespace uk

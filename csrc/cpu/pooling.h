// Attention of a few rows to normalised tokens: what the host and the kernels agree on.
// Plain data only, as in depthwise_conv.h.
#pragma once

#include <cstdint>

#include "storage.h"

namespace uk {

constexpr int64_t kPooled = 64;  // tokens at a time: in float32 they fit the L2 cache

// pooled [R, C] = softmax(rows y') y, where y are the tokens less their means, over their deviations.
struct Pooling {
  int64_t R, C;
  float eps;
  const float* rows;  // [R, C], as everything in float32
};

// The way back of one sample.
struct PoolingGradient {
  const float* dpooled;  // [R, C]
  const float* along;    // [R], the products of dpooled and pooled
  const float* lse;      // [R], log2 of the sums of 2^score
};

// One instruction set's kernels for tokens of storage type S, at most kPooled of them side by side.
template <class S>
struct PoolingKernels {
  // Their means and 1 / deviations, and of every row over these tokens: the highest score, in powers
  // of two, the sum of 2^(score - highest), and [R, C] the tokens' sum with these weights.
  void (*forward)(const Pooling&, const S* tokens, int64_t count, float* mean, float* rstd,
                  float* highest, float* sums, float* pooled);
  // Their gradients, unless null, and what they add to those of the rows, [R, C].
  void (*backward)(const Pooling&, const PoolingGradient&, const S* tokens, const float* mean,
                   const float* rstd, int64_t count, float* drows, S* dtokens);
};

namespace avx512 {
template <class S>
const PoolingKernels<S>& pooling_kernels();
}
namespace avx2 {
template <class S>
const PoolingKernels<S>& pooling_kernels();
}
namespace portable {
template <class S>
const PoolingKernels<S>& pooling_kernels();
}

}  // namespace uk

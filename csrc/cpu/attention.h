// Joint attention from packed queries, keys and values: what the host and the kernels agree on.
// Plain data only, as in depthwise_conv.h.
#pragma once

#include <cstdint>

#include "storage.h"

namespace uk {

// Sizes of one call.  qkv is [B, N, 3, H, d] with any strides for samples and tokens.
struct AttentionShape {
  int64_t B, N, H, d;
  float scale;
  int64_t sample_stride, token_stride;
  int64_t chunk;  // queries in one task, a multiple of the tile
};

// One instruction set's kernels for storage type S.  A task is one (sample, head, chunk of
// queries), chunks fastest.
template <class S>
struct AttentionKernels {
  int64_t tile;     // queries worked on at a time
  int64_t padding;  // heads are padded to a multiple of this in the partial sums
  // out [B, N, H, d] = softmax(scale q k') v, lse [B, H, N] = log2 sum exp2 of the scaled scores.
  void (*forward)(const AttentionShape&, const S* qkv, S* out, float* lse, int64_t task);
  // dqkv's third for queries, and this task's part of those for keys and values,
  // [2, N, d padded], from dout and out [B, N, H, d].
  void (*backward)(const AttentionShape&, const S* qkv, const S* dout, const S* out,
                   const float* lse, S* dqkv, float* partial, int64_t task);
};

namespace avx512 {
template <class S>
const AttentionKernels<S>& attention_kernels();
}
namespace avx2 {
template <class S>
const AttentionKernels<S>& attention_kernels();
}
namespace portable {
template <class S>
const AttentionKernels<S>& attention_kernels();
}

}  // namespace uk

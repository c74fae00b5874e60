// Joint and window attention from packed queries, keys and values: what the host and the kernels agree on.
// Plain data only, as in depthwise_conv.h.
#pragma once

#include <cstdint>

#include "storage.h"

namespace uk {

// Sizes of one call.  qkv is [B, N, 3, H, d] with any strides for samples and tokens.
//
// The tokens are a grid's, row by row, and attend inside windows of it.  Windows start at the
// grid's first corner; where they reach over it, all that is missing is one key and one value, the
// bias, as often.  Joint attention has one row and one window, as wide as the row.
struct AttentionShape {
  int64_t B, N, H, d;
  float scale;
  int64_t sample_stride, token_stride;
  int64_t columns;      // of the grid
  int64_t tall, wide;   // height and width of a window
  int64_t down, across; // windows above and beside each other
  int64_t tokens;       // in the largest window
  int64_t padded;       // 1 where windows reach over the grid, else 0
  int64_t chunk;        // queries in one task, a multiple of the tile
  int64_t rows;         // of keys in a task's partial sums
};

// One instruction set's kernels for storage type S.  A task is one (sample, window, head, chunk of
// queries), chunks fastest.  The bias [3, H, d] is read where windows reach over the grid.
template <class S>
struct AttentionKernels {
  int64_t queries;  // worked on at a time, forward
  int64_t tile;     // and backward
  int64_t padding;  // heads are padded to a multiple of this in the partial sums
  int64_t depth;    // and keys to a multiple of this
  // out [B, N, H, d] = softmax(scale q k') v, lse [B, H, N] = log2 sum exp2 of the scaled scores,
  // for tasks [begin, end).
  void (*forward)(const AttentionShape&, const S* qkv, const S* bias, S* out, float* lse,
                  int64_t begin, int64_t end);
  // dqkv's third for queries, and this task's part of those for keys and values,
  // [2, rows, d padded] with the bias before the tokens, from dout and out [B, N, H, d].
  void (*backward)(const AttentionShape&, const S* qkv, const S* bias, const S* dout, const S* out,
                   const float* lse, S* dqkv, float* partial, int64_t task);
  // A row of d numbers: `factor` times the sum of `count` parts' rows, in their order.
  void (*sum)(const float* part, int64_t count, int64_t stride, float factor, int64_t d, S* row);
};

namespace amx {
template <class S>
const AttentionKernels<S>& attention_kernels();
}
namespace avx512_bf16 {
template <class S>
const AttentionKernels<S>& attention_kernels();
}
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

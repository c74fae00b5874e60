// The gradients of a feed-forward network of float32 in one walk over its rows, with AMX: what the
// host and the kernels agree on.
// Plain data only, as in depthwise_conv.h.
#pragma once

#include <cstdint>

#include "storage.h"

namespace uk {

// hidden = activation(x fc1' + bias), y = hidden fc2', with x [rows, inputs], y [rows, outputs].
// Rows come in chunks, all operands of which exist at once.  Sizes below are whole blocks of 32.
struct FeedForwardShape {
  int64_t rows, inputs, hidden, outputs;
  int64_t x_stride, dy_stride;
  int64_t chunk;  // rows
  int64_t part;   // of a chunk's rows, in one task
  int64_t group;  // of hidden channels, in one task
  bool quick;
};

// What is multiplied, every number in three parts of bfloat16, and what comes of it.
struct FeedForwardOperands {
  const float *x, *dy;
  const bf16 *fc1, *fc1_turned, *fc2_turned;  // packed to make hidden, dx and dhidden
  const float* bias;                          // [hidden]
  bf16 *x_rows, *x_turned, *dy_rows, *dy_turned;  // of the chunk
  bf16* dz_rows;                                  // the gradient of x fc1' + bias, if dx is wanted
  float* sums;  // of one task after the other, `size` each
  int64_t size;
};

// A task is one (part, group), the last fastest.  Its sums are blocks of 32 x 32: of x' dz
// [group, inputs], and of dy' hidden [group, outputs]; then dz's [group], then dy's [outputs].
struct FeedForwardKernels {
  // One panel of 32 outputs of a weight [outputs, inputs], adjacent along either axis.
  void (*pack)(const float* weight, int64_t output_stride, int64_t input_stride, int64_t inputs,
               int64_t outputs, int64_t index, bf16* panel);
  // Splits 32 rows of x and dy, from `row` of the chunk that starts at `first`.
  void (*split)(const FeedForwardShape&, const FeedForwardOperands&, int64_t first, int64_t row);
  // Adds up a task's share of the chunk; the first chunk starts the sums.
  void (*add)(const FeedForwardShape&, const FeedForwardOperands&, int64_t first, int64_t task);
  // Rows `row` to `end` of the chunk's dx.
  void (*input)(const FeedForwardShape&, const FeedForwardOperands&, int64_t first, int64_t row,
                int64_t end, float* dx);
  // The gradients of 32 hidden channels, from the sums of `parts` parts; with the first ones that
  // of y's bias.
  void (*finish)(const FeedForwardShape&, const FeedForwardOperands&, int64_t parts,
                 int64_t channel, float* const* results);
};

namespace amx {
const FeedForwardKernels& feed_forward_kernels();
}

}  // namespace uk

// Sums over what blocks found, and over the rows of a matrix: what the host and the kernels agree
// on.  Their order is the shape's alone.
#pragma once

#include <cstdint>

#include "../cpu/storage.h"

namespace uk::cuda {

// A block has kSumChannels numbers next to each other and as many times as it has lanes a part of
// what is to be added up.
constexpr int kSumChannels = 32;
constexpr int kSumLanes = 8;
constexpr int kSumThreads = kSumChannels * kSumLanes;
constexpr int kSumShared = kSumThreads * 4;  // bytes

constexpr int64_t sum_blocks(int64_t numbers) { return (numbers + kSumChannels - 1) / kSumChannels; }

// Adds [parts, rows, C] up over the parts, to `first` [C][rows] or any strides, the last row to
// `last` if there is one.
template <class S>
struct SumParts {
  const float* partials;
  int64_t parts, rows, C;
  S* first;
  int64_t channel_stride, row_stride;
  S* last;
};

// Of x [N, C]: the sums of x - shift and of its square over a part of the rows, to [parts, 2, C].
template <class S>
struct Moments {
  const S* x;
  const float* shift;  // null: zeros
  int64_t N, C, parts;
  float* partials;
};

// dx = dy + dmoments[0] + 2 (x - shift) dmoments[1].
template <class S>
struct MomentsBackward {
  const S *dy, *x;     // dy null: zeros
  const float* shift;  // null: zeros
  const float* dmoments;
  int64_t N, C;
  S* dx;
};

// Compiled once per storage type.
template <class S>
void start(const SumParts<S>& p, void* stream);
template <class S>
void start(const Moments<S>& p, void* stream);
template <class S>
void start(const MomentsBackward<S>& p, void* stream);

}  // namespace uk::cuda

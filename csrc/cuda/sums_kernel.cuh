// Sums over what blocks found, and over the rows of a matrix, in an order the shape alone decides.
#pragma once

#include <cstdint>

#include "primitives.cuh"
#include "sums.h"

namespace uk::cuda {

// A lane's sum to that of all lanes, in their order; complete in lane 0 only.
__device__ __forceinline__ float add_lanes(float sum) {
  float* sums = reinterpret_cast<float*>(shared_memory());
  const int thread = static_cast<int>(threadIdx.x);
  __syncthreads();
  sums[thread] = sum;
  __syncthreads();
  if (thread >= kSumChannels) return 0.f;
  for (int lane = 1; lane < kSumLanes; ++lane) sum += sums[lane * kSumChannels + thread];
  return sum;
}

template <class S>
__global__ void __launch_bounds__(kSumThreads) sum_parts(const SumParts<S> p) {
  const int thread = static_cast<int>(threadIdx.x);
  const int64_t count = p.rows * p.C;
  const int64_t n = int64_t{blockIdx.x} * kSumChannels + thread % kSumChannels;
  float sum = 0.f;
  if (n < count)
    for (int64_t part = thread / kSumChannels; part < p.parts; part += kSumLanes)
      sum += p.partials[part * count + n];
  sum = add_lanes(sum);
  if (thread >= kSumChannels || n >= count) return;
  const int64_t row = n / p.C, c = n % p.C;
  if (p.last != nullptr && row == p.rows - 1)
    p.last[c] = narrow<S>(sum);
  else
    p.first[c * p.channel_stride + row * p.row_stride] = narrow<S>(sum);
}

template <class S>
__global__ void __launch_bounds__(kSumThreads) moments_kernel(const Moments<S> p) {
  const int thread = static_cast<int>(threadIdx.x);
  const int64_t blocks = sum_blocks(p.C);
  const int64_t c = blockIdx.x % blocks * kSumChannels + thread % kSumChannels;
  const int64_t part = blockIdx.x / blocks;
  float first = 0.f, second = 0.f;
  if (c < p.C) {
    const float shift = p.shift == nullptr ? 0.f : p.shift[c];
    for (int64_t row = part * kSumLanes + thread / kSumChannels; row < p.N;
         row += p.parts * kSumLanes) {
      const float centred = widen(p.x[row * p.C + c]) - shift;
      first += centred;
      second = fmaf(centred, centred, second);
    }
  }
  first = add_lanes(first);
  second = add_lanes(second);
  if (thread >= kSumChannels || c >= p.C) return;
  p.partials[(part * 2) * p.C + c] = first;
  p.partials[(part * 2 + 1) * p.C + c] = second;
}

template <class S>
__global__ void __launch_bounds__(kSumThreads) moments_backward_kernel(const MomentsBackward<S> p) {
  for (int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x; i < p.N * p.C;
       i += int64_t{gridDim.x} * blockDim.x) {
    const int64_t c = i % p.C;
    const float centred = widen(p.x[i]) - (p.shift == nullptr ? 0.f : p.shift[c]);
    const float own = p.dy == nullptr ? 0.f : widen(p.dy[i]);
    p.dx[i] = narrow<S>(own + fmaf(2.f * centred, p.dmoments[p.C + c], p.dmoments[c]));
  }
}

}  // namespace uk::cuda

// Compiled once per storage type, UK_STORAGE.

#include <algorithm>

#include "launch.cuh"
#include "sums_kernel.cuh"

namespace uk::cuda {

template <>
void start(const SumParts<UK_STORAGE>& p, void* stream) {
  launch(sum_parts<UK_STORAGE>, sum_blocks(p.rows * p.C), kSumThreads, kSumShared, stream, p);
}
template <>
void start(const Moments<UK_STORAGE>& p, void* stream) {
  launch(moments_kernel<UK_STORAGE>, p.parts * sum_blocks(p.C), kSumThreads, kSumShared, stream, p);
}
template <>
void start(const MomentsBackward<UK_STORAGE>& p, void* stream) {
  constexpr int64_t kMostBlocks = 1 << 16;  // then each takes more than one element a thread
  const int64_t blocks = (p.N * p.C + kSumThreads - 1) / kSumThreads;
  launch(moments_backward_kernel<UK_STORAGE>, std::min(blocks, kMostBlocks), kSumThreads, 0, stream,
         p);
}

}  // namespace uk::cuda

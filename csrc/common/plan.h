// What the plans of all CUDA kernels share.  Free of torch and CUDA.
#pragma once

#include <cstdint>

namespace uk::cuda {

constexpr int kVector = 16;                              // bytes a thread copies at once
constexpr int64_t kMostBlocks = (int64_t{1} << 31) - 1;  // of a grid

constexpr int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

}  // namespace uk::cuda

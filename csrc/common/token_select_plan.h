// How the CUDA kernels that choose tokens and put them back divide a call among blocks.
//
// Free of torch and CUDA.  A block has either all tokens of a sample and some channels, so that it
// chooses and adds up alone, or all channels of some tokens.
#pragma once

#include <cstdint>

#include "plan.h"

namespace uk::cuda {

constexpr int kTokenThreads = 256;  // as many as a byte has values
constexpr int kSlice = 64;          // channels of a block that has all tokens of a sample
constexpr int kTokens = 32;         // tokens of a block that has all of their channels
constexpr int64_t kMostTokens = 8192;  // of a sample: they are counted in 16 bits, in shared memory

// One without channels as well, for tokens are chosen all the same.
constexpr int64_t slices(int64_t C) { return C > 0 ? divide_up(C, kSlice) : 1; }
constexpr int64_t token_blocks(int64_t N) { return divide_up(N, kTokens); }

// Bytes of shared memory: a warp's sums; for every thread a vector of sums, or a count; and for
// every token so many numbers.
constexpr int kWarpSums = 64;
constexpr int kThreadSums = kTokenThreads * 8 * 4;
constexpr int choosing_bytes(int64_t N) { return kWarpSums + kThreadSums + static_cast<int>(8 * N); }
constexpr int adding_bytes(int64_t N) { return kWarpSums + kThreadSums + static_cast<int>(4 * N); }
constexpr int marking_bytes(int64_t N) { return kWarpSums + static_cast<int>(4 * N); }

}  // namespace uk::cuda

// CUDA on a processor, for the sources in csrc/cuda: forced in front of them (-include), it takes
// the place of primitives.cuh and launch.cuh.
//
// Blocks run one after another.  A block's threads are fibres: each runs until it meets a barrier,
// then the next one does.  A thread that a missing barrier lets through thus gets far ahead of the
// others and meets what they have not written: shared memory begins as NaN, and the target of an
// asynchronous copy is NaN until the copying thread awaits it.
#pragma once

#define UK_PRIMITIVES_CUH
#define UK_LAUNCH_CUH

#define __device__
#define __global__
#define __forceinline__ inline
#define __launch_bounds__(threads)
#define __syncthreads() uk::shim::barrier(__FILE__, __LINE__)

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <functional>

#include "cpu/storage.h"

struct float2 {
  float x, y;
};
struct alignas(16) float4 {
  float x, y, z, w;
};
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
using std::min;

struct Index {
  unsigned x;
};
extern Index threadIdx, blockIdx, blockDim, gridDim;

namespace uk::shim {

// All of the block's threads meet here, or the run fails; passed at once if it is the one that
// UK_SKIP_BARRIER names ("file.cuh:line").
void barrier(const char* file, int line);
unsigned char* shared_memory();
void copy_async(void* to, const void* from, bool inside);
void commit_copies();
void await_copies(int all_but);
void fail(const char* what);
void run(int64_t grid, int threads, int shared, const std::function<void()>& body);

}  // namespace uk::shim

namespace uk::cuda {

inline unsigned char* shared_memory() { return shim::shared_memory(); }
inline void copy_async(void* to, const void* from, bool inside) {
  shim::copy_async(to, from, inside);
}
inline void commit_copies() { shim::commit_copies(); }
template <int N>
void await_copies() {
  shim::await_copies(N);
}

template <class To, class From>
To bits_of(From from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  std::memcpy(&to, &from, sizeof(to));
  return to;
}

inline float widen(float x) { return x; }
inline float widen(bf16 x) { return bits_of<float>(uint32_t{x.bits} << 16); }
inline float widen(f16 x) { return static_cast<float>(bits_of<_Float16>(x.bits)); }

template <class S>
S narrow(float x);
template <>
inline float narrow<float>(float x) {
  return x;
}
template <>
inline bf16 narrow<bf16>(float x) {  // to the nearest, ties to even
  const uint32_t bits = bits_of<uint32_t>(x);
  if (x != x) return {0x7fff};
  return {static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16)};
}
template <>
inline f16 narrow<f16>(float x) {
  return {bits_of<uint16_t>(static_cast<_Float16>(x))};
}

// As one access, whose alignment the sanitizer sees.
template <class S>
struct alignas(2 * sizeof(S)) Pair {
  S low, high;
};
template <class S>
float2 load_pair(const S* at) {
  const auto& pair = *reinterpret_cast<const Pair<S>*>(at);
  return {widen(pair.low), widen(pair.high)};
}
template <class S>
void store_pair(S* at, S low, S high) {
  *reinterpret_cast<Pair<S>*>(at) = {low, high};
}

template <class Arguments>
void launch(void (*kernel)(Arguments), int64_t grid, int threads, int shared, void*,
            const Arguments& arguments) {
  shim::run(grid, threads, shared, [&] { kernel(arguments); });
}

}  // namespace uk::cuda

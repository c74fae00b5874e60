// CUDA on a processor, for the sources in csrc/cuda: forced in front of them (-include), it takes
// the place of primitives.cuh and launch.cuh.
//
// Blocks run one after another.  A block's threads are fibres: each runs until it meets a barrier,
// then the next one does.  A thread that a missing barrier lets through thus gets far ahead of the
// others and meets what they have not written: shared memory begins as NaN, and the target of an
// asynchronous copy is NaN until the copying thread awaits it.  What a warp does together is done
// when all of its lanes have come to it.  Tensor copies and their barriers: tensor_copies.cpp.
#pragma once

#define UK_PRIMITIVES_CUH
#define UK_LAUNCH_CUH

#define __device__
#define __global__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __grid_constant__
#define __syncthreads() uk::shim::barrier(__FILE__, __LINE__)

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <functional>
#include <string>

#include "cpu/storage.h"
#include "cuda/tensor_map.h"

struct float2 {
  float x, y;
};
struct alignas(16) float4 {
  float x, y, z, w;
};
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
using std::max;
using std::min;
inline unsigned __float_as_uint(float x) {
  unsigned bits;
  std::memcpy(&bits, &x, sizeof(bits));
  return bits;
}
inline int atomicAdd(int* at, int value) {
  *at += value;
  return *at - value;
}

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
[[noreturn]] void fail(const std::string& what);

extern int architecture;  // of the GPU: 90 for sm_90

constexpr int kLanes = 32;
// All lanes of the warp meet here, or the run fails; what they do is done once, to what each brings.
void exchange(void (*operation)(void* const (&lanes)[kLanes]), void* own);
void run(int64_t grid, int threads, int shared, const std::function<void()>& body);

}  // namespace uk::shim

namespace uk::cuda {

struct Barrier {
  uint64_t state;
};
inline void need_tma() {
  if (shim::architecture < 90) shim::fail("this GPU has no TMA");
}
void begin_barrier(Barrier* barrier, int arrivals);
void fence_copies();
void expect_bytes(Barrier* barrier, int bytes);
void arrive(Barrier* barrier);
void await_phase(Barrier* barrier, int parity, const char* file = __builtin_FILE(),
                 int line = __builtin_LINE());
void copy_box(void* to, const TensorMap& map, int c, int w, int h, int t, int b, Barrier* barrier);

inline unsigned char* shared_memory() { return shim::shared_memory(); }
inline void copy_async(void* to, const void* from, bool inside) {
  shim::copy_async(to, from, inside);
}
inline void commit_copies() { shim::commit_copies(); }
template <int N>
void await_copies() {
  shim::await_copies(N);
}

template <class T>
struct Shuffled {
  T value, got;
  int by;
};
template <class T>
T lane_below(T value, int distance) {
  Shuffled<T> own{value, value, distance};
  const auto shuffle = [](void* const (&lanes)[shim::kLanes]) {
    for (int i = 0; i < shim::kLanes; ++i) {
      auto* lane = static_cast<Shuffled<T>*>(lanes[i]);
      if (i >= lane->by) lane->got = static_cast<Shuffled<T>*>(lanes[i - lane->by])->value;
    }
  };
  shim::exchange(shuffle, &own);
  return own.got;
}
template <class T>
T lane_across(T value, int bits) {
  Shuffled<T> own{value, value, bits};
  const auto shuffle = [](void* const (&lanes)[shim::kLanes]) {
    for (int i = 0; i < shim::kLanes; ++i) {
      auto* lane = static_cast<Shuffled<T>*>(lanes[i]);
      lane->got = static_cast<Shuffled<T>*>(lanes[i ^ lane->by])->value;
    }
  };
  shim::exchange(shuffle, &own);
  return own.got;
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

// The parts of mma.m16n8k16: rows lane / 4 and 8 below it of a and of the sums, column lane / 4 of b;
// of a's columns, b's rows and the sums' columns two each, from 2 (lane % 4) on, and 8 behind them.
template <class S>
struct Product {
  float (*sums)[4];
  S a[4][2], b[2][2];
};
template <class S>
void multiply_tiles(float (&sums)[4], const unsigned (&a)[4], const unsigned (&b)[2]) {
  Product<S> own;
  own.sums = &sums;
  std::memcpy(own.a, a, sizeof(a));
  std::memcpy(own.b, b, sizeof(b));
  const auto multiply = [](void* const (&lanes)[shim::kLanes]) {
    float left[16][16], right[16][8];
    for (int i = 0; i < shim::kLanes; ++i) {
      const auto* lane = static_cast<const Product<S>*>(lanes[i]);
      for (int half = 0; half < 2; ++half)
        for (int k = 0; k < 2; ++k) {
          const int at = i % 4 * 2 + half * 8 + k;
          left[i / 4][at] = widen(lane->a[2 * half][k]);
          left[i / 4 + 8][at] = widen(lane->a[2 * half + 1][k]);
          right[at][i / 4] = widen(lane->b[half][k]);
        }
    }
    for (int i = 0; i < shim::kLanes; ++i)
      for (int part = 0; part < 4; ++part) {
        float& sum = (*static_cast<const Product<S>*>(lanes[i])->sums)[part];
        for (int k = 0; k < 16; ++k)
          sum += left[i / 4 + part / 2 * 8][k] * right[k][i % 4 * 2 + part % 2];
      }
  };
  shim::exchange(multiply, &own);
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
template <class Arguments>
int architecture_of(void (*)(Arguments)) {
  return shim::architecture;
}

}  // namespace uk::cuda

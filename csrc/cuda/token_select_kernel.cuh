// Choosing tokens by importance and putting them back, without a sort and without atomics on
// anything but counts: results do not depend on the order of threads.
//
// A block that has all tokens of a sample chooses among them in shared memory, which costs less
// than telling other blocks, and then works on its slice of the channels.
#pragma once

#include <cstdint>

#include "channels.cuh"
#include "primitives.cuh"
#include "token_select.h"

namespace uk::cuda {

constexpr int kWarp = 32, kWarps = kTokenThreads / kWarp;

__device__ __forceinline__ int thread_index() { return static_cast<int>(threadIdx.x); }

// Row n of sample b.
template <class S>
__device__ __forceinline__ S* row_of(const Rows<S>& rows, int64_t b, int64_t n) {
  return rows.data + b * rows.sample + n * rows.row;
}

// The sum over all threads, in their order, in every thread.  `warps` is in use until the barrier
// after this.
__device__ __forceinline__ float add_threads(float own, float* warps) {
  for (int distance = kWarp / 2; distance > 0; distance /= 2) own += lane_across(own, distance);
  if (thread_index() % kWarp == 0) warps[thread_index() / kWarp] = own;
  __syncthreads();
  float sum = 0.f;
  for (int warp = 0; warp < kWarps; ++warp) sum += warps[warp];
  return sum;
}

// The sum over the threads before this one.  `warps` as above.
__device__ __forceinline__ int count_before(int own, int* warps) {
  const int lane = thread_index() % kWarp, warp = thread_index() / kWarp;
  int sum = own;
  for (int distance = 1; distance < kWarp; distance *= 2) {
    const int below = lane_below(sum, distance);
    if (lane >= distance) sum += below;
  }
  if (lane == kWarp - 1) warps[warp] = sum;
  __syncthreads();
  int before = sum - own;
  for (int other = 0; other < warp; ++other) before += warps[other];
  return before;
}

// An integer that orders like the number: NaN first, and no difference between the two zeros.
__device__ __forceinline__ unsigned order_of(float value) {
  if (value != value) return ~0u;
  const unsigned bits = value == 0.f ? 0u : __float_as_uint(value);
  return bits >> 31 ? ~bits : bits | 1u << 31;
}

// Exactly 1 for a single one.
__device__ __forceinline__ float share(float value, float total, float otherwise) {
  return total == 0.f ? otherwise : value / total;
}

// The K most important of N tokens, ascending, and behind them the others, ascending, to `order`.
inline __device__ void choose(const float* importance, int N, int K, int* order, unsigned* keys, int* bins,
                       int* few) {
  const int thread = thread_index();
  int* found = few + kWarps;
  for (int n = thread; n < N; n += kTokenThreads) keys[n] = order_of(importance[n]);
  // The least key kept, byte by byte: how many keys that begin like it have which next byte, the
  // greatest first.  Of those that begin like it, `room` are kept.
  unsigned least = 0;
  int room = K;
  for (int shift = 24; shift >= 0; shift -= 8) {
    bins[thread] = 0;
    __syncthreads();  // the counts are zero, and the keys there
    for (int n = thread; n < N; n += kTokenThreads) {
      const unsigned byte = (keys[n] ^ least) >> shift;
      if (byte < 256) atomicAdd(bins + (255 - byte), 1);
    }
    __syncthreads();  // all are counted
    const int own = bins[thread], before = count_before(own, few);
    if ((before < room || thread == 0) && room <= before + own) {
      found[0] = 255 - thread;
      found[1] = before;
    }
    __syncthreads();  // one of the threads found its byte
    least |= static_cast<unsigned>(found[0]) << shift;
    room -= found[1];
  }
  // Of the equal ones the first are kept; both counts are parts of one number.
  const int run = (N + kTokenThreads - 1) / kTokenThreads;
  const int begin = min(thread * run, N), end = min(begin + run, N);
  int counted = 0;
  for (int n = begin; n < end; ++n)
    counted += (keys[n] > least ? 1 : 0) + (keys[n] == least ? 1 << 16 : 0);
  const int before = count_before(counted, few);
  int equal = before >> 16, position = (before & 0xffff) + min(equal, room);
  for (int n = begin; n < end; ++n) {
    const bool kept = keys[n] > least || (keys[n] == least && equal++ < room);
    order[kept ? position++ : K + n - position] = n;
  }
  __syncthreads();  // the order is there
}

// Which of the tokens from `first` on stand where in the index; -1 where one does not.
__device__ __forceinline__ void find(const int64_t* index, int K, int first, int count, int* slots) {
  for (int n = thread_index(); n < count; n += kTokenThreads) slots[n] = -1;
  __syncthreads();  // all are unknown
  for (int k = thread_index(); k < K; k += kTokenThreads) {
    const int64_t n = index[k] - first;
    if (n >= 0 && n < count) slots[n] = k;
  }
  __syncthreads();  // all are known
}

// Where a thread works in a slice: a vector of channels, and every kLanes-th row.
template <class S, int LENGTH>
struct Lane {
  static constexpr int kColumns = kSlice / LENGTH, kLanes = kTokenThreads / kColumns;
  int64_t b;
  int first, column, lane, c;
  bool inside;

  __device__ explicit Lane(const TokenSizes& s) {
    const unsigned blocks = static_cast<unsigned>(slices(s.C));
    b = blockIdx.x / blocks;
    first = static_cast<int>(blockIdx.x % blocks) * kSlice;
    column = thread_index() % kColumns;
    lane = thread_index() / kColumns;
    c = first + column * LENGTH;
    inside = c < s.C;
  }

  // The sums over the lanes, in their order, to a row.
  __device__ __forceinline__ void add(const float (&own)[LENGTH], float* sums, int C, S* row) const {
#pragma unroll
    for (int i = 0; i < LENGTH; ++i) sums[lane * kSlice + column * LENGTH + i] = own[i];
    __syncthreads();
    const int thread = thread_index();
    if (thread >= kSlice || first + thread >= C) return;
    float sum = 0.f;
    for (int other = 0; other < kLanes; ++other) sum += sums[other * kSlice + thread];
    row[first + thread] = narrow<S>(sum);
  }
};

// [prefix | kept | representative of the others] and where the kept ones stood.
template <class S, int LENGTH>
__global__ void __launch_bounds__(kTokenThreads) shrink(const Shrink<S> p) {
  const TokenSizes& s = p.sizes;
  const Lane<S, LENGTH> place(s);
  const int thread = thread_index(), others = s.N - s.K;
  unsigned char* memory = shared_memory();
  int* few = reinterpret_cast<int*>(memory);
  int* bins = reinterpret_cast<int*>(memory + kWarpSums);
  float* sums = reinterpret_cast<float*>(bins);
  unsigned* keys = reinterpret_cast<unsigned*>(memory + kWarpSums + kThreadSums);
  float* weights = reinterpret_cast<float*>(keys);
  int* order = reinterpret_cast<int*>(keys + s.N);
  const float* importance = p.importance + place.b * s.N;
  choose(importance, s.N, s.K, order, keys, bins, few);
  if (place.first == 0)
    for (int k = thread; k < s.K; k += kTokenThreads) p.index[place.b * s.K + k] = order[k];

  const int* rest = order + s.K;
  float total = 0.f;
  for (int j = thread; j < others; j += kTokenThreads) total += importance[rest[j]];
  total = add_threads(total, reinterpret_cast<float*>(few));
  for (int j = thread; j < others; j += kTokenThreads)
    weights[j] = share(importance[rest[j]], total, 1.f / static_cast<float>(others));
  __syncthreads();  // the weights are there

  float merged[LENGTH] = {};
  if (place.inside) {
    for (int row = place.lane; row < s.P + s.K; row += place.kLanes) {
      const S* from = row < s.P ? row_of(p.prefix, place.b, row)
                                : row_of(p.x, place.b, order[row - s.P]);
      store_channels(row_of(p.tokens, place.b, row) + place.c,
                     load_channels<LENGTH>(from + place.c));
    }
    for (int j = place.lane; j < others; j += place.kLanes) {
      const auto own = load_channels<LENGTH>(row_of(p.x, place.b, rest[j]) + place.c);
#pragma unroll
      for (int i = 0; i < LENGTH; ++i) merged[i] = fmaf(weights[j], widen(own.at[i]), merged[i]);
    }
  }
  place.add(merged, sums, s.C, row_of(p.tokens, place.b, s.P + s.K));
}

// The importance of the tokens that were not kept.
__device__ __forceinline__ float add_importance(const float* importance, const int* slots, int N,
                                                float* warps) {
  float total = 0.f;
  for (int n = thread_index(); n < N; n += kTokenThreads)
    if (slots[n] < 0) total += importance[n];
  return add_threads(total, warps);
}

// Some tokens' gradients; in dimportance those of the weights, which importance_gradient needs.
template <class S, int LENGTH>
__global__ void __launch_bounds__(kTokenThreads) shrink_backward(const ShrinkBackward<S> p) {
  const TokenSizes& s = p.sizes;
  const unsigned blocks = static_cast<unsigned>(token_blocks(s.N));
  const int64_t b = blockIdx.x / blocks;
  const int first = static_cast<int>(blockIdx.x % blocks) * kTokens;
  const int lane = thread_index() % kWarp;
  int* slots = reinterpret_cast<int*>(shared_memory() + kWarpSums);
  const float* importance = p.importance + b * s.N;
  find(p.index + b * s.K, s.K, 0, s.N, slots);
  const float total =
      add_importance(importance, slots, s.N, reinterpret_cast<float*>(shared_memory()));
  const int end = min(first + kTokens, s.N);
  for (int n = first + thread_index() / kWarp; n < end; n += kWarps) {
    const bool kept = slots[n] >= 0;
    const S* up = row_of(p.dtokens, b, s.P + (kept ? slots[n] : s.K));
    const float weight = share(importance[n], total, 1.f / static_cast<float>(s.N - s.K));
    float slope = 0.f;
    for (int c = lane * LENGTH; c < s.C; c += kWarp * LENGTH) {
      auto gradient = load_channels<LENGTH>(up + c);
      if (!kept) {
        const auto own = load_channels<LENGTH>(row_of(p.x, b, n) + c);
#pragma unroll
        for (int i = 0; i < LENGTH; ++i) {
          const float wide = widen(gradient.at[i]);
          slope = fmaf(wide, widen(own.at[i]), slope);
          gradient.at[i] = narrow<S>(weight * wide);
        }
      }
      store_channels(row_of(p.dx, b, n) + c, gradient);
    }
    for (int distance = kWarp / 2; distance > 0; distance /= 2)
      slope += lane_across(slope, distance);
    if (lane == 0) p.dimportance[b * s.N + n] = kept ? 0.f : slope;
  }
}

// The weights' gradients through their normalisation, in place.
template <class S>
__global__ void __launch_bounds__(kTokenThreads) importance_gradient(const ShrinkBackward<S> p) {
  const TokenSizes& s = p.sizes;
  const int64_t b = blockIdx.x;
  float* warps = reinterpret_cast<float*>(shared_memory());
  int* slots = reinterpret_cast<int*>(shared_memory() + kWarpSums);
  const float* importance = p.importance + b * s.N;
  float* slopes = p.dimportance + b * s.N;
  find(p.index + b * s.K, s.K, 0, s.N, slots);
  const float total = add_importance(importance, slots, s.N, warps);
  float mean = 0.f;
  for (int n = thread_index(); n < s.N; n += kTokenThreads)
    if (slots[n] < 0) mean = fmaf(share(importance[n], total, 0.f), slopes[n], mean);
  mean = add_threads(mean, warps + kWarps);
  for (int n = thread_index(); n < s.N; n += kTokenThreads)
    if (slots[n] < 0) slopes[n] = share(slopes[n] - mean, total, 0.f);
}

// Where a token's score stands, -1 for one without: a kept one has its own, a single other one, which
// is its own representative, what comes last.
__device__ __forceinline__ int score_of(int slot, const TokenSizes& s) {
  return slot >= 0 ? s.P + slot : s.N - s.K == 1 ? s.P + s.K : -1;
}

// As PyTorch's, from the end that is nearer.
__device__ __forceinline__ float lerp(float start, float end, float weight) {
  const float whole = end - start;
  return fabsf(weight) < 0.5f ? fmaf(weight, whole, start) : fmaf(weight - 1.f, whole, end);
}

// The kept tokens where they came from, the others changed by `delta`.
template <class S, int LENGTH>
__global__ void __launch_bounds__(kTokenThreads) recover(const Recover<S> p) {
  const TokenSizes& s = p.sizes;
  const unsigned blocks = static_cast<unsigned>(token_blocks(s.N));
  const int64_t b = blockIdx.x / blocks;
  const int first = static_cast<int>(blockIdx.x % blocks) * kTokens;
  int* slots = reinterpret_cast<int*>(shared_memory() + kWarpSums);
  find(p.index + b * s.K, s.K, first, kTokens, slots);
  const int end = min(first + kTokens, s.N);
  for (int n = first + thread_index() / kWarp; n < end; n += kWarps) {
    const int slot = slots[n - first];
    const S* from = slot < 0 ? row_of(p.x, b, n) : row_of(p.kept, b, slot);
    for (int c = thread_index() % kWarp * LENGTH; c < s.C; c += kWarp * LENGTH) {
      auto own = load_channels<LENGTH>(from + c);
      if (slot < 0) {
        const auto change = load_channels<LENGTH>(row_of(p.delta, b, 0) + c);
#pragma unroll
        for (int i = 0; i < LENGTH; ++i)
          own.at[i] = narrow<S>(widen(own.at[i]) + widen(change.at[i]));
      }
      store_channels(row_of(p.y, b, n) + c, own);
    }
  }
  if (const int n = first + thread_index(); p.mean.importance != nullptr && n < end) {
    const int at = score_of(slots[n - first], s);
    const float old = p.mean.importance[b * p.mean.importance_sample + n];
    p.mean.updated[b * s.N + n] =
        at < 0 ? old : lerp(old, p.mean.score[b * p.mean.score_sample + at], p.mean.trade_off);
  }
}

// Of a sample's importance and score.  Unrolled, these loops would take registers of the next ones'.
__device__ __forceinline__ void update_backward(const RunningMeanBackward& p, const TokenSizes& s,
                                                int64_t b, const int* slots) {
  float* dscore = p.dscore + b * (s.P + s.K + 1);
#pragma unroll 1
  for (int n = thread_index(); n < s.N; n += kTokenThreads) {
    const int at = score_of(slots[n], s);
    const float up = p.dupdated[b * s.N + n];
    p.dimportance[b * s.N + n] = at < 0 ? up : up * p.rest;
    if (at >= 0) dscore[at] = up * p.trade_off;
  }
  // What nobody's score is.
#pragma unroll 1
  for (int i = thread_index(); i < s.P; i += kTokenThreads) dscore[i] = 0.f;
  if (s.N - s.K != 1 && thread_index() == 0) dscore[s.P + s.K] = 0.f;
}

// The gradients of all three, of which a sample's change is a sum over the tokens.
template <class S, int LENGTH>
__global__ void __launch_bounds__(kTokenThreads) recover_backward(const RecoverBackward<S> p) {
  const TokenSizes& s = p.sizes;
  const Lane<S, LENGTH> place(s);
  float* sums = reinterpret_cast<float*>(shared_memory() + kWarpSums);
  int* slots = reinterpret_cast<int*>(shared_memory() + kWarpSums + kThreadSums);
  find(p.index + place.b * s.K, s.K, 0, s.N, slots);
  if (p.mean.dscore != nullptr && place.first == 0) update_backward(p.mean, s, place.b, slots);
  float change[LENGTH] = {};
  if (place.inside)
    for (int n = place.lane; n < s.N; n += place.kLanes) {
      auto up = load_channels<LENGTH>(row_of(p.dy, place.b, n) + place.c);
      if (slots[n] >= 0) {
        store_channels(row_of(p.dkept, place.b, slots[n]) + place.c, up);
        up = Channels<S, LENGTH>{};
      }
#pragma unroll
      for (int i = 0; i < LENGTH; ++i) change[i] += widen(up.at[i]);
      store_channels(row_of(p.dx, place.b, n) + place.c, up);
    }
  place.add(change, sums, s.C, row_of(p.ddelta, place.b, 0));
}

}  // namespace uk::cuda

// Depthwise 3-D convolution on channels-last maps, and its weight gradient.
//
// A block slides along T over one window of the map.  Frames stream through a ring in shared memory
// and are staged once: a group of threads for each of the kernel's frames holds the sums of another
// output frame, and meets every frame of the window with the next frame of taps.  A thread has two
// channels of a tile of positions, so that a number it reads meets up to 2 K K products.
#pragma once

#include <cstdint>
#include <type_traits>

#include "staging.cuh"

namespace uk::cuda {

// A thread's part of a block: a pair of channels of a tile, in the group of some frames.
struct Role {
  int pair, tile, group, row, column;

  __device__ explicit Role(const DepthwisePlan& p) {
    const int pairs = p.channels / 2, tiles = p.tiles_down * p.tiles_across;
    const int thread = static_cast<int>(threadIdx.x);
    pair = thread % pairs;
    tile = thread / pairs % tiles;
    group = thread / pairs / tiles;
    row = tile / p.tiles_across * kRows;
    column = tile % p.tiles_across * p.columns;
  }
};

// Weights [taps][pitch] in float, zeros where there are no channels.
template <class S>
__device__ void load_weights(const Forward<S>& p, int channel, float* to, int pitch) {
  const DepthwiseSizes& s = p.sizes;
  const int taps = s.kt * s.kh * s.kw;
  for (int i = static_cast<int>(threadIdx.x); i < taps * p.plan.channels;
       i += static_cast<int>(blockDim.x)) {
    const int c = i / taps, tap = i - c * taps;  // as they usually lie
    const int64_t from = (channel + c) * p.weight_stride[0] +
                         tap / (s.kh * s.kw) * p.weight_stride[1] +
                         tap / s.kw % s.kh * p.weight_stride[2] + tap % s.kw * p.weight_stride[3];
    to[(p.flip ? taps - 1 - tap : tap) * pitch + c] =
        channel + c < s.C ? widen(p.weight[from]) : 0.f;
  }
}

__device__ __forceinline__ void multiply_add(float2& sum, float2 a, float2 b) {
  sum.x = fmaf(a.x, b.x, sum.x);
  sum.y = fmaf(a.y, b.y, sum.y);
}

// sums[m][n] += sum over i, j of the map at (m + i, n + j) times taps[i][j].
template <int K, int COLUMNS, int ROW_PITCH, int PITCH, int WEIGHT_PITCH, class S>
__device__ __forceinline__ void correlate(float2 (&sums)[kRows][COLUMNS], const S* map,
                                          const float* weights) {
  float2 taps[K][K];
#pragma unroll
  for (int i = 0; i < K; ++i)
#pragma unroll
    for (int j = 0; j < K; ++j) taps[i][j] = load_pair(weights + (i * K + j) * WEIGHT_PITCH);
#pragma unroll
  for (int row = 0; row < kRows + K - 1; ++row) {
    float2 line[COLUMNS + K - 1];
#pragma unroll
    for (int n = 0; n < COLUMNS + K - 1; ++n) line[n] = load_pair(map + row * ROW_PITCH + n * PITCH);
#pragma unroll
    for (int m = 0; m < kRows; ++m)
      if (row - m >= 0 && row - m < K)
#pragma unroll
        for (int j = 0; j < K; ++j)
#pragma unroll
          for (int n = 0; n < COLUMNS; ++n) multiply_add(sums[m][n], line[n + j], taps[row - m][j]);
  }
}

// Sums over the block's threads that have the same channels, in their order, to partials [2, C].
__device__ __forceinline__ void reduce_moments(const DepthwisePlan& p, int64_t C, int channel,
                                               float2 first, float2 second, float* partials) {
  float* sums = reinterpret_cast<float*>(shared_memory());
  const int thread = static_cast<int>(threadIdx.x), pairs = p.channels / 2;
  __syncthreads();  // the ring is in use no more
  reinterpret_cast<float4*>(sums)[thread] = make_float4(first.x, first.y, second.x, second.y);
  __syncthreads();
  for (int i = thread; i < 2 * p.channels; i += static_cast<int>(blockDim.x)) {
    const int c = i % p.channels, which = i / p.channels;
    float sum = 0.f;
    for (int other = c / 2; other < p.threads; other += pairs)
      sum += sums[4 * other + 2 * which + c % 2];
    if (channel + c < C) partials[which * C + channel + c] = sum;
  }
}

// Blocks of a multiprocessor, 0 for the compiler's choice: with single taps it would spill a few
// registers to have one more, or take a few too many.
constexpr int least_blocks(int K, bool told, int blocks) { return told && K == 1 ? blocks : 0; }

// y = bias + convolution of x [+ x], and the moments of y.
template <class S, int K, int COLUMNS, bool TMA>
__global__ void __launch_bounds__(max_threads(K), least_blocks(K, TMA, 1))
    forward(const __grid_constant__ Forward<S> p) {
  constexpr int kPitch = pitch_bytes(K) / sizeof(S), kWeightPitch = weight_pitch(K, sizeof(S));
  using Copies = std::conditional_t<TMA, BoxGroups<kAhead>, CopyGroups<kAhead>>;
  using Frames = typename Copies::template Frames<S, K, COLUMNS, kPitch>;
  constexpr int kSlots = kAhead + 1;
  const DepthwiseSizes& s = p.sizes;
  const int channel = static_cast<int>(blockIdx.x % p.plan.channel_blocks) * p.plan.channels;
  const int64_t part = blockIdx.x / p.plan.channel_blocks;
  const Place place(s, p.plan, part);
  const Role role(p.plan);
  const Frames x(p.x, s, p.plan, place, channel);
  S* ring = reinterpret_cast<S*>(shared_memory());
  // Behind the ring or what the moments take, whichever is longer: at the end of what was asked for.
  unsigned char* end = shared_memory() + p.plan.shared - Copies::kBytes;
  const Copies copies(end);
  float* weights = reinterpret_cast<float*>(end) - s.kt * K * K * kWeightPitch;
  load_weights(p, channel, weights, kWeightPitch);

  const int c = channel + 2 * role.pair;
  float2 bias{0.f, 0.f}, shift{0.f, 0.f}, first{0.f, 0.f}, second{0.f, 0.f};
  if (p.bias != nullptr) {
    if (c < s.C) bias.x = widen(p.bias[c * p.bias_stride]);
    if (c + 1 < s.C) bias.y = widen(p.bias[(c + 1) * p.bias_stride]);
  }
  if (p.shift != nullptr) {
    if (c < s.C) shift.x = p.shift[c];
    if (c + 1 < s.C) shift.y = p.shift[c + 1];
  }
  S* y = p.y + (((place.b * s.T + place.t) * s.H + place.h + role.row) * s.W + place.w +
                role.column) * s.C + c;

  // Step i has frame start + i of x; group g has frame i - tap of y, with the kernel's frame `tap`.
  const int start = place.t - s.kt / 2, steps = place.frames + s.kt - 1;
  int tap = (s.kt - role.group) % s.kt;
  float2 sums[kRows][COLUMNS];
  for (int i = -kAhead, free = 0; i < steps; ++i, free = free + 1 == kSlots ? 0 : free + 1) {
    if (i >= 0) {
      copies.await(i);
      __syncthreads();  // this frame has arrived, and nobody needs the one before
    }
    const int next = i + kAhead;
    if (next < steps) x.stage(start + next, ring + free * Frames::kSize, copies.barrier(next));
    copies.commit(next);
    if (i < 0) continue;
    const int slot = free + 1 == kSlots ? 0 : free + 1;
    const int frame = i - tap;
    if (frame >= 0 && frame < place.frames) {
      if (tap == 0)
#pragma unroll
        for (int m = 0; m < kRows; ++m)
#pragma unroll
          for (int n = 0; n < COLUMNS; ++n) sums[m][n] = bias;
      const S* corner = ring + slot * Frames::kSize + role.row * Frames::kRowPitch +
                        role.column * kPitch + 2 * role.pair;
      if (static_cast<unsigned>(start + i) < s.T)
        correlate<K, COLUMNS, Frames::kRowPitch, kPitch, kWeightPitch>(
            sums, corner, weights + tap * K * K * kWeightPitch + 2 * role.pair);
      if (p.residual && tap == s.kt / 2)
#pragma unroll
        for (int m = 0; m < kRows; ++m)
#pragma unroll
          for (int n = 0; n < COLUMNS; ++n) {
            const float2 own =
                load_pair(corner + (m + K / 2) * Frames::kRowPitch + (n + K / 2) * kPitch);
            sums[m][n].x += own.x;
            sums[m][n].y += own.y;
          }
      if (tap == s.kt - 1) {
        S* out = y + frame * s.H * s.W * s.C;
#pragma unroll
        for (int m = 0; m < kRows; ++m)
#pragma unroll
          for (int n = 0; n < COLUMNS; ++n) {
            if (place.h + role.row + m >= s.H || place.w + role.column + n >= s.W) continue;
            const S low = narrow<S>(sums[m][n].x), high = narrow<S>(sums[m][n].y);
            S* at = out + (m * s.W + n) * s.C;
            if (s.C % 2 == 0 && c < s.C) {
              store_pair(at, low, high);
            } else {
              if (c < s.C) at[0] = low;
              if (c + 1 < s.C) at[1] = high;
            }
            const float2 centred{widen(low) - shift.x, widen(high) - shift.y};
            first.x += centred.x;
            first.y += centred.y;
            multiply_add(second, centred, centred);
          }
      }
    }
    tap = tap + 1 == s.kt ? 0 : tap + 1;
  }
  if (p.partials != nullptr)
    reduce_moments(p.plan, s.C, channel, first, second, p.partials + part * 2 * s.C);
}

// The weight's and the bias's gradient: this block's part of the positions, in one order.
template <class S, int K, int COLUMNS, bool TMA>
__global__ void __launch_bounds__(max_threads(K), least_blocks(K, TMA || COLUMNS == 7, 2))
    weight_gradient(const __grid_constant__ WeightGradient<S> p) {
  constexpr int kPitch = pitch_bytes(K) / sizeof(S), kSlots = kGradientAhead + 1;
  using Copies = std::conditional_t<TMA, BoxGroups<kGradientAhead>, CopyGroups<kGradientAhead>>;
  using Frames = typename Copies::template Frames<S, K, COLUMNS, kPitch>;
  using Tiles = typename Copies::template Frames<S, 1, COLUMNS, kPitch>;
  const DepthwiseSizes& s = p.sizes;
  const int channel = static_cast<int>(blockIdx.x % p.plan.channel_blocks) * p.plan.channels;
  const int64_t part = blockIdx.x / p.plan.channel_blocks;
  const Role role(p.plan);
  S* ring = reinterpret_cast<S*>(shared_memory());
  S* dy_ring = ring + kSlots * Frames::kSize;
  const int dy_slots = kGradientAhead + s.kt;
  const Copies copies(shared_memory() + p.plan.shared - Copies::kBytes);
  int done = 0;  // steps of the items before

  float2 taps[K][K] = {}, bias{0.f, 0.f};
  for (int64_t item = part; item < s.B * p.plan.positions(); item += p.plan.parts) {
    const Place place(s, p.plan, item);
    const Frames x(p.x, s, p.plan, place, channel);
    const Tiles dy(p.dy, s, p.plan, place, channel);
    // Step i has frame start + i of x; group g has frame i - g of dy, for the kernel's frame g.
    const int start = place.t - s.kt / 2, steps = place.frames + s.kt - 1;
    __syncthreads();  // the item before is done with the rings
    for (int i = -kGradientAhead; i < steps; ++i) {
      if (i >= 0) {
        copies.await(done + i);
        __syncthreads();  // these frames have arrived, and nobody needs the ones before
      }
      const int next = i + kGradientAhead;
      if (next < steps) {
        Barrier* barrier = copies.barrier(done + next);
        x.stage(start + next, ring + next % kSlots * Frames::kSize, barrier);
        if (next < place.frames)
          dy.stage(place.t + next, dy_ring + next % dy_slots * Tiles::kSize, barrier);
        copies.commit(done + next);
      }
      const int frame = i - role.group;
      if (frame < 0 || frame >= place.frames || static_cast<unsigned>(start + i) >= s.T) continue;
      const S* own = dy_ring + frame % dy_slots * Tiles::kSize + role.row * Tiles::kRowPitch +
                     role.column * kPitch + 2 * role.pair;
      const S* corner = ring + i % kSlots * Frames::kSize + role.row * Frames::kRowPitch +
                        role.column * kPitch + 2 * role.pair;
      float2 tile[kRows][COLUMNS];
#pragma unroll
      for (int m = 0; m < kRows; ++m)
#pragma unroll
        for (int n = 0; n < COLUMNS; ++n)
          tile[m][n] = load_pair(own + m * Tiles::kRowPitch + n * kPitch);
      if (role.group == s.kt / 2)  // which meets every frame
#pragma unroll
        for (int m = 0; m < kRows; ++m)
#pragma unroll
          for (int n = 0; n < COLUMNS; ++n) {
            bias.x += tile[m][n].x;
            bias.y += tile[m][n].y;
          }
#pragma unroll
      for (int row = 0; row < kRows + K - 1; ++row) {
        float2 line[COLUMNS + K - 1];
#pragma unroll
        for (int n = 0; n < COLUMNS + K - 1; ++n)
          line[n] = load_pair(corner + row * Frames::kRowPitch + n * kPitch);
#pragma unroll
        for (int m = 0; m < kRows; ++m)
          if (row - m >= 0 && row - m < K)
#pragma unroll
            for (int n = 0; n < COLUMNS; ++n)
#pragma unroll
              for (int j = 0; j < K; ++j) multiply_add(taps[row - m][j], line[n + j], tile[m][n]);
      }
    }
    done += steps;
  }

  // The tiles' sums one after another, [taps + 1][pitch].
  float* sums = reinterpret_cast<float*>(shared_memory());
  const int all = s.kt * K * K;
  for (int turn = 0; turn < p.plan.tiles_down * p.plan.tiles_across; ++turn) {
    __syncthreads();
    if (role.tile != turn) continue;
    float2* at = reinterpret_cast<float2*>(sums) + role.pair;
    const auto add = [&](int row, float2 value) {
      float2& sum = at[row * (kPitch / 2)];
      sum = turn == 0 ? value : float2{sum.x + value.x, sum.y + value.y};
    };
#pragma unroll
    for (int i = 0; i < K; ++i)
#pragma unroll
      for (int j = 0; j < K; ++j) add((role.group * K + i) * K + j, taps[i][j]);
    if (role.group == s.kt / 2) add(all, bias);
  }
  __syncthreads();
  float* partials = p.partials + part * (all + 1) * s.C;
  for (int i = static_cast<int>(threadIdx.x); i < (all + 1) * p.plan.channels;
       i += static_cast<int>(blockDim.x)) {
    const int row = i / p.plan.channels, c = i - row * p.plan.channels;
    if (channel + c < s.C) partials[row * s.C + channel + c] = sums[row * kPitch + c];
  }
}

// The same for any size of kernel, a thread an output: what the tiles do not cover.
template <class S>
__global__ void __launch_bounds__(kGeneralThreads) general_forward_kernel(const Forward<S> p) {
  const DepthwiseSizes& s = p.sizes;
  const int64_t count = s.B * s.T * s.H * s.W * s.C;
  for (int64_t at = int64_t{blockIdx.x} * blockDim.x + threadIdx.x; at < count;
       at += int64_t{gridDim.x} * blockDim.x) {
    const int64_t c = at % s.C, w = at / s.C % s.W, h = at / s.C / s.W % s.H;
    const int64_t t = at / s.C / s.W / s.H % s.T, b = at / s.C / s.W / s.H / s.T;
    const S* own = p.x.data + b * p.x.stride[0] + c * p.x.stride[4];
    float sum = p.bias == nullptr ? 0.f : widen(p.bias[c * p.bias_stride]);
    for (int f = 0; f < s.kt; ++f)
      for (int i = 0; i < s.kh; ++i)
        for (int j = 0; j < s.kw; ++j) {
          const int64_t from_t = t + f - s.kt / 2, from_h = h + i - s.kh / 2,
                        from_w = w + j - s.kw / 2;
          if (from_t < 0 || from_t >= s.T || from_h < 0 || from_h >= s.H || from_w < 0 ||
              from_w >= s.W)
            continue;
          const int64_t tap_t = p.flip ? s.kt - 1 - f : f, tap_h = p.flip ? s.kh - 1 - i : i,
                        tap_w = p.flip ? s.kw - 1 - j : j;
          sum = fmaf(widen(own[from_t * p.x.stride[1] + from_h * p.x.stride[2] +
                               from_w * p.x.stride[3]]),
                     widen(p.weight[c * p.weight_stride[0] + tap_t * p.weight_stride[1] +
                                    tap_h * p.weight_stride[2] + tap_w * p.weight_stride[3]]),
                     sum);
        }
    if (p.residual)
      sum += widen(own[t * p.x.stride[1] + h * p.x.stride[2] + w * p.x.stride[3]]);
    p.y[at] = narrow<S>(sum);
  }
}

// A block has 32 channels of one tap, or of the bias behind them, and a part of the positions.
template <class S>
__global__ void __launch_bounds__(kGeneralThreads)
    general_weight_gradient_kernel(const WeightGradient<S> p) {
  const DepthwiseSizes& s = p.sizes;
  constexpr int kLanes = kGeneralThreads / kGeneralChannels;
  const int thread = static_cast<int>(threadIdx.x), lane = thread / kGeneralChannels;
  const int taps = s.kt * s.kh * s.kw;
  const int64_t c = blockIdx.x % p.plan.channel_blocks * kGeneralChannels + thread % kGeneralChannels;
  const int tap = static_cast<int>(blockIdx.x / p.plan.channel_blocks % (taps + 1));
  const int64_t part = blockIdx.x / p.plan.channel_blocks / (taps + 1);
  const int64_t f = tap / (s.kh * s.kw) - s.kt / 2, i = tap / s.kw % s.kh - s.kh / 2,
                j = tap % s.kw - s.kw / 2;
  float sum = 0.f;
  if (c < s.C)
    for (int64_t at = part * kLanes + lane; at < s.B * s.T * s.H * s.W;
         at += p.plan.parts * kLanes) {
      const int64_t w = at % s.W, h = at / s.W % s.H, t = at / s.W / s.H % s.T,
                    b = at / s.W / s.H / s.T;
      const float dy = widen(p.dy.data[b * p.dy.stride[0] + t * p.dy.stride[1] +
                                       h * p.dy.stride[2] + w * p.dy.stride[3] +
                                       c * p.dy.stride[4]]);
      if (tap == taps)
        sum += dy;
      else if (t + f >= 0 && t + f < s.T && h + i >= 0 && h + i < s.H && w + j >= 0 && w + j < s.W)
        sum = fmaf(dy,
                   widen(p.x.data[b * p.x.stride[0] + (t + f) * p.x.stride[1] +
                                  (h + i) * p.x.stride[2] + (w + j) * p.x.stride[3] +
                                  c * p.x.stride[4]]),
                   sum);
    }
  float* sums = reinterpret_cast<float*>(shared_memory());
  sums[thread] = sum;
  __syncthreads();
  if (lane > 0 || c >= s.C) return;
  for (int other = 1; other < kLanes; ++other) sum += sums[other * kGeneralChannels + thread];
  p.partials[(part * (taps + 1) + tap) * s.C + c] = sum;
}

}  // namespace uk::cuda

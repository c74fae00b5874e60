// Depthwise convolution with 5 x 5 taps a frame as matrix products on tensor cores.
//
// Of one channel, a tile of 4 x 4 outputs is a matrix [16, 64] times its 8 x 8 inputs; the matrix is
// banded, taps[i][j] where an input lies (i, j) from an output.  Eight tiles are a product's columns.
// A warp has a channel, so frames lie in shared memory channel by channel; the frames of a chunk are
// staged at once, and each meets the sums of all outputs it reaches.
//
// A lane's part of a product lies in so few rows and columns of the matrix that a row of taps is one
// word, and all of the matrix six.
#pragma once

#include <cstdint>

#include "channels.cuh"
#include "depthwise_conv_kernel.cuh"

namespace uk::cuda {

constexpr int kTile = 4, kTaps = 5, kStep = 2;  // kStep rows of inputs are a step of a product
constexpr int kSteps = (kTile + kTaps - 1) / kStep;

// The words of a lane's rows of taps: word j has what row j of its tile's inputs means to the first
// of its outputs; zeros where it is out of reach.
template <class S, int KT>
struct Band {
  static constexpr int kWords = kTaps + 1;
  unsigned words[KT][kWords];

  __device__ Band(const Forward<S>& p, int64_t channel, int lane) {
    const int row = lane / 4 / kTile, column = lane % 4 * 2 - lane / 4 % kTile;
#pragma unroll
    for (int f = 0; f < KT; ++f)
#pragma unroll
      for (int j = 0; j < kWords; ++j)
        words[f][j] = tap(p, channel, f, j - row, column) |
                      tap(p, channel, f, j - row, column + 1) << 16;
  }

  static __device__ __forceinline__ unsigned tap(const Forward<S>& p, int64_t channel, int f, int i,
                                                 int j) {
    if (i < 0 || i >= kTaps || j < 0 || j >= kTaps) return 0;
    const int64_t at = channel * p.weight_stride[0] +
                       (p.flip ? KT - 1 - f : f) * p.weight_stride[1] +
                       (p.flip ? kTaps - 1 - i : i) * p.weight_stride[2] +
                       (p.flip ? kTaps - 1 - j : j) * p.weight_stride[3];
    return p.weight[at].bits;
  }

  // Step s of the matrix of frame f.
  __device__ __forceinline__ void part(unsigned (&a)[4], int f, int s) const {
    a[0] = word(f, 2 * s);
    a[1] = word(f, 2 * s - 2);
    a[2] = word(f, 2 * s + 1);
    a[3] = word(f, 2 * s - 1);
  }
  __device__ __forceinline__ unsigned word(int f, int j) const {
    return j < 0 || j >= kWords ? 0u : words[f][j];
  }
};

// The frames from `first` on of a block's channels, [frames][channels][rows][pitch]; zeros where the
// map has none.  Two neighbouring numbers are a word.
template <class S>
__device__ void stage_planes(const Forward<S>& p, const Place& place, int channel, int first,
                             int frames, unsigned* planes) {
  const ToeplitzPlanes size(p.plan);
  constexpr int kLength = kVector / sizeof(S), kHalves = kPlanes / kLength;
  const int items = frames * size.rows * size.pitch * kHalves;
  for (int item = static_cast<int>(threadIdx.x); item < items; item += kPlanes * 32) {
    const int half = item % kHalves, pair = item / kHalves % size.pitch;
    const int row = item / kHalves / size.pitch % size.rows;
    const int frame = item / kHalves / size.pitch / size.rows;
    const int h = place.h - kTaps / 2 + row, w = place.w - kTaps / 2 + 2 * pair;
    const int c = channel + half * kLength;
    Channels<S, kLength> low{}, high{};
    if (c < p.sizes.C && static_cast<unsigned>(h) < p.sizes.H) {
      const S* from = p.x.data + place.b * p.x.stride[0] + (first + frame) * p.x.stride[1] +
                      h * p.x.stride[2] + w * p.x.stride[3] + c;
      if (static_cast<unsigned>(w) < p.sizes.W) low = load_channels<kLength>(from);
      if (static_cast<unsigned>(w + 1) < p.sizes.W)
        high = load_channels<kLength>(from + p.x.stride[3]);
    }
    unsigned* to = planes + (frame * kPlanes + half * kLength) * size.words + row * size.pitch + pair;
#pragma unroll
    for (int i = 0; i < kLength; ++i)
      to[i * size.words] = low.at[i].bits | static_cast<unsigned>(high.at[i].bits) << 16;
  }
}

// Eight tiles' outputs of a frame, [position][channel], out to the map.
template <class S>
__device__ void write_tiles(const Forward<S>& p, const Place& place, int channel, int t, int first,
                            const unsigned* results) {
  constexpr int kWords = kPlanes / 2;
  const int tiles = p.plan.tiles_down * p.plan.tiles_across;
  for (int item = static_cast<int>(threadIdx.x); item < kOutputs * kWords; item += kPlanes * 32) {
    const int word = item % kWords, position = item / kWords;
    const int tile = first + position / (kTile * kTile), within = position % (kTile * kTile);
    const int h = place.h + tile / p.plan.tiles_across * kTile + within / kTile;
    const int w = place.w + tile % p.plan.tiles_across * kTile + within % kTile;
    const int c = channel + 2 * word;
    if (tile >= tiles || h >= p.sizes.H || w >= p.sizes.W || c >= p.sizes.C) continue;
    S* to = p.y + (((place.b * p.sizes.T + t) * p.sizes.H + h) * p.sizes.W + w) * p.sizes.C + c;
    *reinterpret_cast<unsigned*>(to) = results[position * kResultPitch + word];
  }
}

// y = bias + convolution of x [+ x].
template <class S, int KT>
__global__ void __launch_bounds__(kPlanes * 32) toeplitz(const Forward<S> p) {
  const DepthwiseSizes& s = p.sizes;
  const ToeplitzPlanes size(p.plan);
  const int channel = static_cast<int>(blockIdx.x % p.plan.channel_blocks) * kPlanes;
  const Place place(s, p.plan, blockIdx.x / p.plan.channel_blocks);
  const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
  const int64_t c = min(int64_t{channel} + warp, s.C - 1);  // those behind the last are not kept
  const int begin = max(place.t - KT / 2, 0);
  const int end = static_cast<int>(min(int64_t{place.t} + place.frames + KT / 2, s.T));
  unsigned* results = reinterpret_cast<unsigned*>(shared_memory());
  unsigned* planes = results + 2 * kOutputs * kResultPitch;
  stage_planes(p, place, channel, begin, end - begin, planes);
  const Band<S, KT> band(p, c, lane);
  const float bias = p.bias == nullptr ? 0.f : widen(p.bias[c * p.bias_stride]);
  __syncthreads();  // the frames are there

  const unsigned* own = planes + warp * size.words;
  const int tiles = p.plan.tiles_down * p.plan.tiles_across;
  int buffer = 0;
  for (int first = 0; first < tiles; first += kColumns) {
    // A product's column is a tile's inputs; the last tile stands in for those behind it.
    const int tile = min(first + lane / 4, tiles - 1);
    const unsigned* corner = own + tile / p.plan.tiles_across * kTile * size.pitch +
                             tile % p.plan.tiles_across * (kTile / 2) + lane % 4;
    float sums[KT][4] = {};  // of the frame that the kernel's frame k takes from here
    for (int t = place.t - KT / 2; t < place.t + place.frames + KT / 2; ++t) {
      if (t >= begin && t < end) {
        const unsigned* frame = corner + (t - begin) * kPlanes * size.words;
#pragma unroll
        for (int step = 0; step < kSteps; ++step) {
          const unsigned inputs[2] = {frame[2 * step * size.pitch],
                                      frame[(2 * step + 1) * size.pitch]};
#pragma unroll
          for (int k = 0; k < KT; ++k) {
            const int out = t - k + KT / 2;
            if (out < place.t || out >= place.t + place.frames) continue;
            unsigned part[4];
            band.part(part, k, step);
            multiply_tiles<S>(sums[k], part, inputs);
          }
        }
      }
      const int out = t - KT / 2;  // no frame behind this one reaches it
      if (out >= place.t) {
        unsigned* to = results + buffer * kOutputs * kResultPitch;
#pragma unroll
        for (int r = 0; r < 4; ++r) {
          const int column = lane % 4 * 2 + r % 2;
          const int row = lane / 4 / kTile + r / 2 * 2, across = lane / 4 % kTile;
          const int mine = min(first + column, tiles - 1);
          float sum = sums[KT - 1][r] + bias;
          if (p.residual) {
            const int at = (mine / p.plan.tiles_across * kTile + row + kTaps / 2) * 2 * size.pitch +
                           mine % p.plan.tiles_across * kTile + across + kTaps / 2;
            sum += widen(reinterpret_cast<const S*>(
                own + (out - begin) * kPlanes * size.words)[at]);
          }
          reinterpret_cast<S*>(to)[(column * kTile * kTile + row * kTile + across) * 2 *
                                       kResultPitch +
                                   warp] = narrow<S>(sum);
        }
        __syncthreads();  // all channels' are there, and nobody reads those two frames before
        write_tiles(p, place, channel, out, first, to);
        buffer ^= 1;
      }
#pragma unroll
      for (int k = KT - 1; k > 0; --k)
#pragma unroll
        for (int r = 0; r < 4; ++r) sums[k][r] = sums[k - 1][r];
#pragma unroll
      for (int r = 0; r < 4; ++r) sums[0][r] = 0.f;
    }
  }
}

}  // namespace uk::cuda

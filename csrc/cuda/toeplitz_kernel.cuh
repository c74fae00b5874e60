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

// The frames from `first` on of a block's channels, [frames][CHANNELS][plane]; zeros where the map
// has none.
template <int CHANNELS, class S>
__device__ void stage_planes(const Map<S>& map, const DepthwiseSizes& sizes, const Plane& plane,
                             const Place& place, int channel, int first, int frames,
                             unsigned* planes) {
  constexpr int kLength = kVector / sizeof(S), kVectors = CHANNELS / kLength;
  const int items = frames * plane.rows * plane.pitch * kVectors, words = plane.words();
  for (int item = static_cast<int>(threadIdx.x); item < items; item += kToeplitzThreads) {
    const int vector = item % kVectors, column = item / kVectors % plane.pitch;
    const int row = item / kVectors / plane.pitch % plane.rows;
    const int frame = item / kVectors / plane.pitch / plane.rows;
    const int h = place.h - plane.around + row, w = place.w - plane.around + plane.step * column;
    const int c = channel + vector * kLength;
    Channels<S, kLength> low{}, high{};
    if (c < sizes.C && static_cast<unsigned>(h) < sizes.H) {
      const S* from = map.data + place.b * map.stride[0] + (first + frame) * map.stride[1] +
                      h * map.stride[2] + w * map.stride[3] + c;
      if (static_cast<unsigned>(w) < sizes.W) low = load_channels<kLength>(from);
      if (static_cast<unsigned>(w + plane.apart) < sizes.W)
        high = load_channels<kLength>(from + plane.apart * map.stride[3]);
    }
    unsigned* to = planes + (frame * CHANNELS + vector * kLength) * words + row * plane.pitch + column;
#pragma unroll
    for (int i = 0; i < kLength; ++i)
      to[i * words] = low.at[i].bits | static_cast<unsigned>(high.at[i].bits) << 16;
  }
}

// Eight tiles' outputs of a frame, [position][channel], out to the map.
template <class S>
__device__ void write_tiles(const Forward<S>& p, const Place& place, int channel, int t, int first,
                            const unsigned* results) {
  constexpr int kPairs = kPlanes / 2;
  const int tiles = p.plan.tiles_down * p.plan.tiles_across;
  for (int item = static_cast<int>(threadIdx.x); item < kOutputs * kPairs; item += kToeplitzThreads) {
    const int pair = item % kPairs, position = item / kPairs;
    const int tile = first + position / (kTile * kTile), within = position % (kTile * kTile);
    const int h = place.h + tile / p.plan.tiles_across * kTile + within / kTile;
    const int w = place.w + tile % p.plan.tiles_across * kTile + within % kTile;
    const int c = channel + 2 * pair;
    if (tile >= tiles || h >= p.sizes.H || w >= p.sizes.W || c >= p.sizes.C) continue;
    S* to = p.y + (((place.b * p.sizes.T + t) * p.sizes.H + h) * p.sizes.W + w) * p.sizes.C + c;
    *reinterpret_cast<unsigned*>(to) = results[position * kResultPitch + pair];
  }
}

// y = bias + convolution of x [+ x], and the moments of y.
template <class S, int KT>
__global__ void __launch_bounds__(kToeplitzThreads) toeplitz(const Forward<S> p) {
  const DepthwiseSizes& s = p.sizes;
  const Plane plane = toeplitz_plane(p.plan);
  const int channel = static_cast<int>(blockIdx.x % p.plan.channel_blocks) * kPlanes;
  const int64_t part = blockIdx.x / p.plan.channel_blocks;
  const Place place(s, p.plan, part);
  const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
  const int64_t c = min(int64_t{channel} + warp, s.C - 1);  // those behind the last are not kept
  const int begin = max(place.t - KT / 2, 0);
  const int end = static_cast<int>(min(int64_t{place.t} + place.frames + KT / 2, s.T));
  unsigned* results = reinterpret_cast<unsigned*>(shared_memory());
  // What a thread has of the moments lies here: all registers are taken.
  float2* own_moments =
      reinterpret_cast<float2*>(results + 2 * kOutputs * kResultPitch) + threadIdx.x;
  unsigned* planes = results + 2 * kOutputs * kResultPitch + 2 * kToeplitzThreads;
  stage_planes<kPlanes>(p.x, s, plane, place, channel, begin, end - begin, planes);
  const Band<S, KT> band(p, c, lane);
  *own_moments = {0.f, 0.f};
  const float bias = p.bias == nullptr ? 0.f : widen(p.bias[c * p.bias_stride]);
  const float shift = p.shift == nullptr ? 0.f : p.shift[c];
  __syncthreads();  // the frames are there

  const unsigned* own = planes + warp * plane.words();
  const int tiles = p.plan.tiles_down * p.plan.tiles_across;
  int buffer = 0;
  for (int first = 0; first < tiles; first += kColumns) {
    // A product's column is a tile's inputs; the last tile stands in for those behind it.
    const int tile = min(first + lane / 4, tiles - 1);
    const unsigned* corner = own + tile / p.plan.tiles_across * kTile * plane.pitch +
                             tile % p.plan.tiles_across * (kTile / 2) + lane % 4;
    float sums[KT][4] = {};  // of the frame that the kernel's frame k takes from here
    for (int t = place.t - KT / 2; t < place.t + place.frames + KT / 2; ++t) {
      if (t >= begin && t < end) {
        const unsigned* frame = corner + (t - begin) * kPlanes * plane.words();
#pragma unroll
        for (int step = 0; step < kSteps; ++step) {
          const unsigned inputs[2] = {frame[2 * step * plane.pitch],
                                      frame[(2 * step + 1) * plane.pitch]};
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
        float first_moment = 0.f, second_moment = 0.f;
#pragma unroll
        for (int r = 0; r < 4; ++r) {
          const int column = lane % 4 * 2 + r % 2, mine = min(first + column, tiles - 1);
          const int row = lane / 4 / kTile + r / 2 * 2, across = lane / 4 % kTile;
          const int h = mine / p.plan.tiles_across * kTile + row;
          const int w = mine % p.plan.tiles_across * kTile + across;
          float sum = sums[KT - 1][r] + bias;
          if (p.residual)
            sum += widen(reinterpret_cast<const S*>(own + (out - begin) * kPlanes * plane.words())
                             [(h + kTaps / 2) * 2 * plane.pitch + w + kTaps / 2]);
          const S y = narrow<S>(sum);
          reinterpret_cast<S*>(to)[(column * kTile * kTile + row * kTile + across) * 2 *
                                       kResultPitch +
                                   warp] = y;
          if (p.partials != nullptr && mine == first + column && place.h + h < s.H && place.w + w < s.W) {
            const float centred = widen(y) - shift;
            first_moment += centred;
            second_moment = fmaf(centred, centred, second_moment);
          }
        }
        if (p.partials != nullptr) {
          own_moments->x += first_moment;
          own_moments->y += second_moment;
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
  if (p.partials == nullptr) return;
  float2 moments = *own_moments;
#pragma unroll
  for (int bits = 1; bits < 32; bits *= 2) {
    moments.x += lane_across(moments.x, bits);
    moments.y += lane_across(moments.y, bits);
  }
  if (lane > 0 || channel + warp >= s.C) return;
  p.partials[2 * part * s.C + c] = moments.x;
  p.partials[(2 * part + 1) * s.C + c] = moments.y;
}

}  // namespace uk::cuda

// The weight gradient of 5 x 5 taps a frame as matrix products on tensor cores.
//
// Of one channel and one of the kernel's frames, a matrix [16, 64] has the sum over all tiles of the
// products of each of a tile's 4 x 4 outputs' gradients with each of its 8 x 8 inputs; a tap's
// gradient is the sum of those of them that lie as far apart as the tap.  The tiles are what a
// product adds up: two of them, half of the block's columns apart, are the halves of a word.
#pragma once

#include "toeplitz_kernel.cuh"

namespace uk::cuda {

constexpr int kWords = 8;              // pairs of tiles of a product
constexpr int kOuter = kTile * kTile;  // outputs of a tile, rows of the matrix
constexpr int kInner = (kTile + kTaps - 1) * (kTile + kTaps - 1);  // inputs, its columns

// The same number twice: ones, whose product with the outputs' gradients is the bias's.
template <class S>
__device__ __forceinline__ unsigned ones() {
  return narrow<S>(1.f).bits * 0x10001u;
}

template <class S, int KT>
__global__ void __launch_bounds__(kToeplitzThreads)
    toeplitz_weight_gradient(const WeightGradient<S> p) {
  const DepthwiseSizes& s = p.sizes;
  const Plane inner = gradient_plane(p.plan), outer = outer_gradient_plane(p.plan);
  const int channel = static_cast<int>(blockIdx.x % p.plan.channel_blocks) * kGradientPlanes;
  const int64_t part = blockIdx.x / p.plan.channel_blocks;
  const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
  const int plane = warp / 2, above = warp % 2 * kTile;  // this warp's channel and rows of inputs
  unsigned* x = reinterpret_cast<unsigned*>(shared_memory());
  unsigned* dy = x + static_cast<int>(min(p.plan.frames + KT - 1, s.T)) * kGradientPlanes *
                         inner.words();
  const int pairs = p.plan.tiles_across / 2, words = p.plan.tiles_down * pairs;
  const unsigned all_ones[2] = {ones<S>(), ones<S>()};

  float sums[KT][kTile][4] = {}, bias[4] = {};
  for (int64_t item = part; item < s.B * p.plan.positions(); item += p.plan.parts) {
    const Place place(s, p.plan, item);
    const int begin = max(place.t - KT / 2, 0);
    const int end = static_cast<int>(min(int64_t{place.t} + place.frames + KT / 2, s.T));
    __syncthreads();  // the item before is done with them
    stage_planes<kGradientPlanes>(p.x, s, inner, place, channel, begin, end - begin, x);
    stage_planes<kGradientPlanes>(p.dy, s, outer, place, channel, place.t, place.frames, dy);
    __syncthreads();  // the frames are there
    for (int first = 0; first < words; first += kWords) {
      const unsigned *inputs[2], *outputs[2];
      bool inside[2];
#pragma unroll
      for (int i = 0; i < 2; ++i) {  // the last word stands in for those behind it, times zero
        const int word = first + lane % 4 + 4 * i, own = min(word, words - 1);
        inside[i] = word == own;
        const int row = own / pairs * kTile, column = own % pairs * kTile;
        inputs[i] = x + plane * inner.words() + (row + above) * inner.pitch + column + lane / 4;
        outputs[i] = dy + plane * outer.words() + (row + lane / 16) * outer.pitch + column +
                     lane / 4 % kTile;
      }
      unsigned held[KT][4] = {};  // of dy, the frame that x gives to the kernel's frame k
      for (int t = place.t - KT / 2; t < place.t + place.frames + KT / 2; ++t) {
#pragma unroll
        for (int k = KT - 1; k > 0; --k)
#pragma unroll
          for (int r = 0; r < 4; ++r) held[k][r] = held[k - 1][r];
        const bool more = t + KT / 2 < place.t + place.frames;
#pragma unroll
        for (int r = 0; r < 4; ++r)
          held[0][r] = more && inside[r / 2] ? outputs[r / 2][r % 2 * 2 * outer.pitch] : 0u;
#pragma unroll
        for (int i = 0; i < 2; ++i) outputs[i] += kGradientPlanes * outer.words();
        multiply_tiles<S>(bias, held[0], all_ones);
        if (t < begin || t >= end) continue;
#pragma unroll
        for (int n = 0; n < kTile; ++n) {
          const unsigned line[2] = {inputs[0][n * inner.pitch], inputs[1][n * inner.pitch]};
#pragma unroll
          for (int k = 0; k < KT; ++k) multiply_tiles<S>(sums[k][n], held[k], line);
        }
#pragma unroll
        for (int i = 0; i < 2; ++i) inputs[i] += kGradientPlanes * inner.words();
      }
    }
  }

  // Frame by frame, [channels][outputs][inputs], and from there along the diagonals.
  float* products = reinterpret_cast<float*>(shared_memory());
  float* partials = p.partials + part * (KT * kTaps * kTaps + 1) * s.C + channel;
#pragma unroll
  for (int k = 0; k < KT; ++k) {
    __syncthreads();
#pragma unroll
    for (int n = 0; n < kTile; ++n)
#pragma unroll
      for (int r = 0; r < 4; ++r)
        products[(plane * kOuter + lane / 4 + r / 2 * 8) * kInner + (above + n) * 8 + lane % 4 * 2 +
                 r % 2] = sums[k][n][r];
    __syncthreads();
    for (int i = static_cast<int>(threadIdx.x); i < kTaps * kTaps * kGradientPlanes;
         i += kToeplitzThreads) {
      const int c = i % kGradientPlanes, tap = i / kGradientPlanes;
      float sum = 0.f;
      for (int output = 0; output < kOuter; ++output) {
        const int row = output / kTile + tap / kTaps, column = output % kTile + tap % kTaps;
        sum += products[(c * kOuter + output) * kInner + row * 8 + column];
      }
      partials[(k * kTaps * kTaps + tap) * s.C + c] = sum;
    }
  }
  float sum = bias[0] + bias[2];  // of two rows, in every column the same
#pragma unroll
  for (int bits = 4; bits < 32; bits *= 2) sum += lane_across(sum, bits);
  if (lane == 0 && above == 0) partials[KT * kTaps * kTaps * s.C + plane] = sum;
}

}  // namespace uk::cuda

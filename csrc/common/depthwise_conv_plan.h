// How the CUDA kernels of the depthwise convolution divide a call among blocks and threads.
//
// Free of torch and CUDA: the host code, the kernels, the introspection module and the tests share
// it.  Nothing depends on the number of multiprocessors, so that sums over blocks have an order
// which the shape alone decides; for matrix products, the shape and a block's shared memory.
#pragma once

#include <algorithm>
#include <cstdint>

#include "plan.h"
#include "tensor_map.h"

namespace uk::cuda {

// A thread computes a tile of kRows x (7 or 5) positions of two channels of a frame.  A block has up
// to 2 x 2 such tiles side by side, and a group of threads for every frame the kernel reaches.
constexpr int kRows = 4;
constexpr int kTilesDown = 2;
constexpr int kTilesAcross = 2;

constexpr int kAhead = 2;          // frames under way from memory while one is worked on
constexpr int kGradientAhead = 1;  // the same in the weight gradient, which stages two maps
constexpr int64_t kBlocks = 256;   // from so many on, every multiprocessor is busy

// Of a kernel with K x K taps a frame: the threads a block may have, which leaves each the registers
// it needs, and the bytes of channels a block stages of every position.
constexpr int max_threads(int K) { return K < 5 ? 384 : 320; }
constexpr int pitch_bytes(int K) { return K < 5 ? 128 : 64; }

// Rows and columns in shared memory of a frame that K x K taps slide over; 1 of one they do not.
constexpr int window_rows(int K) { return kTilesDown * kRows + K - 1; }
constexpr int window_columns(int K, int columns) { return kTilesAcross * columns + K - 1; }
constexpr int window_bytes(int K, int columns, int taps) {
  return window_rows(taps) * window_columns(taps, columns) * pitch_bytes(K);
}
// Weights in shared memory, a row of channels for every tap, apart by other than whole banks.
constexpr int weight_pitch(int K, int size) { return pitch_bytes(K) / size + 2; }

constexpr int64_t kLongestAxis = int64_t{1} << 30;  // positions are counted in 32 bits

struct DepthwiseSizes {
  int64_t B, T, H, W, C;
  int kt, kh, kw;
  constexpr int taps() const { return kt * kh * kw; }
};

// Which kernels a call asks for: matrix products, or TMA to stage the frames of tiles; both serve
// where they can, tiles staged by all threads elsewhere.
enum class By { tiles, products, tma };

struct DepthwisePlan {
  bool tiled;    // else the general kernel: slower, for any size
  bool toeplitz;  // else tiles of multiply-adds
  bool tma;       // else all threads stage them
  int columns;   // of a thread's tile
  int channels;  // of a block, a multiple of 8
  int tiles_down, tiles_across;  // of a block
  int64_t channel_blocks, down, across, chunks;  // blocks along C, H, W and T
  int64_t frames;                                // of a chunk
  int64_t parts;  // sums that a second kernel adds up: one a block, or one for some blocks
  int threads;
  int64_t grid;
  int shared;  // bytes

  constexpr int64_t positions() const { return down * across * chunks; }  // blocks of a sample
};

// The tile whose blocks reach least beyond the map.
inline int choose_columns(int64_t W) {
  const auto covered = [W](int columns) {
    const int64_t block = columns * (W > columns ? kTilesAcross : 1);
    return divide_up(W, block) * block;
  };
  return covered(5) < covered(7) ? 5 : 7;
}

inline bool has_tiles(const DepthwiseSizes& s) {
  return s.kh == s.kw && (s.kh == 1 || s.kh == 3 || s.kh == 5);
}

constexpr bool fits(const DepthwisePlan& p, int shared_limit) {
  return p.shared <= shared_limit && p.grid <= kMostBlocks;
}

// What forward and weight gradient have in common; `size` is an element's.
inline DepthwisePlan plan_tiles(const DepthwiseSizes& s, int size) {
  DepthwisePlan p{};
  p.tiled = has_tiles(s);
  if (!p.tiled) return p;
  p.columns = choose_columns(s.W);
  p.tiles_down = s.H > kRows ? kTilesDown : 1;
  p.tiles_across = s.W > p.columns ? kTilesAcross : 1;
  const int lanes = s.kt * p.tiles_down * p.tiles_across;  // threads for a pair of channels
  const int most = std::min(pitch_bytes(s.kh) / size, max_threads(s.kh) / lanes * 2 / 8 * 8);
  p.channel_blocks = divide_up(s.C, most);
  p.channels = static_cast<int>(divide_up(divide_up(s.C, p.channel_blocks), 8) * 8);
  p.threads = lanes * p.channels / 2;
  p.down = divide_up(s.H, p.tiles_down * kRows);
  p.across = divide_up(s.W, p.tiles_across * p.columns);
  // Chunks of T stage kt - 1 frames more each, so they are as many as it takes to fill the GPU.
  const int64_t blocks = s.B * p.down * p.across * p.channel_blocks;
  const int64_t most_chunks = std::max<int64_t>(1, s.T / s.kt);
  p.chunks = std::clamp<int64_t>(divide_up(kBlocks, std::max<int64_t>(blocks, 1)), 1, most_chunks);
  p.frames = divide_up(s.T, p.chunks);
  p.chunks = divide_up(s.T, p.frames);
  return p;
}

constexpr int kGeneralThreads = 256;

inline DepthwisePlan general_forward(const DepthwiseSizes& s) {
  DepthwisePlan p{};
  p.threads = kGeneralThreads;
  p.grid = std::min(divide_up(s.B * s.T * s.H * s.W * s.C, p.threads), kMostBlocks);
  return p;
}

// A frame in shared memory as TMA writes it, for taps x taps of a kernel with K x K.  It has all the
// channels and columns there is room for, so that it lies there as threads would have staged it.
inline Axes box_of(const DepthwisePlan& p, int K, int taps, int size) {
  return {pitch_bytes(K) / size, window_columns(taps, p.columns), p.tiles_down * kRows + taps - 1, 1,
          1};
}
constexpr int kBarrierBytes = 8;  // of a slot that TMA fills

inline DepthwisePlan plan_forward(const DepthwiseSizes& s, int size, int shared_limit,
                                  bool tma = false) {
  DepthwisePlan p = plan_tiles(s, size);
  if (!p.tiled) return general_forward(s);
  p.tma = tma;
  p.grid = s.B * p.positions() * p.channel_blocks;
  p.parts = s.B * p.positions();
  const int moments = p.threads * 4 * 4;  // every thread's sums, when all frames are done
  p.shared = std::max((kAhead + 1) * window_bytes(s.kh, p.columns, s.kh), moments) +
             s.taps() * weight_pitch(s.kh, size) * 4 + (tma ? (kAhead + 1) * kBarrierBytes : 0);
  return fits(p, shared_limit) ? p : general_forward(s);
}

// As matrix products (toeplitz_kernel.cuh) of tiles of 4 x 4 outputs and their 8 x 8 inputs.  All
// frames of a chunk lie in shared memory, channel by channel.
constexpr int kToeplitzThreads = 512;
constexpr int kMostFrames = 8;  // of a chunk
constexpr int kMostDown = 4;    // tiles of a block
// The convolution: a warp has a channel, and a product eight tiles.
constexpr int kPlanes = 16;      // channels of a block
constexpr int kColumns = 8;      // tiles of a product
constexpr int kMostAcross = 7;   // tiles of a block side by side: 28 positions
constexpr int kOutputs = kColumns * 16;         // of a product
constexpr int kResultPitch = kPlanes / 2 + 1;   // words of a position's channels, other than banks
constexpr int kShare = 112 * 1024;  // bytes, so that a multiprocessor of 228 KB has two blocks
// Its weight gradient: two warps have a channel, half of the inputs each, and a product sixteen tiles.
// The registers are a multiprocessor's, so its shared memory is the block's as well.
constexpr int kGradientPlanes = 8;
constexpr int kMostPairs = 5;  // of tiles of a block, half its columns apart
static_assert(kToeplitzThreads == kPlanes * 32 && kToeplitzThreads == kGradientPlanes * 2 * 32);

// How a channel of a frame lies in shared memory: rows of words that have two numbers each, `apart`
// columns from one to the other and `step` from a word to the next.
struct Plane {
  int rows, pitch, around, step, apart;  // `around` rows and columns around the block's own
  constexpr int words() const { return rows * pitch + 2; }  // the next begins in other banks
};
constexpr Plane toeplitz_plane(const DepthwisePlan& p) {
  return {4 * p.tiles_down + 4, 2 * p.tiles_across + 2, 2, 2, 1};
}
constexpr Plane gradient_plane(const DepthwisePlan& p) {  // of x
  return {4 * p.tiles_down + 4, 2 * p.tiles_across + 4, 2, 1, 2 * p.tiles_across};
}
constexpr Plane outer_gradient_plane(const DepthwisePlan& p) {  // of dy
  return {4 * p.tiles_down, 2 * p.tiles_across, 0, 1, 2 * p.tiles_across};
}

constexpr bool has_toeplitz(const DepthwiseSizes& s, int size) {
  return size == 2 && s.kh == 5 && s.kw == 5 && (s.kt == 1 || s.kt == 5);
}

// All but what shared memory decides: blocks of up to `most` times `unit` tiles side by side.
inline DepthwisePlan toeplitz_blocks(const DepthwiseSizes& s, int channels, int most, int unit) {
  DepthwisePlan p{};
  p.tiled = p.toeplitz = true;
  p.columns = 4;
  p.channels = channels;
  p.threads = kToeplitzThreads;
  p.channel_blocks = divide_up(s.C, channels);
  const int64_t units = divide_up(s.W, 4 * unit);
  p.across = divide_up(units, most);
  p.tiles_across = static_cast<int>(divide_up(units, p.across)) * unit;
  p.chunks = divide_up(s.T, kMostFrames);
  p.frames = divide_up(s.T, p.chunks);
  p.chunks = divide_up(s.T, p.frames);
  return p;
}

// As many tiles below each other as leave what is asked for, bytes(p, frames of x), within the limit.
template <class Bytes>
void stack_tiles(const DepthwiseSizes& s, DepthwisePlan& p, int limit, Bytes bytes) {
  const int frames = static_cast<int>(std::min(p.frames + s.kt - 1, s.T));
  for (int most = kMostDown; most > 0; --most) {
    p.down = divide_up(divide_up(s.H, 4), most);
    p.tiles_down = static_cast<int>(divide_up(divide_up(s.H, 4), p.down));
    p.shared = bytes(p, frames);
    if (p.shared <= limit) break;
  }
}

// Of calls that has_toeplitz, with channels to be read 16 bytes at once.  They may ask for more shared
// memory than there is.
inline DepthwisePlan plan_toeplitz(const DepthwiseSizes& s, int shared_limit) {
  DepthwisePlan p = toeplitz_blocks(s, kPlanes, kMostAcross, 1);
  stack_tiles(s, p, std::min(shared_limit, kShare), [](const DepthwisePlan& p, int frames) {
    const int results = 2 * kOutputs * kResultPitch, moments = 2 * p.threads;
    return (results + moments + frames * kPlanes * toeplitz_plane(p).words()) * 4;
  });
  p.parts = s.B * p.positions();
  p.grid = p.parts * p.channel_blocks;
  return p;
}

inline DepthwisePlan plan_toeplitz_weight_gradient(const DepthwiseSizes& s, int shared_limit) {
  DepthwisePlan p = toeplitz_blocks(s, kGradientPlanes, kMostPairs, 2);
  stack_tiles(s, p, shared_limit, [](const DepthwisePlan& p, int frames) {
    const int outer = static_cast<int>(p.frames) * outer_gradient_plane(p).words();
    const int staged = kGradientPlanes * (frames * gradient_plane(p).words() + outer);
    return std::max(staged, kGradientPlanes * 16 * 64) * 4;  // or a frame of taps' sums
  });
  p.parts = std::clamp<int64_t>(kBlocks / p.channel_blocks, 1, s.B * p.positions());
  p.grid = p.parts * p.channel_blocks;
  return p;
}

// In the general weight gradient a block has 32 channels of one tap (or of the bias).
constexpr int kGeneralChannels = 32;

inline DepthwisePlan general_weight_gradient(const DepthwiseSizes& s) {
  DepthwisePlan p{};
  p.threads = kGeneralThreads;
  p.channels = kGeneralChannels;
  p.channel_blocks = divide_up(s.C, p.channels);
  const int64_t blocks = p.channel_blocks * (s.taps() + 1), positions = s.B * s.T * s.H * s.W;
  p.parts = std::clamp<int64_t>(4 * kBlocks / blocks, 1, divide_up(positions, 64));
  p.grid = blocks * p.parts;
  p.shared = kGeneralThreads * 4;
  return p;
}

inline DepthwisePlan plan_weight_gradient(const DepthwiseSizes& s, int size, int shared_limit,
                                          bool tma = false) {
  DepthwisePlan p = plan_tiles(s, size);
  if (!p.tiled) return general_weight_gradient(s);
  p.tma = tma;
  p.parts = std::clamp<int64_t>(kBlocks / p.channel_blocks, 1, s.B * p.positions());
  p.grid = p.parts * p.channel_blocks;
  const int sums = (s.taps() + 1) * pitch_bytes(s.kh) / size * 4;
  p.shared = std::max((kGradientAhead + 1) * window_bytes(s.kh, p.columns, s.kh) +
                          (kGradientAhead + s.kt) * window_bytes(s.kh, p.columns, 1),
                      sums) +
             (tma ? (kGradientAhead + 1) * kBarrierBytes : 0);
  return fits(p, shared_limit) ? p : general_weight_gradient(s);
}

// What is asked for where the call and the GPU allow it; maps and device are the caller's to ask.
inline DepthwisePlan choose_forward(const DepthwiseSizes& s, int size, int shared_limit, By by) {
  if (by == By::products && has_toeplitz(s, size)) {
    const DepthwisePlan p = plan_toeplitz(s, shared_limit);
    if (fits(p, shared_limit)) return p;
  }
  if (by == By::tma) {
    const DepthwisePlan p = plan_forward(s, size, shared_limit, true);
    if (p.tiled) return p;
  }
  return plan_forward(s, size, shared_limit);
}
inline DepthwisePlan choose_weight_gradient(const DepthwiseSizes& s, int size, int shared_limit,
                                            By by) {
  if (by == By::products && has_toeplitz(s, size)) {
    const DepthwisePlan p = plan_toeplitz_weight_gradient(s, shared_limit);
    if (fits(p, shared_limit)) return p;
  }
  if (by == By::tma) {
    const DepthwisePlan p = plan_weight_gradient(s, size, shared_limit, true);
    if (p.tiled) return p;
  }
  return plan_weight_gradient(s, size, shared_limit);
}

// Bytes of shared memory a block may ask for.
constexpr int shared_limit(int architecture) {
  switch (architecture) {
    case 80:
    case 87:
      return 163 * 1024;
    case 90:
    case 100:
    case 103:
      return 227 * 1024;
    default:
      return 99 * 1024;
  }
}

}  // namespace uk::cuda

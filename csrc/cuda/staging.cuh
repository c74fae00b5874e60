// How frames get into shared memory, AHEAD steps before they are needed: by cp.async, of which
// every thread copies a part, or by TMA, of which one thread copies a box.
#pragma once

#include <cstdint>

#include "depthwise_conv.h"
#include "primitives.cuh"

namespace uk::cuda {

// Where a block works.
struct Place {
  int64_t b;
  int t, frames, h, w;  // its first output frame, row and column; its number of frames

  // Of position `at` of plan.B x chunks x down x across.
  __device__ Place(const DepthwiseSizes& s, const DepthwisePlan& p, int64_t at) {
    w = static_cast<int>(at % p.across) * p.tiles_across * p.columns;
    at /= p.across;
    h = static_cast<int>(at % p.down) * p.tiles_down * kRows;
    at /= p.down;
    t = static_cast<int>(at % p.chunks * p.frames);
    frames = static_cast<int>(min(p.frames, s.T - t));
    b = at / p.chunks;
  }
};

// Copies windows of a map, frame by frame, into shared memory [rows][columns][pitch], with K - 1
// rows and columns around a block's own; zeros where the map has none.  K is 1 for a window without
// surroundings.  All threads have a part.
template <class S, int K, int COLUMNS, int PITCH>
struct Window {
  static constexpr int kRowPitch = window_columns(K, COLUMNS) * PITCH;
  static constexpr int kSize = window_rows(K) * kRowPitch;  // elements of a frame

  const Map<S>& map;
  const DepthwiseSizes& sizes;
  const S* base;
  int h, w, rows, columns, channels, left;

  __device__ Window(const Map<S>& map, const DepthwiseSizes& s, const DepthwisePlan& p,
                    const Place& place, int channel)
      : map(map), sizes(s), base(map.data + place.b * map.stride[0] + channel * map.stride[4]) {
    h = place.h - K / 2;
    w = place.w - K / 2;
    rows = p.tiles_down * kRows + K - 1;
    columns = p.tiles_across * COLUMNS + K - 1;
    channels = p.channels;
    left = static_cast<int>(min(int64_t{p.channels}, s.C - channel));
  }

  // Frame t, where there is one.
  __device__ __forceinline__ void stage(int t, S* to, Barrier*) const {
    if (t < 0 || t >= sizes.T) return;
    const S* frame = base + t * map.stride[1];
    constexpr int kLength = kVector / sizeof(S);
    const int thread = static_cast<int>(threadIdx.x), threads = static_cast<int>(blockDim.x);
    if (map.vectors) {
      const int vectors = channels / kLength;  // divides the number of threads
      const int c = thread % vectors * kLength;
      for (int at = thread / vectors; at < rows * columns; at += threads / vectors) {
        const int row = row_of(at), column = at - row * columns;
        const bool inside = c < left && has(row, column);
        const S* from = frame + (h + row) * map.stride[2] + (w + column) * map.stride[3] + c;
        copy_async(to + row * kRowPitch + column * PITCH + c, inside ? from : map.data, inside);
      }
    } else {
      for (int i = thread; i < rows * columns * channels; i += threads) {
        const int c = i % channels, at = i / channels;
        const int row = row_of(at), column = at - row * columns;
        const bool inside = c < left && has(row, column);
        const S* from = frame + (h + row) * map.stride[2] + (w + column) * map.stride[3] +
                        c * map.stride[4];
        to[row * kRowPitch + column * PITCH + c] = inside ? *from : S{};
      }
    }
  }

  // Divided by one of two constants, which is cheap.
  __device__ __forceinline__ int row_of(int at) const {
    constexpr int kFull = window_columns(K, COLUMNS), kSingle = COLUMNS + K - 1;
    return columns == kFull ? at / kFull : at / kSingle;
  }
  __device__ __forceinline__ bool has(int row, int column) const {
    return static_cast<unsigned>(h + row) < sizes.H && static_cast<unsigned>(w + column) < sizes.W;
  }
};

// The same by one copy.  Threads only read where it writes, so __syncthreads is all that has to be
// between them and the next one; fence_copies, too, if they wrote there.
template <class S, int K, int COLUMNS, int PITCH>
struct BoxWindow : Window<S, K, COLUMNS, PITCH> {
  using Base = Window<S, K, COLUMNS, PITCH>;
  static_assert(Base::kSize * sizeof(S) % kTensorAlignment == 0, "slots begin where boxes may");
  int b, channel;

  __device__ BoxWindow(const Map<S>& map, const DepthwiseSizes& s, const DepthwisePlan& p,
                       const Place& place, int channel)
      : Base(map, s, p, place, channel), b(static_cast<int>(place.b)), channel(channel) {}

  __device__ __forceinline__ void stage(int t, S* to, Barrier* barrier) const {
    if (threadIdx.x != 0 || t < 0 || t >= this->sizes.T) return;
    expect_bytes(barrier, this->rows * Base::kRowPitch * static_cast<int>(sizeof(S)));
    copy_box(to, this->map.boxes, channel, this->w, this->h, t, b, barrier);
  }
};

// What is staged for a step is a group: commit ends it, and behind await and __syncthreads it is
// there for all threads.
template <int AHEAD>
struct CopyGroups {
  static constexpr int kBytes = 0;
  template <class S, int K, int COLUMNS, int PITCH>
  using Frames = Window<S, K, COLUMNS, PITCH>;

  __device__ explicit CopyGroups(unsigned char*) {}
  __device__ __forceinline__ Barrier* barrier(int) const { return nullptr; }
  __device__ __forceinline__ void commit(int) const { commit_copies(); }
  __device__ __forceinline__ void await(int) const { await_copies<AHEAD - 1>(); }
};

// A barrier for every step under way, in turns; a phase of it is a step.
template <int AHEAD>
struct BoxGroups {
  static constexpr int kSlots = AHEAD + 1, kBytes = kSlots * kBarrierBytes;
  template <class S, int K, int COLUMNS, int PITCH>
  using Frames = BoxWindow<S, K, COLUMNS, PITCH>;
  static_assert(sizeof(Barrier) == kBarrierBytes);
  Barrier* barriers;

  __device__ explicit BoxGroups(unsigned char* room)
      : barriers(reinterpret_cast<Barrier*>(room)) {
    need_tma();
    if (threadIdx.x == 0) {
      for (int i = 0; i < kSlots; ++i) begin_barrier(barriers + i, 1);
      fence_copies();
    }
    __syncthreads();
  }
  __device__ __forceinline__ Barrier* barrier(int step) const { return barriers + step % kSlots; }
  __device__ __forceinline__ void commit(int step) const {
    if (threadIdx.x == 0) arrive(barrier(step));
  }
  __device__ __forceinline__ void await(int step) const {
    await_phase(barrier(step), step / kSlots % 2);
  }
};

}  // namespace uk::cuda

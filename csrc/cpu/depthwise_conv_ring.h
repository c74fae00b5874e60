// A map's rows, packed for its depthwise convolution and for both gradients.
//
// The rows an output row needs are converted to the accumulator type and packed into a ring of kh
// slots [blocks, T, W + kw - 1, lanes] with zeroed ends: a tile of columns then needs no edge cases
// along W, its lines spread over all sets of the L1 cache (columns of the map itself are C elements
// apart and would share a few), and each input is read from memory once.  Frames and rows outside
// the map are skipped, not multiplied by zero.
#pragma once

#include "depthwise_conv.h"
#include "vector.h"

namespace uk::UK_ISA {
namespace {

// Where a task's sample, channel blocks and rows lie.
template <class S>
struct Task {
  using A = typename accumulator<S>::type;
  static constexpr int64_t L = lanes_of<A>;
  int64_t b, first, blocks, begin, end, part;

  Task(const DepthwiseShape& s, int64_t task) {
    const int64_t all = (s.C + L - 1) / L;
    const int64_t chunks = (s.H + s.chunk - 1) / s.chunk, groups = (all + s.group - 1) / s.group;
    first = task % groups * s.group;
    blocks = min(s.group, all - first);
    const int64_t chunk = task / groups % chunks;
    begin = chunk * s.chunk;
    end = min(begin + s.chunk, s.H);
    b = task / groups / chunks;
    part = task / groups * all + first;
  }

  // Channels of a block.
  int64_t channels(const DepthwiseShape& s, int64_t block) const {
    return min(L, s.C - (first + block) * L);
  }
};

template <class S>
UK_INLINE const S* row_of(const DepthwiseMap<S>& map, int64_t b, int64_t h) {
  return map.data + b * map.stride[0] + h * map.stride[2];
}

// Row h of a map, all frames, as [blocks, T, pad + W + pad, lanes], `size` apart from one block to
// the next; the caller zeroed the padding.
template <class S>
void pack_row(const DepthwiseShape& s, const DepthwiseMap<S>& map, const Task<S>& task, int64_t h,
              int64_t pad, int64_t size, typename accumulator<S>::type* out) {
  using A = typename accumulator<S>::type;
  constexpr int64_t L = lanes_of<A>;
  const S* row = row_of(map, task.b, h) + task.first * L * map.stride[4];
  const int64_t whole = map.stride[4] == 1 ? min(task.blocks, s.C / L - task.first) : 0;
  for (int64_t t = 0; t < s.T; ++t) {
    A* line = out + (t * (s.W + 2 * pad) + pad) * L;
    for (int64_t w = 0; w < s.W; ++w, line += L) {
      const S* in = row + t * map.stride[1] + w * map.stride[3];
      for (int64_t i = 0; i < whole; ++i) store(line + i * size, load(in + i * L));
      for (int64_t i = whole; i < task.blocks; ++i)
        store(line + i * size,
              load_some<A>(in + i * L * map.stride[4], task.channels(s, i), map.stride[4]));
    }
  }
}

// The last kh rows of a map, packed.
template <class S>
class Ring {
 public:
  using A = typename accumulator<S>::type;
  static constexpr int64_t L = lanes_of<A>;

  static int64_t size(const DepthwiseShape& s) {
    return s.group * s.kh * s.T * (s.W + s.kw - 1) * L;
  }

  Ring(const DepthwiseShape& s, const DepthwiseMap<S>& map, const Task<S>& task, A* memory)
      : s_(s), map_(map), task_(task), memory_(memory), line_((s.W + s.kw - 1) * L) {
    for (int64_t i = 0; i < task.blocks * s.kh * s.T; ++i) {
      __builtin_memset(memory + i * line_, 0, s.kw / 2 * L * sizeof(A));
      __builtin_memset(memory + i * line_ + (s.W + s.kw / 2) * L, 0, s.kw / 2 * L * sizeof(A));
    }
    next_ = max(0, task.begin - s.kh / 2);
  }

  // Packs what output row h needs: rows h + i - kh/2 for i in [first, last).
  void advance(int64_t h) {
    const int64_t pad = s_.kh / 2;
    first = max(0, pad - h);
    last = min(s_.kh, s_.H + pad - h);
    for (; next_ < h + last - pad; ++next_)
      pack_row(s_, map_, task_, next_, s_.kw / 2, s_.T * line_, slot(next_));
    for (int64_t i = first; i < last; ++i) rows_[i] = slot(h + i - pad);
    next_row_ = row_of(map_, task_.b, min(next_, s_.H - 1)) + task_.first * L;
  }

  // Frame t of row i of the neighbourhood; column 0 is the leftmost padding.
  const A* line(int64_t block, int64_t t, int64_t i) const {
    return rows_[i] + (block * s_.T + t) * line_;
  }

  // Brings a column of the map's next row nearer.
  void prefetch(int64_t block, int64_t t, int64_t w) const {
    __builtin_prefetch(next_row_ + t * map_.stride[1] + w * map_.stride[3] + block * L, 0, 2);
  }

  int64_t first, last;

 private:
  const DepthwiseShape& s_;
  const DepthwiseMap<S>& map_;
  const Task<S>& task_;
  A* memory_;
  const S* next_row_;
  int64_t line_, next_;
  const A* rows_[7];

  A* slot(int64_t h) const { return memory_ + h % s_.kh * task_.blocks * s_.T * line_; }
};

}  // namespace
}  // namespace uk::UK_ISA

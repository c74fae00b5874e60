// The gradients of a feed-forward network.  Hidden activations and their gradients are split as
// they come from the tiles, while the next ones are multiplied, and multiplied while in L2.

#include "feed_forward_backward.h"

#if defined(__AMX_BF16__)

#include "activation.h"
#include "split.h"

namespace uk::UK_ISA {
namespace {

constexpr int64_t L = lanes_of<float>;
constexpr int64_t kSide = 32, kBlock = kSide * kSide;  // a block of sums

// Where the sums of one task lie.
struct Sums {
  float *inputs, *outputs, *dz, *dy;

  Sums(const FeedForwardShape& s, const FeedForwardOperands& o, int64_t task) {
    inputs = o.sums + task * o.size, outputs = inputs + s.group * round_up(s.inputs, kSide);
    dz = outputs + s.group * round_up(s.outputs, kSide), dy = dz + s.group;
  }
};

int64_t rows_left(const FeedForwardShape& s, int64_t first) { return min(s.chunk, s.rows - first); }

void pack(const float* weight, int64_t output_stride, int64_t input_stride, int64_t inputs,
          int64_t outputs, int64_t index, bf16* panel) {
  const int64_t first = index * kSide;
  pack_split(weight + first * output_stride, output_stride, input_stride, inputs,
             min(kSide, outputs - first), panel);
}

void split(const float* in, int64_t stride, int64_t rows, int64_t columns, int64_t row,
           const SplitRows& as_they_lie, const SplitRows& turned) {
  for (int64_t c = 0; c < columns; c += kSide)
    for (int64_t r = 0; r < kSide; ++r)
      split_some(in + r * stride + c, r < rows ? columns - c : 0, as_they_lie.at(row + r, c),
                 kTileSize);
  for (int64_t c = 0; c < round_up(columns, kSide); c += kEdge)
    split_turned(in + c, stride, rows, columns - c, turned.at(c, row));
}

void split(const FeedForwardShape& s, const FeedForwardOperands& o, int64_t first, int64_t row) {
  const int64_t rows = rows_left(s, first) - row;
  split(o.x + (first + row) * s.x_stride, s.x_stride, rows, s.inputs, row,
        {o.x_rows, kSplit * round_up(s.inputs, kSide)}, {o.x_turned, kSplit * s.chunk});
  split(o.dy + (first + row) * s.dy_stride, s.dy_stride, rows, s.outputs, row,
        {o.dy_rows, kSplit * round_up(s.outputs, kSide)}, {o.dy_turned, kSplit * s.chunk});
}

// What is left to do with the last block of x fc1' and dy fc2: some rows while every step of the
// next one is multiplied.
template <class A>
struct Pending {
  const A& activation;
  float *z, *dhidden;           // the block, [32, 32]
  const float* bias;
  bf16 *hidden, *dz, *dz_rows;  // where it goes
  int64_t stride;               // of dz_rows
  float* sum;                   // of dz [32]
  int64_t each, next = kEdge;

  [[gnu::always_inline]] void at(int64_t) {
    for (int64_t i = 0; i < each && next < kEdge; ++i) step(next++);
  }
  void finish() {
    while (next < kEdge) step(next++);
  }

 private:
  // Rows i and i + 16, which share words.
  [[gnu::always_inline]] void step(int64_t i) {
    Parts parts[2][2];
#pragma GCC unroll 2
    for (int64_t v = 0; v < 2; ++v) {
      vec<float> values[2], slopes[2];
#pragma GCC unroll 2
      for (int64_t half = 0; half < 2; ++half) {
        const int64_t at = (i + half * kEdge) * kSide + v * L;
        const Curve curve = activation.both(load(z + at) + load(bias + v * L));
        values[half] = curve.value, slopes[half] = curve.slope * load(dhidden + at);
        parts[half][v] = Parts::of(slopes[half]);
      }
      store(sum + v * L, load(sum + v * L) + (slopes[0] + slopes[1]));
      const int64_t word = (i * kSide + v * L) * kWord<bf16>;
      store_split(hidden + word, kRightPart, values[0], values[1]);
      store_split(dz + word, kRightPart, parts[0][v], parts[1][v]);
    }
    if (dz_rows == nullptr) return;
#pragma GCC unroll 2
    for (int64_t half = 0; half < 2; ++half)
      store_split(dz_rows + half * kEdge * stride + i * kDepth<bf16>, kTileSize, parts[half][0],
                  parts[half][1]);
  }
};

constexpr Start kZero{nullptr, 0};

// Rows between one visit of the sums and the next: x and dy, split both ways, stay in L2 with them.
int64_t block_rows(const FeedForwardShape& s) {
  const int64_t across = round_up(s.inputs, kSide) + round_up(s.outputs, kSide);
  return max(min((1 << 16) / across, min(s.part, 160)) / kSide, 1) * kSide;
}

UK_INLINE void fetch(const float* block) {
#pragma GCC unroll 64
  for (int64_t i = 0; i < kBlock; i += L) __builtin_prefetch(block + i, 1, 2);
}

// sums, in blocks, += a' b over `rows`; b's blocks stay in L1 while all of a passes by.
void add_products(const SplitRows& a, int64_t channels, const SplitColumns& b, int64_t columns,
                  int64_t rows, float* sums, bool accumulate) {
  const Nothing nothing;
  for (int64_t h = 0; h < columns; h += kSide)
    for (int64_t c = 0; c < channels; c += kSide, sums += kBlock) {
      fetch(sums + kBlock);
      const Start start{accumulate ? sums : nullptr, kSide};
      multiply_split<2>(a, c, b.at(0, h), rows, sums, kSide, start, nothing);
    }
}

template <class A>
void add_as(const A& activation, const FeedForwardShape& s, const FeedForwardOperands& o,
            int64_t first, int64_t task) {
  const int64_t groups = (s.hidden + s.group - 1) / s.group, start = task % groups * s.group;
  const int64_t part = task / groups * s.part, all = rows_left(s, first);
  const int64_t end = min(part + s.part, round_up(all, kSide));
  const int64_t width = min(s.group, round_up(s.hidden, kSide) - start);
  const int64_t n = round_up(s.inputs, kSide), m = round_up(s.outputs, kSide);
  const int64_t most = block_rows(s), stride = kSplit * round_up(s.hidden, kSide);
  float* tiles = scratch<float>(4 * kBlock + s.group + m + kSplit * most * s.group);
  float *dz_sum = tiles + 4 * kBlock, *dy_sum = dz_sum + s.group;
  const SplitColumns hidden{(bf16*)(dy_sum + m), most};
  const SplitColumns dz{hidden.data + kSplit * most * s.group, most};
  const SplitRows x_rows{o.x_rows, kSplit * n}, dy_rows{o.dy_rows, kSplit * m};
  const SplitRows dz_rows{o.dz_rows, stride};
  const Sums sums(s, o, task);
  Pending<A> pending{activation, nullptr, nullptr, nullptr, nullptr, nullptr, nullptr, stride,
                     nullptr, (kEdge * kDepth<bf16> - 1) / (kSplit * (n + m)) + 1};
  for (int64_t row = part; row < end; row += most) {
    const int64_t rows = min(most, end - row);
    const bool accumulate = first > 0 || row > part;
    for (int64_t i = 0; i < s.group + m; ++i) dz_sum[i] = 0.f;
    remember(o.x_rows);
    for (int64_t h = 0, turn = 0; h < width; h += kSide)
      for (int64_t r = 0; r < rows; r += kSide, turn ^= 2) {
        float* block = tiles + turn * kBlock;
        const int64_t panel = (start + h) * kSplit;
        multiply_split<2>(x_rows, row + r, o.fc1 + panel * n, n, block, kSide, kZero, pending);
        multiply_split<2>(dy_rows, row + r, o.fc2_turned + panel * m, m, block + kBlock, kSide,
                          kZero, pending);
        pending.finish();
        pending.z = block, pending.dhidden = block + kBlock, pending.bias = o.bias + start + h;
        pending.hidden = hidden.at(r, h), pending.dz = dz.at(r, h), pending.sum = dz_sum + h;
        pending.dz_rows = o.dz_rows ? dz_rows.at(row + r, start + h) : nullptr;
        pending.next = 0;
      }
    pending.finish();
    remember(hidden.data);
    const int64_t skip = row * kEdge * kSplit;
    add_products({o.x_turned + skip, kSplit * s.chunk}, n, dz, width, rows, sums.inputs,
                 accumulate);
    add_products({o.dy_turned + skip, kSplit * s.chunk}, m, hidden, width, rows, sums.outputs,
                 accumulate);
    if (start == 0)
      for (int64_t r = row; r < min(row + rows, all); ++r)
        for (int64_t c = 0; c < s.outputs; ++c) dy_sum[c] += o.dy[(first + r) * s.dy_stride + c];
    for (int64_t i = 0; i < s.group + m; ++i)
      sums.dz[i] = accumulate ? sums.dz[i] + dz_sum[i] : dz_sum[i];
  }
}

void add(const FeedForwardShape& s, const FeedForwardOperands& o, int64_t first, int64_t task) {
  const TileRegisters registers;
  with_activation<float>(s.quick,
                         [&](const auto& activation) { add_as(activation, s, o, first, task); });
}

void input(const FeedForwardShape& s, const FeedForwardOperands& o, int64_t first, int64_t row,
           int64_t end, float* dx) {
  const TileRegisters registers;
  const Nothing nothing;
  const int64_t depth = round_up(s.hidden, kSide), all = min(end, rows_left(s, first));
  const SplitRows dz{o.dz_rows, kSplit * depth};
  alignas(64) float block[kBlock];
  remember(o.dz_rows);
  for (int64_t c = 0; c < s.inputs; c += kSide)
    for (int64_t r = row; r < all; r += kSide) {
      const bf16* panel = o.fc1_turned + kSplit * depth * c;
      float* out = dx + (first + r) * s.inputs + c;
      const int64_t rows = min(kSide, all - r), columns = min(kSide, s.inputs - c);
      const bool whole = rows == kSide && columns == kSide;
      multiply_split<2>(dz, r, panel, depth, whole ? out : block, whole ? s.inputs : kSide, kZero,
                        nothing);
      for (int64_t i = 0; !whole && i < rows; ++i)
        __builtin_memcpy(out + i * s.inputs, block + i * kSide, columns * sizeof(float));
    }
}

// out = one block of the parts' sums, which lie `apart`.
void add_up(const float* sums, int64_t apart, int64_t parts, int64_t count, float* out) {
  for (int64_t i = 0; i < count; ++i) out[i] = sums[i];
  for (int64_t p = 1; p < parts; ++p)
    for (int64_t i = 0; i < count; ++i) out[i] += sums[p * apart + i];
}

void finish(const FeedForwardShape& s, const FeedForwardOperands& o, int64_t parts,
            int64_t channel, float* const* results) {
  const int64_t groups = (s.hidden + s.group - 1) / s.group, apart = groups * o.size;
  const int64_t n = round_up(s.inputs, kSide), m = round_up(s.outputs, kSide);
  const int64_t within = channel % s.group, count = min(kSide, s.hidden - channel);
  const Sums sums(s, o, channel / s.group);
  alignas(64) float block[kBlock], turned[kBlock];
  for (int64_t c = 0; c < s.inputs; c += kSide) {
    add_up(sums.inputs + within * n + c * kSide, apart, parts, kBlock, block);
    transpose(block, kSide, kSide, kSide, turned, kSide);
    for (int64_t h = 0; h < count; ++h)
      __builtin_memcpy(results[0] + (channel + h) * s.inputs + c, turned + h * kSide,
                       min(kSide, s.inputs - c) * sizeof(float));
  }
  for (int64_t c = 0; c < s.outputs; c += kSide) {
    add_up(sums.outputs + within * m + c * kSide, apart, parts, kBlock, block);
    for (int64_t i = 0; i < min(kSide, s.outputs - c); ++i)
      __builtin_memcpy(results[2] + (c + i) * s.hidden + channel, block + i * kSide,
                       count * sizeof(float));
  }
  add_up(sums.dz + within, apart, parts, count, results[1] + channel);
  if (channel == 0) add_up(sums.dy, apart, parts, s.outputs, results[3]);
}

}  // namespace

const FeedForwardKernels& feed_forward_kernels() {
  static constexpr FeedForwardKernels kernels = {pack, split, add, input, finish};
  return kernels;
}

}  // namespace uk::UK_ISA

#endif

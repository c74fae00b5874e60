// The weight gradient of a linear layer.  A row of x is a vector of every sum it goes into, and a row
// of dy holds the factors; without tiles nothing of float32 is transposed.

#include "weight_gradient.h"
#include "operand.h"
#if defined(__AMX_BF16__)
#include "split.h"
#endif

namespace uk::UK_ISA {
namespace {

constexpr int64_t L = lanes_of<float>;

// What a task sums up.
struct Task {
  int64_t first, columns, top, outputs, begin, end;

  Task(const WeightGradientShape& s, int64_t most, int64_t task) {
    const int64_t across = max((s.inputs + most - 1) / most, 1);
    const int64_t down = (s.outputs + s.block - 1) / s.block;
    first = task % across * most, columns = min(most, s.inputs - first);
    top = task / across % down * s.block, outputs = min(s.block, s.outputs - top);
    begin = task / across / down * s.part, end = min(begin + s.part, s.rows);
  }
};

// Writes sums [outputs, width] and bias [outputs] to where they belong.
void finish(const WeightGradientShape& s, const Task& t, const float* sums, int64_t width,
            const float* bias, float* dw, float* db) {
  for (int64_t o = 0; o < t.outputs; ++o, sums += width) {
    float* row = dw + (t.top + o) * s.inputs + t.first;
    int64_t c = 0;
    for (; c + L <= t.columns; c += L) store(row + c, load(sums + c));
    if (c < t.columns) store_some<float>(row + c, load(sums + c), t.columns - c);
  }
  if (t.first == 0)
    for (int64_t o = 0; o < t.outputs; ++o) db[t.top + o] = bias[o];
}

// sums [count] += the rows; `sums` has whole vectors.
template <class S>
void add_rows(const S* rows, int64_t stride, int64_t count, int64_t columns, float* sums) {
  for (int64_t c = 0; c < columns; c += L) {
    vec<float> sum{};
    for (int64_t i = 0; i < count; ++i) sum += load_up_to(rows + i * stride + c, columns - c);
    store(sums + c, sum + load(sums + c));
  }
}

#if defined(__AVX512BF16__)

template <class S>
constexpr int64_t kColumns = 16 * L;
constexpr int64_t kTile = kDepth<bf16> > kWord<bf16> ? 32 : kSums / 4;
constexpr int64_t kRows = 512;  // packed at a time: they stay in L2 while all outputs use them

// out [all / 2, width words] = rows [rows, count] in pairs: number by number, two rows' ones; zeros
// behind them.
void pair(const bf16* in, int64_t stride, int64_t rows, int64_t count, int64_t all, int64_t width,
          bf16* out) {
  for (int64_t i = 0; i < all; i += 2, in += 2 * stride)
    for (int64_t c = 0; c < width; c += L, out += 2 * L) {
      const int64_t left = count - c;
      const vec<float> both[2] = {i < rows ? load_up_to(in + c, left) : vec<float>{},
                                  i + 1 < rows ? load_up_to(in + stride + c, left) : vec<float>{}};
      const words word = (words)both[0] >> 16 | (words)both[1];
      __builtin_memcpy(out, &word, sizeof(word));
    }
}

void run(const WeightGradientShape& s, const bf16* dy, const bf16* x, float* dw, float* db,
         int64_t task) {
  const TileRegisters registers;
  const Task t(s, kColumns<bf16>, task);
  const int64_t width = round_up(t.columns, 2 * L), height = round_up(t.outputs, 2 * L);
  float* sums = scratch<float>(height * (width + 1) + kRows * (height + width / 2));
  float* bias = sums + height * width;
  bf16 *pairs = (bf16*)(bias + height), *left = pairs + kRows * height;
  bf16* right = left + kRows * height;
  for (int64_t o = 0; o < height; ++o) bias[o] = 0.f;
  for (int64_t m = t.begin; m < t.end; m += kRows) {
    const int64_t rows = min(kRows, t.end - m), all = round_up(rows, 2 * L);
    const bf16 *own_dy = dy + m * s.dy_stride + t.top, *own_x = x + m * s.x_stride + t.first;
    if (t.first == 0) add_rows(own_dy, s.dy_stride, rows, t.outputs, bias);
    pair(own_dy, s.dy_stride, rows, t.outputs, all, height, pairs);
    transpose(pairs, height, all / 2, height, left, all / 2);
    pair(own_x, s.x_stride, rows, t.columns, all, width, right);
    product(t.outputs, width, left, all, 2, right, 2 * width, all, sums, width, m > t.begin);
  }
  finish(s, t, sums, width, bias, dw, db);
}

#if defined(__AMX_BF16__)

template <>
constexpr int64_t kColumns<float> = 20 * L;
constexpr int64_t kFloatRows = 128;

// Rows are split while the ones before them are multiplied.
void run(const WeightGradientShape& s, const float* dy, const float* x, float* dw, float* db,
         int64_t task) {
  const TileRegisters registers;
  const Task t(s, kColumns<float>, task);
  const int64_t width = round_up(t.columns, 32), height = round_up(t.outputs, 32);
  constexpr int64_t kAll = kSplit * kFloatRows;
  const int64_t across = height / 16, along = width / 32;  // blocks of dy and x beside each other
  float* sums = scratch<float>(height * (width + 1) + kAll * (height + width));
  float* bias = sums + height * width;
  bf16* packed = (bf16*)(bias + height);
  SplitRows left[2];
  SplitColumns right[2];
  for (int i = 0; i < 2; ++i, packed += kAll * (height + width))
    left[i] = {packed, kAll}, right[i] = {packed + kAll * height, kFloatRows};
  for (int64_t o = 0; o < height; ++o) bias[o] = 0.f;
  int64_t m = t.begin;  // the rows being split
  const auto split = [&](int64_t step) {
    const int64_t r = step / (across + along) * 32, column = step % (across + along);
    const int64_t rows = t.end - m - r, parity = (m - t.begin) / kFloatRows % 2;
    if (column < across) {
      const int64_t c = column * 16;
      const float* in = dy + (m + r) * s.dy_stride + t.top + c;
      if (t.first == 0 && c < t.outputs)
        add_rows(in, s.dy_stride, min(32, rows), min(L, t.outputs - c), bias + c);
      split_turned(in, s.dy_stride, rows, t.outputs - c, left[parity].at(c, r));
    } else {
      const int64_t c = (column - across) * 32;
      split_columns(x + (m + r) * s.x_stride + t.first + c, s.x_stride, rows, t.columns - c,
                    right[parity].at(r, c));
    }
  };
  const auto steps = [&](int64_t calls) {
    const int64_t rows = min(kFloatRows, t.end - m);
    return Steps(split, round_up(rows, 32) / 32 * (across + along), calls);
  };
  steps(0).finish();
  for (int64_t begin = t.begin, parity = 0; begin < t.end; begin = m, parity ^= 1) {
    const int64_t rows = min(kFloatRows, t.end - begin);
    m = min(begin + kFloatRows, t.end);
    auto next = steps(calls(height, width, rows));
    product(height, width, left[parity], right[parity], rows, sums, width, begin > t.begin, next);
    next.finish();
  }
  finish(s, t, sums, width, bias, dw, db);
}

#endif

#else

template <class S>
constexpr int64_t kColumns = 8 * L;  // two tiles of `product`
constexpr int64_t kTile = kSums / 4;
constexpr int64_t kRows = 64;  // of x packed at a time: stays in L1 while all outputs use them

// Rows, zeros behind their end, `width` apart: those of a wide matrix share few sets of the caches.
template <class S>
void pack(const S* in, int64_t stride, int64_t rows, int64_t count, int64_t width, float* out) {
  for (int64_t i = 0; i < rows; ++i, in += stride, out += width) pack_row(in, count, out, width);
}

template <class S>
void run(const WeightGradientShape& s, const S* dy, const S* x, float* dw, float* db,
         int64_t task) {
  const Task t(s, kColumns<S>, task);
  const int64_t width = round_up(t.columns, L), height = round_up(t.outputs, L);
  const int64_t apart = height | L;  // an odd number of vectors: no two rows in the same sets
  float* right = scratch<float>(kRows * (width + apart) + t.outputs * width + height);
  float *left = right + kRows * width, *sums = left + kRows * apart;
  float* bias = sums + t.outputs * width;
  for (int64_t o = 0; o < height; ++o) bias[o] = 0.f;
  for (int64_t m = t.begin; m < t.end; m += kRows) {
    const int64_t rows = min(kRows, t.end - m);
    pack(x + m * s.x_stride + t.first, s.x_stride, rows, t.columns, width, right);
    pack(dy + m * s.dy_stride + t.top, s.dy_stride, rows, t.outputs, apart, left);
    product(t.outputs, width, left, 1, apart, right, width, rows, sums, width, m > t.begin);
    if (t.first == 0) add_rows(left, apart, rows, height, bias);
  }
  finish(s, t, sums, width, bias, dw, db);
}

#endif

}  // namespace

template <class S>
const WeightGradientKernels<S>& weight_gradient_kernels() {
  static const WeightGradientKernels<S> kernels = {kColumns<S>, kTile, run};
  return kernels;
}

template const WeightGradientKernels<bf16>& weight_gradient_kernels();
#if !defined(__AVX512BF16__) || defined(__AMX_BF16__)
template const WeightGradientKernels<float>& weight_gradient_kernels();
#endif

}  // namespace uk::UK_ISA

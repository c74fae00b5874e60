// Depthwise 3-D convolution, forward and both gradients, on a group of channel blocks at a time.
//
// Both gradients correlate with dy's neighbourhood, so backward packs dy once and uses it twice:
//   dx[p]      = sum_k w[K-1-k] dy[p + k - pad]
//   dw[K-1-k]  = sum_p x[p]     dy[p + k - pad]

#include "depthwise_conv_ring.h"

namespace uk::UK_ISA {
namespace {

// A tile of columns and its weights live in registers.
constexpr int kMaxColumns = UK_VECTOR_REGISTERS == 32 ? 14 : 7;

// sum[i] += weight[k] * line[i + k]
template <class A, int KW, int COLUMNS>
UK_INLINE void convolve_line(vec<A> (&sum)[COLUMNS], const A* line, const A* weight) {
  constexpr int64_t L = lanes_of<A>;
  line = plain(line);
  vec<A> tap[KW];
#pragma GCC unroll 8
  for (int k = 0; k < KW; ++k) tap[k] = load_once(weight + k * L);
#pragma GCC unroll 32
  for (int j = 0; j < COLUMNS + KW - 1; ++j) {
    const vec<A> v = load_once(line + j * L);
#pragma GCC unroll 8
    for (int k = 0; k < KW; ++k)
      if (j - k >= 0 && j - k < COLUMNS) sum[j - k] += v * tap[k];
  }
}

// Row h of the output: bias + convolution of the ring [+ the ring's own row].
template <class S, int KW, int COLUMNS>
void convolve_row(const DepthwiseShape& s, const Ring<S>& ring, const Task<S>& task, int64_t h,
                  int64_t block, const typename accumulator<S>::type* weight,
                  const typename accumulator<S>::type* bias, bool residual, S* y) {
  using A = typename accumulator<S>::type;
  constexpr int64_t L = lanes_of<A>;
  const int64_t pt = s.kt / 2, first = ring.first, last = ring.last;
  const int64_t channels = task.channels(s, block);
  const vec<A> start = bias ? load(bias) : vec<A>{};
  for (int64_t w = 0; w < s.W; w += COLUMNS) {
    const int64_t left = min(w, s.W - COLUMNS);  // the last tile overlaps its neighbour
    for (int64_t t = 0; t < s.T; ++t) {
      S* out = y + (((task.b * s.T + t) * s.H + h) * s.W + left) * s.C + (task.first + block) * L;
      // Lines to be written, and those to be packed next, are fetched while the sums are formed.
#pragma GCC unroll 32
      for (int j = 0; j < COLUMNS; ++j) {
        __builtin_prefetch(out + j * s.C, 1);
        ring.prefetch(block, t, left + j);
      }
      vec<A> sum[COLUMNS];
#pragma GCC unroll 32
      for (int j = 0; j < COLUMNS; ++j) sum[j] = start;
      if (residual) {
        const A* own = ring.line(block, t, s.kh / 2) + (left + KW / 2) * L;
#pragma GCC unroll 32
        for (int j = 0; j < COLUMNS; ++j) sum[j] += load(own + j * L);
      }
      for (int64_t f = max(0, pt - t); f < min(s.kt, s.T + pt - t); ++f)
        for (int64_t i = first; i < last; ++i)
          convolve_line<A, KW, COLUMNS>(sum, ring.line(block, t + f - pt, i) + left * L,
                                        weight + (f * s.kh + i) * KW * L);
      if (channels == L) {
#pragma GCC unroll 32
        for (int j = 0; j < COLUMNS; ++j) store(out + j * s.C, sum[j]);
      } else {
#pragma GCC unroll 32
        for (int j = 0; j < COLUMNS; ++j) store_some<A>(out + j * s.C, sum[j], channels);
      }
    }
  }
}

// sum[i][k] += x[j] * dy[line i][j + k] over a tile of columns, for ROWS lines of dy.
template <class A, int KW, int ROWS, int COLUMNS>
UK_INLINE void correlate_lines(vec<A> (&sum)[ROWS][KW], const A* x, const A* const (&dy)[ROWS]) {
  constexpr int64_t L = lanes_of<A>;
  vec<A> own[COLUMNS];
#pragma GCC unroll 32
  for (int j = 0; j < COLUMNS; ++j) own[j] = load_once(x + j * L);
  const A* line[ROWS];
#pragma GCC unroll 8
  for (int i = 0; i < ROWS; ++i) line[i] = plain(dy[i]);
#pragma GCC unroll 32
  for (int j = 0; j < COLUMNS + KW - 1; ++j) {
#pragma GCC unroll 8
    for (int i = 0; i < ROWS; ++i) {
      const vec<A> v = load_once(line[i] + j * L);
#pragma GCC unroll 8
      for (int k = 0; k < KW; ++k)
        if (j - k >= 0 && j - k < COLUMNS) sum[i][k] += v * own[j - k];
    }
  }
}

// Adds to ROWS x KW sums of dw, kernel rows i.., what a row of x and the ring of dy give,
// for columns [left, right) and frames [first, last) of x.
template <class S, int KW, int ROWS, int COLUMNS>
UK_INLINE void correlate_tile(const DepthwiseShape& s, const Ring<S>& dy,
                              int64_t block, const typename accumulator<S>::type* x, int64_t i,
                              int64_t f, int64_t left, int64_t right, int64_t first, int64_t last,
                              typename accumulator<S>::type* dw) {
  using A = typename accumulator<S>::type;
  constexpr int64_t L = lanes_of<A>;
  const int64_t pt = s.kt / 2;
  vec<A> sum[ROWS][KW];
#pragma GCC unroll 8
  for (int r = 0; r < ROWS; ++r)
#pragma GCC unroll 8
    for (int k = 0; k < KW; ++k) sum[r][k] = load(dw + (r * KW + k) * L);
  for (int64_t t = max(first, pt - f); t < min(last, s.T + pt - f); ++t) {
    const A* line[ROWS];
#pragma GCC unroll 8
    for (int r = 0; r < ROWS; ++r) line[r] = dy.line(block, t + f - pt, i + r);
    int64_t w = left;
    for (; w + COLUMNS <= right; w += COLUMNS) {
      const A* tile[ROWS];
#pragma GCC unroll 8
      for (int r = 0; r < ROWS; ++r) tile[r] = line[r] + w * L;
      correlate_lines<A, KW, ROWS, COLUMNS>(sum, x + (t * s.W + w) * L, tile);
    }
    for (; w < right; ++w) {
      const A* tile[ROWS];
#pragma GCC unroll 8
      for (int r = 0; r < ROWS; ++r) tile[r] = line[r] + w * L;
      correlate_lines<A, KW, ROWS, 1>(sum, x + (t * s.W + w) * L, tile);
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < ROWS; ++r)
#pragma GCC unroll 8
    for (int k = 0; k < KW; ++k) store(dw + (r * KW + k) * L, sum[r][k]);
}

// Adds a row's share of the (flipped) weight gradient.
template <class S, int KW>
void correlate_row(const DepthwiseShape& s, const Ring<S>& dy, int64_t block,
                   const typename accumulator<S>::type* x,
                   typename accumulator<S>::type* dw) {
  constexpr int64_t L = Ring<S>::L;
  // ROWS * KW sums, COLUMNS of x and one line in registers; enough sums to hide FMA latency.
  constexpr bool many = UK_VECTOR_REGISTERS == 32;
  constexpr int ROWS = many ? (KW == 1 ? 7 : KW == 3 ? 3 : KW == 5 ? 3 : 2) : KW > 3 ? 1 : 2;
  constexpr int COLUMNS = many ? (KW <= 3 ? 14 : 7) : 4;
  constexpr int64_t kColumns = 14, kFrames = 4;  // what stays in the L1 cache over the loops below
  for (int64_t left = 0; left < s.W; left += kColumns) {
    const int64_t right = min(left + kColumns, s.W);
    for (int64_t first = 0; first < s.T; first += kFrames) {
      const int64_t last = min(first + kFrames, s.T);
      for (int64_t f = 0; f < s.kt; ++f) {
        int64_t i = dy.first;
        for (; i + ROWS <= dy.last; i += ROWS)
          correlate_tile<S, KW, ROWS, COLUMNS>(s, dy, block, x, i, f, left, right, first, last,
                                               dw + (f * s.kh + i) * KW * L);
        if (ROWS > 2 && i + 2 <= dy.last) {
          correlate_tile<S, KW, 2, COLUMNS>(s, dy, block, x, i, f, left, right, first, last,
                                            dw + (f * s.kh + i) * KW * L);
          i += 2;
        }
        for (; i < dy.last; ++i)
          correlate_tile<S, KW, 1, COLUMNS>(s, dy, block, x, i, f, left, right, first, last,
                                            dw + (f * s.kh + i) * KW * L);
      }
    }
  }
}

// The ring's own row of dy summed over frames and columns, onto db.
template <class S, class A = typename accumulator<S>::type>
void sum_row(const DepthwiseShape& s, const Ring<S>& dy, int64_t block, A* db) {
  constexpr int64_t L = lanes_of<A>;
  vec<A> sum[4] = {load(db)};
  for (int64_t t = 0; t < s.T; ++t) {
    const A* line = dy.line(block, t, s.kh / 2) + s.kw / 2 * L;
    int64_t w = 0;
    for (; w + 4 <= s.W; w += 4)
      for (int j = 0; j < 4; ++j) sum[j] += load(line + (w + j) * L);
    for (; w < s.W; ++w) sum[0] += load(line + w * L);
  }
  store(db, (sum[0] + sum[1]) + (sum[2] + sum[3]));
}

template <class S>
using RowFunction = void (*)(const DepthwiseShape&, const Ring<S>&, const Task<S>&, int64_t,
                             int64_t, const typename accumulator<S>::type*,
                             const typename accumulator<S>::type*, bool, S*);

template <class S, int KW, int COLUMNS>
RowFunction<S> row_function_for(int64_t columns) {
  if (columns == COLUMNS) return convolve_row<S, KW, COLUMNS>;
  if constexpr (COLUMNS > 1) return row_function_for<S, KW, COLUMNS - 1>(columns);
  return nullptr;
}

// Tiles of equal width, so that the last one overlaps little.
template <class S, int KW>
RowFunction<S> row_function(const DepthwiseShape& s) {
  const int64_t tiles = (s.W + kMaxColumns - 1) / kMaxColumns;
  return row_function_for<S, KW, kMaxColumns>((s.W + tiles - 1) / tiles);
}

template <class S, int KW>
void forward(const DepthwiseShape& s, const DepthwiseMap<S>& x,
             const typename accumulator<S>::type* weight,
             const typename accumulator<S>::type* bias, bool residual, S* y, int64_t index) {
  using A = typename accumulator<S>::type;
  constexpr int64_t L = lanes_of<A>;
  const Task<S> task(s, index);
  Ring<S> ring(s, x, task, scratch<A>(Ring<S>::size(s)));
  const auto convolve = row_function<S, KW>(s);
  const int64_t taps = s.kt * s.kh * KW;
  for (int64_t h = task.begin; h < task.end; ++h) {
    ring.advance(h);
    for (int64_t i = 0; i < task.blocks; ++i) {
      const int64_t block = task.first + i;
      convolve(s, ring, task, h, i, weight + block * taps * L, bias ? bias + block * L : nullptr,
               residual, y);
    }
  }
}

template <class S, int KW>
void backward(const DepthwiseShape& s, const DepthwiseMap<S>& dy, const DepthwiseMap<S>& x,
              const typename accumulator<S>::type* flipped, bool residual, S* dx,
              typename accumulator<S>::type* partial, int64_t index) {
  using A = typename accumulator<S>::type;
  constexpr int64_t L = lanes_of<A>;
  const Task<S> task(s, index);
  const int64_t taps = s.kt * s.kh * KW;
  const int64_t lines = s.T * s.W * L, size = (taps + 1) * L;
  A* memory = scratch<A>(Ring<S>::size(s) + s.group * (lines + size) + taps * L);
  A* rows = memory + Ring<S>::size(s);
  A* sums = rows + s.group * lines;  // of dw, flipped, and db
  A* row_dw = sums + s.group * size;
  Ring<S> ring(s, dy, task, memory);
  const auto convolve = row_function<S, KW>(s);
  __builtin_memset(sums, 0, s.group * size * sizeof(A));
  for (int64_t h = task.begin; h < task.end; ++h) {
    ring.advance(h);
    if (partial) pack_row(s, x, task, h, 0, lines, rows);
    for (int64_t block = 0; block < task.blocks; ++block) {
      if (dx)
        convolve(s, ring, task, h, block, flipped + (task.first + block) * taps * L, nullptr,
                 residual, dx);
      if (!partial) continue;
      A* dw = sums + block * size;
      // Summed row by row, then over rows: long sums of equal terms lose digits.
      __builtin_memset(row_dw, 0, taps * L * sizeof(A));
      correlate_row<S, KW>(s, ring, block, rows + block * lines, row_dw);
      for (int64_t i = 0; i < taps * L; i += L) store(dw + i, load(dw + i) + load(row_dw + i));
      sum_row<S>(s, ring, block, dw + taps * L);
    }
  }
  for (int64_t block = 0; partial && block < task.blocks; ++block) {
    const A* dw = sums + block * size;
    A* own = partial + (task.part + block) * size;
    for (int64_t i = 0; i < taps; ++i) store(own + i * L, load(dw + (taps - 1 - i) * L));
    store(own + taps * L, load(dw + taps * L));
  }
}

template <class S>
void forward_any(const DepthwiseShape& s, const DepthwiseMap<S>& x,
                 const typename accumulator<S>::type* weight,
                 const typename accumulator<S>::type* bias, bool residual, S* y, int64_t index) {
  const auto run = s.kw == 1   ? forward<S, 1>
                   : s.kw == 3 ? forward<S, 3>
                   : s.kw == 5 ? forward<S, 5>
                               : forward<S, 7>;
  run(s, x, weight, bias, residual, y, index);
}

template <class S>
void backward_any(const DepthwiseShape& s, const DepthwiseMap<S>& dy, const DepthwiseMap<S>& x,
                  const typename accumulator<S>::type* flipped, bool residual, S* dx,
                  typename accumulator<S>::type* partial, int64_t index) {
  const auto run = s.kw == 1   ? backward<S, 1>
                   : s.kw == 3 ? backward<S, 3>
                   : s.kw == 5 ? backward<S, 5>
                               : backward<S, 7>;
  run(s, dy, x, flipped, residual, dx, partial, index);
}

}  // namespace

template <class S>
const DepthwiseKernels<S>& depthwise_kernels() {
  static constexpr DepthwiseKernels<S> kernels = {lanes_of<typename accumulator<S>::type>,
                                                  forward_any<S>, backward_any<S>};
  return kernels;
}

template const DepthwiseKernels<float>& depthwise_kernels();
template const DepthwiseKernels<double>& depthwise_kernels();
template const DepthwiseKernels<bf16>& depthwise_kernels();
template const DepthwiseKernels<f16>& depthwise_kernels();

}  // namespace uk::UK_ISA

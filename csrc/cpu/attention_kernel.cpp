// Joint and window attention in one pass over the keys (online softmax), forward and backward.
//
// Scores are kept transposed, [keys, queries]: the vector axis is the queries', so that maxima,
// sums and rescaling are vertical, keys and values are read as single numbers in the layout they
// have, and every matrix product of both passes is one small kernel, `product`.

#include "attention.h"
#include "vector.h"

namespace uk::UK_ISA {
namespace {

constexpr int64_t L = lanes_of<float>;
constexpr int kVectors = 3;               // vectors of queries in a tile
constexpr int64_t kTile = kVectors * L;   // queries in a tile
constexpr int64_t kKeys = 64;             // keys worked on at a time
constexpr int kSums = UK_VECTOR_REGISTERS == 32 ? 24 : 12;  // vectors of sums in registers
constexpr float kLog2e = 1.44269504088896341f;

// out[r][:] (+)= sum over i < n of a[r * row + i * step] * b[i][:], for ROWS rows of VECTORS.
// What is in `out` is added last: block by block, long sums keep their digits.
template <int ROWS, int VECTORS>
void product_tile(const float* a, int64_t row, int64_t step, const float* b, int64_t ldb, int64_t n,
                  float* out, int64_t ldo, bool accumulate) {
  vec<float> sum[ROWS][VECTORS];
#pragma GCC unroll 24
  for (int r = 0; r < ROWS; ++r)
#pragma GCC unroll 4
    for (int v = 0; v < VECTORS; ++v) sum[r][v] = vec<float>{};
  for (int64_t i = 0; i < n; ++i, a += step, b += ldb) {
    vec<float> right[VECTORS];
#pragma GCC unroll 4
    for (int v = 0; v < VECTORS; ++v) right[v] = load_once(b + v * L);
#pragma GCC unroll 24
    for (int r = 0; r < ROWS; ++r) {
      const vec<float> left = broadcast_once(a + r * row);
#pragma GCC unroll 4
      for (int v = 0; v < VECTORS; ++v) sum[r][v] += left * right[v];
    }
  }
#pragma GCC unroll 24
  for (int r = 0; r < ROWS; ++r)
#pragma GCC unroll 4
    for (int v = 0; v < VECTORS; ++v) {
      if (accumulate) sum[r][v] += load(out + r * ldo + v * L);
      store(out + r * ldo + v * L, sum[r][v]);
    }
}

template <int ROWS, int VECTORS>
void product_rows(int64_t rows, const float* a, int64_t row, int64_t step, const float* b,
                  int64_t ldb, int64_t n, float* out, int64_t ldo, bool accumulate) {
  for (; rows >= ROWS; rows -= ROWS, a += ROWS * row, out += ROWS * ldo)
    product_tile<ROWS, VECTORS>(a, row, step, b, ldb, n, out, ldo, accumulate);
  if constexpr (ROWS > 1)
    if (rows)
      product_rows<ROWS / 2, VECTORS>(rows, a, row, step, b, ldb, n, out, ldo, accumulate);
}

// The same for any number of rows and a width of whole vectors.
void product(int64_t rows, int64_t width, const float* a, int64_t row, int64_t step, const float* b,
             int64_t ldb, int64_t n, float* out, int64_t ldo, bool accumulate) {
  while (width > 0) {
    const int64_t vectors = min(width / L, 4);
    const auto run = vectors == 4   ? product_rows<kSums / 4, 4>
                     : vectors == 3 ? product_rows<kSums / 3, 3>
                     : vectors == 2 ? product_rows<kSums / 2, 2>
                                    : product_rows<kSums / 2, 1>;
    run(rows, a, row, step, b, ldb, n, out, ldo, accumulate);
    width -= vectors * L, b += vectors * L, out += vectors * L;
  }
}

// 2^x for x <= 0, to float32's precision: 2^round(x) by its exponent bits, the rest by its series.
UK_INLINE vec<float> exp2(vec<float> x) {
  x = x < -126.f ? vec<float>{} - 126.f : x;  // a NaN stays
  const vec<float> magic = vec<float>{} + 12582912.f;
  const vec<float> shifted = x + magic;
  const vec<float> f = x - (shifted - magic);
  vec<float> p = vec<float>{} + 1.52527338e-5f;
  p = p * f + 1.54035304e-4f;
  p = p * f + 1.33335581e-3f;
  p = p * f + 9.61812911e-3f;
  p = p * f + 5.55041087e-2f;
  p = p * f + 2.40226507e-1f;
  p = p * f + 6.93147181e-1f;
  p = p * f + 1.f;
  return (vec<float>)((words)p + ((words)shifted << 23));
}

UK_INLINE vec<float> maximum(vec<float> a, vec<float> b) { return a < b ? b : a; }

// Rows of one third of qkv (or of an output), converted and padded with zeros to `width`.
template <class S>
void pack_rows(const S* in, int64_t stride, int64_t rows, int64_t d, float* out, int64_t width) {
  for (int64_t i = 0; i < rows; ++i, in += stride, out += width) {
    int64_t c = 0;
    for (; c + L <= d; c += L) store(out + c, load(in + c));
    if (c < d) store(out + c, load_some<float>(in + c, d - c, 1)), c += L;
    for (; c < width; c += L) store(out + c, vec<float>{});
  }
}

// out [d, kTile] = factor * rows' [count, ld], zero where there is no row.
void transpose(const float* rows, int64_t ld, int64_t count, int64_t d, float factor, float* out) {
  for (int64_t c = 0; c < d; ++c) {
    for (int64_t i = 0; i < count; ++i) out[c * kTile + i] = factor * rows[i * ld + c];
    for (int64_t i = count; i < kTile; ++i) out[c * kTile + i] = 0.f;
  }
}

// rows [count, d] at `stride` = factor[i] * in' [d, kTile].
template <class S>
void store_transposed(const float* in, const float* factor, int64_t count, int64_t d, S* rows,
                      int64_t stride, float* line) {
  for (int64_t i = 0; i < count; ++i) {
    for (int64_t c = 0; c < d; ++c) line[c] = in[c * kTile + i] * factor[i];
    int64_t c = 0;
    for (; c + L <= d; c += L) store(rows + i * stride + c, load(line + c));
    if (c < d) store_some<float>(rows + i * stride + c, load(line + c), d - c);
  }
}

// Where a task's sample, window, head and queries lie.
struct Task {
  int64_t b, h, begin, end, width, sample, head;
  int64_t origin, columns, wide;    // the window's first position, the grid's and its own width
  int64_t tokens, missing, padded;  // in the window, beyond the grid, 1 where any are

  Task(const AttentionShape& s, int64_t task) {
    const int64_t chunks = (s.tokens + s.chunk - 1) / s.chunk;
    begin = task % chunks * s.chunk;
    h = (task /= chunks) % s.H;
    const int64_t left = (task /= s.H) % s.across * s.wide;
    const int64_t top = (task /= s.across) % s.down * s.tall;
    b = task / s.down;
    columns = s.columns;
    origin = top * columns + left;
    wide = min(s.wide, columns - left);
    tokens = min(s.tall, s.N / columns - top) * wide;
    missing = s.tall * s.wide - tokens;
    padded = missing > 0;
    end = min(begin + s.chunk, tokens);
    width = (s.d + L - 1) / L * L;
    sample = b * s.sample_stride;
    head = h * s.d;
  }

  // Calls visit(i, position, length) for every stretch of the window's tokens [first, first + count)
  // that lie side by side; i counts from first, the position is the grid's.
  template <class Visit>
  void stretches(int64_t first, int64_t count, Visit visit) const {
    for (int64_t i = 0; i < count;) {
      const int64_t row = (first + i) / wide, column = (first + i) % wide;
      const int64_t length = min(wide - column, count - i);
      visit(i, origin + row * columns + column, length);
      i += length;
    }
  }
};

// Rows of the window's tokens [first, first + count), from where position 0 lies in `in`.
template <class S>
void pack_tokens(const Task& t, const S* in, int64_t stride, int64_t first, int64_t count,
                 int64_t d, float* out) {
  t.stretches(first, count, [&](int64_t i, int64_t position, int64_t length) {
    pack_rows(in + position * stride, stride, length, d, out + i * t.width, t.width);
  });
}

// The window's keys (third 1) or values (third 2), behind the bias's where the window is padded.
template <class S>
void pack_keys(const AttentionShape& s, const Task& t, const S* qkv, const S* bias, int64_t third,
               float* out) {
  const int64_t own = third * s.H * s.d + t.head;
  if (t.padded) pack_rows(bias + own, 0, 1, s.d, out, t.width), out += t.width;
  pack_tokens(t, qkv + t.sample + own, s.token_stride, 0, t.tokens, s.d, out);
}

// What padding adds to the first key's scores, `lanes` of them: it stands for all that is missing.
void count_missing(const Task& t, int64_t lanes, float* scores) {
  if (!t.padded) return;
  const float log2 = __builtin_log2f(static_cast<float>(t.missing));
  for (int64_t q = 0; q < lanes; q += L) store(scores + q, load(scores + q) + log2);
}

// One tile of queries against `keys` keys: the online softmax's step.  scores [keys, kTile] become
// weights exp2(score - top); what was summed before is to be multiplied by `shrink`.
void soften(float* scores, int64_t keys, int64_t lanes, float* top, float* total, float* shrink) {
  for (int64_t q = 0; q < lanes; q += L) {
    const vec<float> old = load(top + q);
    vec<float> now = old;
    for (int64_t i = 0; i < keys; ++i) now = maximum(now, load(scores + i * kTile + q));
    vec<float> sum = {};
    for (int64_t i = 0; i < keys; ++i) {
      const vec<float> p = exp2(load(scores + i * kTile + q) - now);
      store(scores + i * kTile + q, p);
      sum += p;
    }
    const vec<float> factor = exp2(old - now);
    store(shrink + q, factor);
    store(top + q, now);
    store(total + q, load(total + q) * factor + sum);
  }
}

// out [d, kTile] = shrink * out + part.  Adding blocks of keys, not keys, keeps digits.
void combine(float* out, const float* shrink, const float* part, int64_t d, int64_t lanes) {
  for (int64_t q = 0; q < lanes; q += L) {
    const vec<float> factor = load(shrink + q);
    for (int64_t i = q; i < d * kTile; i += kTile)
      store(out + i, load(out + i) * factor + load(part + i));
  }
}

template <class S>
void forward(const AttentionShape& s, const S* qkv, const S* bias, S* out, float* lse,
             int64_t index) {
  const Task t(s, index);
  const int64_t width = t.width, C = s.H * s.d, all = t.padded + t.tokens;
  float* memory = scratch<float>(2 * all * width + kTile * (width + 3 * s.d + kKeys + 3) + width);
  float* k = memory;
  float* v = k + all * width;
  float* q = v + all * width;          // [kTile, width]
  float* qt = q + kTile * width;       // [d, kTile]
  float* ot = qt + kTile * s.d;        // [d, kTile]
  float* part = ot + kTile * s.d;      // [d, kTile]
  float* scores = part + kTile * s.d;  // [kKeys, kTile]
  float* top = scores + kTile * kKeys;
  float* total = top + kTile;
  float* factor = total + kTile;
  float* line = factor + kTile;
  pack_keys(s, t, qkv, bias, 1, k);
  pack_keys(s, t, qkv, bias, 2, v);
  for (int64_t first = t.begin; first < t.end; first += kTile) {
    const int64_t count = min(kTile, t.end - first), lanes = (count + L - 1) / L * L;
    pack_tokens(t, qkv + t.sample + t.head, s.token_stride, first, count, s.d, q);
    transpose(q, width, count, s.d, s.scale * kLog2e, qt);
    for (int64_t i = 0; i < kTile; ++i) top[i] = -__builtin_inff(), total[i] = 0.f;
    __builtin_memset(ot, 0, s.d * kTile * sizeof(float));
    for (int64_t key = 0; key < all; key += kKeys) {
      const int64_t keys = min(kKeys, all - key);
      product(keys, lanes, k + key * width, width, 1, qt, kTile, s.d, scores, kTile, false);
      if (key == 0) count_missing(t, lanes, scores);
      soften(scores, keys, lanes, top, total, factor);
      product(s.d, lanes, v + key * width, 1, width, scores, kTile, keys, part, kTile, false);
      combine(ot, factor, part, s.d, lanes);
    }
    for (int64_t i = 0; i < count; ++i) factor[i] = 1.f / total[i];
    t.stretches(first, count, [&](int64_t i, int64_t position, int64_t length) {
      S* rows = out + (t.b * s.N + position) * C + t.head;
      store_transposed(ot + i, factor + i, length, s.d, rows, C, line);
      float* row = lse + (t.b * s.H + t.h) * s.N + position;
      for (int64_t j = 0; j < length; ++j) row[j] = top[i + j] + __builtin_log2f(total[i + j]);
    });
  }
}

// P = exp2(scores - lse) into `weights`; dS = P (dP - delta) into `gradient`, which holds dP.
void soften_backward(float* weights, float* gradient, int64_t keys, int64_t lanes, const float* lse,
                     const float* delta) {
  for (int64_t q = 0; q < lanes; q += L) {
    const vec<float> top = load(lse + q), shift = load(delta + q);
    for (int64_t i = q; i < keys * kTile; i += kTile) {
      const vec<float> p = exp2(load(weights + i) - top);
      store(weights + i, p);
      store(gradient + i, p * (load(gradient + i) - shift));
    }
  }
}

template <class S>
void backward(const AttentionShape& s, const S* qkv, const S* bias, const S* dout, const S* out,
              const float* lse, S* dqkv, float* partial, int64_t index) {
  const Task t(s, index);
  const int64_t width = t.width, C = s.H * s.d, all = t.padded + t.tokens;
  float* memory = scratch<float>(2 * all * width + kTile * (2 * width + 3 * s.d + 2 * kKeys + 3) +
                                 3 * width);
  float* k = memory;
  float* v = k + all * width;
  float* q = v + all * width;             // [kTile, width]
  float* dy = q + kTile * width;          // [kTile, width]
  float* qt = dy + kTile * width;         // [d, kTile]
  float* dyt = qt + kTile * s.d;          // [d, kTile]
  float* dqt = dyt + kTile * s.d;         // [d, kTile]
  float* weights = dqt + kTile * s.d;     // [kKeys, kTile]
  float* gradient = weights + kTile * kKeys;
  float* top = gradient + kTile * kKeys;
  float* delta = top + kTile;
  float* factor = delta + kTile;
  float* line = factor + kTile;
  const int64_t part = (s.padded + s.tokens) * width;
  float* dk = partial + (s.padded - t.padded) * width;
  float* dv = dk + part;
  __builtin_memset(partial, 0, 2 * part * sizeof(float));
  pack_keys(s, t, qkv, bias, 1, k);
  pack_keys(s, t, qkv, bias, 2, v);
  for (int64_t i = 0; i < kTile; ++i) factor[i] = s.scale;
  for (int64_t first = t.begin; first < t.end; first += kTile) {
    const int64_t count = min(kTile, t.end - first), lanes = (count + L - 1) / L * L;
    const int64_t base = t.b * s.N * C + t.head;
    pack_tokens(t, qkv + t.sample + t.head, s.token_stride, first, count, s.d, q);
    pack_tokens(t, dout + base, C, first, count, s.d, dy);
    __builtin_memset(q + count * width, 0, (kTile - count) * width * sizeof(float));
    __builtin_memset(dy + count * width, 0, (kTile - count) * width * sizeof(float));
    transpose(q, width, count, s.d, s.scale * kLog2e, qt);
    transpose(dy, width, count, s.d, 1.f, dyt);
    for (int64_t i = count; i < kTile; ++i) delta[i] = top[i] = 0.f;
    t.stretches(first, count, [&](int64_t i, int64_t position, int64_t length) {
      for (const int64_t end = i + length; i < end; ++i, ++position) {
        pack_rows(out + base + position * C, C, 1, s.d, line, width);
        vec<float> dot = {};
        for (int64_t c = 0; c < width; c += L) dot += load(line + c) * load(dy + i * width + c);
        float sum = 0.f;
        for (int64_t lane = 0; lane < L; ++lane) sum += dot[lane];
        delta[i] = sum;
        top[i] = lse[(t.b * s.H + t.h) * s.N + position];
      }
    });
    __builtin_memset(dqt, 0, s.d * kTile * sizeof(float));
    for (int64_t key = 0; key < all; key += kKeys) {
      const int64_t keys = min(kKeys, all - key);
      product(keys, lanes, k + key * width, width, 1, qt, kTile, s.d, weights, kTile, false);
      if (key == 0) count_missing(t, lanes, weights);
      product(keys, lanes, v + key * width, width, 1, dyt, kTile, s.d, gradient, kTile, false);
      soften_backward(weights, gradient, keys, lanes, top, delta);
      product(s.d, lanes, k + key * width, 1, width, gradient, kTile, keys, dqt, kTile, true);
      product(keys, width, weights, kTile, 1, dy, width, count, dv + key * width, width, true);
      product(keys, width, gradient, kTile, 1, q, width, count, dk + key * width, width, true);
    }
    t.stretches(first, count, [&](int64_t i, int64_t position, int64_t length) {
      S* rows = dqkv + (t.b * s.N + position) * 3 * C + t.head;
      store_transposed(dqt + i, factor, length, s.d, rows, 3 * C, line);
    });
  }
}

}  // namespace

template <class S>
const AttentionKernels<S>& attention_kernels() {
  static constexpr AttentionKernels<S> kernels = {kTile, L, forward<S>, backward<S>};
  return kernels;
}

template const AttentionKernels<float>& attention_kernels();
template const AttentionKernels<bf16>& attention_kernels();
template const AttentionKernels<f16>& attention_kernels();

}  // namespace uk::UK_ISA

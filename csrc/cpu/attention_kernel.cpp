// Joint attention in one pass over the keys (online softmax), forward and backward.
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

// Where a task's sample, head and queries lie.
struct Task {
  int64_t b, h, begin, end, width, sample, head;

  Task(const AttentionShape& s, int64_t task) {
    const int64_t chunks = (s.N + s.chunk - 1) / s.chunk;
    begin = task % chunks * s.chunk;
    end = min(begin + s.chunk, s.N);
    h = task / chunks % s.H;
    b = task / chunks / s.H;
    width = (s.d + L - 1) / L * L;
    sample = b * s.sample_stride;
    head = h * s.d;
  }
};

// One tile of queries against `keys` keys: the online softmax's step.  scores [keys, kTile] become
// weights exp2(score - top); what was summed before is to be multiplied by `shrink`.
void soften(float* scores, int64_t keys, float* top, float* total, float* shrink) {
  for (int64_t q = 0; q < kTile; q += L) {
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
void combine(float* out, const float* shrink, const float* part, int64_t d) {
  for (int64_t q = 0; q < kTile; q += L) {
    const vec<float> factor = load(shrink + q);
    for (int64_t i = q; i < d * kTile; i += kTile)
      store(out + i, load(out + i) * factor + load(part + i));
  }
}

template <class S>
void forward(const AttentionShape& s, const S* qkv, S* out, float* lse, int64_t index) {
  const Task t(s, index);
  const int64_t width = t.width, C = s.H * s.d;
  float* memory = scratch<float>(2 * s.N * width + kTile * (width + 3 * s.d + kKeys + 3) + width);
  float* k = memory;
  float* v = k + s.N * width;
  float* q = v + s.N * width;        // [kTile, width]
  float* qt = q + kTile * width;     // [d, kTile]
  float* ot = qt + kTile * s.d;      // [d, kTile]
  float* part = ot + kTile * s.d;      // [d, kTile]
  float* scores = part + kTile * s.d;  // [kKeys, kTile]
  float* top = scores + kTile * kKeys;
  float* total = top + kTile;
  float* factor = total + kTile;
  float* line = factor + kTile;
  const S* own = qkv + t.sample + t.head;
  pack_rows(own + C, s.token_stride, s.N, s.d, k, width);
  pack_rows(own + 2 * C, s.token_stride, s.N, s.d, v, width);
  for (int64_t first = t.begin; first < t.end; first += kTile) {
    const int64_t count = min(kTile, t.end - first);
    pack_rows(own + first * s.token_stride, s.token_stride, count, s.d, q, width);
    transpose(q, width, count, s.d, s.scale * kLog2e, qt);
    for (int64_t i = 0; i < kTile; ++i) top[i] = -__builtin_inff(), total[i] = 0.f;
    __builtin_memset(ot, 0, s.d * kTile * sizeof(float));
    for (int64_t key = 0; key < s.N; key += kKeys) {
      const int64_t keys = min(kKeys, s.N - key);
      product(keys, kTile, k + key * width, width, 1, qt, kTile, s.d, scores, kTile, false);
      soften(scores, keys, top, total, factor);
      product(s.d, kTile, v + key * width, 1, width, scores, kTile, keys, part, kTile, false);
      combine(ot, factor, part, s.d);
    }
    for (int64_t i = 0; i < kTile; ++i) factor[i] = 1.f / total[i];
    store_transposed(ot, factor, count, s.d, out + (t.b * s.N + first) * C + t.head, C, line);
    float* row = lse + (t.b * s.H + t.h) * s.N + first;
    for (int64_t i = 0; i < count; ++i) row[i] = top[i] + __builtin_log2f(total[i]);
  }
}

// P = exp2(scores - lse) into `weights`; dS = P (dP - delta) into `gradient`, which holds dP.
void soften_backward(float* weights, float* gradient, int64_t keys, const float* lse,
                     const float* delta) {
  for (int64_t q = 0; q < kTile; q += L) {
    const vec<float> top = load(lse + q), shift = load(delta + q);
    for (int64_t i = q; i < keys * kTile; i += kTile) {
      const vec<float> p = exp2(load(weights + i) - top);
      store(weights + i, p);
      store(gradient + i, p * (load(gradient + i) - shift));
    }
  }
}

template <class S>
void backward(const AttentionShape& s, const S* qkv, const S* dout, const S* out, const float* lse,
              S* dqkv, float* partial, int64_t index) {
  const Task t(s, index);
  const int64_t width = t.width, C = s.H * s.d;
  float* memory = scratch<float>(2 * s.N * width + kTile * (2 * width + 3 * s.d + 2 * kKeys + 3) +
                                 3 * width);
  float* k = memory;
  float* v = k + s.N * width;
  float* q = v + s.N * width;             // [kTile, width]
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
  float* dk = partial;
  float* dv = partial + s.N * width;
  __builtin_memset(partial, 0, 2 * s.N * width * sizeof(float));
  const S* own = qkv + t.sample + t.head;
  pack_rows(own + C, s.token_stride, s.N, s.d, k, width);
  pack_rows(own + 2 * C, s.token_stride, s.N, s.d, v, width);
  for (int64_t i = 0; i < kTile; ++i) factor[i] = s.scale;
  for (int64_t first = t.begin; first < t.end; first += kTile) {
    const int64_t count = min(kTile, t.end - first);
    const int64_t base = (t.b * s.N + first) * C + t.head;
    pack_rows(own + first * s.token_stride, s.token_stride, count, s.d, q, width);
    pack_rows(dout + base, C, count, s.d, dy, width);
    __builtin_memset(q + count * width, 0, (kTile - count) * width * sizeof(float));
    __builtin_memset(dy + count * width, 0, (kTile - count) * width * sizeof(float));
    transpose(q, width, count, s.d, s.scale * kLog2e, qt);
    transpose(dy, width, count, s.d, 1.f, dyt);
    for (int64_t i = 0; i < kTile; ++i) {
      float sum = 0.f;
      if (i < count) {
        pack_rows(out + base + i * C, C, 1, s.d, line, width);
        vec<float> dot = {};
        for (int64_t c = 0; c < width; c += L) dot += load(line + c) * load(dy + i * width + c);
        for (int64_t lane = 0; lane < L; ++lane) sum += dot[lane];
      }
      delta[i] = sum;
      top[i] = i < count ? lse[(t.b * s.H + t.h) * s.N + first + i] : 0.f;
    }
    __builtin_memset(dqt, 0, s.d * kTile * sizeof(float));
    for (int64_t key = 0; key < s.N; key += kKeys) {
      const int64_t keys = min(kKeys, s.N - key);
      product(keys, kTile, k + key * width, width, 1, qt, kTile, s.d, weights, kTile, false);
      product(keys, kTile, v + key * width, width, 1, dyt, kTile, s.d, gradient, kTile, false);
      soften_backward(weights, gradient, keys, top, delta);
      product(s.d, kTile, k + key * width, 1, width, gradient, kTile, keys, dqt, kTile, true);
      product(keys, width, weights, kTile, 1, dy, width, count, dv + key * width, width, true);
      product(keys, width, gradient, kTile, 1, q, width, count, dk + key * width, width, true);
    }
    store_transposed(dqt, factor, count, s.d, dqkv + (t.b * s.N + first) * 3 * C + t.head, 3 * C,
                     line);
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

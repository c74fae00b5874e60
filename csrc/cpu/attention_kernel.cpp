// Joint and window attention in one pass over the keys (online softmax), forward and backward.
//
// Scores are kept transposed, [keys, queries]: the vector axis is the queries', so that maxima,
// sums and rescaling are vertical, keys and values are read as single words, and every matrix
// product of both passes is one small kernel, `product`.

#include "attention.h"
#include "exponential.h"
#include "operand.h"

namespace uk::UK_ISA {
namespace {

constexpr int64_t L = lanes_of<float>;
template <class N>
constexpr int64_t kTile = (kWord<N> == 1 ? 3 : 6) * L;  // queries worked on at a time
template <class N>
constexpr int64_t kKeys = kWord<N> == 1 ? 64 : 96;  // and keys
template <class N>
constexpr int64_t kStep = L * kWord<N>;  // channels, and queries computed, are a multiple of this
constexpr float kSlack = 8.f;  // what scores may exceed the softmax's shift by, in powers of two
// Scores, in powers of two, that float32's exponents bear unshifted, and the square of the values'
// length with which their weighted sums do.
constexpr float kCalm = 64.f, kSmall = 0x1p80f;
constexpr float kLog2e = 1.44269504088896341f;

UK_INLINE int64_t round_up(int64_t count, int64_t step) { return (count + step - 1) / step * step; }

// Where a task's sample, window, head and queries lie.
template <class N>
struct Task {
  int64_t b, h, begin, end, sample, head;
  int64_t origin, columns, wide;    // the window's first position, the grid's and its own width
  int64_t tokens, missing, padded;  // in the window, beyond the grid, 1 where any are
  int64_t keys, width;              // the bias's and the tokens', and channels, with their padding

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
    keys = round_up(padded + tokens, kDepth<N>);
    width = round_up(s.d, kStep<N>);
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

// A task's working memory, handed out piece by piece; as much as a backward pass takes.
class Memory {
 public:
  template <class N>
  explicit Memory(const Task<N>& t) {
    const int64_t keys = round_up(t.keys, kKeys<N>), tile = kTile<N>;
    const int64_t matrices = (2 * keys + kKeys<N> + 8 * tile) * t.width + 3 * kKeys<N> * tile;
    next_ = (char*)scratch<float>(matrices + 2 * keys + 4 * tile + 32 * L);
  }

  template <class T>
  T* take(int64_t count) {
    T* piece = (T*)next_;
    next_ += round_up(count * sizeof(T), UK_VECTOR_BYTES);
    return piece;
  }

 private:
  char* next_;
};

// Tokens lie too far apart for the processor to foresee the next one.
constexpr int64_t kAhead = 8;

template <class S>
UK_INLINE void prefetch(const S* row, int64_t d) {
  for (int64_t c = 0; c < d; c += 64 / sizeof(S)) __builtin_prefetch(row + c);
}

// Rows of the window's tokens [first, first + count), from where position 0 lies in `in`.
template <class S, class N>
void pack_tokens(const AttentionShape& s, const Task<N>& t, const S* in, int64_t stride,
                 int64_t first, int64_t count, N* out) {
  t.stretches(first, count, [&](int64_t i, int64_t position, int64_t length) {
    for (const int64_t end = i + length; i < end; ++i, ++position) {
      const S* row = in + position * stride;
      prefetch(row + kAhead * stride, s.d);
      pack_row(row, s.d, out + i * t.width, t.width);
    }
  });
}

// A matrix on the left of `product`.
template <class N>
struct Left {
  const N* data;
  int64_t row, step;
};

// `product` with it.
template <class N>
void multiply(int64_t rows, int64_t width, const Left<N>& a, const N* b, int64_t ldb, int64_t n,
              float* out, int64_t ldo, bool accumulate) {
  product(rows, width, a.data, a.row, a.step, b, ldb * kWord<N>, n, out, ldo, accumulate);
}

UK_INLINE float sum_of(vec<float> v) {
#if defined(__AVX512F__)
  return _mm512_reduce_add_ps((__m512)v);
#else
  float sum = 0.f;
  for (int64_t lane = 0; lane < L; ++lane) sum += v[lane];
  return sum;
#endif
}

// The largest sum of squares of a row.
template <class N>
float longest(const N* rows, int64_t count, int64_t width) {
  float most = 0.f;
  for (int64_t i = 0; i < count; ++i, rows += width) {
    vec<float> square = {};
    for (int64_t c = 0; c < width; c += L) {
      const vec<float> v = load(rows + c);
      square += v * v;
    }
    const float sum = sum_of(square);
    most = most < sum || sum != sum ? sum : most;  // a NaN stays
  }
  return most;
}

// The window's keys or values, the bias's before them where the window is padded, zeros behind.
template <class N>
class Keys {
 public:
  Keys(const Task<N>& t, Memory& memory) : rows_(memory.take<N>(capacity(t) * t.width)) {}

  // From the third 1 of qkv, or the third 2.
  template <class S>
  void pack(const AttentionShape& s, const Task<N>& t, const S* qkv, const S* bias, int64_t third) {
    const int64_t own = third * s.H * s.d + t.head, all = t.padded + t.tokens;
    const S* in = qkv + t.sample + own;
    if (t.padded) pack_row(bias + own, s.d, rows_, t.width);
    pack_tokens(s, t, in, s.token_stride, 0, t.tokens, rows_ + t.padded * t.width);
    __builtin_memset(rows_ + all * t.width, 0, (capacity(t) - all) * t.width * sizeof(N));
  }

  // The largest square of a row's length.
  float longest(const Task<N>& t) const {
    return uk::UK_ISA::longest(rows_, t.padded + t.tokens, t.width);
  }

  // Comes before `columns`: in a word of theirs lie two keys.
  void pack_columns(const Task<N>& t, Memory& memory) {
    if constexpr (kWord<N> == 2) {
      columns_ = memory.take<N>(capacity(t) * t.width);
      N* pairs = memory.take<N>(kKeys<N> * t.width);
      for (int64_t key = 0; key < t.keys; key += kKeys<N>) {
        pair_rows(rows_ + key * t.width, kKeys<N>, t.width, pairs);
        transpose(pairs, t.width, kKeys<N> / 2, t.width, columns_ + key * t.width, kKeys<N> / 2);
      }
    }
  }

  // A block of keys as [keys, channels], and as [channels, keys].
  Left<N> rows(const Task<N>& t, int64_t key) const {
    return {rows_ + key * t.width, t.width, kWord<N>};
  }
  Left<N> columns(const Task<N>& t, int64_t key) const {
    if constexpr (kWord<N> == 1) return {rows_ + key * t.width, 1, t.width};
    return {columns_ + key * t.width, kKeys<N>, kWord<N>};
  }

 private:
  static int64_t capacity(const Task<N>& t) { return round_up(t.keys, kKeys<N>); }

  N *rows_, *columns_ = nullptr;
};

// A tile of queries, or of the output's gradients, zeros behind them: as they lie, and as operands
// on the right of products over channels and over queries.
template <class N>
struct Queries {
  N *rows, *over_channels, *over_queries;

  Queries(const Task<N>& t, Memory& memory)
      : rows(memory.take<N>(kTile<N> * t.width)),
        over_channels(memory.take<N>(kTile<N> * t.width)),
        over_queries(kWord<N> == 1 ? rows : memory.take<N>(kTile<N> * t.width)) {}

  template <class S>
  void pack(const AttentionShape& s, const Task<N>& t, const S* in, int64_t stride, int64_t first,
            int64_t count) {
    pack_tokens(s, t, in, stride, first, count, rows);
    __builtin_memset(rows + count * t.width, 0, (kTile<N> - count) * t.width * sizeof(N));
    const int64_t across = t.width / kWord<N>;
    transpose(rows, across, kTile<N>, across, over_channels, kTile<N>);
    if constexpr (kWord<N> == 2) pair_rows(rows, kTile<N>, t.width, over_queries);
  }
};

// What is added to each key's scores: the bias stands for all that is missing, and keys that only
// fill the last word get no weight.
template <class N>
const float* pack_offsets(const Task<N>& t, Memory& memory) {
  float* offset = memory.take<float>(t.keys);
  const int64_t all = t.padded + t.tokens;
  for (int64_t i = 0; i < t.keys; ++i) offset[i] = i < all ? 0.f : -__builtin_inff();
  if (t.padded) offset[0] = __builtin_log2f(static_cast<float>(t.missing));
  return offset;
}

// One tile of queries against `keys` keys: the online softmax's step.  scores [keys, kTile], still
// to be multiplied by `scale`, become weights exp2(score - top), word by word.  `top` follows the
// maximum at a distance, so that the sums are seldom rescaled: returns whether they have to be
// multiplied by `shrink`.
template <class N>
bool soften(float* scores, int64_t keys, int64_t lanes, float scale, const float* offset,
            float* top, float* total, float* shrink) {
  words moved = {};
  for (int64_t q = 0; q < lanes; q += L) {
    const vec<float> old = load(top + q);
    vec<float> most[kWord<N>];
    for (int64_t j = 0; j < kWord<N>; ++j) most[j] = old;
    for (int64_t i = 0; i < keys; i += kWord<N>)
      for (int64_t j = 0; j < kWord<N>; ++j)
        most[j] = maximum(most[j], load(scores + (i + j) * kTile<N> + q) * scale + offset[i + j]);
    vec<float> now = most[0];
    for (int64_t j = 1; j < kWord<N>; ++j) now = maximum(now, most[j]);
    now = now > old + kSlack ? now : old;
    vec<float> sum = {};
    N* out = (N*)(scores + q);
    for (int64_t i = 0; i < keys; i += kWord<N>, out += kTile<N> * kWord<N>) {
      vec<float> p[kWord<N>];
      for (int64_t j = 0; j < kWord<N>; ++j) {
        p[j] = exp2<N>(load(scores + (i + j) * kTile<N> + q) * scale + (offset[i + j] - now));
        sum += p[j];
      }
      store_words(out, p);
    }
    const vec<float> factor = exp2<N>(old - now);
    moved |= (words)(factor != 1.f);
    store(shrink + q, factor);
    store(top + q, now);
    store(total + q, load(total + q) * factor + sum);
  }
  bool any = false;
  for (int64_t lane = 0; lane < L; ++lane) any |= moved[lane] != 0;
  return any;
}

// The same where no score can leave the exponents: nothing is taken off, so no maximum is sought.
// `offset` is null where all are zero.
template <class N>
void soften_calmly(float* scores, int64_t keys, int64_t lanes, float scale, const float* offset,
                   float* total) {
  for (int64_t q = 0; q < lanes; q += L) {
    vec<float> sum = {};
    N* out = (N*)(scores + q);
    for (int64_t i = 0; i < keys; i += kWord<N>, out += kTile<N> * kWord<N>) {
      vec<float> p[kWord<N>];
#pragma GCC unroll 2
      for (int64_t j = 0; j < kWord<N>; ++j) {
        const vec<float> score = load(scores + (i + j) * kTile<N> + q);
        p[j] = offset ? exp2<N>(score * scale + offset[i + j]) : exp2_scaled<N>(score, scale);
        sum += p[j];
      }
      store_words(out, p);
    }
    store(total + q, load(total + q) + sum);
  }
}

// in [d, tile] *= factor.
void rescale(float* in, const float* factor, int64_t d, int64_t tile, int64_t lanes) {
  for (int64_t q = 0; q < lanes; q += L) {
    const vec<float> by = load(factor + q);
    for (int64_t i = q; i < d * tile; i += tile) store(in + i, load(in + i) * by);
  }
}

// A row of d numbers: `factor` times the sum of `count` rows padded to whole vectors.
template <class S>
void sum_rows(const float* in, int64_t count, int64_t stride, float factor, int64_t d, S* row) {
  for (int64_t c = 0; c < d; c += L) {
    vec<float> sum = {};
    for (int64_t i = 0; i < count; ++i) sum += load(in + i * stride + c);
    c + L <= d ? store(row + c, sum * factor) : store_some<float>(row + c, sum * factor, d - c);
  }
}

template <class S>
void forward(const AttentionShape& s, const S* qkv, const S* bias, S* out, float* lse,
             int64_t index) {
  using N = typename operand<S>::type;
  constexpr int64_t tile = kTile<N>;
  const TileRegisters registers;
  const Task<N> t(s, index);
  const int64_t width = t.width, C = s.H * s.d, depth = round_up(s.d, kDepth<N>);
  Memory memory(t);
  Keys<N> k(t, memory), v(t, memory);
  Queries<N> q(t, memory);
  float* sums = memory.take<float>(width * tile);
  float* rows = memory.take<float>(width * tile);
  float* scores = memory.take<float>(kKeys<N> * tile);
  float* top = memory.take<float>(tile);
  float* total = memory.take<float>(tile);
  float* factor = memory.take<float>(tile);
  const float* offset = pack_offsets(t, memory);
  k.pack(s, t, qkv, bias, 1);
  v.pack(s, t, qkv, bias, 2);
  v.pack_columns(t, memory);
  const float scale = s.scale * kLog2e, widest = k.longest(t) * scale * scale;
  const bool small = v.longest(t) < kSmall;
  for (int64_t first = t.begin; first < t.end; first += tile) {
    const int64_t count = min(tile, t.end - first), lanes = round_up(count, kStep<N>);
    q.pack(s, t, qkv + t.sample + t.head, s.token_stride, first, count);
    // |q k| <= |q| |k|
    const bool calm = small && longest(q.rows, count, width) * widest < kCalm * kCalm;
    for (int64_t i = 0; i < tile; ++i) top[i] = calm ? 0.f : -__builtin_inff(), total[i] = 0.f;
    __builtin_memset(sums, 0, width * tile * sizeof(float));
    for (int64_t key = 0; key < t.keys; key += kKeys<N>) {
      const int64_t keys = min(kKeys<N>, t.keys - key);
      multiply(keys, lanes, k.rows(t, key), q.over_channels, tile, depth, scores, tile, false);
      const bool plain = !t.padded && key + keys <= t.tokens;
      if (calm)
        soften_calmly<N>(scores, keys, lanes, scale, plain ? nullptr : offset + key, total);
      else if (soften<N>(scores, keys, lanes, scale, offset + key, top, total, factor))
        rescale(sums, factor, s.d, tile, lanes);
      multiply(s.d, lanes, v.columns(t, key), (N*)scores, tile, keys, sums, tile, true);
    }
    transpose(sums, tile, width, tile, rows, width);
    t.stretches(first, count, [&](int64_t i, int64_t position, int64_t length) {
      for (const int64_t end = i + length; i < end; ++i, ++position) {
        S* row = out + (t.b * s.N + position) * C + t.head;
        sum_rows(rows + i * width, 1, 0, 1.f / total[i], s.d, row);
        lse[(t.b * s.H + t.h) * s.N + position] = top[i] + __builtin_log2f(total[i]);
      }
    });
  }
}

// P = exp2(scores - lse) into `weights`, dS = P (dP - delta) into `gradient`, which held scores and
// dP: rows [keys, kTile] of numbers N at the same stride in bytes, and dS also word by word.
template <class N>
void soften_backward(float* weights, float* gradient, N* gradient_words, int64_t keys,
                     int64_t lanes, float scale, const float* offset, const float* lse,
                     const float* delta) {
  for (int64_t q = 0; q < lanes; q += L) {
    const vec<float> top = load(lse + q), shift = load(delta + q);
    for (int64_t i = 0; i < keys; i += kWord<N>) {
      vec<float> ds[kWord<N>];
      for (int64_t j = 0; j < kWord<N>; ++j) {
        float* w = weights + (i + j) * kTile<N>;
        float* g = gradient + (i + j) * kTile<N>;
        const vec<float> p = exp2<N>(load(w + q) * scale + (offset[i + j] - top));
        ds[j] = p * (load(g + q) - shift);
        // Never ahead of what is still to be read: q numbers N end no later than q floats.
        store((N*)w + q, p);
        store((N*)g + q, ds[j]);
      }
      if constexpr (kWord<N> == 2) store_words(gradient_words + i * kTile<N> + 2 * q, ds);
    }
  }
}

template <class S>
void backward(const AttentionShape& s, const S* qkv, const S* bias, const S* dout, const S* out,
              const float* lse, S* dqkv, float* partial, int64_t index) {
  using N = typename operand<S>::type;
  constexpr int64_t tile = kTile<N>;
  const TileRegisters registers;
  const Task<N> t(s, index);
  const int64_t width = t.width, C = s.H * s.d, depth = round_up(s.d, kDepth<N>);
  Memory memory(t);
  Keys<N> k(t, memory), v(t, memory);
  Queries<N> q(t, memory), dy(t, memory);
  float* dq = memory.take<float>(width * tile);
  float* rows = memory.take<float>(width * tile);
  float* weights = memory.take<float>(kKeys<N> * tile);
  float* gradient = memory.take<float>(kKeys<N> * tile);
  N* words = kWord<N> == 1 ? (N*)gradient : memory.take<N>(kKeys<N> * tile);
  float* top = memory.take<float>(tile);
  float* delta = memory.take<float>(tile);
  N* line = memory.take<N>(width);
  const float* offset = pack_offsets(t, memory);
  const int64_t part = s.rows * width;
  float* dk = partial + (s.padded - t.padded) * width;
  float* dv = dk + part;
  __builtin_memset(partial, 0, 2 * part * sizeof(float));
  k.pack(s, t, qkv, bias, 1);
  k.pack_columns(t, memory);
  v.pack(s, t, qkv, bias, 2);
  for (int64_t first = t.begin; first < t.end; first += tile) {
    const int64_t count = min(tile, t.end - first), lanes = round_up(count, kStep<N>);
    const int64_t base = t.b * s.N * C + t.head;
    q.pack(s, t, qkv + t.sample + t.head, s.token_stride, first, count);
    dy.pack(s, t, dout + base, C, first, count);
    for (int64_t i = count; i < tile; ++i) delta[i] = top[i] = 0.f;
    t.stretches(first, count, [&](int64_t i, int64_t position, int64_t length) {
      for (const int64_t end = i + length; i < end; ++i, ++position) {
        prefetch(out + base + (position + kAhead) * C, s.d);
        pack_row(out + base + position * C, s.d, line, width);
        vec<float> dot = {};
        const N* row = dy.rows + i * width;
        for (int64_t c = 0; c < width; c += L) dot += load(line + c) * load(row + c);
        delta[i] = sum_of(dot);
        top[i] = lse[(t.b * s.H + t.h) * s.N + position];
      }
    });
    __builtin_memset(dq, 0, width * tile * sizeof(float));
    // As many as there are queries, or a few zeros more.
    const int64_t queries = round_up(count, kDepth<N>);
    for (int64_t key = 0; key < t.keys; key += kKeys<N>) {
      const int64_t keys = min(kKeys<N>, t.keys - key);
      const Left<N> p = {(N*)weights, tile * kWord<N>, kWord<N>};
      const Left<N> ds = {(N*)gradient, tile * kWord<N>, kWord<N>};
      multiply(keys, lanes, k.rows(t, key), q.over_channels, tile, depth, weights, tile, false);
      multiply(keys, lanes, v.rows(t, key), dy.over_channels, tile, depth, gradient, tile, false);
      soften_backward<N>(weights, gradient, words, keys, lanes, s.scale * kLog2e, offset + key, top,
                         delta);
      multiply(s.d, lanes, k.columns(t, key), words, tile, keys, dq, tile, true);
      multiply(keys, width, p, dy.over_queries, width, queries, dv + key * width, width, true);
      multiply(keys, width, ds, q.over_queries, width, queries, dk + key * width, width, true);
    }
    transpose(dq, tile, width, tile, rows, width);
    t.stretches(first, count, [&](int64_t i, int64_t position, int64_t length) {
      for (const int64_t end = i + length; i < end; ++i, ++position) {
        S* row = dqkv + (t.b * s.N + position) * 3 * C + t.head;
        sum_rows(rows + i * width, 1, 0, s.scale, s.d, row);
      }
    });
  }
}

}  // namespace

template <class S>
const AttentionKernels<S>& attention_kernels() {
  using N = typename operand<S>::type;
  static constexpr AttentionKernels<S> kernels = {kTile<N>, kStep<N>, kDepth<N>, forward<S>,
                                                  backward<S>, sum_rows<S>};
  return kernels;
}

template const AttentionKernels<bf16>& attention_kernels();
#if !defined(__AVX512BF16__)
template const AttentionKernels<float>& attention_kernels();
template const AttentionKernels<f16>& attention_kernels();
#endif

}  // namespace uk::UK_ISA

// What attention multiplies: queries, keys and values of a window, packed for `product`, or for
// AMX's products of float32.
#pragma once

#include "attention.h"
#include "operand.h"
#if defined(__AMX_BF16__)
#include "split.h"
#endif

#include <type_traits>

namespace uk::UK_ISA {
namespace {

constexpr int64_t L = lanes_of<float>;

constexpr float kSlack = 8.f;  // what scores may exceed the softmax's shift by, in powers of two
// Scores, in powers of two, that float32's exponents bear unshifted, and the square of the values'
// length with which their weighted sums do.
constexpr float kCalm = 64.f, kSmall = 0x1p80f;
constexpr float kLog2e = 1.44269504088896341f;

// What powers of two are as precise as.
template <class N>
using Exact = std::conditional_t<std::is_same_v<N, bf16>, bf16, float>;

template <class N>
constexpr int64_t kTile = (kWord<N> == 1 ? 3 : 6) * L;  // queries worked on at a time
template <class N>
constexpr int64_t kKeys = kWord<N> == 1 ? 64 : 96;  // and keys
template <class N>
constexpr int64_t kStep = L * kWord<N>;  // channels, and queries computed, are a multiple of this

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

// A task's working memory, handed out piece by piece; as much as any pass takes.
class Memory {
 public:
  template <class N>
  explicit Memory(const Task<N>& t) {
    const int64_t keys = round_up(t.keys, kKeys<N>), tile = kTile<N>;
    const int64_t matrices = (5 * keys + 2 * kKeys<N> + 13 * tile) * t.width;
    next_ = (char*)scratch<float>(matrices + 14 * kKeys<N> * tile + 2 * keys + 4 * tile + 40 * L);
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
template <class S, class N, class T>
void pack_tokens(const AttentionShape& s, const Task<N>& t, const S* in, int64_t stride,
                 int64_t first, int64_t count, T* out) {
  t.stretches(first, count, [&](int64_t i, int64_t position, int64_t length) {
    for (const int64_t end = i + length; i < end; ++i, ++position) {
      const S* row = in + position * stride;
      prefetch(row + kAhead * stride, s.d);
      pack_row(row, s.d, out + i * t.width, t.width);
    }
  });
}

// Rows [first, first + count) of the window's keys (the third 1 of qkv) or values (2): the bias's
// where the window is padded, the tokens'.
template <class S, class N, class T>
void pack_keys(const AttentionShape& s, const Task<N>& t, const S* qkv, const S* bias,
               int64_t third, int64_t first, int64_t count, T* out) {
  const int64_t own = third * s.H * s.d + t.head, front = max(t.padded - first, 0);
  if (front) pack_row(bias + own, s.d, out, t.width);
  pack_tokens(s, t, qkv + t.sample + own, s.token_stride, first + front - t.padded, count - front,
              out + front * t.width);
}

// The largest sum of squares of a row, or `most`.
template <class T>
float longest(const T* rows, int64_t count, int64_t width, float most = 0.f) {
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

// A row of d numbers: `factor` times the sum of `count` rows padded to whole vectors.
template <class S>
void sum_rows(const float* in, int64_t count, int64_t stride, float factor, int64_t d, S* row) {
  for (int64_t c = 0; c < d; c += L) {
    vec<float> sum = {};
    for (int64_t i = 0; i < count; ++i) sum += load(in + i * stride + c);
    c + L <= d ? store(row + c, sum * factor) : store_some<float>(row + c, sum * factor, d - c);
  }
}

// What queries [first, first + count) attended to, sums in `rows` [count, width] by totals, and the
// logarithm of their softmax's sum, to base 2; `top` is what their scores were shifted by.
template <class S, class N>
void store_attended(const AttentionShape& s, const Task<N>& t, int64_t first, int64_t count,
                    const float* rows, const float* top, const float* total, S* out, float* lse) {
  t.stretches(first, count, [&](int64_t i, int64_t position, int64_t length) {
    for (const int64_t end = i + length; i < end; ++i, ++position) {
      S* row = out + (t.b * s.N + position) * s.H * s.d + t.head;
      sum_rows(rows + i * t.width, 1, 0, 1.f / total[i], s.d, row);
      lse[(t.b * s.H + t.h) * s.N + position] = top[i] + __builtin_log2f(total[i]);
    }
  });
}

// A matrix on the left of a product, and one on the right.
template <class N>
struct Left {
  const N* data;
  int64_t row, step;
};

template <class N>
struct Right {
  N* data;
  int64_t width;

  Right(Memory& memory, int64_t depth, int64_t width)
      : data(memory.take<N>(depth * width)), width(width) {}
  Right(N* data, int64_t width) : data(data), width(width) {}

  // Numbers from `column` on of the rows that share row i's words.
  [[gnu::always_inline]] void store(int64_t i, int64_t column,
                                    const vec<float> (&rows)[kWord<N>]) const {
    store_words(data + i * width + column * kWord<N>, rows);
  }
};

template <class N>
constexpr int64_t kApart = 1;  // from one of those rows to the next

// Whether products leave the vector registers idle for longer than the weights take, and how often
// they call what may use those.
template <class N>
constexpr bool kIdle = false;
template <class N>
int64_t calls_of(int64_t, int64_t, int64_t) {
  return 0;
}

// out [rows, width] (+)= their product over n.
template <class N, class Meanwhile>
void multiply(int64_t rows, int64_t width, const Left<N>& a, const Right<N>& b, int64_t n,
              float* out, int64_t ldo, bool accumulate, Meanwhile&) {
  product(rows, width, a.data, a.row, a.step, b.data, b.width * kWord<N>, n, out, ldo, accumulate);
}

// The window's keys or values, the bias's before them where the window is padded, zeros behind.
template <class N>
class Keys {
 public:
  // To be read as [keys, channels], as [channels, keys], or both ways.
  Keys(const Task<N>& t, Memory& memory, bool, bool columns)
      : rows_(memory.take<N>(capacity(t) * t.width)) {
    if (kWord<N> == 1 || !columns) return;
    columns_ = memory.take<N>(capacity(t) * t.width);
    pairs_ = memory.take<N>(kKeys<N> * t.width);
  }

  // From the third 1 of qkv, or the third 2.
  template <class S>
  void pack(const AttentionShape& s, const Task<N>& t, const S* qkv, const S* bias, int64_t third) {
    const int64_t all = t.padded + t.tokens;
    pack_keys(s, t, qkv, bias, third, 0, all, rows_);
    __builtin_memset(rows_ + all * t.width, 0, (capacity(t) - all) * t.width * sizeof(N));
    if constexpr (kWord<N> == 2) {
      for (int64_t key = 0; columns_ && key < t.keys; key += kKeys<N>) {
        pair_rows(rows_ + key * t.width, kKeys<N>, t.width, pairs_);
        transpose(pairs_, t.width, kKeys<N> / 2, t.width, columns_ + key * t.width, kKeys<N> / 2);
      }
    }
  }

  // The largest square of a row's length.
  float longest(const Task<N>& t) const {
    return uk::UK_ISA::longest(rows_, t.padded + t.tokens, t.width);
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

  N *rows_, *columns_ = nullptr, *pairs_ = nullptr;
};

// A tile of queries, or of the output's gradients, zeros behind them: as they lie, and as operands
// on the right of products over channels and over queries.
template <class N>
struct Queries {
  N* rows;
  Right<N> over_channels, over_queries;

  Queries(const Task<N>& t, Memory& memory, bool)
      : rows(memory.take<N>(kTile<N> * t.width)),
        over_channels(memory, t.width, kTile<N>),
        over_queries(kWord<N> == 1 ? rows : memory.take<N>(kTile<N> * t.width), t.width) {}

  template <class S>
  void pack(const AttentionShape& s, const Task<N>& t, const S* in, int64_t stride, int64_t first,
            int64_t count) {
    pack_tokens(s, t, in, stride, first, count, rows);
    __builtin_memset(rows + count * t.width, 0, (kTile<N> - count) * t.width * sizeof(N));
    const int64_t across = t.width / kWord<N>;
    transpose(rows, across, kTile<N>, across, over_channels.data, kTile<N>);
    if constexpr (kWord<N> == 2) pair_rows(rows, kTile<N>, t.width, over_queries.data);
  }
};

#if defined(__AMX_BF16__)

template <>
struct Left<Split> : SplitRows {};

template <>
struct Right<Split> : SplitColumns {
  Right(Memory& memory, int64_t depth, int64_t width)
      : SplitColumns{memory.take<bf16>(kSplit * depth * width), depth} {}
};

template <>
constexpr int64_t kApart<Split> = kEdge;

template <>
constexpr bool kIdle<Split> = true;
template <>
[[maybe_unused]] int64_t calls_of<Split>(int64_t rows, int64_t width, int64_t n) {
  return calls(rows, width, n);
}
template <class N, class Meanwhile>
void multiply(int64_t rows, int64_t width, const Left<Split>& a, const Right<Split>& b, int64_t n,
              float* out, int64_t ldo, bool accumulate, Meanwhile& meanwhile) {
  product(rows, width, a, b, n, out, ldo, accumulate, meanwhile);
}

template <>
class Keys<Split> {
 public:
  Keys(const Task<Split>& t, Memory& memory, bool rows, bool columns)
      : lines_(memory.take<float>(kBlock * t.width)) {
    const int64_t size = kSplit * round_up(t.keys, kBlock) * t.width;
    if (rows) rows_ = memory.take<bf16>(size);
    if (columns) columns_ = memory.take<bf16>(size);
  }

  template <class S>
  void pack(const AttentionShape& s, const Task<Split>& t, const S* qkv, const S* bias,
            int64_t third) {
    const int64_t width = t.width;
    longest_ = 0.f;
    for (int64_t key = 0; key < t.keys; key += kBlock) {
      const int64_t keys = min(kBlock, t.padded + t.tokens - key);
      pack_keys(s, t, qkv, bias, third, key, keys, lines_);
      longest_ = uk::UK_ISA::longest(lines_, keys, width, longest_);
      if (rows_) split_rows(lines_, width, keys, width, rows(t, key));
      if (columns_) split_turned(lines_, width, keys, width, columns(t, key));
    }
  }

  float longest(const Task<Split>&) const { return longest_; }

  Left<Split> rows(const Task<Split>& t, int64_t key) const {
    return {{rows_ + kSplit * key * t.width, kSplit * t.width}};
  }
  Left<Split> columns(const Task<Split>& t, int64_t key) const {
    return {{columns_ + kSplit * key * t.width, kSplit * kBlock}};
  }

 private:
  static constexpr int64_t kBlock = kKeys<Split>;

  float *lines_, longest_ = 0.f;
  bf16 *rows_ = nullptr, *columns_ = nullptr;
};

template <>
struct Queries<Split> {
  float *rows, *turned;
  Right<Split> over_channels, over_queries;

  Queries(const Task<Split>& t, Memory& memory, bool backward)
      : rows(memory.take<float>(kTile<Split> * t.width)),
        turned(memory.take<float>(kTile<Split> * t.width)),
        over_channels(memory, t.width, kTile<Split>),
        over_queries(memory, kTile<Split>, t.width),
        backward_(backward) {}

  template <class S>
  void pack(const AttentionShape& s, const Task<Split>& t, const S* in, int64_t stride,
            int64_t first, int64_t count) {
    constexpr int64_t tile = kTile<Split>;
    pack_tokens(s, t, in, stride, first, count, rows);
    __builtin_memset(rows + count * t.width, 0, (tile - count) * t.width * sizeof(float));
    transpose(rows, t.width, tile, t.width, turned, tile);
    split_columns(turned, tile, t.width, tile, over_channels);
    if (backward_) split_columns(rows, t.width, tile, t.width, over_queries);
  }

 private:
  bool backward_;
};

#endif

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

}  // namespace
}  // namespace uk::UK_ISA

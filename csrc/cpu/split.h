// Products of float32 matrices on AMX's tiles: every number is the sum of three of bfloat16, the
// first its leading 8 bits, the others what is left.  Of the nine products of parts the six that
// reach float32's last bit are summed, small ones first.
//
// Numbers k and k + 16 of every 32 share a word, on both sides.  Included where there is AMX.
#pragma once

#include "operand.h"

namespace uk::UK_ISA {
namespace {

constexpr int64_t kSplit = 3;                    // parts of a number
constexpr int64_t kTileSize = kEdge * kDepth<bf16>;  // numbers in a tile

// The type of such numbers: what those of float32 are multiplied as.
struct Split;
template <>
struct operand<float> {
  using type = Split;
};
template <>
constexpr int64_t kWord<Split> = kWord<bf16>;
template <>
constexpr int64_t kDepth<Split> = kDepth<bf16>;

// The nearest number of bfloat16; halves go away from zero.
UK_INLINE vec<float> head(vec<float> v) { return (vec<float>)(((words)v + 0x8000) & 0xffff0000); }

// Its leading 8 bits: what is left of a rest has 8 more at most.
UK_INLINE vec<float> leading(vec<float> v) { return (vec<float>)((words)v & 0xffff0000); }

// The nearest, of any number: what is finite remains so, NaN NaN.
UK_INLINE vec<float> first_part(vec<float> v) {
  const vec<float> first = head(v);
  const __mmask16 odd = _mm512_fpclass_ps_mask((__m512)(v - first), 0x99);  // infinite or NaN
  if (__builtin_expect(odd == 0, 1)) return first;
  const words kept = (words)v & 0xffff0000, quiet = v == v ? kept : kept | 0x400000;
  return (vec<float>)_mm512_mask_mov_ps((__m512)first, odd, (__m512)quiet);
}

struct Parts {
  vec<float> part[kSplit];

  UK_INLINE Parts of(vec<float> v) {
    const vec<float> first = first_part(v), rest = v - first, second = leading(rest);
    return {{first, second, rest - second}};
  }
};

// 32 numbers' parts, `apart` numbers from one to the next.
UK_INLINE void store_split(bf16* p, int64_t apart, const Parts& low, const Parts& high) {
#pragma GCC unroll 3
  for (int64_t i = 0; i < kSplit; ++i) {
    const words both = (words)low.part[i] >> 16 | ((words)high.part[i] & 0xffff0000);
    __builtin_memcpy(p + i * apart, &both, sizeof(both));
  }
}
UK_INLINE void store_split(bf16* p, int64_t apart, vec<float> low, vec<float> high) {
  store_split(p, apart, Parts::of(low), Parts::of(high));
}

// Up to 32 numbers' parts, as they lie in memory, and zeros' behind them.
UK_INLINE void split_some(const float* in, int64_t count, bf16* p, int64_t apart) {
  constexpr int64_t L = lanes_of<float>;
  store_split(p, apart, load_up_to(in, count), load_up_to(in + L, count - L));
}

// Rows of a matrix on the left in tiles, one part of 16 rows and 32 columns behind another.
struct SplitRows {
  bf16* data;
  int64_t stride;  // numbers in a row, with all its parts

  // Where a row's 32 columns from `column` lie; the other parts a tile apart.
  bf16* at(int64_t row, int64_t column) const {
    return data + (row - row % kEdge) * stride + row % kEdge * kDepth<bf16> +
           column * kEdge * kSplit;
  }
  [[gnu::always_inline]] void store(int64_t row, int64_t column,
                                    const vec<float> (&numbers)[2]) const {
    store_split(at(row, column), kTileSize, numbers[0], numbers[1]);
  }
};

// The same of a matrix on the right: one part of 32 rows and 32 columns, in words, behind another.
constexpr int64_t kRightPart = 2 * kTileSize;

struct SplitColumns {
  bf16* data;
  int64_t depth;  // rows

  // Where words of row i and the one 16 behind it lie, from `column`.
  bf16* at(int64_t i, int64_t column) const {
    const int64_t block = (column - column % 32) * depth + (i - i % 32) * 32;
    return data + kSplit * block + (i % 32 * 32 + column % 32) * kWord<bf16>;
  }
  [[gnu::always_inline]] void store(int64_t i, int64_t column,
                                    const vec<float> (&rows)[2]) const {
    store_split(at(i, column), kRightPart, rows[0], rows[1]);
  }
};

// in [rows, columns] as either, with zeros behind it up to whole blocks of 32.
[[maybe_unused]] void split_rows(const float* in, int64_t ldi, int64_t rows, int64_t columns,
                                 const SplitRows& out) {
  for (int64_t r = 0; r < rows; ++r)
    for (int64_t c = 0; c < columns; c += kDepth<bf16>)
      split_some(in + r * ldi + c, columns - c, out.at(r, c), kTileSize);
  for (int64_t r = rows; r % (2 * kEdge); ++r)
    for (int64_t c = 0; c < columns; c += kDepth<bf16>) out.store(r, c, {});
}

// One block of 32 rows and columns, at most, of a matrix; where there are fewer, zeros follow.
[[maybe_unused, gnu::noinline]] void split_columns(const float* in, int64_t ldi, int64_t rows,
                                                   int64_t columns, bf16* out) {
  constexpr int64_t L = lanes_of<float>;
  for (int64_t i = 0; i < kEdge; ++i, in += ldi)
#pragma GCC unroll 2
    for (int64_t c = 0; c < 2 * L; c += L, out += 2 * L)
      store_split(out, kRightPart, load_up_to(in + c, i < rows ? columns - c : 0),
                  load_up_to(in + kEdge * ldi + c, i + kEdge < rows ? columns - c : 0));
}

// in' of 32 rows and 16 columns, at most.
[[maybe_unused, gnu::noinline]] void split_turned(const float* in, int64_t ldi, int64_t rows,
                                                  int64_t columns, bf16* out) {
  constexpr int64_t L = lanes_of<float>, kDeep = kDepth<bf16>;
  alignas(64) float edge[kDeep * L], turned[L * kDeep];
  const bool whole = rows >= kDeep && columns >= L;
  for (int64_t i = 0; !whole && i < kDeep; ++i)
    uk::UK_ISA::store(edge + i * L, load_up_to(in + i * ldi, i < rows ? columns : 0));
  transpose(whole ? in : edge, whole ? ldi : L, kDeep, L, turned, kDeep);
#pragma GCC unroll 4
  for (int64_t c = 0; c < L; ++c)
    store_split(out + c * kDeep, kTileSize, load(turned + c * kDeep),
                load(turned + c * kDeep + L));
}

// All of a matrix, or of its transpose, up to whole blocks.
[[maybe_unused]] void split_columns(const float* in, int64_t ldi, int64_t rows, int64_t columns,
                                    const SplitColumns& out) {
  for (int64_t i = 0; i < rows; i += 32)
    for (int64_t c = 0; c < columns; c += 32)
      split_columns(in + i * ldi + c, ldi, rows - i, columns - c, out.at(i, c));
}
[[maybe_unused]] void split_turned(const float* in, int64_t ldi, int64_t rows, int64_t columns,
                                   const SplitRows& out) {
  for (int64_t i = 0; i < rows; i += 32)
    for (int64_t c = 0; c < round_up(columns, 32); c += 16)
      split_turned(in + i * ldi + c, ldi, rows - i, columns - c, out.at(c, i));
}

// out [16 ROWS, 32] = start + the product over n numbers, out's rows `ldo` apart.
// `meanwhile.at(i)` is called for every part of every 32 numbers, as by multiply_tiles.
template <int ROWS, class Meanwhile>
UK_INLINE void multiply_split(const SplitRows& x, int64_t row, const bf16* b, int64_t n,
                              float* out, int64_t ldo, const Start& start,
                              Meanwhile& meanwhile) {
  constexpr int64_t kBytes = kDepth<bf16> * sizeof(bf16);
  const int64_t line = ldo * sizeof(float);
  const bf16* a = x.at(row, 0);
  const int64_t lower = kEdge * x.stride;
  float* below = out + kEdge * ldo;
  start_tiles<ROWS, 2>(start);
  const auto left = [&](int64_t part) __attribute__((always_inline)) {
    _tile_loadd(4, a + part * kTileSize, kBytes);
    if constexpr (ROWS == 2) _tile_loadd(5, a + lower + part * kTileSize, kBytes);
  };
  const auto right = [&](int64_t part) __attribute__((always_inline)) {
    _tile_loadd(6, b + part * kRightPart, 2 * kBytes);
    _tile_loadd(7, b + part * kRightPart + kDepth<bf16>, 2 * kBytes);
  };
  const auto add = [&]() __attribute__((always_inline)) {
    _tile_dpbf16ps(0, 4, 6);
    _tile_dpbf16ps(1, 4, 7);
    if constexpr (ROWS == 2) {
      _tile_dpbf16ps(2, 5, 6);
      _tile_dpbf16ps(3, 5, 7);
    }
  };
  for (int64_t i = 0; i < kSplit * n; i += kSplit * kDepth<bf16>) {
    left(0), right(2), add();
    right(1), add();
    meanwhile.at(i);
    left(1), add();
    right(0), add();
    meanwhile.at(i + kDepth<bf16>);
    left(2), add();
    left(0), add();
    meanwhile.at(i + 2 * kDepth<bf16>);
    a += kSplit * kTileSize, b += kSplit * kRightPart;
  }
  _tile_stored(0, out, line);
  _tile_stored(1, out + kEdge, line);
  if constexpr (ROWS == 2) {
    _tile_stored(2, below, line);
    _tile_stored(3, below + kEdge, line);
  }
}

// The same of all rows and columns, rounded up to whole blocks of 32; and how often that calls.
template <class Meanwhile = const Nothing>
[[maybe_unused]] void product(int64_t rows, int64_t width, const SplitRows& a,
                              const SplitColumns& b, int64_t n, float* out, int64_t ldo,
                              bool accumulate, Meanwhile& meanwhile = Nothing()) {
  remember(a.data);
  for (int64_t r = 0; r < rows; r += 32)
    for (int64_t c = 0; c < width; c += 32) {
      float* sums = out + r * ldo + c;
      const Start start = {accumulate ? sums : nullptr, ldo};
      multiply_split<2>(a, r, b.at(0, c), n, sums, ldo, start, meanwhile);
    }
}

UK_INLINE int64_t calls(int64_t rows, int64_t width, int64_t n) {
  return kSplit * ((rows + 31) / 32) * ((width + 31) / 32) * ((n + 31) / 32);
}

// Infinity times one part may be NaN where the number's own product is not: such sums, begun with
// `start`, come to what first parts alone do.
UK_INLINE void repair(const SplitRows& x, int64_t row, const bf16* b, int64_t n,
                      const float* start, float* sums) {
  constexpr int64_t L = lanes_of<float>;
  vec<float> v[2] = {load(sums), load(sums + L)};
  const vec<float> both = v[0] + v[1];
  if (__builtin_expect(_mm512_fpclass_ps_mask((__m512)both, 0x81) == 0, 1)) return;
  float first[2 * L];
  __builtin_memcpy(first, start, sizeof(first));
  for (int64_t k = 0; k < n; k += kDepth<bf16>, b += kSplit * kRightPart)
    product_tile<1, 2>(x.at(row, k), 0, kWord<bf16>, b, 2 * kDepth<bf16>, kDepth<bf16>, first, 0,
                       true);
  for (int i = 0; i < 2; ++i) store(sums + i * L, v[i] == v[i] ? v[i] : load(first + i * L));
}

// Packs `count` outputs of a weight, adjacent along either axis, for the right-hand side.
[[maybe_unused]] void pack_split(const float* weight, int64_t output_stride, int64_t input_stride,
                                 int64_t inputs, int64_t count, bf16* panel) {
  constexpr int64_t L = lanes_of<float>, kInputs = kDepth<bf16>, kOutputs = 2 * kEdge;
  alignas(64) bf16 rows[kSplit][kRightPart];
  for (int64_t k = 0; k < inputs; k += kInputs, panel += kSplit * kRightPart) {
    if (input_stride == 1) {
      for (int64_t o = 0; o < kOutputs; ++o)
        split_some(weight + o * output_stride + k, o < count ? inputs - k : 0,
                   rows[0] + o * kInputs, kRightPart);
      for (int64_t part = 0; part < kSplit; ++part)
        transpose(rows[part], kEdge, kOutputs, kEdge, panel + part * kRightPart, kOutputs);
      continue;
    }
    for (int64_t i = 0; i < kEdge; ++i)
      for (int64_t o = 0; o < kOutputs; o += L) {
        const float* in = weight + (k + i) * input_stride + o;
        const float* other = in + kEdge * input_stride;
        store_split(panel + (i * kOutputs + o) * kWord<bf16>, kRightPart,
                    load_up_to(in, k + i < inputs ? count - o : 0),
                    load_up_to(other, k + i + kEdge < inputs ? count - o : 0));
      }
  }
}

}  // namespace
}  // namespace uk::UK_ISA

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

// The nearest number of bfloat16; halves go away from zero.
UK_INLINE vec<float> head(vec<float> v) { return (vec<float>)(((words)v + 0x8000) & 0xffff0000); }

// The same of any number: what is finite remains so, NaN NaN.
UK_INLINE vec<float> first_part(vec<float> v) {
  const vec<float> first = head(v);
  const __mmask16 odd = _mm512_fpclass_ps_mask((__m512)(v - first), 0x99);  // infinite or NaN
  if (__builtin_expect(odd == 0, 1)) return first;
  const words kept = (words)v & 0xffff0000, quiet = v == v ? kept : kept | 0x400000;
  return (vec<float>)_mm512_mask_mov_ps((__m512)first, odd, (__m512)quiet);
}

// 32 numbers' parts, `apart` numbers from one to the next.
UK_INLINE void store_split(bf16* p, int64_t apart, vec<float> low, vec<float> high) {
  vec<float> part[2] = {first_part(low), first_part(high)};
#pragma GCC unroll 3
  for (int64_t i = 0; i < kSplit; ++i) {
    const words both = (words)part[0] >> 16 | ((words)part[1] & 0xffff0000);
    __builtin_memcpy(p + i * apart, &both, sizeof(both));
    low -= part[0], high -= part[1];
    part[0] = i == 0 ? head(low) : low, part[1] = i == 0 ? head(high) : high;
  }
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

// out [16 ROWS, 32] (+)= the product over n numbers.  `meanwhile.at(i)` is called for every part of
// every 32 numbers, as by multiply_tiles.
template <int ROWS, class Meanwhile>
UK_INLINE void multiply_split(const SplitRows& x, int64_t row, int64_t column, const bf16* b,
                              int64_t n, float* out, bool accumulate, Meanwhile meanwhile) {
  constexpr int64_t kLine = 2 * kEdge * sizeof(float), kBytes = kDepth<bf16> * sizeof(bf16);
  const bf16* a = x.at(row, column);
  const int64_t lower = kEdge * x.stride;
  float* below = out + 2 * kEdge * kEdge;
  if (accumulate) {
    _tile_loadd(0, out, kLine);
    _tile_loadd(1, out + kEdge, kLine);
    if constexpr (ROWS == 2) {
      _tile_loadd(2, below, kLine);
      _tile_loadd(3, below + kEdge, kLine);
    }
  } else {
    _tile_zero(0);
    _tile_zero(1);
    if constexpr (ROWS == 2) {
      _tile_zero(2);
      _tile_zero(3);
    }
  }
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
    left(2), right(0), add();
    left(1), add();
    meanwhile.at(i);
    right(1), add();
    left(0), add();
    meanwhile.at(i + kDepth<bf16>);
    right(2), add();
    right(0), add();
    meanwhile.at(i + 2 * kDepth<bf16>);
    a += kSplit * kTileSize, b += kSplit * kRightPart;
  }
  _tile_stored(0, out, kLine);
  _tile_stored(1, out + kEdge, kLine);
  if constexpr (ROWS == 2) {
    _tile_stored(2, below, kLine);
    _tile_stored(3, below + kEdge, kLine);
  }
}

// Infinity times one part may be NaN where the number's own product is not: such sums come to what
// first parts alone do.
UK_INLINE void repair(const SplitRows& x, int64_t row, const bf16* b, int64_t n, float* sums) {
  constexpr int64_t L = lanes_of<float>;
  vec<float> v[2] = {load(sums), load(sums + L)};
  const vec<float> both = v[0] + v[1];
  if (__builtin_expect(_mm512_fpclass_ps_mask((__m512)both, 0x81) == 0, 1)) return;
  float first[2 * L];
  for (int64_t k = 0; k < n; k += kDepth<bf16>, b += kSplit * kRightPart)
    product_tile<1, 2>(x.at(row, k), 0, kWord<bf16>, b, 2 * kDepth<bf16>, kDepth<bf16>, first, 0,
                       k > 0);
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

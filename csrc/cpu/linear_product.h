// The products of linear layers, tile by tile; what becomes of a tile's sums is the visitor's.
#pragma once

#include "linear_operands.h"

namespace uk::UK_ISA {
namespace {

// Calls visit(row, output, sums [rows, kPanel], rows, outputs) for all of layer(x), by tiles or by a
// few rows of one.  There is room for kRoom numbers in `sums`.
#if defined(__AMX_BF16__)
constexpr int64_t kRoom = 2 * kRows * kPanel;  // one tile is visited while the next is summed

template <int ROWS, class Meanwhile>
UK_INLINE void multiply_block(const Rows<N>& x, int64_t row, const N* right, int64_t n,
                              const float* bias, float* out, Meanwhile meanwhile) {
  multiply_tiles<ROWS, 2>(x.at(row, 0), x.stride, right, kPanel * kWord<N>, n, out, kPanel,
                          {bias, 0}, meanwhile);
}

template <int ROWS, class Meanwhile>
UK_INLINE void multiply_block(const SplitRows& x, int64_t row, const N* right, int64_t n,
                              const float* bias, float* out, Meanwhile meanwhile) {
  multiply_split<ROWS>(x, row, right, n, out, kPanel, {bias, 0}, meanwhile);
}

UK_INLINE void repair(const Rows<N>&, int64_t, const N*, int64_t, const float*, float*) {}

constexpr int64_t kLine = 64 / sizeof(N);  // numbers in a line: a step multiplies kPanel of these
static_assert(kDepth<N> == kLine);

// What is left to visit of the last tile, and how many of its rows at every step of the next one.
template <class Left, class Visit>
struct Pending {
  const Left& x;
  const Visit& visit;
  int64_t inputs;
  const N* right = nullptr;
  const float* bias = nullptr;
  float* sums = nullptr;
  int64_t row = 0, output = 0, rows = 0, outputs = 0, each = 0;
  const N* ahead = nullptr;  // what to fetch to L2, so many lines at every step
  int64_t lines = 0;

  [[gnu::always_inline]] void advance(int64_t count) {
    for (int64_t r = 0; r < count; ++r) repair(x, row + r, right, inputs, bias, sums + r * kPanel);
    visit(row, output, sums, count, outputs);
    row += count, rows -= count, sums += count * kPanel;
  }
};

template <class P>
struct Meanwhile {
  P* pending;

  [[gnu::always_inline]] void at(int64_t) const {
    for (int64_t line = 0; line < pending->lines; ++line, pending->ahead += kLine)
      __builtin_prefetch(pending->ahead, 0, 2);
    if (pending->rows > 0) pending->advance(min(pending->each, pending->rows));
  }
};

// A tile's rows stay close while the panels of a group, which stay in L2, pass by; every tile fetches
// its share of the next group.  A reduction is never cut: sums that were just stored would be long
// in coming back.
template <class Left, class Visit>
UK_INLINE void multiply(const Left& x, int64_t rows, const Panels<Left>& layer, float* sums,
                        const Visit& visit) {
  constexpr int64_t kGroup = (1 << 16) / kParts<Left>;
  const int64_t n = layer.inputs, steps = n * kParts<Left> / kDepth<N>;
  const int64_t group = max(kGroup / (n * kPanel), 1) * kPanel;
  const int64_t tiles = (rows + kRows - 1) / kRows, share = (kPanel + tiles - 1) / tiles;
  Pending<Left, Visit> pending{x, visit, n};
  const Meanwhile<Pending<Left, Visit>> meanwhile{&pending};
  float* out = sums;
  remember(x.data);
  for (int64_t first = 0; first < layer.outputs; first += group)
    for (int64_t r = 0; r < rows; r += kRows)
      for (int64_t o = first; o < min(first + group, layer.outputs); o += kPanel) {
        const int64_t count = min(kRows, rows - r);
        const N* right = layer.at(o);
        const float* bias = layer.start(o);
        pending.lines = o + group < layer.outputs ? share : 0;
        pending.ahead = layer.at(o + group) + r / kRows * steps * share * kLine;
        pending.each = (pending.rows + steps - 1) / steps;
        if (count > kRows / 2)
          multiply_block<2>(x, r, right, n, bias, out, meanwhile);
        else
          multiply_block<1>(x, r, right, n, bias, out, meanwhile);
        pending.sums = out, pending.right = right, pending.bias = bias;
        pending.row = r, pending.output = o;
        pending.rows = count, pending.outputs = min(kPanel, layer.outputs - o);
        out = out == sums ? sums + kRows * kPanel : sums;
      }
  if (pending.rows > 0) pending.advance(pending.rows);
}
#else
constexpr int64_t kRoom = kRows * kPanel;

template <class Visit>
UK_INLINE void multiply(const Rows<N>& x, int64_t rows, const Panels<Rows<N>>& layer, float* sums,
                        const Visit& visit) {
  for (int64_t o = 0; o < layer.outputs; o += kPanel)
    for (int64_t r = 0; r < rows; r += kRows) {
      const int64_t count = min(kRows, rows - r);
      for (int64_t i = 0; i < count; ++i)
        __builtin_memcpy(sums + i * kPanel, layer.start(o), kPanel * sizeof(float));
      product(count, kPanel, x.at(r, 0), x.stride, kWord<N>, layer.at(o),
              kPanel * kWord<N>, layer.inputs, sums, kPanel, true);
      visit(r, o, sums, count, min(kPanel, layer.outputs - o));
    }
}
#endif

}  // namespace
}  // namespace uk::UK_ISA

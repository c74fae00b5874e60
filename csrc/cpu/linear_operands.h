// What linear layers multiply: rows of x, as they lie or in parts, and weights in panels of outputs.
#pragma once

#include "linear.h"
#include "operand.h"
#if defined(__AMX_BF16__)
#include "split.h"
#endif

namespace uk::UK_ISA {
namespace {

using N = operand<bf16>::type;

constexpr int64_t L = lanes_of<float>;
constexpr bool kTiles = kDepth<N> > kWord<N>;
constexpr int64_t kPanel = kTiles ? 2 * L : 4 * L;   // outputs multiplied at a time
constexpr int64_t kRows = kTiles ? 32 : 24;          // and rows
constexpr int64_t kWhole = 16 * kWord<N>;            // inputs are a multiple of this
static_assert(kWhole % kDepth<N> == 0 && kPanel % kWhole == 0);

// Numbers from one row to the next: rows 4096 bytes apart share a few sets of the caches.
int64_t apart(int64_t width) {
  return width * sizeof(N) % 2048 == 0 ? width + 64 / sizeof(N) : width;
}

template <class T>
UK_INLINE void copy_row(const bf16* in, int64_t count, T* out, int64_t width) {
  if constexpr (sizeof(T) == sizeof(bf16)) {
    __builtin_memcpy(out, in, count * sizeof(bf16));
    __builtin_memset(out + count, 0, (width - count) * sizeof(bf16));
  } else {
    pack_row(in, count, out, width);
  }
}

void pack(const bf16* weight, int64_t output_stride, int64_t input_stride, int64_t inputs,
          int64_t outputs, int64_t index, void* panel) {
  const int64_t whole = round_up(inputs, kWhole), first = index * kPanel;
  const int64_t count = min(kPanel, outputs - first);
  N* rows = scratch<N>(kPanel * (whole + 64));
  if (input_stride == 1) {
    const int64_t ld = apart(whole);
    for (int64_t o = 0; o < count; ++o)
      copy_row(weight + (first + o) * output_stride, inputs, rows + o * ld, whole);
    for (int64_t o = count; o < kPanel; ++o) __builtin_memset(rows + o * ld, 0, whole * sizeof(N));
    transpose(rows, ld / kWord<N>, kPanel, whole / kWord<N>, panel, kPanel);
    return;
  }
#if defined(__AVX512BF16__)
  if (count == kPanel && inputs % kWhole == 0) {  // as they lie
    bf16* out = (bf16*)panel;
    for (int64_t i = 0; i < inputs; i += 2)
      for (int64_t c = 0; c < kPanel; c += L, out += 2 * L) {
        const bf16* row = weight + i * input_stride + first + c;
        const words low = lengthened(load_bits<half_words>(row));
        const words high = lengthened(load_bits<half_words>(row + input_stride));
        const words both = low | high << 16;
        __builtin_memcpy(out, &both, sizeof(both));
      }
    return;
  }
#endif
  N* out = kWord<N> == 1 ? (N*)panel : rows;
  for (int64_t i = 0; i < inputs; ++i)
    copy_row(weight + i * input_stride + first, count, out + i * kPanel, kPanel);
  __builtin_memset(out + inputs * kPanel, 0, (whole - inputs) * kPanel * sizeof(N));
#if defined(__AVX512BF16__)
  pair_rows(rows, whole, kPanel, (N*)panel);
#endif
}

#if defined(__AMX_BF16__)
void pack(const float* weight, int64_t output_stride, int64_t input_stride, int64_t inputs,
          int64_t outputs, int64_t index, void* panel) {
  const int64_t first = index * kPanel;
  pack_split(weight + first * output_stride, output_stride, input_stride, inputs,
             min(kPanel, outputs - first), (bf16*)panel);
}
#endif

// Rows of numbers side by side.
template <class T>
struct Rows {
  T* data;
  int64_t stride;

  T* at(int64_t row, int64_t column) const { return data + row * stride + column; }
};

// What numbers of type X are multiplied as, on the left, and in how many parts.
template <class X>
struct left_of {
  using type = Rows<N>;
};
template <class Left>
constexpr int64_t kParts = 1;
#if defined(__AMX_BF16__)
template <>
struct left_of<float> {
  using type = SplitRows;
};
template <>
constexpr int64_t kParts<SplitRows> = kSplit;
#endif

// Where such rows go.
template <class Left>
Left place(N* data, int64_t width) {
  return {data, kParts<Left> == 1 ? apart(width) : kParts<Left> * width};
}

// A layer's panels, or what lies in them of its outputs or inputs from `first`.
template <class Left>
struct Panels {
  static constexpr int64_t kParted = kPanel * kParts<Left>;

  const N* weight;
  const float* bias;        // added to what the first inputs come to
  int64_t inputs, outputs;  // zero-filled to what is multiplied, and not
  int64_t apart;            // from one panel to the next

  explicit Panels(const PackedLayer& layer)
      : weight(static_cast<const N*>(layer.weight)), bias(layer.bias),
        inputs(round_up(layer.inputs, kWhole)), outputs(layer.outputs), apart(inputs * kParted) {}

  // The zeros behind a layer's last outputs count as outputs here.
  Panels outputs_from(int64_t first, int64_t count) const {
    Panels part = *this;
    part.weight = at(first), part.bias += first;
    part.outputs = min(count, round_up(outputs - first, kPanel));
    return part;
  }
  Panels inputs_from(int64_t first, int64_t count) const {
    Panels part = *this;
    part.weight += first * kParted, part.bias = first == 0 ? bias : nullptr;
    part.inputs = min(count, inputs - first);
    return part;
  }

  const N* at(int64_t output) const { return weight + output / kPanel * apart; }
  const float* start(int64_t output) const {
    alignas(64) static constexpr float zeros[kPanel] = {};
    return bias ? bias + output : zeros;
  }
};

// Rows of x where they can be multiplied: as they lie, or in `copy`.
UK_INLINE Rows<N> left(const bf16* x, int64_t stride, int64_t rows, int64_t inputs,
                       const Rows<N>& copy) {
  const int64_t whole = round_up(inputs, kWhole);
  if constexpr (kWord<N> == 2)
    if (inputs == whole && rows % 16 == 0 && stride * sizeof(bf16) % 2048 != 0)
      return {(N*)x, stride};
  for (int64_t r = 0; r < rows; ++r) copy_row(x + r * stride, inputs, copy.at(r, 0), whole);
  return copy;
}

#if defined(__AMX_BF16__)
UK_INLINE SplitRows left(const float* x, int64_t stride, int64_t rows, int64_t inputs,
                         const SplitRows& copy) {
  for (int64_t r = 0; r < rows; ++r)
    for (int64_t k = 0; k < inputs; k += kWhole)
      split_some(x + r * stride + k, inputs - k, copy.at(r, k), kTileSize);
  return copy;
}
#endif

}  // namespace
}  // namespace uk::UK_ISA

// Linear layers of bfloat16, with AMX also of float32, and two of them with an activation between:
// what lies between the products stays in the caches.

#include "linear.h"
#include "activation.h"
#include "operand.h"
#if defined(__AMX_BF16__)
#include "split.h"
#endif

#include <type_traits>

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

// Activations between two layers that exist at once of a row: float32's parts, and the weights they
// meet, would leave L2 with all of them.
template <class Left>
constexpr int64_t kHidden = kParts<Left> == 1 ? 1 << 20 : 384;

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

struct None {
  [[gnu::always_inline]] static vec<float> value(vec<float> x) { return x; }
};

// A whole panel's numbers, side by side.
template <class Y>
UK_INLINE void store_panel(Y* y, const vec<float> (&v)[kPanel / L]) {
#pragma GCC unroll 4
  for (int64_t i = 0; i < kPanel / L; ++i) store(y + i * L, v[i]);
}
#if defined(__AVX512BF16__)
UK_INLINE void store_panel(bf16* y, const vec<float> (&v)[kPanel / L]) {
#pragma GCC unroll 2
  for (int64_t i = 0; i < kPanel / L; i += 2) {
    const __m512bh both = _mm512_cvtne2ps_pbh((__m512)v[i + 1], (__m512)v[i]);
    __builtin_memcpy(y + i * L, &both, sizeof(both));
  }
}
#endif

// What becomes of a tile of some inputs' sums: they are added to those of the inputs before.
struct Gather {
  Rows<float> gathered;
  bool first;

  [[gnu::always_inline]] void operator()(int64_t row, int64_t output, const float* sums,
                                         int64_t rows, int64_t) const {
    for (int64_t r = row; r < row + rows; ++r, sums += kPanel)
#pragma GCC unroll 4
      for (int64_t i = 0; i < kPanel; i += L) {
        float* p = gathered.at(r, output + i);
        store(p, first ? load(sums + i) : load(p) + load(sums + i));
      }
  }
};

// And of the last inputs': rows of `out` = [residual +] activation([gathered +] sums).
template <class A, class Out, class Y, class Gathered = Nothing>
struct Finish {
  const A& activation;
  Rows<const Y> residual;
  Out out;
  Gathered gathered = {};

  [[gnu::always_inline]] void operator()(int64_t row, int64_t output, const float* sums,
                                         int64_t rows, int64_t outputs) const {
    if (outputs == kPanel)
      residual.data ? whole<true>(row, output, sums, rows) : whole<false>(row, output, sums, rows);
    else if constexpr (std::is_same_v<Out, Rows<Y>>)
      part(row, output, sums, rows, outputs);
  }

 private:
  template <bool RESIDUAL>
  [[gnu::always_inline]] void whole(int64_t row, int64_t output, const float* sums,
                                    int64_t rows) const {
    for (int64_t r = row; r < row + rows; ++r, sums += kPanel) {
      vec<float> v[kPanel / L];
#pragma GCC unroll 4
      for (int64_t i = 0; i < kPanel / L; ++i) {
        v[i] = activation.value(total(r, output + i * L, sums + i * L));
        if constexpr (RESIDUAL) v[i] += load(residual.at(r, output) + i * L);
      }
      if constexpr (kParts<Out> == 1)
        store_panel(out.at(r, output), v);
      else
        out.store(r, output, v);
    }
  }

  [[gnu::always_inline]] vec<float> total(int64_t row, int64_t output, const float* sums) const {
    if constexpr (!std::is_same_v<Gathered, Nothing>)
      if (gathered.data) return load(gathered.at(row, output)) + load(sums);
    return load(sums);
  }

  [[gnu::always_inline]] void part(int64_t row, int64_t output, const float* sums, int64_t rows,
                                   int64_t outputs) const {
    for (int64_t r = row; r < row + rows; ++r, sums += kPanel)
      for (int64_t o = 0; o < outputs; o += L) {
        const int64_t count = min(L, outputs - o);
        vec<float> v = activation.value(total(r, output + o, sums + o));
        if (residual.data) v += load_some<float>(residual.at(r, output + o), count, 1);
        store_some<float>(out.at(r, output + o), v, count);
      }
  }
};

template <class A, class X, class Y>
void linear_as(const A& activation, const LinearShape& s, const PackedLayer& layer, const X* x,
               const Y* residual, Y* y) {
  using Left = typename left_of<X>::type;
  Left copy = place<Left>(nullptr, round_up(layer.inputs, kWhole));
  float* sums = scratch<float>(kRoom + round_up(s.rows, kRows) * copy.stride);
  copy.data = (N*)(sums + kRoom);
  const Left input = left(x, s.x_stride, s.rows, layer.inputs, copy);
  const Finish<A, Rows<Y>, Y> out{activation, {residual, s.residual_stride}, {y, layer.outputs}};
  multiply(input, s.rows, Panels<Left>(layer), sums, out);
}

template <class X, class Y>
void linear(const LinearShape& s, const PackedLayer& layer, const X* x, const Y* residual, Y* y) {
  const TileRegisters registers;
  if (s.activation == Activation::none) return linear_as(None(), s, layer, x, residual, y);
  with_activation<X>(s.activation == Activation::quick_gelu, [&](const auto& activation) {
    linear_as(activation, s, layer, x, residual, y);
  });
}

template <class X, class Y>
void feed_forward(const LinearShape& s, const PackedLayer& fc1, const PackedLayer& fc2,
                  const X* x, const Y* residual, Y* y) {
  using Left = typename left_of<X>::type;
  const TileRegisters registers;
  const int64_t tall = round_up(s.rows, kRows);
  const int64_t chunks = (fc1.outputs + kHidden<Left> - 1) / kHidden<Left>;
  const int64_t chunk = round_up((fc1.outputs + chunks - 1) / chunks, kPanel);
  const int64_t wide = chunks > 1 ? round_up(fc2.outputs, kPanel) : 0;
  Left hidden = place<Left>(nullptr, chunk);
  Left copy = place<Left>(nullptr, round_up(fc1.inputs, kWhole));
  float* sums = scratch<float>(kRoom + tall * (wide + hidden.stride + copy.stride));
  const Rows<float> gathered = {sums + kRoom, wide};
  hidden.data = (N*)(gathered.data + tall * wide), copy.data = hidden.data + tall * hidden.stride;
  const Left input = left(x, s.x_stride, s.rows, fc1.inputs, copy);
  const None none;
  for (int64_t h = 0; h < fc1.outputs; h += chunk) {
    with_activation<X>(s.activation == Activation::quick_gelu, [&](const auto& activation) {
      const Finish<std::decay_t<decltype(activation)>, Left, N> out{activation, {}, hidden};
      multiply(input, s.rows, Panels<Left>(fc1).outputs_from(h, chunk), sums, out);
    });
    const Panels<Left> second = Panels<Left>(fc2).inputs_from(h, chunk);
    using Gathered = std::conditional_t<(kParts<Left> > 1), Rows<float>, Nothing>;
    Finish<None, Rows<Y>, Y, Gathered> out{
        none, {residual, s.residual_stride}, {y, fc2.outputs}};
    if constexpr (std::is_same_v<Gathered, Rows<float>>) {
      if (h > 0) out.gathered = gathered;
      if (h + chunk < fc1.outputs) {
        multiply(hidden, s.rows, second, sums, Gather{gathered, h == 0});
        continue;
      }
    }
    multiply(hidden, s.rows, second, sums, out);
  }
}

template <class S>
void activation_backward(bool quick, S* z, S* dhidden, int64_t count) {
  with_activation<S>(quick, [&](const auto& activation) {
    int64_t i = 0;
    for (; i + L <= count; i += L) {
      const Curve curve = activation.both(load(z + i));
      store(dhidden + i, load(dhidden + i) * curve.slope);
      store(z + i, curve.value);
    }
    if (i == count) return;
    const Curve curve = activation.both(load_some<float>(z + i, count - i, 1));
    const vec<float> gradient = load_some<float>(dhidden + i, count - i, 1);
    store_some<float>(dhidden + i, gradient * curve.slope, count - i);
    store_some<float>(z + i, curve.value, count - i);
  });
}

}  // namespace

template <class X, class Y>
const LinearKernels<X, Y>& linear_kernels() {
  static constexpr LinearKernels<X, Y> kernels = {kPanel,       kWhole,
                                                  sizeof(N) * kParts<typename left_of<X>::type>,
                                                  kHidden<typename left_of<X>::type>,
                                                  pack,         linear,
                                                  feed_forward, activation_backward};
  return kernels;
}

template const LinearKernels<bf16, bf16>& linear_kernels();
template const LinearKernels<bf16, float>& linear_kernels();
#if defined(__AMX_BF16__)
template const LinearKernels<float, float>& linear_kernels();
#endif

}  // namespace uk::UK_ISA

// Linear layers of bfloat16, with AMX also of float32, and two of them with an activation between:
// what lies between the products stays in the caches.

#include "activation.h"
#include "linear_product.h"

#include <type_traits>

namespace uk::UK_ISA {
namespace {

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

// Activations between two layers that exist at once of a row: float32's parts, and the weights they
// meet, would leave L2 with all of them.
template <class Left>
constexpr int64_t kHidden = kParts<Left> == 1 ? 1 << 20 : 384;

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
